"""Beam search: several beginnings of an answer side by side, of which the likeliest stay.

Translation is decoded so in its field: a model that chooses word by word cannot take back a word that leads nowhere. It costs as many
rows of computation as there are beams. Here is what is kept and dropped; the model's steps are the engine's.

The score of an answer is its log-probability for each token, its end among them (Wu et al., arXiv 1609.08144, with a length penalty of 1).
A prompt is done when as many answers have ended as there are beams (Kasai et al., arXiv 2204.05424, with a patience of 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor


class _Beam(NamedTuple):
    """A beginning of an answer, or all of it."""

    ids: list[int]
    score: float  # its log-probability, in nats

    @property
    def quality(self) -> float:
        return self.score / len(self.ids)


@dataclass
class _Prompt:
    place: int
    left: int
    running: list[_Beam]
    ended: list[_Beam] = field(default_factory=list)


class Best(NamedTuple):
    """The answer that the search found.

    Attributes:
        place: of its prompt in the batch.
        ids: what it says, with the stop id if one ended it.
        finish: "stop" at a stop id, "length" if it was cut.
    """

    place: int
    ids: list[int]
    finish: Literal["stop", "length"]


class BeamSearch:
    """The beams of a batch of prompts, each a row of the model's next step.

    Args:
        limits: how many tokens each prompt's answer may have, one or more.
        beams: beginnings to keep for each prompt.
        stop_ids: ids that end an answer.
    """

    def __init__(self, limits: Sequence[int], *, beams: int, stop_ids: frozenset[int]) -> None:
        self._beams = beams
        self._stop_ids = stop_ids
        self._prompts = [_Prompt(place, limit, [_Beam([], 0.0)]) for place, limit in enumerate(limits)]

    @property
    def said(self) -> list[list[int]]:
        """What each row says so far, in the order of the rows."""
        return [beam.ids for prompt in self._prompts for beam in prompt.running]

    def step(self, logits_RV: Tensor) -> tuple[list[int], list[Best]]:
        """Choose how to go on, by the logits of what each row says next.

        Returns:
            For each row of the next step the row of this one that it continues, none when all is done; and the prompts that are done.
        """
        # All ids that end an answer could be a row's best: enough is looked at for the beams to stay full.
        most = min(self._beams + len(self._stop_ids), logits_RV.shape[-1])
        best_RM, ids_RM = logits_RV.topk(most)
        gains = (best_RM.float() - logits_RV.float().logsumexp(-1, keepdim=True)).tolist()
        tokens = ids_RM.tolist()
        parents: list[int] = []
        done: list[Best] = []
        going: list[_Prompt] = []
        first = 0
        for prompt in self._prompts:
            candidates = [(beam.score + gain, first + number, token) for number, beam in enumerate(prompt.running)
                          for gain, token in zip(gains[first + number], tokens[first + number], strict=True)]
            running, rows = self._advance(prompt, sorted(candidates, reverse=True), first)
            first += len(prompt.running)
            prompt.running, prompt.left = running, prompt.left - 1
            if prompt.ended and (len(prompt.ended) >= self._beams or prompt.left == 0 or not prompt.running):
                done.append(Best(prompt.place, max(prompt.ended, key=lambda beam: beam.quality).ids, "stop"))
            elif prompt.left == 0:
                done.append(Best(prompt.place, max(prompt.running, key=lambda beam: beam.quality).ids, "length"))
            else:
                parents.extend(rows)
                going.append(prompt)
        self._prompts = going
        return parents, done

    def _advance(self, prompt: _Prompt, candidates: Sequence[tuple[float, int, int]], first: int) -> tuple[list[_Beam], list[int]]:
        """The beams that go on and the rows that they continue; answers that end here are noted."""
        running: list[_Beam] = []
        rows: list[int] = []
        for rank, (score, row, token) in enumerate(candidates):
            ends = token in self._stop_ids
            if ends and rank >= self._beams:
                continue  # an end less likely than all beams is none
            beam = _Beam([*prompt.running[row - first].ids, token], score)
            if ends:
                prompt.ended.append(beam)
            else:
                running.append(beam)
                rows.append(row)
                if len(running) == self._beams:
                    break
        return running, rows
