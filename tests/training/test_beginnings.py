"""Rows of a bin that begin alike: each token once, and what is learned is the same to the last place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transllm.model import Adapted
from transllm.progress import Silent
from transllm.recipe.schema import Logits, Training, TrainStage
from transllm.tokenizer import SpanTokenizer
from transllm.training import IGNORE, ByOriginal, Drawn, EncodedRow, Recovery
from transllm.training.beginnings import LEAST, shared_beginnings
from transllm.training.guards import Guards, batch_of
from transllm.training.mirror import hear
from transllm.training.packing import packed
from transllm.training.rows import DRAWS, write_rows
from transllm.training.schedule import plan_steps
from transllm.training.step import LossModule, Share, gradients

CPU = torch.device("cpu")
SYSTEM, QUESTION = 20, 10


@pytest.fixture(scope="module")
def conversations(tiny_spans: SpanTokenizer) -> list[EncodedRow]:
    """Two rows of each of three questions, all under one system prompt, and a document that is learned from its first token on."""
    draw, made = np.random.RandomState(1), []
    system = draw.randint(4, 60, SYSTEM)
    questions = [draw.randint(4, 60, QUESTION) for _ in range(3)]
    for number in range(6):
        answer = [tiny_spans.markers.response, *draw.randint(4, 60, 5 + number)]
        prompt = [*system, *questions[number % 3]]
        said = ByOriginal([*prompt, *answer[1:]], len(prompt) + 1, len(answer) - 1, 4)
        drawn = Drawn(len(prompt) + 2, draw.randint(4, 60, (2, DRAWS)).astype(np.int32))
        made.append(EncodedRow([*map(int, prompt), *map(int, answer)], [False] * len(prompt) + [True] * len(answer), 9,
                               said if number in (1, 4) else None, drawn if number == 2 else None))
    made.append(EncodedRow([*map(int, system), tiny_spans.original_size], [False] + [True] * SYSTEM, 9))
    return made


def test_a_row_shares_with_the_one_that_begins_most_alike(conversations: list[EncodedRow]) -> None:
    batch = packed(conversations, device=CPU)
    assert batch.documents.lengths == [len(row.ids) for row in conversations]
    # The system prompt once for three questions, each question once for two rows, but for its last token, at which the marker is foretold.
    # The document learns from its first token on.
    assert batch.shared == 2 * SYSTEM + 3 * (SYSTEM + QUESTION - 1)
    assert batch.ids_1T.shape[1] == sum(len(row.ids) for row in conversations) - batch.shared
    assert batch.ids_1T[0, batch.documents.places_W].tolist() == [token for row in conversations for token in row.ids]


@given(st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=40), st.integers(0, 40)), min_size=1, max_size=8))
def test_what_is_shared_is_alike_and_may_be(drawn: list[tuple[list[int], int]]) -> None:
    rows, most = [np.array(ids, dtype=np.int32) for ids, _ in drawn], [min(limit, len(ids) - 1) for ids, limit in drawn]
    seen = set[int]()
    found = shared_beginnings(rows, most)
    sharing = {one.document for one in found}
    for one in found:
        assert LEAST <= one.tokens <= most[one.document]
        assert np.array_equal(rows[one.document][: one.tokens], rows[one.of][: one.tokens])
        assert one.of not in sharing or one.of in seen, "what it shares with comes first"
        seen.add(one.document)
    assert len(seen) == len(sharing)


@pytest.mark.parametrize("by", ["text", "logits", "both"])
def test_loss_and_gradients_are_those_of_rows_that_share_nothing(moved: Adapted, conversations: list[EncodedRow], by: str) -> None:
    module = LossModule(moved, {conversations[0].ids[SYSTEM + QUESTION]: 3.0}, Logits(), soft_weight=2.0)
    module.train()
    alone = [packed([row], device=CPU, by=by) for row in conversations]
    together = packed(conversations, device=CPU, by=by)
    assert (together.labels, together.learned, together.n_bytes) == tuple(
        sum(getattr(batch, name) for batch in alone) for name in ("labels", "learned", "n_bytes"))
    assert sorted(together.labels_T[together.labels_T != IGNORE].tolist()) == sorted(
        label for batch in alone for label in batch.labels_T.tolist() if label != IGNORE)
    found = []
    for batches in ([together], alone):
        for parameter in moved.trainable().values():
            parameter.grad = None
        done = gradients(module, [Share(batch, 0) for batch in batches], moved, run_lanes=None, clip=1e9)
        found.append((done, {name: parameter.grad for name, parameter in moved.trainable().items()}))
    (done, own), (expected, alone_gradients) = found
    assert done.shared == together.shared and expected.shared == 0
    assert done.nats == pytest.approx(expected.nats, rel=1e-5) and done.norm == pytest.approx(expected.norm, rel=1e-4)
    assert (done.divergence, done.mirrored) == (pytest.approx(expected.divergence, rel=1e-4), expected.mirrored)
    assert (expected.mirrored > 0) is (by != "text")
    for name, gradient in alone_gradients.items():
        assert gradient is not None
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()), msg=name)


def test_the_original_reads_what_it_said_to_one_system_prompt_once(moved: Adapted, conversations: list[EncodedRow]) -> None:
    together = packed(conversations, device=CPU, by="logits").mirror
    alone = [packed([row], device=CPU, by="logits").mirror for row in conversations if row.by_original]
    assert together is not None and together.ids_1T.shape[1] == sum(one.ids_1T.shape[1] for one in alone if one) - (SYSTEM + QUESTION - 1)
    (heard,) = hear(moved, [together], run_lanes=None)
    each = hear(moved, alone, run_lanes=None)
    assert heard is not None
    torch.testing.assert_close(heard, torch.cat([one for one in each if one is not None]), rtol=1e-4, atol=1e-4)


def test_a_batch_that_went_wrong_is_saved_row_by_row(moved: Adapted, conversations: list[EncodedRow], tmp_path: Path,
                                                      make_training: Callable[..., Training]) -> None:
    rows = write_rows(conversations, tmp_path / "rows")
    stage = TrainStage.model_validate({"tokens": rows.tokens, "batch_tokens": 512, "micro_tokens": 512, "sequence_length": 64})
    (bins,) = plan_steps(rows, stage, seed=1)
    batch = batch_of(rows, bins, step=1, seed=1, even=False, device=CPU, by=Recovery().by)
    assert batch.shares[0].batch.shared > 0
    guards = Guards(moved, LossModule(moved, {}), training=make_training(), folder=tmp_path, progress=Silent(), name="finetune")
    saved = json.loads(guards._save("saved.json", batch, loss="nan").read_text(encoding="utf-8"))["bins"][0]
    start = 0
    for number, length in zip(saved["rows"], saved["lengths"], strict=True):
        row = rows.row(number)
        assert saved["ids"][start: start + length] == row.ids
        assert [label for label in saved["labels"][start: start + length] if label != IGNORE] == [
            token for token, trained in zip(row.ids[1:], row.trained[1:], strict=True) if trained]
        start += length
