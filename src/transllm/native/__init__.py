"""What training on a processor computes between its matrix products, compiled by the machine's own compiler.

torch's kernels do one operation each, and in bfloat16 widen and round every number each time: between a small model's products that
takes as long as the products. inductor's kernels are as fast as these, but what surrounds them holds Python's lock, for which the other
lanes wait; these are called without it. Without a compiler everything trains with torch's kernels.

Shapes: n rows of D numbers; T tokens, H heads, K key heads, d head size.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from transllm.native.build import NativeError, load
from transllm.native.proof import wrong

OFF = "TRANSLLM_NO_NATIVE"
"""An environment variable that, set to anything, leaves all to torch's kernels."""

_log = logging.getLogger(__name__)
_SUFFIX = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
_LARGEST_HEAD = 256  # larger ones leave no room in the cache

_N, _P, _F = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_WORK = ctypes.CFUNCTYPE(None, _N)
_Thing = TypeVar("_Thing")
_Result = TypeVar("_Result")
_ARGUMENTS: dict[str, list[Any]] = {
    "gate": [_N, _N, _N, _P, _N, _P, _N, _P],
    "gate_back": [_N, _N, _N, _P, _N, _P, _N, _P, _P, _P, _P, _N],
    "norm": [_N, _N, _N, _P, _P, _F, _P, _P, _P],
    "norm_back": [_N, _N, _N, _P, _P, _P, _P, _P],
    "weigh": [_N, _N, _N, _P, _P, _P],
    "rotate": [_N, _N, _N, _N, _P, _N, _N, _P, _P, _F, _P],
}


class _Row(ctypes.Structure):
    """``Row`` of attention.h."""

    _fields_ = [("documents", _N), ("lengths", _P), ("owns", _P), ("places", _P), ("heads", _N), ("key_heads", _N), ("size", _N),
                ("scale", _F), ("window", _N)]


class Heads(NamedTuple):
    """Numbers of query and key-value heads, and their size."""

    query: int
    key: int
    size: int


class Extent(NamedTuple):
    """Where the documents of a row lie, for ``Kernels.attention``: int64 tensors on the processor.

    Attributes:
        lengths: tokens of each document, beginnings that others share with it included.
        owns: of each document the first token that is its own.
        places: of all documents' tokens, one after the other, where in the row they lie.
        shared: whether a place is of more than one document.
    """

    lengths: Tensor
    owns: Tensor
    places: Tensor
    shared: bool


class Kernels:
    """The compiled functions, for tensors, on as many threads as torch has.

    Attributes:
        has_threads: whether they can share their work out; otherwise ``serve`` says no where torch would.
        has_attention: whether the processor has what attention needs: matrix products of bfloat16 in tiles (AMX).
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions: dict[tuple[str, torch.dtype], Any] = {}
        for dtype, suffix in _SUFFIX.items():
            for name, arguments in _ARGUMENTS.items():
                function = library[f"{name}_{suffix}"]
                function.argtypes, function.restype = arguments, None
                self._functions[name, dtype] = function
        self.has_attention, self.has_threads = bool(library.has_attention()), bool(library.has_threads()) and _openmp_is_loaded()
        self._each = library.each
        self._each.argtypes, self._each.restype = [_N, _N, _WORK], None
        self._of_rows: dict[str, Any] = {}
        for name, tensors in (("attention", 5), ("attention_back", 11)) if self.has_attention else ():
            self._of_rows[name] = library[name]
            self._of_rows[name].argtypes = [_N, ctypes.POINTER(_Row), *[_P] * tensors]

    def serve(self, *tensors: Tensor) -> bool:
        """Whether they compute with these, here and now: dense rows on a processor, of one precision that there are kernels for."""
        first = tensors[0]
        return (first.device.type == "cpu" and first.dtype in _SUFFIX and (self.has_threads or torch.get_num_threads() == 1)
                and all(one.dtype == first.dtype and one.stride(-1) == 1 for one in tensors))

    def gate(self, gate: Tensor, up: Tensor) -> Tensor:
        """``silu(gate) * up``. (..., D) -> (..., D)"""
        a, b = _rows(gate), _rows(up)
        out = torch.empty(gate.shape, dtype=gate.dtype)
        self._call("gate", a, *a.shape, a, a.stride(0), b, b.stride(0), out)
        return out

    def gate_back(self, gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same product, and the gradients of both factors: the halves of one matrix."""
        a, b, width, product = _rows(gate), _rows(up), gate.shape[-1], torch.empty(gate.shape, dtype=gate.dtype)
        both = torch.empty(len(a), 2 * width, dtype=gate.dtype)
        to_gate, to_up = both.split(width, dim=1)
        self._call("gate_back", a, *a.shape, a, a.stride(0), b, b.stride(0), gradient.contiguous(), product, to_gate, to_up, 2 * width)
        return product, to_gate.view(gate.shape), to_up.view(up.shape)

    def norm(self, x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """``weight * (x / rms(x))``, the quotient, and what x was multiplied by for it, in float32 (..., 1)."""
        x = x.contiguous()
        out, normed, inverse = torch.empty_like(x), torch.empty_like(x), torch.empty(*x.shape[:-1], 1)
        self._call("norm", x, *_rows(x).shape, x, weight_D, eps, normed, inverse, out)
        return out, normed, inverse

    def norm_back(self, gradient: Tensor, normed: Tensor, inverse: Tensor, weight_D: Tensor) -> Tensor:
        """The gradient of x."""
        gradient = gradient.contiguous()
        out = torch.empty_like(gradient)
        self._call("norm_back", gradient, *_rows(gradient).shape, gradient, normed, inverse, weight_D, out)
        return out

    def weigh(self, x: Tensor, weight_D: Tensor) -> Tensor:
        """``x * weight`` for dense x."""
        out = torch.empty_like(x)
        self._call("weigh", x, *_rows(x).shape, x, weight_D, out)
        return out

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
        """Heads (1, H, T, d) turned by angles (1, 1, T, d), or by their transpose; in memory (T, H, d)."""
        _, heads, tokens, size = x.shape
        out = torch.empty(tokens, heads, size, dtype=x.dtype)
        self._call("rotate", x, tokens, heads, size, x, x.stride(2), x.stride(1), cos, sin, -1.0 if back else 1.0, out)
        return out.transpose(0, 1).unsqueeze(0)

    def serve_attention(self, query: Tensor, size: int) -> bool:
        """Whether ``attention`` computes with this, here and now."""
        return self.has_attention and query.dtype == torch.bfloat16 and size % 32 == 0 and size <= _LARGEST_HEAD and self.serve(query)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, extent: Extent, heads: Heads, *, scale: float,
                  window: int | None) -> tuple[Tensor, Tensor]:
        """Causal attention inside each document. (T, H d), (T, K d), (T, K d), all dense -> (T, H d)

        The second tensor is for the way back: of each query the logarithm of the sum that its weights were divided by (T, H).
        """
        out, log_sums = torch.empty_like(query), torch.empty(len(query), heads.query)
        row = _row(extent, heads, scale, window)
        self._attention("attention", row, query, key, value, out, log_sums)
        return out, log_sums

    def attention_back(self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log_sums: Tensor, extent: Extent,
                       heads: Heads, *, scale: float, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of query, key and value."""
        found = [torch.empty_like(one) for one in (query, key, value)]
        sums = [torch.zeros(one.shape) for one in (key, value)] if extent.shared else []
        row = _row(extent, heads, scale, window)
        self._attention("attention_back", row, query, key, value, out, log_sums, gradient.contiguous(), *found, *(sums or (None, None)))
        for one, total in zip(found[1:], sums, strict=False):
            one.copy_(total)
        return found[0], found[1], found[2]

    def each(self, work: Callable[[_Thing], _Result], things: Sequence[_Thing]) -> list[_Result]:
        """``map``, by torch's threads: whichever is free takes the next thing.

        Inside, torch has one thread and takes no gradients. The first error ends it, and is raised.
        """
        found: dict[int, _Result] = {}
        failed: list[BaseException] = []

        def one(number: int) -> None:
            try:
                if not failed:
                    with torch.no_grad():
                        found[number] = work(things[number])
            except BaseException as error:  # Ctrl-C too: nothing is raised through C
                failed.append(error)

        self._each(torch.get_num_threads(), len(things), _WORK(one))
        if failed:
            raise failed[0]
        return [found[number] for number in range(len(things))]

    def _call(self, name: str, like: Tensor, *arguments: Tensor | float) -> None:
        numbers = (one.data_ptr() if isinstance(one, Tensor) else one for one in arguments)
        self._functions[name, like.dtype](torch.get_num_threads(), *numbers)

    def _attention(self, name: str, row: _Row, *tensors: Tensor | None) -> None:
        if self._of_rows[name](torch.get_num_threads(), ctypes.byref(row), *(None if one is None else one.data_ptr() for one in tensors)):
            raise MemoryError(f"no memory for the blocks of {name}")


def _openmp_is_loaded() -> bool:
    """Whether torch has loaded GCC's OpenMP, or one that answers to its names, for all libraries: theirs then use the same threads."""
    return os.name == "posix" and hasattr(ctypes.CDLL(None), "GOMP_parallel")


def _rows(x: Tensor) -> Tensor:
    """(..., D) -> (n, D), a view where there can be one"""
    return x.reshape(-1, x.shape[-1])


def _row(extent: Extent, heads: Heads, scale: float, window: int | None) -> _Row:
    return _Row(len(extent.lengths), *(one.data_ptr() for one in extent[:3]), *heads, scale, 2**31 - 1 if window is None else window)


def serving(*tensors: Tensor) -> Kernels | None:
    """The kernels, if they are there and compute with these tensors."""
    ready = kernels() if tensors[0].device.type == "cpu" else None
    return ready if ready and ready.serve(*tensors) else None


@functools.cache
def kernels() -> Kernels | None:
    """The kernels of this machine, compiled at the first call ever (half a second); None where there are none, which is logged once."""
    if os.environ.get(OFF):
        return None
    try:
        found = Kernels(load(Path(__file__).with_name("kernels.c")))
    except NativeError as error:
        _log.info("training with torch's own kernels: %s", error)
        return None
    if off := wrong(found):
        _log.warning("training with torch's own kernels: those that were compiled give wrong results (%s)", ", ".join(off))
        return None
    return found
