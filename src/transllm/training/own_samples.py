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
from transllm.training.mirror import Recovery, Rewritten
from transllm.training.rows import Rows
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
        self._start, self._known = -1, dict[int, Rewritten]()
        if recovery.logits.own_samples and adapted.sharded:
            raise TrainingError("The student cannot answer while processes share out its weights (FSDP2). "
                                "Set recover.logits.own_samples to 0, or train with whole weights in each process.")

    def at(self, step: int) -> Mapping[int, Rewritten]:
        """By row number, the answers for this step (counted from 0). They are written, if need be, with the weights as they are."""
        every = self._recovery.logits.refresh
        if self._recovery.by == "text" or not self._recovery.logits.own_samples:
            return {}
        start = step - step % every
        if start != self._start:
            self._start, self._known = start, processes.on_main(lambda: self._of(start, start + every))
        return self._known

    def _of(self, start: int, end: int) -> dict[int, Rewritten]:
        file = self._folder / f"{start:07d}.npz"
        known = self._read(file)
        if known is None:
            known = self._write(self._chosen(start, end), start)
            self._save(file, known)
        return known

    def _chosen(self, start: int, end: int) -> list[int]:
        """Recovery rows of these steps; which are chosen is a function of seed, moment and row."""
        numbers = {number for bins in self._plan[start:end] for members in bins for number in members if self._rows.by_original[number]}
        share = self._recovery.logits.own_samples
        return [number for number in sorted(numbers) if random.Random(f"{self._seed}-{start}-{number}").random() < share]

    def _write(self, numbers: list[int], start: int) -> dict[int, Rewritten]:
        """The student answers, in the original's vocabulary: of other tokens the original thinks nothing."""
        rows = {number: self._rows.row(number) for number in numbers}
        openings = {number: row.trained.index(True) for number, row in rows.items()}
        found: dict[int, Rewritten] = {}
        with self._adapted.answering() as model:
            engine = LocalEngine(model, pad_id=0, batch_size=_BATCH, vocabulary=self._adapted.original_size)
            sampling = Sampling(max((len(row.ids) for row in rows.values()), default=1), temperature=1.0, seed=self._seed + start,
                                stop_ids=self._recovery.stop_ids)
            prompts = [rows[number].ids[: openings[number] + 1] for number in numbers]
            limits = [len(rows[number].ids) - len(prompt) for number, prompt in zip(numbers, prompts, strict=True)]
            for made in engine.generate(prompts, sampling=sampling, limits=limits):
                row, opening = rows[numbers[made.index]].ids, openings[numbers[made.index]]
                said = opening + 1 + len(made.ids)
                place = np.arange(len(row))
                ids = np.array([*row[: opening + 1], *made.ids, *[made.ids[-1]] * (len(row) - said)], dtype=np.int32)
                found[numbers[made.index]] = Rewritten(ids, (place >= opening) & (place < said))
        return found

    def _read(self, file: Path) -> dict[int, Rewritten] | None:
        if not file.exists():
            return None
        with np.load(file) as saved:
            if str(saved["digest"]) != self._digest:
                return None
            cuts = np.cumsum(saved["lengths"])
            return {int(number): Rewritten(ids, trained) for number, ids, trained in zip(
                saved["numbers"], np.split(saved["ids"], cuts)[:-1], np.split(saved["trained"], cuts)[:-1], strict=True)}

    def _save(self, file: Path, known: Mapping[int, Rewritten]) -> None:
        ids = [np.zeros(0, dtype=np.int32), *(row.ids for row in known.values())]
        trained = [np.zeros(0, dtype=np.bool_), *(row.trained for row in known.values())]
        lengths = np.array([len(row.ids) for row in known.values()], dtype=np.int64)
        file.parent.mkdir(parents=True, exist_ok=True)
        with DiskErrors(file.parent), atomic(file) as temporary, temporary.open("wb") as opened:
            np.savez(opened, digest=np.array(self._digest), numbers=np.array([*known], dtype=np.int64), lengths=lengths,
                     ids=np.concatenate(ids), trained=np.concatenate(trained))
