"""Which precision is taken is what multiplies faster here, found out without a long wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from transllm.model import compute_dtype, precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _not_measured_yet() -> Iterator[None]:
    precision._bfloat16_gains.cache_clear()
    yield
    precision._bfloat16_gains.cache_clear()


def _takes(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> list[int]:
    """A processor on which bfloat16 takes so many times as long as float32, by rows; gives the rows that were tried."""
    tried: list[int] = []

    def timed(dtype: torch.dtype, rows: int) -> float:
        tried.append(rows)
        return seconds[rows] if dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(precision, "_seconds", timed)
    return tried


@pytest.mark.parametrize(("times", "expected"), [(0.5, torch.bfloat16), (0.9, torch.float32), (2.0, torch.float32)])
def test_the_faster_one_is_taken(monkeypatch: pytest.MonkeyPatch, times: float, expected: torch.dtype) -> None:
    tried = _takes(monkeypatch, {8: 1.5, 512: times})
    assert [compute_dtype("auto", CPU) for _ in range(2)] == [expected] * 2
    assert tried == [8] * 12 + [512] * (12 if times == 0.5 else 82), "measured once, and longer where bfloat16 may only have waited"


def test_a_busy_machine_is_not_a_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but one of the products in bfloat16 wait for another program."""
    tried = {torch.bfloat16: 0, torch.float32: 0}

    def timed(dtype: torch.dtype, rows: int) -> float:
        tried[dtype] += 1
        return 1.0 if dtype == torch.float32 else 0.5 if tried[dtype] % 30 == 0 else 50.0

    monkeypatch.setattr(precision, "_seconds", timed)
    assert compute_dtype("auto", CPU) == torch.bfloat16


def test_where_bfloat16_is_emulated_no_large_product_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = _takes(monkeypatch, {8: 20.0})
    assert compute_dtype("auto", CPU) == torch.float32 and set(tried) == {8}


def test_what_is_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = _takes(monkeypatch, {})
    assert (compute_dtype("float32", CPU), compute_dtype("bfloat16", CPU)) == (torch.float32, torch.bfloat16) and not tried


def test_a_product_takes_time() -> None:
    assert 0 < precision._seconds(torch.float32, 8) < 1
