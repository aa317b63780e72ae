"""Bins side by side: in order, with errors, with the cores shared out, and only where nothing is drawn at random."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from transllm import lanes as module
from transllm.lanes import lanes
from transllm.model.lora import use_our_layer
from transllm.training.step import lanes_for


def test_results_are_in_order_and_calls_side_by_side() -> None:
    together = threading.Barrier(2, timeout=20)

    def call(number: int) -> int:
        together.wait()  # two calls must be under way at once
        return number * number

    with lanes(2) as run:
        assert list(run(call, [1, 2, 3, 4])) == [1, 4, 9, 16]


def test_one_lane_is_the_caller_itself() -> None:
    with lanes(1) as run:
        assert list(run(lambda _: threading.current_thread(), [0, 1])) == [threading.current_thread()] * 2


def test_an_error_comes_out_and_the_threads_are_given_back() -> None:
    before, threads = torch.get_num_threads(), threading.active_count()
    with pytest.raises(ZeroDivisionError), lanes(2) as run:
        list(run(lambda number: 1 // number, [1, 0]))
    assert (torch.get_num_threads(), threading.active_count()) == (before, threads)


def test_cores_are_shared_out() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with lanes(2) as run:
            assert list(run(lambda _: torch.get_num_threads(), [0, 1])) == [2, 2]
        assert torch.get_num_threads() == 4
        assert lanes_for(nn.Linear(2, 2), bins=3) == 3
        assert lanes_for(nn.Linear(2, 2), bins=9) == 4
        assert lanes_for(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), bins=9) == 1
        assert lanes_for(nn.Linear(2, 2, device="meta"), bins=9) == 1
        layers = get_peft_model(nn.Sequential(nn.Linear(2, 2)), use_our_layer(  # type: ignore[arg-type]
            LoraConfig(r=1, lora_dropout=0.1, target_modules=["0"])))
        assert lanes_for(layers, bins=9) == 4, "our layers draw for each bin by itself"
    finally:
        torch.set_num_threads(before)


def test_lanes_change_cores_and_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that all come forward alike on cores that are not; a lane that has ended keeps nobody from being let go."""
    over = threading.Event()
    calls: list[tuple[int, set[int]]] = []

    def move(lane: int, cores: Iterable[int]) -> None:
        calls.append((lane, set(cores)))
        if len(calls) == 12:
            over.set()
        if lane == 12 and len(calls) > 8:
            raise ProcessLookupError("no such thread")

    monkeypatch.setattr(module, "_STAY", 0.001)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    monkeypatch.setattr(module.os, "sched_setaffinity", move, raising=False)
    module._change_cores([11, 12], over)
    everywhere = {3, 5}
    first, second = ([(11, {one}), (12, {other}), (11, everywhere), (12, everywhere)] for one, other in ((5, 3), (3, 5)))
    assert calls == [*first, *second, *first]


def test_lanes_stay_where_there_are_more_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(module, "_STAY", 0.001)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: {1, 2, 3}, raising=False)
    monkeypatch.setattr(module.os, "sched_setaffinity", lambda *_: pytest.fail("a lane was moved"), raising=False)
    threading.Timer(0.05, over.set).start()
    module._change_cores([11, 12], over)
