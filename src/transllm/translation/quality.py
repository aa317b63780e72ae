"""How good a translation is, without a reference: a sentence encoder, and how much of the English comes back from a round trip.

Neither knows what is right. They tell which translations of a set are the worst, so scores are compared inside one set only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics.chrf import CHRF

from transllm.translation.encoders import Encoder, Vectors

_CHUNK = 4096


def similarities(encoder: Encoder, english: Sequence[str], target: Sequence[str]) -> list[float]:
    """Cosine of each text's vector and its translation's, -1 to 1.

    Each language's vectors are standardised first, by mean and deviation over the texts (the first 4,096 of them): what all texts
    of a language have in common is the language and the encoder's few large dimensions, not what they say.

    Args:
        encoder: of both languages.
        english, target: the texts and their translations, none empty.
    """
    standards: list[tuple[Vectors, Vectors]] = []
    found: list[float] = []
    for start in range(0, len(english), _CHUNK):
        sides = (encoder.encode(english[start: start + _CHUNK], language="english"),
                 encoder.encode(target[start: start + _CHUNK], language="target"))
        standards = standards or [(vectors.mean(0), vectors.std(0) + 1e-6) for vectors in sides]
        first, second = (_normal((vectors - mean) / deviation) for vectors, (mean, deviation) in zip(sides, standards, strict=True))
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


def _normal(vectors_ND: Vectors) -> Vectors:
    normal: Vectors = vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-9)
    return normal
