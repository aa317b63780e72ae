"""The chunked divergences are the plain ones, in values and in gradients, and never hold all logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PreTrainedConfig

from transllm.model.rows import SplitEmbedding, SplitHead
from transllm.training import loss, summed_cross_entropy, summed_kl
from transllm.training.loss import Divergence, divergence_kernel, final_logits

OLD, NEW, D, T = 23, 6, 8, 40
KINDS: list[Divergence] = ["forward", "reverse", "mixed"]
FINISHES = [{}, {"final_logit_softcapping": 2.0}, {"logit_scale": 0.5}]


def _case(*, train_old: bool = False, dtype: torch.dtype = torch.float64,
          new: int = NEW) -> tuple[Tensor, Tensor, Tensor, SplitHead, nn.Linear]:
    draw = torch.Generator().manual_seed(1)
    student = torch.randn(T, D, generator=draw, dtype=dtype)
    teacher = student + 0.5 * torch.randn(T, D, generator=draw, dtype=dtype)
    places = torch.rand(T, generator=draw) < 0.7
    matrix = torch.randn(OLD + NEW, D, generator=draw)
    head = SplitHead(SplitEmbedding(matrix[:OLD], matrix[OLD: OLD + new], train_old=train_old))
    # Trained rows are float32; here they are as exact as the plain loss that they are held against.
    head.rows.old.data, head.rows.new.data = head.rows.old.data.to(dtype), head.rows.new.data.to(dtype)
    teacher_head = nn.Linear(D, OLD, bias=False, dtype=dtype).requires_grad_(False)
    teacher_head.weight.copy_(matrix[:OLD])
    return student, teacher, places, head, teacher_head


def _plain(kind: Divergence, student_NV: Tensor, teacher_NV: Tensor, temperature: float, share: float) -> Tensor:
    """By the definition, on all logits at once."""
    q, p = (F.softmax(logits / temperature, -1) for logits in (student_NV, teacher_NV))
    m = share * p + (1 - share) * q

    def kl(left: Tensor, right: Tensor) -> Tensor:
        return (left * (left / right).log()).sum()

    found = {"forward": lambda: kl(p, q), "reverse": lambda: kl(q, p), "mixed": lambda: share * kl(p, m) + (1 - share) * kl(q, m)}[kind]()
    return found * temperature**2


def _strayed(logits_NV: Tensor) -> Tensor:
    """What is said beside the original's vocabulary, by the definition."""
    return -F.softmax(logits_NV, -1)[:, :OLD].sum(-1).log().sum()


@pytest.mark.parametrize("chunk", [7, 256])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("settings", FINISHES)
@pytest.mark.parametrize("train_old", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_in_float64(monkeypatch: pytest.MonkeyPatch, kind: Divergence, train_old: bool, settings: dict[str, float],
                                         temperature: float, chunk: int) -> None:
    monkeypatch.setattr(loss, "CHUNK", chunk)
    monkeypatch.setattr(loss, "_CACHED_ROWS", 3)
    student, teacher, places, head, teacher_head = _case(train_old=train_old)
    finish = final_logits(PreTrainedConfig(**settings))
    leaves = [student.clone().requires_grad_(), head.rows.old.detach().clone().requires_grad_(),
              head.rows.new.detach().clone().requires_grad_()]
    logits = finish(leaves[0] @ torch.cat(leaves[1:]).T)[places]
    expected = _plain(kind, logits[:, :OLD], finish(teacher_head(teacher))[places], temperature, 0.3) + _strayed(logits)
    wanted = torch.autograd.grad(expected * 0.25, leaves)

    ours = student.clone().requires_grad_()
    total = summed_kl(ours[places], teacher[places], head=head, finish=finish, teacher_head=teacher_head if train_old else None,
                      kernel=divergence_kernel(kind, temperature=temperature, share=0.3))
    (total * 0.25).backward()
    assert expected.item() > 0.1 and ours.grad is not None
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.grad, wanted[0], rtol=1e-10, atol=1e-12)
    assert not ours.grad[~places].any()
    torch.testing.assert_close(head.rows.new.grad, wanted[2], rtol=1e-10, atol=1e-12)
    assert (head.rows.old.grad is not None) is train_old
    if head.rows.old.grad is not None:
        torch.testing.assert_close(head.rows.old.grad, wanted[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_model_differs_by_nothing(kind: Divergence, dtype: torch.dtype) -> None:
    student, _, places, head, _ = _case(dtype=dtype, new=0)
    ours = student.requires_grad_()
    total = summed_kl(ours[places], student.detach()[places], head=head, finish=lambda logits: logits, kernel=divergence_kernel(kind))
    total.backward()
    assert ours.grad is not None
    assert abs(total.item()) < 1e-5 and ours.grad.abs().max().item() < 1e-6
    assert total.dtype == torch.float32 and ours.grad.dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_off_by_the_rounding_of_its_logits(kind: Divergence) -> None:
    student, teacher, places, head, _ = _case(dtype=torch.bfloat16, new=0)
    logits = [hidden.double() @ head.rows.old.double().T for hidden in (student, teacher)]
    expected = _plain(kind, *(one[places] for one in logits), 1.0, 0.5)
    # A divergence moves by at most the logits' rounding (2**-9 of the largest, both models) times the difference of the distributions.
    bound = 2 * 2**-8 * max(float(one.abs().max()) for one in logits) * int(places.sum())
    ours = student.requires_grad_()
    total = summed_kl(ours[places], teacher[places], head=head, finish=lambda one: one, kernel=divergence_kernel(kind))
    total.backward()
    assert abs(total.item() - expected.item()) < bound < 0.5 * expected.item() * (4 if kind == "mixed" else 1)
    exact = student.detach().double().requires_grad_()
    _plain(kind, (exact @ head.rows.old.double().T)[places], logits[1][places].detach(), 1.0, 0.5).backward()
    assert ours.grad is not None and exact.grad is not None
    assert F.cosine_similarity(ours.grad.double().flatten(), exact.grad.flatten(), 0) > 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_stay_finite(kind: Divergence) -> None:
    student, teacher, places, head, _ = _case(dtype=torch.float32)
    with torch.no_grad():
        strayed = _strayed(100 * student[places] @ head.rows.weight.T)
    ours = (100 * student).requires_grad_()
    total = summed_kl(ours[places], -100 * teacher[places], head=head, finish=lambda logits: logits, kernel=divergence_kernel(kind))
    total.backward()
    assert ours.grad is not None and total.isfinite() and ours.grad.isfinite().all()
    if kind == "mixed":
        assert total.item() <= int(places.sum()) * 0.6932 + strayed.item() * 1.001


@pytest.mark.parametrize("kind", KINDS)
def test_no_place_is_zero_and_no_gradient_is_asked_for_in_evaluation(kind: Divergence) -> None:
    student, teacher, places, head, _ = _case()
    ours = student.clone().requires_grad_()
    total = summed_kl(ours[:0], teacher[:0], head=head, finish=lambda logits: logits, kernel=divergence_kernel(kind))
    total.backward()
    assert total == 0 and ours.grad is not None and not ours.grad.any()
    with torch.no_grad():
        read = summed_kl(ours[places], teacher[places], head=head, finish=lambda logits: logits, kernel=divergence_kernel(kind))
    assert not read.requires_grad and read > 0


def test_what_cannot_be_meant_is_an_error() -> None:
    student, teacher, _, head, _ = _case(train_old=True)
    for settings in ({"kind": "both"}, {"temperature": 0.0}, {"kind": "mixed", "share": 1.0}):
        with pytest.raises(ValueError, match="no divergence"):
            divergence_kernel(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="teacher_head"):
        summed_kl(student, teacher, head=head, finish=lambda logits: logits, kernel=divergence_kernel())


class _Largest(TorchDispatchMode):
    """The most numbers that any one tensor held."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(tensor.numel() for tensor in tree_iter(made) if isinstance(tensor, Tensor))])
        return made


@pytest.mark.parametrize("kind", [*KINDS, "cross entropy"])
def test_no_tensor_is_larger_than_a_chunk(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    monkeypatch.setattr(loss, "CHUNK", 32)
    places, width, columns = 400, 8, 300
    matrix = torch.randn(columns, width)
    head = SplitHead(SplitEmbedding(matrix[:250], matrix[250:]))
    hidden, teacher = torch.randn(places, width).requires_grad_(), torch.randn(places, width)
    run: Callable[[], Tensor]
    if kind == "cross entropy":
        labels = torch.randint(0, columns, (places,))
        run = lambda: summed_cross_entropy(hidden, labels, head=head, finish=torch.tanh)  # noqa: E731
    else:
        run = lambda: summed_kl(hidden, teacher, head=head, finish=torch.tanh, kernel=divergence_kernel(kind))  # noqa: E731
    with _Largest() as watch:
        run().backward()
    assert hidden.grad is not None and hidden.grad.all()
    assert watch.numbers <= 32 * columns < places * 250, "a chunk's logits are the largest tensor"
