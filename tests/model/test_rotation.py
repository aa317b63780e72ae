"""Our rotation of queries and keys: the family's values and gradients, in fewer passes; without gradients the family's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from transllm.model import Adapted, Documents
from transllm.model.rotation import _same, _wrapped, use_our_rotation

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3", "granite", "smollm3"]


def _module(family: str) -> ModuleType:
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


@pytest.fixture(autouse=True)
def _own_functions() -> Iterator[None]:
    """Each family's own function, before and after a test."""
    modules = [_module(family) for family in [*FAMILIES, "cohere"]]
    for module in modules:
        module.apply_rotary_pos_emb = getattr(module.apply_rotary_pos_emb, "_transllm_own", module.apply_rotary_pos_emb)
    owns = [module.apply_rotary_pos_emb for module in modules]
    yield
    for module, own in zip(modules, owns, strict=True):
        module.apply_rotary_pos_emb = own


def _inputs(dtype: torch.dtype, *, size: int = 16, turned: int = 16) -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, 7, heads, size, generator=draw).to(dtype).transpose(1, 2).requires_grad_() for heads in (4, 2))
    angles = torch.rand(1, 7, turned // 2, generator=draw) * 6
    return [q, k, *(torch.cat([part, part], -1).to(dtype) for part in (angles.cos(), angles.sin()))]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_values_and_gradients(family: str) -> None:
    own: Callable[..., tuple[Tensor, Tensor]] = _module(family).apply_rotary_pos_emb
    assert _same(own)
    for dtype, close in ((torch.float64, {"rtol": 1e-12, "atol": 1e-12}), (torch.bfloat16, {"rtol": 0.02, "atol": 0.03})):
        found = []
        for rotate in (own, _wrapped(own)):
            q, k, cos, sin = _inputs(dtype)
            turned = rotate(q, k, cos, sin)
            gradients = torch.autograd.grad([*turned], [q, k], [turned[0].detach() * 0.5, turned[1].detach() + 1])
            found.append([*turned, *gradients])
        for theirs, ours in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, **close)


def test_a_family_that_pairs_neighbours_keeps_its_own() -> None:
    own = _module("cohere").apply_rotary_pos_emb
    assert not _same(own)


def test_where_a_part_of_a_head_is_turned_the_familys_own_is_called() -> None:
    own = _module("phi3").apply_rotary_pos_emb
    inputs = _inputs(torch.float64, turned=8)
    for theirs, ours in zip(own(*inputs), _wrapped(own)(*inputs), strict=True):
        assert torch.equal(ours, theirs)


def test_a_model_takes_it_while_gradients_are_taken(adapt: Callable[..., Adapted], monkeypatch: pytest.MonkeyPatch) -> None:
    ids, documents = torch.arange(40).unsqueeze(0) * 7 % 300, Documents([25, 15])
    before, adapted = adapt("tied"), adapt("tied")
    expected = before.hidden(ids, documents)
    found = adapted.quicken()
    assert found["fast_rotation"] is True and use_our_rotation(adapted.base)
    calls: list[bool] = []
    from transllm.model import rotation

    turned = rotation._turned
    monkeypatch.setattr(rotation, "_turned", lambda *args, back: (calls.append(back), turned(*args, back=back))[1])
    hidden = adapted.hidden(ids, documents)
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)
    hidden.sum().backward()
    assert calls == [False] * 4 + [True] * 4, "queries and keys of two layers"
    with torch.no_grad():
        adapted.hidden(ids, documents)
    assert len(calls) == 8


def test_a_model_without_rotation_has_none() -> None:
    assert use_our_rotation(nn.Linear(2, 2)) is False
