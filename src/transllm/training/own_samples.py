"""Recovery on the student's own words (on-policy distillation, arXiv 2306.13649): it answers, and is held against what the original thinks
of each word.

Before every so many steps the student answers the prompts of some of the recovery rows that come next. Its answers are as long as the
original's at most, so bins, steps and tokens stay what they are. They are kept in the stage's folder: a run that was stopped between two of
these moments goes on with the answers that it had.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from transllm import processes
from transllm.errors import TrainingError
from transllm.files import DiskErrors, atomic
from transllm.generation import LocalEngine, Sampling
from transllm.model.adapter import Adapted
from transllm.training.mirror import Recovery
from transllm.training.rows import ByOriginal, EncodedRow, Rows
from transllm.training.schedule import Plan

_BATCH = 64


class OwnSamples:
    """Answers that take the place of the original's.

    Args:
        folder: where they are kept.
        digest: of all that decides the steps; answers of another are not used.

    Raises:
        TrainingError: processes share out the frozen weights: one of them could not answer alone.
    """

    def __init__(self, adapted: Adapted, rows: Rows, plan: Plan, recovery: Recovery, *, folder: Path, seed: int, digest: str) -> None:
        self._adapted, self._rows, self._plan, self._recovery = adapted, rows, plan, recovery
        self._folder, self._seed, self._digest = folder, seed, digest
        self._start, self._known = -1, dict[int, EncodedRow]()
        if recovery.logits.own_samples and adapted.sharded:
            raise TrainingError("The student cannot answer while processes share out its weights (FSDP2). "
                                "Set recover.logits.own_samples to 0, or train with whole weights in each process.")

    def at(self, step: int) -> Mapping[int, EncodedRow]:
        """By row number, the answers for this step (counted from 0). They are written, if need be, with the weights as they are."""
        every = self._recovery.logits.refresh
        if self._recovery.by == "text" or not self._recovery.logits.own_samples:
            return {}
        start = step - step % every
        if start != self._start:
            self._start, self._known = start, processes.on_main(lambda: self._of(start, start + every))
        return self._known

    def _of(self, start: int, end: int) -> dict[int, EncodedRow]:
        file = self._folder / f"{start:07d}.npz"
        known = self._read(file)
        if known is None:
            known = self._write(self._chosen(start, end), start)
            self._save(file, known)
        return known

    def _chosen(self, start: int, end: int) -> list[int]:
        """Recovery rows of these steps; which are chosen is a function of seed, moment and row."""
        numbers = {number for bins in self._plan[start:end] for members in bins for number in members if self._is_recovery(number)}
        share = self._recovery.logits.own_samples
        return [number for number in sorted(numbers) if random.Random(f"{self._seed}-{start}-{number}").random() < share]

    def _is_recovery(self, number: int) -> bool:
        """Whether a row ends with the original's words, and learns nothing else but the marker before them. A chain goes on."""
        row = self._rows.view(number)
        return row.by_original is not None and row.by_original.at + row.by_original.words == len(row.ids) and (
            sum(row.trained) == row.by_original.words + 1)

    def _write(self, numbers: list[int], start: int) -> dict[int, EncodedRow]:
        """The student answers, in the original's vocabulary: of other tokens the original thinks nothing."""
        rows = {number: self._rows.row(number) for number in numbers}
        words = {number: row.by_original for number, row in rows.items() if row.by_original is not None}
        found: dict[int, EncodedRow] = {}
        with self._adapted.answering() as model:
            engine = LocalEngine(model, pad_id=0, batch_size=_BATCH, vocabulary=self._adapted.original_size)
            sampling = Sampling(max((len(row.ids) for row in rows.values()), default=1), temperature=1.0, seed=self._seed + start,
                                stop_ids=self._recovery.stop_ids)
            prompts = [[*map(int, rows[number].ids[: words[number].at])] for number in numbers]
            for made in engine.generate(prompts, sampling=sampling, limits=[words[number].words for number in numbers]):
                number = numbers[made.index]
                found[number] = _rewritten(rows[number], words[number], made.ids)
        return found

    def _read(self, file: Path) -> dict[int, EncodedRow] | None:
        if not file.exists():
            return None
        with np.load(file) as saved:
            if str(saved["digest"]) != self._digest:
                return None
            said = np.split(saved["said"], np.cumsum(saved["lengths"]))[:-1]
            numbers = saved["numbers"].tolist()
        found = {}
        for number, ids in zip(numbers, said, strict=True):
            row = self._rows.row(number)
            assert row.by_original is not None
            found[number] = _rewritten(row, row.by_original, ids.tolist())
        return found

    def _save(self, file: Path, known: Mapping[int, EncodedRow]) -> None:
        said = [row.by_original.ids[-row.by_original.words:] for row in known.values() if row.by_original is not None]
        file.parent.mkdir(parents=True, exist_ok=True)
        with DiskErrors(file.parent), atomic(file) as temporary, temporary.open("wb") as opened:
            np.savez(opened, digest=np.array(self._digest), numbers=np.array([*known], dtype=np.int64),
                     lengths=np.array([len(ids) for ids in said], dtype=np.int64),
                     said=np.array([token for ids in said for token in ids], dtype=np.int32))


def _rewritten(row: EncodedRow, words: ByOriginal, said: list[int]) -> EncodedRow:
    """A recovery row in the student's words, as long as it was: what is left at its end is not trained."""
    left = words.words - len(said)
    prompt = [int(token) for token in words.ids[: len(words.ids) - words.words]]
    return EncodedRow([*row.ids[: words.at], *said, *said[-1:] * left], [*row.trained[: words.at], *[True] * len(said), *[False] * left],
                      row.n_bytes, ByOriginal([*prompt, *said], words.at, len(said), row.n_bytes))
