"""SentencePiece BPE with ▁ for a space and, mostly, byte fallback: Llama 2, Mistral, Gemma.

SentencePiece has no list of merges. Any two neighbours whose concatenation is a piece may be joined, the piece of the highest
score first. ``tokenizer.json`` says the same with a merge for every split of a piece into two pieces, ranked by score. New
pieces score below all old ones, so what was said of byte-level BPE (``learn.py``) holds here too: a stretch of text between two
token borders is cut as if it stood alone. So of all splits of a new piece into two, only one ever meets in a text, the
pair that it was learned from; the others are written down because SentencePiece would accept them, and because converters do.

The exception is an old piece that its own merges do not reach (vocabularies that were put together by hand hold some): a new
piece could be the missing step, and old ids would appear in new places. No part of such a piece is learned.

A character that the vocabulary lacks falls to its bytes, and bytes never join. So characters come in first, as pieces of
their own, except those that English text holds too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property

from tokenizers import Tokenizer

from transllm.tokenizer.bytelevel import add_to_vocabulary
from transllm.tokenizer.learn import Learned
from transllm.tokenizer.sentencepiece import SentencePiece


class SentencePieceBPE(SentencePiece):
    """See :class:`transllm.tokenizer.family.Family`."""

    def spelled(self, characters: Sequence[str]) -> Tokenizer:
        return self.grown(Learned([], list(characters), {}))

    def touches(self, piece: str) -> bool:
        return piece in self._unreached

    def finished(self, learned: Learned, english: Iterable[str]) -> Learned:
        return learned

    def fits(self, learned: Learned) -> bool:
        made = [left + right for left, right in learned.merges]
        characters = learned.pieces[:len(learned.pieces) - len(made)]
        return all(len(char) == 1 for char in characters) and characters + made == learned.pieces

    def insert(self, learned: Learned, old: Mapping[str, int], atoms: Collection[str]) -> None:
        model = self.parsed["model"]
        add_to_vocabulary(model, old, [*learned.pieces, *atoms])
        parts = {*self.plain, *learned.pieces}
        for merge in learned.merges:
            piece = "".join(merge)
            splits = ((piece[:place], piece[place:]) for place in range(1, len(piece)))
            # The pair that it was learned from comes first: sub_tokens takes that one.
            model["merges"] += [list(merge), *(list(split) for split in splits
                                               if split != merge and split[0] in parts and split[1] in parts)]

    @cached_property
    def _unreached(self) -> str:
        """The old pieces that are not found when they stand alone, as one text to look in."""
        tokenize = self.backend.model.tokenize
        return "\n".join(piece for piece, number in self.plain.items() if [token.id for token in tokenize(piece)] != [number])
