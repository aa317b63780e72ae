"""The transformed model translates by itself, after *bitext* taught it: no other system is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from transllm.generation import Engine, Sampling
from transllm.progress import Progress
from transllm.tcot import Renderer, Span
from transllm.translation.sentences import split_text
from transllm.translation.translator import Translation


class SelfTranslator:
    """Continues ``<EN> sentence <XX>``, the form of the translation pre-training rows.

    Args:
        engine: the model after *bitext*.
        renderer: its tokenizers.
        longest: tokens a sentence may become.
        expansion: tokens a sentence may become for each token of its own, 16 apart. A model that rambles on one sentence else holds
            up the batch until ``longest``.
        repetition_penalty: of what a sentence becomes.
    """

    name = "self"

    def __init__(self, engine: Engine, renderer: Renderer, *, longest: int = 160, expansion: float = 8.0,
                 repetition_penalty: float = 1.0) -> None:
        self._engine, self._renderer, self._longest, self._expansion = engine, renderer, longest, expansion
        self._repetition_penalty = repetition_penalty

    def translate(self, texts: Sequence[str], *, to: Literal["english", "target"], progress: Progress, label: str) -> list[Translation]:
        """See ``Translator.translate``. Equal sentences are translated once."""
        parts = [split_text(text) for text in texts]
        unique = list(dict.fromkeys(sentence for part in parts for sentence in part.sentences))
        translated = self._sentences(unique, to=to, progress=progress, label=label)
        results = []
        for part in parts:
            done = [translated[sentence] for sentence in part.sentences]
            results.append(Translation(part.join([one.text for one in done]).strip(), any(one.cut for one in done)))
        return results

    def _sentences(self, sentences: Sequence[str], *, to: Literal["english", "target"], progress: Progress,
                   label: str) -> dict[str, Translation]:
        markers = self._renderer.spans.markers
        source, result = (markers.english, markers.target) if to == "target" else (markers.target, markers.english)
        language: Literal["english", "target"] = "english" if to == "target" else "target"
        prompts = [[*self._renderer.answer([Span(source, sentence, language)], end=False), result] for sentence in sentences]
        # A marker inside a translation would be a second sentence: it ends this one.
        sampling = Sampling(self._longest, stop_ids=self._renderer.stop_ids | self._renderer.fresh_ids,
                            repetition_penalty=self._repetition_penalty)
        found: dict[str, Translation] = {}
        with progress.task(label, len(prompts), "sentences") as bar:
            limits = [16 + round(self._expansion * len(prompt)) for prompt in prompts]
            for made in self._engine.generate(prompts, sampling=sampling, limits=limits):
                ids = made.ids[:-1] if made.finish == "stop" else made.ids
                found[sentences[made.index]] = Translation(self._renderer.spans.decode(ids).strip(), made.finish == "length")
                bar.advance(1)
        return found
