"""The chunked loss is the plain loss, in values and in gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CohereConfig, Gemma3Config, Gemma3TextConfig, GraniteConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from transllm.model.rows import SplitEmbedding, SplitHead
from transllm.training import IGNORE, loss, summed_cross_entropy
from transllm.training.loss import SoftLabels, final_logits

Finish = Callable[[Tensor], Tensor]
OLD, NEW, D, T = 23, 6, 8, 40
FINISHES = [{}, {"final_logit_softcapping": 2.0}, {"logit_scale": 0.5}, {"logits_scaling": 4.0}]


def _case(*, train_old: bool = False) -> tuple[Tensor, Tensor, SplitHead]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(T, D, generator=generator)
    labels = torch.randint(0, OLD + NEW, (T,), generator=generator)
    labels[torch.rand(T, generator=generator) < 0.4] = IGNORE
    matrix = torch.randn(OLD + NEW, D, generator=generator)
    return hidden, labels, SplitHead(SplitEmbedding(matrix[:OLD], matrix[OLD:], train_old=train_old))


def _plain(hidden: Tensor, labels: Tensor, head: SplitHead, finish: Finish, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss over all logits at once, and its gradients."""
    leaves = {"hidden": hidden.detach().clone().to(dtype), "old": head.rows.old.detach().clone().to(dtype),
              "new": head.rows.new.detach().clone().to(dtype)}
    for leaf in leaves.values():
        leaf.requires_grad_()
    logits = finish(leaves["hidden"] @ torch.cat([leaves["old"], leaves["new"]]).T)
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    gradients = torch.autograd.grad(total * 0.25, list(leaves.values()))
    return total, dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("settings", FINISHES)
@pytest.mark.parametrize("train_old", [False, True])
def test_values_and_gradients(monkeypatch: pytest.MonkeyPatch, train_old: bool, settings: dict[str, float], dtype: torch.dtype) -> None:
    monkeypatch.setattr(loss, "CHUNK", 7)  # several chunks, and a last one that is not full
    hidden, labels, head = _case(train_old=train_old)
    finish = final_logits(PreTrainedConfig(**settings))
    expected, gradients = _plain(hidden, labels, head, finish, dtype)
    ours = hidden.clone().requires_grad_()
    total = summed_cross_entropy(ours, labels, head=head, finish=finish)
    (total * 0.25).backward()
    torch.testing.assert_close(total.to(dtype), expected, rtol=1e-5, atol=1e-5)
    found = {"hidden": ours.grad, "new": head.rows.new.grad, "old": head.rows.old.grad}
    assert (found["old"] is not None) is train_old
    for name, gradient in found.items():
        if gradient is not None:
            torch.testing.assert_close(gradient.to(dtype), gradients[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 14])
def test_chunk_borders_in_float64(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Gradients to the last digit, wherever the last chunk ends."""
    monkeypatch.setattr(loss, "CHUNK", 7)
    hidden, labels, head = _case(train_old=True)
    labels[(labels != IGNORE).nonzero()[count:]] = IGNORE
    finish = final_logits(PreTrainedConfig(final_logit_softcapping=2.0))
    for rows in (head.rows.old, head.rows.new):
        rows.data = rows.data.double()
    expected, gradients = _plain(hidden, labels, head, finish, torch.float64)
    ours = hidden.double().requires_grad_()
    total = summed_cross_entropy(ours, labels, head=head, finish=finish)
    (total * 0.25).backward()
    torch.testing.assert_close(total, expected.nan_to_num(), rtol=1e-6, atol=0.0)
    for name, found in {"hidden": ours.grad, "new": head.rows.new.grad, "old": head.rows.old.grad}.items():
        torch.testing.assert_close(found, gradients[name], rtol=1e-10, atol=1e-12)


def test_ignored_places_have_no_gradient_and_no_loss() -> None:
    hidden, labels, head = _case()
    ours = hidden.clone().requires_grad_()
    total = summed_cross_entropy(ours, labels, head=head, finish=final_logits(PreTrainedConfig()))
    total.backward()
    ignored = labels == IGNORE
    assert ignored.any() and ours.grad is not None
    assert (ours.grad[ignored] == 0).all() and (ours.grad[~ignored] != 0).any(dim=1).all()
    hidden[ignored] = 100.0
    torch.testing.assert_close(total.detach(), summed_cross_entropy(hidden, labels, head=head, finish=final_logits(PreTrainedConfig())))


def test_heavy_labels_count_more_in_the_gradient_and_once_in_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK", 7)
    hidden, labels, head = _case()
    heavy = {int(labels[labels != IGNORE][0]): 5.0, OLD + NEW - 1: 0.5}
    leaves = hidden.clone().requires_grad_(), head.rows.new.detach().clone().requires_grad_()
    nats = F.cross_entropy(leaves[0] @ torch.cat([head.rows.old, leaves[1]]).T, labels, ignore_index=IGNORE, reduction="none")
    weights = torch.tensor([heavy.get(int(label), 1.0) for label in labels])
    assert {0.5, 1.0, 5.0} == set(weights[labels != IGNORE].tolist())
    expected = torch.autograd.grad((nats * weights).sum(), leaves)
    ours = hidden.clone().requires_grad_()
    total = summed_cross_entropy(ours, labels, head=head, finish=lambda logits: logits, heavy=heavy)
    total.backward()
    torch.testing.assert_close(total.detach(), nats.sum().detach())
    for found, wanted in zip((ours.grad, head.rows.new.grad), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drawn_tokens_pull_each_by_its_share(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """The gradient is that of the mean cross entropy of the drawn tokens, by their own weight; the sum that of the labels. Some tokens are
    drawn twice, and some places that have drawn tokens have a heavy label."""
    monkeypatch.setattr(loss, "CHUNK", 7)
    hidden, labels, head = _case()
    places = (labels != IGNORE).nonzero().squeeze(-1)[3:14]
    drawn = torch.randint(0, OLD + NEW, (len(places), 16), generator=torch.Generator().manual_seed(3))
    which = torch.full((T,), -1)
    which[places] = torch.arange(len(places))
    heavy = int(labels[places[0]])
    ours = hidden.to(dtype).requires_grad_()
    total = summed_cross_entropy(ours, labels, head=head, finish=lambda logits: logits, soft=SoftLabels(which, drawn),
                                soft_weight=3.0, heavy={heavy: 5.0})
    total.backward()
    leaf, new = ours.detach().float().requires_grad_(), head.rows.new.detach().clone().requires_grad_()
    logits = leaf @ torch.cat([head.rows.old.detach(), new]).T
    hard = labels.clone()
    hard[places] = IGNORE
    weight = torch.ones(OLD + NEW)
    weight[heavy] = 5
    wanted = F.cross_entropy(logits, hard, weight=weight, ignore_index=IGNORE, reduction="sum")
    wanted = wanted - 3 * logits[places].log_softmax(-1).gather(1, drawn).mean(1).sum()
    wanted.backward()
    rough = {"rtol": 0.05, "atol": 0.3} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    assert ours.grad is not None and leaf.grad is not None and head.rows.new.grad is not None and new.grad is not None
    torch.testing.assert_close(ours.grad.float(), leaf.grad, **rough)
    torch.testing.assert_close(head.rows.new.grad, new.grad, **rough)
    sure = F.cross_entropy(logits.detach(), labels, ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(total.detach(), sure, rtol=0.02 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)


def test_nothing_to_learn_is_zero() -> None:
    hidden, labels, head = _case()
    ours = hidden.requires_grad_()
    total = summed_cross_entropy(ours, torch.full_like(labels, IGNORE), head=head, finish=final_logits(PreTrainedConfig()))
    total.backward()
    assert total == 0 and ours.grad is not None and not ours.grad.any()


def test_bfloat16_hidden_states_give_float32_sums_and_row_gradients() -> None:
    hidden, labels, head = _case()
    expected, _ = _plain(hidden.bfloat16().float(), labels, head, lambda logits: logits, torch.float32)
    ours = hidden.bfloat16().requires_grad_()
    total = summed_cross_entropy(ours, labels, head=head, finish=lambda logits: logits)
    total.backward()
    assert total.dtype == torch.float32 and ours.grad is not None and ours.grad.dtype == torch.bfloat16
    assert head.rows.new.grad is not None and head.rows.new.grad.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=0.01, atol=0.0)


def test_no_gradient_is_asked_for_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, labels, head = _case()
    asked: list[bool] = []
    exact = loss._softmax_loss
    monkeypatch.setattr(loss, "_softmax_loss",
                        lambda *args, gradient, **more: (asked.append(gradient is not None), exact(*args, gradient=gradient, **more))[1])
    with torch.no_grad():
        total = summed_cross_entropy(hidden, labels, head=head, finish=lambda logits: logits)
    assert not total.requires_grad and asked and not any(asked)
    torch.testing.assert_close(total, _plain(hidden, labels, head, lambda logits: logits, torch.float32)[0].detach())


def _family(kind: str, make_chat_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    shape: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
                             "num_key_value_heads": 2, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 0, "initializer_range": 0.3}
    if kind == "cohere":
        return AutoModelForCausalLM.from_config(CohereConfig(logit_scale=0.25, **shape)).eval()
    if kind == "granite":
        return AutoModelForCausalLM.from_config(GraniteConfig(logits_scaling=8.0, **shape)).eval()
    return make_chat_model(kind)


@pytest.mark.parametrize("kind", ["tied", "gemma2", "cohere", "granite"])
def test_final_logits_are_the_familys(make_chat_model: Callable[..., PreTrainedModel], kind: str) -> None:
    model, ids = _family(kind, make_chat_model), torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=ids).last_hidden_state
        raw = model.get_output_embeddings()(hidden)
        torch.testing.assert_close(final_logits(model.config)(raw), model(input_ids=ids).logits)
        assert torch.equal(raw, final_logits(model.config)(raw)) is (kind == "tied")


def test_a_model_of_texts_and_images_says_it_one_level_down() -> None:
    finish = final_logits(Gemma3Config(text_config=Gemma3TextConfig(final_logit_softcapping=2.0)))
    assert float(finish(torch.tensor(1e6))) == 2.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("columns", [29, 50_003])
def test_a_softmax_written_over_its_logits_is_the_same(dtype: torch.dtype, columns: int) -> None:
    """To the last bit, whatever of a row fits into vector registers."""
    draw = torch.Generator().manual_seed(2)
    logits, labels = torch.randn(35, columns, generator=draw).mul_(3).to(dtype), torch.randint(0, columns, (35,), generator=draw)
    apart = torch.empty_like(logits)
    nats = loss._softmax_loss(logits.clone(), labels, gradient=apart)
    assert torch.equal(loss._softmax_loss(logits, labels, gradient=logits), nats) and torch.equal(logits, apart)


@pytest.mark.parametrize(("settings", "blocks"), [({}, 1), ({"final_logit_softcapping": 2.0}, 2)])
def test_chunks_share_one_memory(monkeypatch: pytest.MonkeyPatch, settings: dict[str, float], blocks: int) -> None:
    """All logits, and on a processor their gradients too, unless what follows the head reads them once more."""
    monkeypatch.setattr(loss, "CHUNK", 7)
    hidden, labels, head = _case()
    measured, places, exact = [], set[int](), loss._softmax_loss

    def seen(logits: Tensor, *args: Any, gradient: Tensor | None, **more: Any) -> Tensor:
        assert gradient is not None
        measured.append((logits, gradient))  # held, so that no other takes their place
        places.update(tensor.untyped_storage().data_ptr() for tensor in measured[-1])
        return exact(logits, *args, gradient=gradient, **more)

    monkeypatch.setattr(loss, "_softmax_loss", seen)
    summed_cross_entropy(hidden.requires_grad_(), labels, head=head, finish=final_logits(PreTrainedConfig(**settings)))
    assert len(measured) == 4 and len(places) == (1 if blocks == 1 else 2 * len(measured))
