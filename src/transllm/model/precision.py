"""Which device, and which precision multiplies fastest on it: measured, not guessed from a list of processors."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Literal

import torch


def default_device() -> torch.device:
    """The accelerator that torch sees, else the processor."""
    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None:
            return accelerator
    return torch.device("cpu")


@functools.cache
def _bfloat16_gains(device_type: str) -> bool:
    if device_type != "cpu":
        return device_type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    # A processor without instructions for bfloat16 takes 20 to 500 times as long, the more the larger the product: a small one comes first.
    return all(_clearly_faster(rows, most) for rows, most in ((8, 8.0), (512, 0.8)))


_SURE, _TRIES = 5, 40
"""Products in each precision before bfloat16 is called faster, and before it is not."""


def _clearly_faster(rows: int, most: float) -> bool:
    """Whether a product in bfloat16 takes less than so many times as long as in float32.

    The shortest times of products in turn are compared. On a busy machine most products wait for other programs: five that all did once
    made a whole run train in float32, at half the speed.
    """
    best = {dtype: math.inf for dtype in (torch.bfloat16, torch.float32)}
    for tried in range(_TRIES + 1):
        for dtype in best:
            seconds = _seconds(dtype, rows)
            if tried:  # the first one pays for packing and code generation
                best[dtype] = min(best[dtype], seconds)
        if tried >= _SURE and best[torch.bfloat16] < most * best[torch.float32]:
            return True
    return False


def _seconds(dtype: torch.dtype, rows: int) -> float:
    """Of one product of a small model's size."""
    left, right = torch.ones(rows, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
    return _spent(lambda: left @ right, time.perf_counter)


def compute_dtype(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """The precision to compute in; ``auto`` takes bfloat16 where a matrix product in it is clearly faster (some 50 ms to
    measure, a second where it is not)."""
    if precision == "auto":
        return torch.bfloat16 if _bfloat16_gains(device.type) else torch.float32
    return torch.float32 if precision == "float32" else torch.bfloat16


_LARGEST, _LONG = 8192, 0.005
"""Rows of the largest product that an accelerator is measured with, and seconds after which a smaller one is large enough."""


def measure_tflops(dtype: torch.dtype, *, seconds: float = 2.0, clock: Callable[[], float] = time.perf_counter) -> float:
    """Speed of a large matrix product on the default device, in 10¹² FLOPs a second of the clock; takes ``seconds`` of it."""
    device, size = default_device(), 1024
    multiply = _product(size, dtype, device)
    while device.type != "cpu" and size < _LARGEST and _spent(multiply, clock) < _LONG:
        size *= 2
        multiply = _product(size, dtype, device)
    products, start = 0, clock()
    while (spent := clock() - start) < seconds:
        multiply()
        products += 1
    return 2 * size**3 * products / spent / 1e12


def _product(size: int, dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """What multiplies two matrices and waits for it."""
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))

    def multiply() -> None:
        (left @ right)[0, 0].item()

    multiply()  # the first product pays for packing and code generation
    return multiply


def _spent(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


@functools.cache
def matrix_flops(dtype: torch.dtype) -> float:
    """FLOPs a second of a large matrix product on the default device, measured once a process in a quarter of a second."""
    return measure_tflops(dtype, seconds=0.25) * 1e12
