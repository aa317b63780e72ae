"""The typed recipe: what a run is made of. Unknown keys are errors; every default states its reason.

A recipe is one YAML file with a section for each stage. ``load.py`` reads it and reports all problems at once. Here are *extend*, *merge*,
*evaluate* and the whole; ``sources.py``, ``training.py`` and ``answers.py`` hold the other sections.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator

from transllm.languages import LANGUAGES, Language
from transllm.recipe.answers import Bridge, EngineSettings, Logits, Ray, Recover, TranslatorSettings
from transllm.recipe.base import HARMLESS, Count, Section, Share
from transllm.recipe.sources import Data, ModelSource, Source
from transllm.recipe.training import Attention, Bitext, Finetune, Lora, Pretrain, Requests, Tracker, Training, TrainStage

__all__ = [
    "HARMLESS", "Attention", "Bitext", "Bridge", "Count", "Data", "EngineSettings", "Evaluate", "Extend", "Finetune", "Logits", "Lora",
    "Merge", "ModelSource", "Pretrain", "Ray", "Recipe", "Recover", "Requests", "RowStart", "Section", "Share", "Source", "Tracker",
    "TrainStage", "Training", "TranslatorSettings",
]

RowStart = Literal["mean", "by_length", "by_position", "first", "omp", "focus", "lexicon", "random"]


class Extend(Section):
    """Vocabulary extension."""

    vocab_size: Annotated[int, Field(ge=0)] | Literal["auto"] = 8000
    """New sub-words at most. 0 adds the markers only; ``auto`` goes by what they save. Each must be learned before it is worth anything:
    for a language whose script the model knows, tens at budgets below a million tokens (docs/results), thousands at the paper's."""
    least_saving: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """``auto`` takes the first size at which a thousand more sub-words would save less than this share of the sample's tokens. Compute and
    context shrink by what is saved; a thousand rows must be learned for it."""
    most: Count = 32_000
    """``auto`` goes no further."""
    sample_characters: Count = 20_000_000
    """Learn on so much target text, and check against so much English."""
    min_count: Count = 5
    """A sub-word must be seen so often in the sample."""
    whole_words: bool = True
    """Change the pre-tokenizer where it cuts the language's words at combining marks (Thai, Khmer, Hindi). False keeps the rule that
    engines know by name (llama.cpp); the sub-words are then as short as it makes them."""
    min_identical: Share = 0.998
    """Share of unseen English sentences, and of lines of code, that a Latin-script language must leave as they were; less is an error.
    Another script leaves all."""
    init: RowStart = "mean"
    """How the row of a new sub-word starts (model/initial). ``mean``: as the mean of the sub-tokens it replaces; ``by_length``,
    ``by_position``: a weighted mean; ``first``: the first of them. ``focus``, ``omp``: as a mixture of the old tokens that are most
    like it in a small embedding trained on the run's text. ``lexicon``: as its translations. ``random``: the paper's, drawn with the
    matrix's own mean and deviation. Sub-words that a method does not know (rare ones, those in no lexicon) start as the mean."""
    head_init: RowStart | None = None
    """Another start for the rows of a head that is not tied to the embedding. None: as ``init``."""
    lexicon: Source | None = None
    """For ``lexicon``: pairs of an English and a target word, as two columns in this order."""

    @property
    def at_most(self) -> int:
        """The largest number of sub-words that can come out."""
        return self.most if self.vocab_size == "auto" else self.vocab_size


class Merge(Section):
    """The adapter goes into the weights once, at the end."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto``: the precision the model came in."""
    max_kl: Annotated[float, Field(gt=0)] = 0.01
    """Mean KL (nats a token) between adapter model and reloaded merged model above which the merge is refused."""


class Evaluate(Section):
    """What is measured, for the original model and after each stage, on held-out data."""

    test_pairs: Source | None = None
    """Pairs to translate. None (or an optional one that is missing): the held-out part of ``data.parallel``."""
    sentences: Count = 100
    """Sentences to translate, each direction."""
    queries: Source | None = None
    """Target-language user queries. None: held-out English prompts in the translator's words."""
    query_count: Count = 100
    documents: Count = 200
    """Held-out documents a language for bits per byte."""
    answers: Count = 32
    """The original's own answers, for the KL to it."""
    max_new_tokens: Count = 384
    """A chain that is longer counts as cut."""
    repetition_penalty: Annotated[float, Field(ge=1)] = 1.1
    """Of all that is written to be measured, by the original model too, as in ``chat``. 1: plain greedy decoding, the paper's."""
    beam_size: Count = 1
    """Hypotheses side by side when sentences are translated to be measured, by the original model too. 1: greedy, as ``chat`` answers; 4
    is customary for translations."""
    batch_size: Count = 64


class Recipe(Section):
    """One transformation: a chat model, a language, data, and a section for each stage."""

    name: str = ""
    """Names the run folder. Empty: the file's name."""
    model: ModelSource
    language: str | dict[str, Any]
    """A code of the language table, or ``{code: xx, name: ..., native: ..., latin: ..., spaced: ...}``."""
    seed: int = 1
    data: Data
    extend: Extend = Extend()
    training: Training = Training()
    pretrain: Pretrain = Pretrain()
    bitext: Bitext = Bitext()
    recover: Recover = Recover()
    bridge: Bridge = Bridge()
    finetune: Finetune = Finetune()
    merge: Merge = Merge()
    evaluate: Evaluate = Evaluate()

    _folder: Path = PrivateAttr(default_factory=Path)

    @field_validator("model", mode="before")
    @classmethod
    def _short_model(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("language", mode="after")
    @classmethod
    def _known_language(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        if isinstance(value, str):
            if value not in LANGUAGES:
                raise ValueError(
                    f"there is no language '{value}' in the table, so it has no marker. Use one of {', '.join(LANGUAGES)}, "
                    f"or define it: language: {{code: {value}, name: ..., native: ...}}")
            return value
        missing = {"code", "name", "native"} - value.keys()
        unknown = value.keys() - set(Language.__slots__)
        if missing or unknown:
            raise ValueError("a language of your own has the keys code, name, native and, if they differ from true, latin and spaced")
        return value

    @property
    def target(self) -> Language:
        """The target language."""
        return LANGUAGES[self.language] if isinstance(self.language, str) else Language(**self.language)

    @property
    def folder(self) -> Path:
        """Where relative paths of the recipe start."""
        return self._folder
