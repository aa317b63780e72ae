"""Byte-level BPE, read off the tokenizer's own ``tokenizer.json``.

A byte-level BPE writes every byte as one printable character (GPT-2's alphabet), cuts a text into pre-tokens and merges
neighbours inside a pre-token in the order of its list of merges. GPT-2, Llama 3, Qwen and SmolLM are of this kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from transllm.tokenizer.backend import plain_backend, plain_ids

if TYPE_CHECKING:
    from transllm.tokenizer.learn import Learned

__all__ = ["ByteLevel", "add_to_vocabulary", "piece_bytes", "plain_backend", "plain_ids"]

_SHOWN = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
_BYTE_OF = {chr(byte): byte for byte in _SHOWN} | {chr(256 + place): byte for place, byte in enumerate(_HIDDEN)}
_HOLE = "<|unused_{}|>"


def piece_bytes(piece: str) -> bytes:
    """The bytes that a piece of the byte-level alphabet stands for. Characters outside the alphabet stand for themselves."""
    return b"".join(bytes([_BYTE_OF[char]]) if char in _BYTE_OF else char.encode() for char in piece)


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

    space = "Ġ"
    fixed: frozenset[int] = frozenset()

    def __init__(self, parsed: dict[str, Any]) -> None:
        self.parsed = parsed

    def words(self, counted: Counter[str]) -> Counter[str]:
        return counted

    def letters(self, piece: str) -> str:
        return piece_bytes(piece).decode(errors="replace")

    def lacking(self, counted: Counter[str]) -> Counter[str]:
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
