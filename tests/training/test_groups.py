"""Each kind of trained weight gets its rate and its decay, and all kinds learn in the loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from transllm.errors import TrainingError
from transllm.model import Adapted, attach
from transllm.progress import Silent
from transllm.recipe.schema import Lora, Training, TrainStage
from transllm.tokenizer import SpanTokenizer
from transllm.training import EncodedRow, Rows, batches_of, train, write_rows
from transllm.training.groups import make_optimizer, parameter_groups
from transllm.training.step import LossModule

STAGE = TrainStage(tokens=128 * 8, batch_tokens=128, micro_tokens=64, sequence_length=32, learning_rate=0.01, warmup=0.1, weight_decay=0.1)


@pytest.fixture
def adapt(make_extended: Callable[..., PreTrainedModel], tiny_spans: SpanTokenizer) -> Callable[..., Adapted]:
    def make(training: Training, kind: str = "untied", *, dtype: torch.dtype = torch.float32) -> Adapted:
        torch.manual_seed(3)
        return attach(make_extended(kind), original_size=tiny_spans.original_size, size=tiny_spans.size, training=training, dtype=dtype)

    return make


def _training(*, variant: str = "lora", b_factor: float = 1.0, **settings: Any) -> Training:
    return Training.model_validate({"lora": {"r": 4, "alpha": 8, "dropout": 0.0, "variant": variant, "b_factor": b_factor}, "log_every": 1,
                                    **settings})


def _by_name(adapted: Adapted, training: Training) -> dict[str, tuple[float, float]]:
    """(rate, decay) of each trained weight."""
    groups = parameter_groups(adapted, STAGE, training)
    found = {id(parameter): (STAGE.learning_rate * group["rate_factor"], group["weight_decay"])
             for group in groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups), "no weight is in two groups"
    return {name: found.pop(id(parameter)) for name, parameter in adapted.trainable().items()}


def test_rates_and_decays_of_an_adapter(adapt: Callable[..., Adapted]) -> None:
    training = _training(variant="dora", b_factor=16, new_rows_learning_rate=0.05, head_learning_rate=0.002)
    found = _by_name(adapt(training), training)
    wanted = {"lora_A": (0.01, 0.1), "lora_B": (0.16, 0.1), "magnitude": (0.01, 0.0), "embed_tokens.new": (0.05, 0.0),
              "lm_head.rows.new": (0.002, 0.0)}
    for part, expected in wanted.items():
        values = {found.pop(name) for name in list(found) if part in name}
        assert len(values) == 1 and values.pop() == pytest.approx(expected), part
    assert not found


def test_rates_and_decays_of_all_weights(adapt: Callable[..., Adapted]) -> None:
    training = _training(train="full", new_rows_learning_rate=0.05)
    found = _by_name(adapt(training, dtype=torch.bfloat16), training)
    wanted = {".old": (0.05, 0.0), ".new": (0.05, 0.0), "norm": (0.01, 0.0), "_proj": (0.01, 0.1)}
    for part, expected in wanted.items():
        values = {found.pop(name) for name in list(found) if part in name}
        assert len(values) == 1 and values.pop() == pytest.approx(expected), part
    assert not found


def test_the_stages_rate_is_the_default_of_all(adapt: Callable[..., Adapted]) -> None:
    training = _training()
    assert set(_by_name(adapt(training), training).values()) == {(0.01, 0.1), (0.01, 0.0)}


def test_a_rate_for_a_head_that_is_the_embedding_is_an_error(adapt: Callable[..., Adapted]) -> None:
    training = _training(head_learning_rate=0.1)
    with pytest.raises(TrainingError, match="tied"):
        make_optimizer(adapt(training, "tied"), STAGE, training)


@torch.no_grad()
def _loss(adapted: Adapted, rows: Rows) -> float:
    """Nats a label over all rows."""
    (batch,) = batches_of(rows, [range(len(rows))], device=adapted.device)
    return float(LossModule(adapted, {})(batch).whole) / batch.labels


@pytest.mark.parametrize(("settings", "dtype"), [
    ({"train": "rows", "new_rows_learning_rate": 0.2}, torch.float32), ({"variant": "rslora"}, torch.float32),
    ({"variant": "dora", "b_factor": 4}, torch.bfloat16), ({"train": "full"}, torch.float32), ({"train": "full"}, torch.bfloat16)])
def test_all_kinds_learn_in_the_loop(adapt: Callable[..., Adapted], tiny_spans: SpanTokenizer, tmp_path: Path, settings: dict[str, Any],
                                     dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)
    made = []
    for number in range(40):
        ids = torch.randint(0, 20, (16,), generator=draw)
        ids[3::5] = tiny_spans.original_size + number % (tiny_spans.size - tiny_spans.original_size)
        made.append(EncodedRow(ids.tolist(), [False, *[True] * 15], 40))
    training = _training(**settings)
    adapted = adapt(training, "tied", dtype=dtype)
    adapted.quicken()
    before = {name: parameter.detach().clone() for name, parameter in adapted.peft.named_parameters()}
    rows = write_rows(made, tmp_path)
    loss = _loss(adapted, rows)
    train(adapted, rows, stage=STAGE, training=training, folder=tmp_path, seed=1, progress=Silent(), label="test")
    changed = {name for name, parameter in adapted.peft.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(adapted.trainable())
    assert _loss(adapted, rows) < loss - 0.1


def test_lora_keys_say_what_they_may_be() -> None:
    with pytest.raises(ValueError, match="rslora"):
        Lora.model_validate({"variant": "loha"})
    with pytest.raises(ValueError, match="4 bits"):
        Training.model_validate({"train": "full", "quantize": "nf4"})
