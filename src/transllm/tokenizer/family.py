"""The kinds of tokenizer that can be extended, behind one interface.

=================  ==================================  ===============================================================
family             examples                            new sub-words
=================  ==================================  ===============================================================
byte-level BPE     GPT-2, Llama 3, Qwen, SmolLM        vocabulary entries and merges
SentencePiece BPE  Llama 2, Mistral, Gemma             the same, and characters that the vocabulary lacks come first
Unigram            XGLM, T5, many Japanese models      vocabulary entries with scores
=================  ==================================  ===============================================================

The rest of the room asks a family and never looks at the kind itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tokenizers import Tokenizer

from transllm.errors import ModelError
from transllm.tokenizer.backend import SPACE, parsed_json, plain_backend, steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from transllm.tokenizer.learn import Learned
    from transllm.tokenizer.script import Script
    from transllm.tokenizer.words import Cut, Progress

# Normalisers that write a space otherwise, or take it away, and leave every letter alone.
_ONLY_SPACES = {"Prepend", "Replace", "Strip", "ByteLevel"}
_REWRITTEN = 0.01


class Family(Protocol):
    """What the room needs to know of one tokenizer.

    Attributes:
        parsed: its ``tokenizer.json``.
        backend: :func:`transllm.tokenizer.backend.plain_backend` of it.
        space: how a space is written in what :meth:`counted` gives.
        unknown: id of the token for text that no piece writes; None if there is no such text.
    """

    parsed: dict[str, Any]
    space: str
    unknown: int | None

    @property
    def backend(self) -> Tokenizer: ...

    def counted(self, texts: Iterable[str]) -> Counter[str]:
        """What the texts fall into at places that no piece crosses, such as words, and how often each occurs."""

    def cut(self, backend: Tokenizer, counted: Mapping[str, int], *, single: re.Pattern[str] | None = None,
            progress: Progress | None = None) -> Cut:
        """What was counted, in tokens, with the places where none can be joined. Arguments as of :func:`transllm.tokenizer.words.cut`."""

    def bytes_of(self, piece: str) -> bytes:
        """The bytes of text that a piece stands for."""

    def cut_bytes(self, backend: Tokenizer, raw: bytes) -> list[str] | None:
        """Pieces that write any bytes, text or not; None if the tokenizer has none."""

    def whole_words(self, script: Script) -> Tokenizer | None:
        """A plain backend that takes runs of the script's letters and marks as pre-tokens; None where no rule parts them, or none can be
        added."""

    def lacking(self, counted: Mapping[str, int]) -> Counter[str]:
        """Letters, marks and signs of what was counted that the vocabulary has no piece for, with how often each occurs."""

    def spelled(self, characters: Sequence[str]) -> Tokenizer:
        """A plain backend whose vocabulary has these characters as well, at the ids after the highest."""

    def touches(self, piece: str) -> bool:
        """Whether a new piece would change how the old ones are found."""

    def finished(self, learned: Learned, english: Iterable[str]) -> Learned:
        """The learned pieces as the model needs them, checked against how English (from :meth:`counted`) is cut."""

    def fits(self, learned: Learned) -> bool:
        """Whether the pieces are such as this family makes."""

    def insert(self, learned: Learned, old: Mapping[str, int], atoms: Collection[str]) -> None:
        """Put pieces and markers into :attr:`parsed`, after all ids of ``old``, which are filled in where the model lacks them."""


def family_of(tokenizer: PreTrainedTokenizerFast) -> Family:
    """The family of a tokenizer.

    Raises:
        ModelError: it is of another kind, and why that kind cannot be extended.
    """
    from transllm.tokenizer.bytelevel import ByteLevel
    from transllm.tokenizer.spbpe import SentencePieceBPE
    from transllm.tokenizer.unigram import Unigram

    parsed = parsed_json(tokenizer)
    model = parsed["model"]
    pre_tokenizers, normalizers = ([step["type"] for step in steps(parsed, name)] for name in ("pre_tokenizer", "normalizer"))
    if model["type"] in ("WordPiece", "WordLevel"):
        raise _refusal(f"a {model['type']} model, which takes the longest piece from the left or whole words only, so new pieces change "
                       f"how old words are cut")
    if model["type"] == "Unigram":
        _require_sign(parsed)
        return Unigram(tokenizer, parsed)
    if model["type"] != "BPE":
        raise _refusal(f"a {model['type']} model")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refusal("a BPE with marks at the borders of words, so a piece inside a word and the same piece at its end are two")
    if model.get("dropout"):
        raise _refusal("a BPE with dropout, which cuts the same text differently each time")
    if "ByteLevel" in pre_tokenizers or "ByteLevel" in normalizers:
        return ByteLevel(tokenizer, parsed)
    if SPACE in model["vocab"] and ("Metaspace" in pre_tokenizers or model.get("byte_fallback") or _writes_spaces(parsed)):
        _require_sign(parsed)
        return SentencePieceBPE(tokenizer, parsed)
    raise _refusal("a character-level BPE, which has neither bytes nor ▁ to write every text with")


def _refusal(kind: str) -> ModelError:
    return ModelError(f"The tokenizer is {kind}; its vocabulary cannot be extended. Take a model with a byte-level BPE (GPT-2, Llama 3, "
                      f"Qwen, SmolLM and their like), a SentencePiece BPE (Llama 2, Mistral, Gemma) or a Unigram tokenizer.")


def _writes_spaces(parsed: dict[str, Any]) -> bool:
    return any(step["type"] == "Replace" and step["content"] == SPACE for step in steps(parsed, "normalizer"))


def _require_sign(parsed: dict[str, Any]) -> None:
    other = {step["replacement"] for step in steps(parsed, "pre_tokenizer") if step["type"] == "Metaspace"} - {SPACE}
    if other:
        raise _refusal(f"one that writes a space as '{other.pop()}', not as ▁")


def require_faithful(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> None:
    """Refuse a tokenizer whose normal form loses letters of the target text.

    Pieces are learned in the normal form, so they always match. But what the normal form rewrites (lower case, letters without
    their accents, NFKC's two signs for Thai ำ), the model could never read or write as it is, whatever is learned. Forms that
    Unicode calls canonically equal (NFC, NFD) are the same text and are let through.

    Raises:
        ModelError: more than one letter in a hundred is rewritten.
    """
    from transllm.tokenizer.bytelevel import piece_bytes

    kinds = {step["type"] for step in steps(parsed_json(tokenizer), "normalizer")}
    if kinds <= _ONLY_SPACES:
        return
    normalizer = plain_backend(tokenizer).normalizer

    def normal(char: str) -> str:
        # Between two digits, a mark has something to stand on and no space is trimmed.
        text = normalizer.normalize_str(f"0{char}0").replace(SPACE, "")
        return (piece_bytes(text).decode(errors="ignore") if "ByteLevel" in kinds else text)[1:-1]

    counted: Counter[str] = Counter()
    for text in texts:
        counted.update(text)
    letters = {char: count for char, count in counted.items() if unicodedata.category(char)[0] in "LM"}
    rewritten = {char: count for char, count in letters.items()
                 if unicodedata.normalize("NFC", normal(char)) != unicodedata.normalize("NFC", char)}
    share = sum(rewritten.values()) / (sum(letters.values()) or 1)
    if share > _REWRITTEN:
        worst = max(rewritten, key=lambda char: (rewritten[char], char))
        raise ModelError(f"The tokenizer's normaliser rewrites {share:.0%} of the letters of the target text ('{worst}' becomes "
                         f"'{normal(worst)}'), so no new sub-word could bring them back. "
                         f"Take a model whose tokenizer keeps the text as it is.")
