"""How good a translation is, without a reference: a sentence encoder, and how much of the English comes back from a round trip.

Neither knows what is right. They tell which translations of a set are the worst, so scores are compared inside one set only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics.chrf import CHRF

from transllm.translation.encoders import Encoder, Vectors

_FITTED = 4096
_CHUNK = 4096


def similarities(encoder: Encoder, english: Sequence[str], target: Sequence[str]) -> list[float]:
    """Cosine of each text's vector and its translation's, -1 to 1.

    Each language's vectors are standardised first, by mean and deviation over the texts (the first few thousand of them): what all texts
    of a language have in common is the language and the encoder's few large dimensions, not what they say.

    Args:
        encoder: of both languages.
        english, target: the texts and their translations, none empty.
    """
    if not english:
        return []
    sides = ((english, "english"), (target, "target"))
    fitted = [_standard(encoder.encode(texts[:_FITTED], language=language)) for texts, language in sides]  # type: ignore[arg-type]
    found: list[float] = []
    for start in range(0, len(english), _CHUNK):
        first, second = (_normal((encoder.encode(texts[start: start + _CHUNK], language=language) - mean) / deviation)  # type: ignore[arg-type]
                         for (texts, language), (mean, deviation) in zip(sides, fitted, strict=True))
        found.extend(float(value) for value in (first * second).sum(1))
    return found


def round_trip(english: Sequence[str], back: Sequence[str]) -> list[float]:
    """chrF of what came back from the translation, against the English text it was made of; 0 to 100 for each pair."""
    chrf = CHRF()
    return [float(chrf.sentence_score(made, [text]).score) for text, made in zip(english, back, strict=True)]


def combined(*measures: Sequence[float]) -> list[float]:
    """One score for each example: the mean over the measures of its rank among all, 0 (worst) to 1. Equal values share a rank.

    Ranks, because a cosine and a chrF have no common scale.
    """
    ranks = []
    for values in measures:
        ordered = np.sort(np.asarray(values, float))
        below, upto = np.searchsorted(ordered, values, side="left"), np.searchsorted(ordered, values, side="right")
        ranks.append((below + upto - 1) / 2 / max(1, len(ordered) - 1))
    return [round(float(value), 4) for value in np.mean(ranks, axis=0)] if measures and len(measures[0]) else []


def _standard(vectors_ND: Vectors) -> tuple[Vectors, Vectors]:
    return vectors_ND.mean(0), vectors_ND.std(0) + 1e-6


def _normal(vectors_ND: Vectors) -> Vectors:
    return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-9)
