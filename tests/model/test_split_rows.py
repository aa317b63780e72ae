"""Split rows look up and project as one matrix does, and train in float32."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from transllm.model.rows import _MANY, _PANEL, _SHARE, SplitEmbedding, SplitHead
from transllm.native import kernels

OLD, NEW, D = 11, 4, 6


def _matrix() -> torch.Tensor:
    return torch.randn(OLD + NEW, D, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("train_old", [False, True])
def test_it_is_one_matrix(train_old: bool) -> None:
    matrix = _matrix()
    rows = SplitEmbedding(matrix[:OLD], matrix[OLD:], train_old=train_old)
    head = SplitHead(rows)
    ids = torch.tensor([[0, OLD - 1, OLD, OLD + NEW - 1, 3, 3]])
    assert torch.equal(rows(ids), F.embedding(ids, matrix))
    assert torch.equal(rows.weight, matrix) and torch.equal(head.weight, matrix)
    hidden = torch.randn(2, 3, D)
    torch.testing.assert_close(head(hidden), hidden @ matrix.T)
    assert rows.old.requires_grad is train_old and rows.new.requires_grad


def test_gradients_reach_the_right_rows() -> None:
    matrix = _matrix().requires_grad_()
    rows = SplitEmbedding(matrix[:OLD], matrix[OLD:], train_old=True)
    ids = torch.tensor([1, OLD, OLD + 2, 1, 5])
    weights = torch.randn(len(ids), D, generator=torch.Generator().manual_seed(2))
    (rows(ids) * weights).sum().backward()
    (F.embedding(ids, matrix) * weights).sum().backward()
    torch.testing.assert_close(torch.cat([rows.old.grad, rows.new.grad]), matrix.grad)


@pytest.mark.parametrize("old", [_PANEL - 1, _PANEL, 2 * _PANEL + 7])
def test_a_large_vocabulary_is_projected_in_panels(old: int) -> None:
    draw = torch.Generator().manual_seed(3)
    matrix, hidden, weights = (torch.randn(*shape, generator=draw) for shape in ((old + 3, D), (5, D), (5, old + 3)))
    rows = SplitEmbedding(matrix[:old], matrix[old:], train_old=True)
    hidden.requires_grad_()
    found = SplitHead(rows)(hidden)
    torch.testing.assert_close(found, F.linear(hidden, matrix))
    (found * weights).sum().backward()
    torch.testing.assert_close(hidden.grad, weights @ matrix)
    torch.testing.assert_close(torch.cat([rows.old.grad, rows.new.grad]), weights.T @ hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cores_take_panels(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """With several cores each projects some columns; what is summed over all of them is rounded once."""
    ready = kernels()
    if ready is None or not ready.has_threads:
        pytest.skip("no kernels were compiled with GCC here, so torch shares products out among its threads")
    old, counts, each = 2 * _SHARE + 11, list[int](), ready.each
    monkeypatch.setattr(ready, "each", lambda work, panels: counts.append(len(panels)) or each(work, panels))
    draw = torch.Generator().manual_seed(4)
    matrix, hidden, weights = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((old + 3, 32), (_MANY, 32), (_MANY, old + 3)))
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 2):
            torch.set_num_threads(number)
            one = hidden.clone().requires_grad_()
            logits = SplitHead(SplitEmbedding(matrix[:old], matrix[old:]))(one)
            found.append((logits.detach(), *torch.autograd.grad(logits, one, weights)))
    finally:
        torch.set_num_threads(threads)
    panels = -(-old // _PANEL) if dtype == torch.float32 else 3
    assert counts == [panels, 3] * 2, "forward and back, with two threads"
    assert all(torch.equal(one, other) for one, other in zip(found[1], found[2], strict=True))
    exact = hidden.double() @ matrix.double().T, weights.double() @ matrix.double()
    for ours, expected in zip(found[1], exact, strict=True):
        assert (ours.double() - expected).norm() <= (1e-6 if dtype == torch.float32 else 4e-3) * expected.norm()


def test_cut_to_the_original_vocabulary() -> None:
    matrix = _matrix()
    head = SplitHead(SplitEmbedding(matrix[:OLD], matrix[OLD:]))
    hidden = torch.randn(3, D)
    head.rows.original_only = True
    assert torch.equal(head(hidden), F.linear(hidden, matrix[:OLD]))


def test_updates_smaller_than_a_step_of_bfloat16_are_not_lost() -> None:
    matrix = _matrix().bfloat16()
    rows = SplitEmbedding(matrix[:OLD], matrix[OLD:])
    assert rows.old.dtype == torch.bfloat16 and rows.new.dtype == torch.float32
    assert rows(torch.tensor([0, OLD])).dtype == torch.bfloat16
    with torch.no_grad():
        for _ in range(100):
            rows.new += rows.new.abs() * 1e-4
    assert (rows(torch.tensor([OLD])) != matrix[OLD]).all(), "a hundred small updates are one that is seen"
    assert rows.new.data_ptr() != matrix.data_ptr()


def test_a_scale_is_applied_to_embeddings_only() -> None:
    matrix = _matrix()
    rows = SplitEmbedding(matrix[:OLD], matrix[OLD:], scale=torch.tensor(2.5))
    ids = torch.tensor([0, OLD])
    assert torch.equal(rows(ids), F.embedding(ids, matrix) * 2.5)
    assert torch.equal(SplitHead(rows).weight, matrix)
    assert rows.state_dict().keys() == {"old", "new"}, "the family's scale is no weight"
