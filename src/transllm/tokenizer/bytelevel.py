"""Byte-level BPE, read off the tokenizer's own ``tokenizer.json``.

A byte-level BPE writes every byte as one printable character (GPT-2's alphabet), cuts a text into pre-tokens and merges
neighbours inside a pre-token in the order of its list of merges. GPT-2, Llama 3, Qwen and SmolLM are of this kind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from transllm.tokenizer.backend import plain, plain_backend
from transllm.tokenizer.script import Script, whole_words, with_whole_words
from transllm.tokenizer.words import Cut, Progress, cut, stretches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from transllm.tokenizer.learn import Learned

_SHOWN = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
_BYTE_OF = {chr(byte): byte for byte in _SHOWN} | {chr(256 + place): byte for place, byte in enumerate(_HIDDEN)}
_CHAR_OF = {byte: char for char, byte in _BYTE_OF.items()}
_HOLE = "<|unused_{}|>"


def piece_bytes(piece: str) -> bytes:
    """The bytes that a piece of the byte-level alphabet stands for. Characters outside the alphabet stand for themselves."""
    return b"".join(bytes([_BYTE_OF[char]]) if char in _BYTE_OF else char.encode() for char in piece)


def byte_piece(raw: bytes) -> str:
    """Bytes in the byte-level alphabet: the inverse of :func:`piece_bytes`."""
    return "".join(_CHAR_OF[byte] for byte in raw)


def add_to_vocabulary(model: dict[str, Any], old: Mapping[str, int], new: Iterable[str]) -> None:
    """Number the new entries of a BPE model's vocabulary after the highest old id. Holes below it are filled.

    Loading numbers an added token by its entry in the model, and else counts on from the size of the model: without an entry
    of their own, the old added tokens would be counted on from the new pieces. No merge makes such an entry, so no text reaches it.
    """
    first = max(old.values()) + 1
    taken = set(old.values())
    model["vocab"].update(old)
    model["vocab"].update({_HOLE.format(hole): hole for hole in range(first) if hole not in taken})
    model["vocab"].update({content: number for number, content in enumerate(new, start=first)})


class ByteLevel:
    """See :class:`transllm.tokenizer.family.Family`. Bytes write every text, so no character is ever lacking."""

    space = " "
    unknown: int | None = None

    def __init__(self, tokenizer: PreTrainedTokenizerFast, parsed: dict[str, Any]) -> None:
        self._tokenizer, self.parsed = tokenizer, parsed

    @cached_property
    def backend(self) -> Tokenizer:
        return plain_backend(self._tokenizer)

    def counted(self, texts: Iterable[str]) -> Counter[str]:
        return stretches(texts)

    def cut(self, backend: Tokenizer, counted: Mapping[str, int], *, single: re.Pattern[str] | None = None,
            progress: Progress | None = None) -> Cut:
        return cut(backend, counted, single=single, progress=progress)

    def bytes_of(self, piece: str) -> bytes:
        return piece_bytes(piece)

    def cut_bytes(self, backend: Tokenizer, raw: bytes) -> list[str] | None:
        return [token.value for token in backend.model.tokenize(byte_piece(raw))]

    def whole_words(self, script: Script) -> Tokenizer | None:
        text = with_whole_words(self.backend.to_str(), script)
        return None if text is None else plain(text)

    def lacking(self, counted: Mapping[str, int]) -> Counter[str]:
        return Counter()

    def spelled(self, characters: Sequence[str]) -> Tokenizer:
        raise NotImplementedError("a byte-level vocabulary lacks no character")

    def touches(self, piece: str) -> bool:
        return False

    def finished(self, learned: Learned, english: Iterable[str]) -> Learned:
        return learned

    def fits(self, learned: Learned) -> bool:
        return [left + right for left, right in learned.merges] == learned.pieces

    def insert(self, learned: Learned, old: Mapping[str, int], atoms: Collection[str]) -> None:
        model = self.parsed["model"]
        add_to_vocabulary(model, old, [*learned.pieces, *atoms])
        model["merges"] += [list(merge) for merge in learned.merges]
        if learned.whole_words:
            self.parsed["pre_tokenizer"] = whole_words(self.parsed["pre_tokenizer"], learned.script)
