"""What the two SentencePiece families share: words begin with ▁, and a character that no piece writes falls to bytes or to unknown."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from transllm.tokenizer.backend import SPACE, parsed_json, plain, plain_backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from transllm.tokenizer.learn import Learned

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_WORD = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
# Joiners decide how letters of some scripts look; other invisible signs, line breaks, emoji, symbols and ASCII are any language's.
_JOINERS = "\u200c\u200d"


class SentencePiece:
    """What is the same for SentencePiece BPE and Unigram. See :class:`transllm.tokenizer.family.Family`.

    Where old pieces hold a space inside (models trained without ``split_by_whitespace``), a word is a whole text and learning takes
    longer. New pieces never hold a space but at their head, and are not made from pieces that do.
    """

    space = SPACE

    def __init__(self, tokenizer: PreTrainedTokenizerFast, parsed: dict[str, Any]) -> None:
        self.parsed = parsed
        self._tokenizer = tokenizer
        self.vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.backend = plain_backend(tokenizer)
        model = parsed["model"]
        unknown = model.get("unk_id") if model["type"] == "Unigram" else self.vocabulary.get(model.get("unk_token") or "")
        self.fixed = frozenset(number for piece, number in self.vocabulary.items() if _BYTE.fullmatch(piece))
        self.fixed |= {int(token["id"]) for token in parsed["added_tokens"]} | (set() if unknown is None else {int(unknown)})
        crossing = {number for piece, number in self.vocabulary.items() if SPACE in piece.lstrip(SPACE)} - self.fixed
        self._crossed = bool(crossing)
        self.fixed |= crossing
        #: The pieces that stand for text of their own.
        self.plain = {piece: number for piece, number in self.vocabulary.items() if number not in self.fixed}

    def words(self, counted: Counter[str]) -> Counter[str]:
        if self._crossed:
            return counted
        words: Counter[str] = Counter()
        for text, times in counted.items():
            for word in _WORD.findall(text):
                words[word] += times
        return words

    def letters(self, piece: str) -> str:
        return piece.replace(SPACE, " ")

    def lacking(self, counted: Counter[str]) -> Counter[str]:
        wanted = {char for char in set().union(*counted)
                  if not char.isascii() and char not in self.plain and (unicodedata.category(char)[0] in "LMNP" or char in _JOINERS)}
        characters: Counter[str] = Counter()
        if wanted:
            for word, times in counted.items():
                for char in wanted.intersection(word):
                    characters[char] += times * word.count(char)
        return characters

    def grown(self, learned: Learned) -> Tokenizer:
        """A plain backend with these pieces, and no markers."""
        family = type(self)(self._tokenizer, parsed_json(self._tokenizer))
        family.insert(learned, self.vocabulary, [])
        return plain(json.dumps(family.parsed))

    def insert(self, learned: Learned, old: Mapping[str, int], atoms: Collection[str]) -> None:
        raise NotImplementedError
