"""The transformed model translates by itself, after *bitext* taught it: no other system is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from transllm.generation import Engine, Sampling
from transllm.tcot import Renderer, Span
from transllm.translation.masks import WORD, MaskForm
from transllm.translation.translator import Direction, Translation


class SelfTranslator:
    """Continues ``<EN> sentence <XX>``, the form of the translation pre-training rows.

    Its masks look like words: on pieces of sentences, and around other marks, a small model makes things up (docs/translators.md).

    Args:
        engine: the model after *bitext*.
        renderer: its tokenizers.
        weights: digest of the model's weights, for the cache.
        longest: tokens a sentence may become.
        expansion: tokens a sentence may become for each token of its own, 16 apart. A model that rambles on one sentence else holds
            up the batch until ``longest``.
        repetition_penalty: of what a sentence becomes.
        beams: translations of a sentence that are followed side by side.
    """

    name = "self"
    masks: MaskForm | None = WORD
    longest = 600
    whole_lines = False

    def __init__(self, engine: Engine, renderer: Renderer, *, weights: str = "", longest: int = 160, expansion: float = 8.0,
                 repetition_penalty: float = 1.0, beams: int = 1) -> None:
        self._engine, self._renderer, self._most_tokens, self._expansion = engine, renderer, longest, expansion
        self._repetition_penalty = repetition_penalty
        self._beams = beams
        self.identity: dict[str, Any] = {"weights": weights, "longest": longest, "expansion": expansion, "penalty": repetition_penalty,
                                         "beams": beams}

    def sentences(self, sentences: Sequence[str], *, to: Direction) -> Iterator[tuple[int, Translation]]:
        """See ``SentenceTranslator.sentences``."""
        markers = self._renderer.spans.markers
        source, result = (markers.english, markers.target) if to == "target" else (markers.target, markers.english)
        language: Literal["english", "target"] = "english" if to == "target" else "target"
        prompts = [[*self._renderer.answer([Span(source, sentence, language)], end=False), result] for sentence in sentences]
        # A marker inside a translation would be a second sentence: it ends this one.
        sampling = Sampling(self._most_tokens, stop_ids=self._renderer.stop_ids | self._renderer.fresh_ids,
                            repetition_penalty=self._repetition_penalty, beams=self._beams)
        limits = [16 + round(self._expansion * len(prompt)) for prompt in prompts]
        for made in self._engine.generate(prompts, sampling=sampling, limits=limits):
            ids = made.ids[:-1] if made.finish == "stop" else made.ids
            yield made.index, Translation(self._renderer.spans.decode(ids).strip(), made.finish == "length")

    def close(self) -> None:
        """Nothing is held that the process does not give back."""
