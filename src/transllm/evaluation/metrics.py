"""The figures of a run: how each is computed, and the file that holds them.

Everything here is a pure function over plain values (strings, counts, flags); models are none of its business. A figure
without meaning at a stage is ``None`` (``null`` in metrics.json), never 0: a zero is a measurement.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict

from transllm.errors import DataError
from transllm.files import write_json
from transllm.languages import Language

MEASURED = ("original", "extend", "pretrain", "bitext", "finetune", "merge")
"""The models that are measured, in the order in which they come to be."""

SHARES = frozenset({"same_next_token", "tcot_well_formed", "answer_in_target"})
"""Figures that are shares, 0 to 1."""


class TranslationScores(TypedDict):
    """Corpus scores, 0 to 100, and the sacrebleu signature of each."""

    chrf: float
    chrfpp: float
    bleu: float
    signatures: dict[str, str]


def translation_scores(hypotheses: Sequence[str], references: Sequence[str], *, tokenize: str = "13a") -> TranslationScores:
    """Corpus-level chrF (``word_order=0``), chrF++ (``word_order=2``) and BLEU of translations against one reference each.

    Unit: points, 0 to 100, higher is better. Reference: chrF, Popović 2015 (W15-3049); chrF++, Popović 2017 (W17-4770);
    BLEU, Papineni et al. 2002 (P02-1040), all as in sacrebleu, Post 2018 (W18-6319). The signatures say how each was computed.

    Args:
        hypotheses: the model's translations; an empty one is scored like any other.
        references: as many correct translations, in the same order.
        tokenize: sacrebleu's BLEU tokenizer; see :func:`bleu_tokenizer`. chrF does not use it.

    Raises:
        DataError: there is nothing to score, or the two lists differ in length.
    """
    from sacrebleu.metrics.bleu import BLEU  # a third of a second: the verbs that only read metrics need not wait for it
    from sacrebleu.metrics.chrf import CHRF

    if len(hypotheses) != len(references):
        raise DataError(f"There are {len(hypotheses)} translations but {len(references)} references. "
                        "Give exactly one reference for each translation.")
    if not hypotheses:
        raise DataError("There are no translations to score. Give at least one sentence pair.")
    scorers = {"chrf": CHRF(word_order=0), "chrfpp": CHRF(word_order=2), "bleu": BLEU(tokenize=tokenize)}
    scores = {name: float(scorer.corpus_score(hypotheses, [references]).score) for name, scorer in scorers.items()}
    signatures = {name: scorer.get_signature().format() for name, scorer in scorers.items()}
    return TranslationScores(chrf=scores["chrf"], chrfpp=scores["chrfpp"], bleu=scores["bleu"], signatures=signatures)


def bleu_tokenizer(language: Language) -> str:
    """The sacrebleu tokenizer that suits text in a language: 13a splits at spaces, which says nothing where there are none.

    Characters serve for unspaced scripts, as they need no further package and no download.
    """
    if language.code == "zh":
        return "zh"
    return "13a" if language.spaced else "char"


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Bits that a model needs for a byte of UTF-8 text: ``nats / (ln 2 * n_bytes)``.

    Unit: bits per byte, lower is better. Unlike loss a token it can be compared across vocabularies. Reference: Gao et al. 2020
    (arXiv 2101.00027), section 3.1.

    Args:
        nats: sum (not mean) of the negative log-likelihood over all predicted tokens.
        n_bytes: UTF-8 bytes of the text that these tokens spell.

    Raises:
        DataError: there are no bytes, or the sum is no non-negative finite number.
    """
    if n_bytes <= 0:
        raise DataError(f"Bits per byte of {n_bytes} bytes have no meaning. Measure on text that is not empty.")
    if not math.isfinite(nats) or nats < 0:
        raise DataError(f"The negative log-likelihood of the text is {nats}. It must be finite and not negative: "
                        "look for NaN in the model's logits.")
    return nats / (math.log(2) * n_bytes)


def share(flags: Iterable[bool]) -> float | None:
    """Share of flags that are true.

    Unit: 0 to 1. ``None`` where there are no flags: a share of nothing has no meaning.
    """
    values = [bool(flag) for flag in flags]
    return sum(values) / len(values) if values else None


@dataclass(frozen=True, kw_only=True, slots=True)
class StageMetrics:
    """All figures of one model. ``None``: not measured, or without meaning at this stage."""

    bits_per_byte_target: float | None = None
    """Held-out target-language documents, bits per byte; lower is better."""
    bits_per_byte_english: float | None = None
    """Held-out English documents, bits per byte; lower is better."""
    chrf_en_target: float | None = None
    """chrF (``word_order=0``), English to target, 0 to 100."""
    chrf_target_en: float | None = None
    """chrF (``word_order=0``), target to English, 0 to 100."""
    chrfpp_en_target: float | None = None
    """chrF++ (``word_order=2``), English to target, 0 to 100."""
    chrfpp_target_en: float | None = None
    """chrF++ (``word_order=2``), target to English, 0 to 100."""
    bleu_en_target: float | None = None
    """BLEU, English to target, 0 to 100."""
    bleu_target_en: float | None = None
    """BLEU, target to English, 0 to 100."""
    kl_to_original: float | None = None
    """KL(original || this model) on the original's own English answers, nats a token; 0 for the original."""
    same_next_token: float | None = None
    """Share (0 to 1) of positions of these answers where both models think the same token most likely."""
    tcot_well_formed: float | None = None
    """Share (0 to 1) of answers to target-language queries that hold all markers in order, uncut, without a guide's help."""
    answer_in_target: float | None = None
    """Share (0 to 1) of answers that are in the target language, as chat shows them: guided along the chain where they stray."""
    tokens_per_answer: float | None = None
    """Mean tokens generated for one answer, chain included."""
    seconds_per_answer: float | None = None
    """Mean seconds for one answer: wall time of the batch over its size."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise DataError(f"The figure '{spec.name}' is {value!r}, not a finite number. Use null for what was not measured.")
            if spec.name in SHARES and not 0 <= value <= 1:
                raise DataError(f"The figure '{spec.name}' is {value}, but it is a share. Give it as a number from 0 to 1.")

    def to_dict(self) -> dict[str, float | None]:
        """All keys, in the order above."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StageMetrics:
        """From a mapping that has some or all of the keys.

        Raises:
            DataError: a key that is no figure, or a value that is no finite number.
        """
        known = [spec.name for spec in fields(cls)]
        for key in values:
            if key not in known:
                raise DataError(f"There is no figure '{key}'. {_nearest(key, known)}")
        return cls(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """The content of metrics.json: the figures of each measured model, and on what they were measured."""

    stages: dict[str, StageMetrics] = field(default_factory=dict)
    """By stage, in the order of :data:`MEASURED`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What they were measured on: test pairs, numbers of sentences and queries, sacrebleu signatures."""

    def __post_init__(self) -> None:
        for stage in self.stages:
            if stage not in MEASURED:
                raise DataError(f"There is no measured model '{stage}'. {_nearest(stage, MEASURED)}")
        object.__setattr__(self, "stages", {stage: self.stages[stage] for stage in MEASURED if stage in self.stages})

    def with_stage(self, stage: str, figures: StageMetrics) -> Metrics:
        """The same with one stage added or replaced."""
        return Metrics(stages={**self.stages, stage: figures}, settings=self.settings)

    @property
    def final(self) -> str | None:
        """The last measured model after the original: the merged one, or as far as the run has come."""
        later = [stage for stage in self.stages if stage != "original"]
        return later[-1] if later else None

    def to_dict(self) -> dict[str, Any]:
        """``{stage: {figure: value}, ..., "settings": {...}}``."""
        return {**{stage: figures.to_dict() for stage, figures in self.stages.items()}, "settings": self.settings}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Metrics:
        """The inverse of :meth:`to_dict`.

        Raises:
            DataError: an unknown stage or figure, or a value of the wrong kind.
        """
        for name, part in values.items():
            if not isinstance(part, Mapping):
                raise DataError(f"'{name}' of the metrics is {type(part).__name__}, not a table of figures. "
                                "Run the stage 'evaluate' again.")
        stages = {}
        for stage, part in values.items():
            if stage != "settings":
                try:
                    stages[stage] = StageMetrics.from_dict(part)
                except DataError as error:
                    raise DataError(f"In '{stage}': {error}") from error
        return cls(stages=stages, settings=dict(values.get("settings", {})))

    def write(self, path: Path) -> None:
        """Write metrics.json whole or not at all.

        Raises:
            RunError: the file cannot be written (disk full, no permission).
        """
        write_json(path, self.to_dict())

    @classmethod
    def read(cls, path: Path) -> Metrics:
        """Read metrics.json.

        Raises:
            DataError: the file is not there, is no JSON, or holds what is no figure.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}). Run the stage 'evaluate' to write it.") from error
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON ({error}). Run the stage 'evaluate' again to rewrite it.") from error
        if not isinstance(values, dict):
            raise DataError(f"{path} holds no table of stages. Run the stage 'evaluate' again to rewrite it.")
        try:
            return cls.from_dict(values)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean '{close[0]}'?" if close else f"Use one of: {', '.join(known)}."
