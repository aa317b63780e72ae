"""What the two SentencePiece families share: words begin with ▁, and a character that no piece writes falls to bytes or to unknown."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from transllm.tokenizer.backend import SPACE, parsed_json, plain, plain_backend
from transllm.tokenizer.script import Script
from transllm.tokenizer.words import Cut, Progress, batches, joined

if TYPE_CHECKING:
    from numpy.typing import NDArray
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
        self.unknown: int | None = None if unknown is None else int(unknown)
        single = {number for piece, number in self.vocabulary.items() if _BYTE.fullmatch(piece)}
        fixed = single | {int(token["id"]) for token in parsed["added_tokens"]} | (set() if unknown is None else {int(unknown)})
        crossing = {number for piece, number in self.vocabulary.items() if SPACE in piece.lstrip(SPACE)} - fixed
        self._bytes, self._crossed = len(single) == 256, bool(crossing)
        #: Ids that stand for no text that could be joined: single bytes, the unknown token, added tokens, pieces with a space inside.
        self._fixed = fixed | crossing
        #: The pieces that stand for text of their own.
        self.plain = {piece: number for piece, number in self.vocabulary.items() if number not in self._fixed}

    def counted(self, texts: Iterable[str]) -> Counter[str]:
        parts: Counter[str] = Counter()
        normalizer, pre_tokenizer = self.backend.normalizer, self.backend.pre_tokenizer
        for text in texts:
            normal = text if normalizer is None else normalizer.normalize_str(text)
            parts.update([normal] if pre_tokenizer is None else [part for part, _ in pre_tokenizer.pre_tokenize_str(normal)])
        if self._crossed:
            return parts
        words: Counter[str] = Counter()
        for part, times in parts.items():
            for word in _WORD.findall(part):
                words[word] += times
        return words

    def cut(self, backend: Tokenizer, counted: Mapping[str, int], *, single: re.Pattern[str] | None = None,
            progress: Progress | None = None) -> Cut:
        """Tokens join where both stand for text, and a space is at the head only."""
        fixed, opens, blank = self._kinds(backend)
        total, done = sum(map(len, counted)), 0
        parts: list[Cut] = []
        for batch in batches(counted):
            rows = [[token.id for token in backend.model.tokenize(word)] for word in batch]
            lengths = np.array([len(row) for row in rows], dtype=np.int64)
            ids = np.array([number for row in rows for number in row], dtype=np.int32)
            first = fixed[ids]
            first[1:] |= fixed[ids[:-1]] | (opens[ids[1:]] & ~blank[ids[:-1]])
            first[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
            times = np.array([counted[word] for word in batch], dtype=np.int32)
            parts.append(Cut(ids, first, np.repeat(times, lengths)))
            done += sum(map(len, batch))
            if progress is not None:
                progress(done, total)
        return joined(parts)

    def _kinds(self, backend: Tokenizer) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """Of each id: whether it never joins, begins with a space, is nothing but spaces."""
        vocabulary = backend.get_vocab()
        fixed, opens, blank = (np.zeros(max(vocabulary.values()) + 1, dtype=np.bool_) for _ in range(3))
        fixed[list(self._fixed)] = True
        for piece, number in vocabulary.items():
            opens[number], blank[number] = piece.startswith(SPACE), not piece.strip(SPACE)
        return fixed, opens, blank

    def bytes_of(self, piece: str) -> bytes:
        return bytes([int(piece[3:5], 16)]) if _BYTE.fullmatch(piece) else piece.replace(SPACE, " ").encode()

    def cut_bytes(self, backend: Tokenizer, raw: bytes) -> list[str] | None:
        if not self._bytes:
            return None
        return [piece for piece in (f"<0x{byte:02X}>" for byte in raw) if backend.token_to_id(piece) is not None]

    def whole_words(self, script: Script) -> Tokenizer | None:
        return None  # words end at spaces, not at marks

    def lacking(self, counted: Mapping[str, int]) -> Counter[str]:
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
