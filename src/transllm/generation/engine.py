"""What an engine is: prompts as token ids in, answers as token ids out, in any order, as they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

REPETITION_PENALTY = 1.1
"""For answers and translations: a small model that decodes greedily else says one thing over and over (docs/results)."""

Guide = Callable[[Sequence[int], int], int]
"""Sees what an answer says so far and the token that the model chose next; returns the token to write."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode.

    Attributes:
        max_new_tokens: after so many an answer is cut.
        temperature: 0 is greedy.
        top_p: sample from the smallest set of tokens with this share of the probability.
        stop_ids: ids that end an answer; the one met is part of the result.
        seed: of the sampling.
        guide: may write another token than the model chose.
        repetition_penalty: what the logits of tokens that were said before are divided by (Keskar et al., arXiv 1909.05858); 1 is none.
        fresh_ids: ids after which nothing counts as said, such as markers: each step of a chain says again what the step before said.
        beams: beginnings of an answer to keep side by side, of which the likeliest answer is given; 1 is none. Greedy and unguided only.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop_ids: frozenset[int] = frozenset()
    seed: int = 0
    guide: Guide | None = None
    repetition_penalty: float = 1.0
    fresh_ids: frozenset[int] = frozenset()
    beams: int = 1

    def __post_init__(self) -> None:
        if self.beams > 1 and (self.temperature or self.guide):
            raise ValueError("A beam search is neither sampled nor guided.")


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer.

    Attributes:
        index: number of its prompt.
        ids: what was written, with the stop id if one was met.
        finish: "stop" at a stop id, "length" if it was cut.
        overruled: by place, the tokens that the model had chosen where the guide wrote others.
    """

    index: int
    ids: list[int]
    finish: Literal["stop", "length"]
    overruled: dict[int, int] = field(default_factory=dict)


class Engine(Protocol):
    """Anything that continues prompts."""

    def generate(self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, limits: Sequence[int] | None = None,
                 on_token: Callable[[int, int], None] | None = None) -> Iterator[Generated]:
        """Continue each prompt.

        Args:
            prompts: token ids.
            limits: a limit of its own for each prompt, where ``sampling.max_new_tokens`` is higher.
            on_token: called with (prompt number, id) for each new token; for streaming.

        Yields:
            Each answer when it is done; not in the prompts' order.
        """
        ...
