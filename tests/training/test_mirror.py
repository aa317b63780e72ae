"""Recovery by logits: the original is heard where it would speak, the gradient is that of the plain divergence, a stop changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from transllm.errors import TrainingError
from transllm.files import read_jsonl
from transllm.lanes import lanes
from transllm.model import Adapted, Documents
from transllm.progress import Silent
from transllm.recipe.schema import Logits, Training, TrainStage
from transllm.tokenizer import SpanTokenizer
from transllm.training import ByOriginal, EncodedRow, Interrupted, Recovery, Rows, batches_of, train, write_rows
from transllm.training.guards import batch_of
from transllm.training.mirror import hear
from transllm.training.own_samples import OwnSamples
from transllm.training.packing import packed
from transllm.training.schedule import plan_steps
from transllm.training.step import LossModule, gradients

PROMPT, ANSWER = 6, 9
CPU = torch.device("cpu")
STAGE = TrainStage(tokens=8 * 128, batch_tokens=128, micro_tokens=64, sequence_length=32, learning_rate=0.01, warmup=0.0)


@pytest.fixture(scope="module")
def marker(tiny_spans: SpanTokenizer) -> int:
    return tiny_spans.markers.response


@pytest.fixture(scope="module")
def rows(tiny_spans: SpanTokenizer, marker: int, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Every other row is one of the original's answers; the others are in new words."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for number in range(40):
        ids = torch.randint(4, 60, (PROMPT + 1 + ANSWER,), generator=generator)
        trained = [False] * PROMPT + [True] * (1 + ANSWER)
        if number % 2:
            ids[PROMPT] = marker
            said = ByOriginal([*ids[:PROMPT].tolist(), *ids[PROMPT + 1:].tolist()], PROMPT + 1, ANSWER, 30)
        else:
            ids[::4] = tiny_spans.original_size + number % (tiny_spans.size - tiny_spans.original_size)
        made.append(EncodedRow(ids.tolist(), trained, 30, said if number % 2 else None))
    return write_rows(made, tmp_path_factory.mktemp("mirror"))


def test_student_and_original_are_compared_at_the_same_words(rows: Rows, marker: int) -> None:
    (batch,) = batches_of(rows, [[0, 1, 2, 3]], device=CPU, by="logits")
    mirror = batch.mirror
    assert mirror is not None and marker not in mirror.ids_1T[0].tolist() and mirror.documents.lengths == [PROMPT + ANSWER] * 2
    foretold = [[ids[place + 1] for place in places] for ids, places in (
        (batch.ids_1T[0].tolist(), mirror.student_N.tolist()), (mirror.ids_1T[0].tolist(), mirror.places_N.tolist()))]
    answers = [token for row in (1, 3) for token in rows.row(row).ids[PROMPT + 1:]]
    assert foretold == [answers, answers]
    # The first word of an answer: the student foretells it at the marker, the original at the prompt's end.
    assert batch.ids_1T[0, mirror.student_N[0]] == marker
    assert mirror.places_N[0] == PROMPT - 1


def test_a_chain_goes_on_after_what_the_original_said() -> None:
    chain = EncodedRow([7, 8, 400, 7, 401, 20, 21, 402, 30, 31], [False] * 2 + [True] * 8, 9, ByOriginal([9, 7, 20, 21], 5, 2, 4))
    batch = packed([chain], device=CPU, by="logits")
    assert [label for label in batch.labels_T.tolist() if label != -100] == [400, 7, 401, 402, 30, 31]
    assert (batch.labels, batch.learned, batch.n_bytes) == (6, 8, 5)
    assert batch.mirror is not None
    assert (batch.mirror.student_N.tolist(), batch.mirror.places_N.tolist()) == ([4, 5], [1, 2])


def test_words_that_are_not_the_same_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Row 0 is not what the original said"):
        write_rows([EncodedRow([7, 8, 9], [False, True, True], 9, ByOriginal([7, 5], 2, 1, 4))], tmp_path)


@pytest.mark.parametrize("by", ["text", "logits", "both"])
def test_what_is_a_label(rows: Rows, by: str, marker: int) -> None:
    (batch,) = batches_of(rows, [[0, 1]], device=CPU, by=by)
    labels = [label for label in batch.labels_T.tolist() if label != -100]
    own, answer = rows.row(0).ids[PROMPT:], rows.row(1).ids[PROMPT + 1:]
    assert labels == [*own, marker, *([] if by == "logits" else answer)]
    assert batch.labels == len(labels)
    assert batch.n_bytes == (30 if by == "logits" else 60)
    assert batch.learned == 2 * (1 + ANSWER), "a place counts once, whatever is learned from it"
    assert (batch.mirror is None) is (by == "text")


def test_the_teacher_is_the_original_bit_for_bit(moved: Adapted, make_chat_model: Callable[..., PreTrainedModel], rows: Rows) -> None:
    (batch,) = batches_of(rows, [[1, 3]], device=CPU, by="logits")
    assert batch.mirror is not None
    moved.peft.train()
    before = {name: parameter.clone() for name, parameter in moved.trainable().items()}
    (heard,) = hear(moved, [batch.mirror], run_lanes=None)
    original = make_chat_model()
    alone = torch.cat([original.get_decoder()(input_ids=ids.unsqueeze(0)).last_hidden_state[0]
                       for ids in batch.mirror.ids_1T[0].split(batch.mirror.documents.lengths)])
    assert heard is not None
    torch.testing.assert_close(heard, alone[batch.mirror.places_N], rtol=1e-5, atol=1e-5)
    assert moved.peft.training and moved.trainable().keys() == before.keys(), "what trains still trains"
    assert hear(moved, [None], run_lanes=None) == [None]


def _logits(adapted: Adapted, ids_T: Tensor) -> Tensor:
    """All logits of one document, (T, V)."""
    return adapted.logits(ids_T.unsqueeze(0), Documents([len(ids_T)], device=CPU))[0]


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
@pytest.mark.parametrize("by", ["logits", "both"])
def test_the_step_is_that_of_the_plain_losses(moved: Adapted, rows: Rows, tiny_spans: SpanTokenizer, by: str, divergence: Any) -> None:
    members, size = [1, 0, 3], tiny_spans.original_size
    batch = batch_of(rows, [members], step=1, seed=1, even=False, device=CPU, by=by)
    how = Logits(divergence=divergence, weight=0.7)
    done = gradients(LossModule(moved, {}, how), batch.shares, moved, run_lanes=None, clip=1e9)
    found = {name: parameter.grad.clone() for name, parameter in moved.trainable().items() if parameter.grad is not None}

    total, learned = torch.zeros(()), 0
    for number in members:
        row = rows.row(number)
        ids = torch.tensor(row.ids)
        log_q = _logits(moved, ids).log_softmax(-1)
        places = torch.arange(PROMPT - 1, len(ids) - 1)
        learned += len(places)
        nats = -log_q[places, ids[places + 1]]
        if number % 2:
            with torch.no_grad(), moved.original():
                log_p = _logits(moved, torch.cat([ids[:PROMPT], ids[PROMPT + 1:]])).log_softmax(-1)[places[:-1]]
            own = log_q[places[1:], :size].log_softmax(-1)
            kl = F.kl_div(own, log_p, log_target=True, reduction="sum") if divergence == "forward" else F.kl_div(
                log_p, own, log_target=True, reduction="sum")
            kl = kl - log_q[places[1:], :size].logsumexp(-1).sum()  # what strays to new tokens
            total = total + 0.7 * kl + (nats.sum() if by == "both" else nats[0])
        else:
            total = total + nats.sum()
    expected = torch.autograd.grad(total / learned, list(moved.trainable().values()), allow_unused=True)
    for (name, _), gradient in zip(moved.trainable().items(), expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, rtol=2e-3, atol=2e-6)
    assert done.mirrored == 2 * ANSWER and done.divergence > 0
    assert done.nats + 0.7 * done.divergence == pytest.approx(float(total.detach()), rel=1e-4)


def test_lanes_give_the_same_step(adapt: Callable[..., Adapted], rows: Rows) -> None:
    steps = []
    for width in (1, 2):
        adapted = adapt()
        batch = batch_of(rows, [[1, 0, 3], [2, 5], [4, 6]], step=1, seed=1, even=False, device=CPU, by="both")
        with lanes(width) as run:
            done = gradients(LossModule(adapted, {}), batch.shares, adapted, run_lanes=run if width > 1 else None, clip=1.0)
        steps.append((done.nats, done.divergence, done.norm))
    assert steps[0] == pytest.approx(steps[1], rel=1e-5)


def _train(adapted: Adapted, rows: Rows, folder: Path, training: Training, recovery: Recovery,
           progress: Any = None) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    train(adapted, rows, stage=STAGE, training=training, folder=folder, seed=5, progress=progress or Silent(), label="test",
          recovery=recovery)
    times = {"seconds", "tokens_per_second", "matrix_share", "memory_gib"}
    return [{key: value for key, value in line.items() if key not in times} for line in read_jsonl(folder / "log.jsonl")]


def test_logits_bring_the_student_back(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                       tmp_path: Path) -> None:
    far = {}
    for by in ("text", "logits"):
        adapted = adapt()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(5)
            for parameter in adapted.trainable().values():
                parameter.add_(0.1 * torch.randn_like(parameter))
        lines = _train(adapted, rows, tmp_path / by, make_training(), Recovery(by))  # type: ignore[arg-type]
        batch = batch_of(rows, [[1, 3, 5, 7]], step=1, seed=1, even=False, device=CPU, by="logits")
        far[by] = gradients(LossModule(adapted, {}), batch.shares, adapted, run_lanes=None, clip=1.0).divergence
        assert all(("kl_to_original" in line) is (by == "logits") for line in lines if "loss" in line)
    assert far["logits"] < 0.8 * far["text"]


class _StopAfter(Silent):
    """Ctrl-C at the end of a step."""

    def __init__(self, step: int) -> None:
        self._left = step + 1

    def advance(self, n: float, note: str = "") -> None:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def task(self, label: str, total: float, unit: str) -> Iterator[_StopAfter]:
        yield self


OWN = Recovery("logits", Logits(own_samples=1.0, refresh=3), frozenset({4, 5}))


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_stop_changes_nothing_of_what_the_student_says(adapt: Callable[..., Adapted], make_training: Callable[..., Training],
                                                         rows: Rows, tmp_path: Path, stop: int) -> None:
    through = _train(adapt(), rows, tmp_path / "through", make_training(), OWN)
    with pytest.raises(Interrupted):
        _train(adapt(), rows, tmp_path / "stopped", make_training(), OWN, _StopAfter(stop))
    assert _train(adapt(), rows, tmp_path / "stopped", make_training(), OWN) == through
    files = [sorted((tmp_path / name / "own_samples").iterdir()) for name in ("through", "stopped")]
    assert [file.name for file in files[0]] == ["0000000.npz", "0000003.npz", "0000006.npz"]
    for one, other in zip(*files, strict=True):
        with np.load(one) as left, np.load(other) as right:
            assert all(np.array_equal(left[key], right[key]) for key in left)


def test_the_students_words_fill_the_same_places(moved: Adapted, rows: Rows, tmp_path: Path, tiny_spans: SpanTokenizer,
                                                 marker: int) -> None:
    plan = plan_steps(rows, STAGE, seed=1)
    own = OwnSamples(moved, rows, plan, OWN, folder=tmp_path, seed=1, digest="d")
    said = own.at(0)
    wanted = {number for bins in plan[:3] for members in bins for number in members if number % 2}
    assert said.keys() == wanted and len(wanted) > 4
    for number, row in said.items():
        old, words = rows.row(number), row.by_original
        assert len(row.ids) == len(row.trained) == len(old.ids) and words is not None
        assert list(row.ids[: PROMPT + 1]) == list(old.ids[: PROMPT + 1]) and list(words.ids[:PROMPT]) == list(old.ids[:PROMPT])
        own = list(words.ids[PROMPT:])
        assert own == [token for token, trained in zip(row.ids, row.trained, strict=True) if trained][1:]
        assert 1 <= len(own) == words.words <= ANSWER and max(own) < tiny_spans.original_size
        assert not {4, 5} & set(own[:-1]) and (len(own) == ANSWER or own[-1] in {4, 5})
    assert any(row.ids != rows.row(number).ids for number, row in said.items())
    (batch,) = batches_of(rows, [sorted(wanted)[:3]], device=CPU, by="both", rewritten=said)
    assert batch.labels == 3, "its own words are no labels, even where the original's are"
    changed = OwnSamples(moved, rows, plan, OWN, folder=tmp_path, seed=1, digest="another")
    with torch.no_grad():
        next(iter(moved.trainable().values())).add_(1.0)
    assert any(changed.at(0)[number].ids != said[number].ids for number in said), "another run's are not taken"
    again = OwnSamples(moved, rows, plan, OWN, folder=tmp_path, seed=1, digest="another").at(0)
    assert again == changed.at(0)


def test_nobody_answers_with_shared_out_weights(moved: Adapted, rows: Rows, tmp_path: Path) -> None:
    moved.sharded = True
    with pytest.raises(TrainingError, match="own_samples"):
        OwnSamples(moved, rows, plan_steps(rows, STAGE, seed=1), OWN, folder=tmp_path, seed=1, digest="d")
