"""Extend a SentencePiece model file (``tokenizer.model``), so that it cuts every text as the extended ``tokenizer.json`` does.

Converters to GGUF and engines of their own read this file and not ``tokenizer.json``. It is a protobuf message whose first field
repeats: one entry a piece, the place being the id. Entries that are appended to the bytes of such a message belong to it like any
other (protobuf's encoding: a repeated field may come in parts, and parts of one embedded message are merged), so nothing of the
original is read, rewritten or lost, and no protobuf library is needed. The field numbers are those of ``sentencepiece_model.proto``.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import sentencepiece

from transllm.errors import ModelError
from transllm.tokenizer.backend import SPACE, parsed_json, plain_backend, plain_ids
from transllm.tokenizer.extend import id_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_UNIGRAM, _BPE = b"\x01", b"\x02"


def model_file(tokenizer: PreTrainedTokenizerFast) -> Path | None:
    """The SentencePiece file that came with a tokenizer, if there is one."""
    name = getattr(tokenizer, "vocab_file", None)
    file = Path(name) if isinstance(name, str) else None
    if file is None or file.suffix != ".model" or not file.is_file() or _processor(file.read_bytes()) is None:
        return None
    return file


def extended_model_file(original: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast, content: bytes) -> bytes | None:
    """The original's SentencePiece file with the pieces, markers and placeholders of the extended tokenizer.

    Returns:
        the file; None, with a warning, if the original file numbers its pieces otherwise than ``tokenizer.json`` does (some
        families shift them): then it never was this tokenizer's other form.

    Raises:
        ModelError: the two would cut a new piece's text differently, where the originals agree.
    """
    before = _processor(content)
    if before is None or not _same_ids(before, original):
        log.warning("The SentencePiece file beside tokenizer.json numbers its pieces otherwise, so it is not extended and not written. "
                    "Use tokenizer.json.")
        return None
    size, first = before.get_piece_size(), id_limit(original)
    vocabulary: dict[str, int] = extended.get_vocab()
    contents = sorted((number, piece) for piece, number in vocabulary.items() if number >= size)
    special = {number: token.special for number, token in extended.added_tokens_decoder.items()}
    model = parsed_json(extended)["model"]
    scores = dict(model["vocab"]) if model["type"] == "Unigram" else None
    falling = _below(min(before.get_score(number) for number in range(size)))
    message = bytearray(content)
    for number, piece in contents:
        # Placeholders are below the new pieces, and no text may reach them.
        kind = _NORMAL if number >= first and number not in special else _USER_DEFINED if special.get(number) is False else _CONTROL
        score = next(falling) if scores is None else scores[piece]
        message += _entry(piece, score, kind)
    message += _field(2, b"\x20" + _varint(size + len(contents)))
    grown = bytes(message)
    _verify(original, extended, before, grown)
    return grown


def processor_of(scores: Mapping[str, float], *, unigram: bool) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece itself on these pieces and scores, with spaces as ▁ and no space of its own before a text."""
    entries = [_entry(" unknown", 0.0, _UNKNOWN), *(_entry(piece, score, _NORMAL) for piece, score in scores.items())]
    trainer = _field(2, b"\x18" + (_UNIGRAM if unigram else _BPE))
    normalizer = _field(3, b"\x18\x00\x20\x00")  # add_dummy_prefix and remove_extra_whitespaces: no
    return sentencepiece.SentencePieceProcessor(model_proto=b"".join([*entries, trainer, normalizer]))


def _entry(piece: str, score: float, kind: int) -> bytes:
    """A piece as the file has it; the score is single precision."""
    return _field(1, _field(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind))


def _processor(content: bytes) -> sentencepiece.SentencePieceProcessor | None:
    """None if the bytes are of another kind: some tokenizers keep a tiktoken list under the same name."""
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError:
        return None


def _same_ids(processor: sentencepiece.SentencePieceProcessor, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether pieces that stand for text have the same id in both. Control tokens may go by other names."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return all(vocabulary.get(processor.id_to_piece(number)) == number or processor.is_control(number) or processor.is_unknown(number)
               or processor.is_byte(number) for number in range(processor.get_piece_size()))


def _below(score: float) -> Iterator[float]:
    """Scores in single precision, each below the one before.

    White space often scores a thousand million below zero, where single precision has no step as small as 1.
    """
    last = np.float32(score)
    while True:
        last = min(np.float32(last - 1), np.nextafter(last, np.float32(-np.inf)))
        yield float(last)


def _verify(original: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast, before: sentencepiece.SentencePieceProcessor,
            grown: bytes) -> None:
    after = _processor(grown)
    if after is None or after.get_piece_size() != len(extended):
        raise ModelError("The extended SentencePiece file cannot be read back. Please report it with the model's name.")
    first, added = id_limit(original), {token.content for token in extended.added_tokens_decoder.values()}
    pieces = sorted(piece for piece, number in extended.get_vocab().items() if number >= first and piece not in added)
    texts = [piece.replace(SPACE, " ") for piece in pieces]
    slow_old, slow_new = before.encode(texts), after.encode(texts)
    fast_old, fast_new = (plain_ids(plain_backend(tokenizer), texts) for tokenizer in (original, extended))
    for text, *ids in zip(texts, slow_old, fast_old, slow_new, fast_new, strict=True):
        if ids[0] == ids[1] and ids[2] != ids[3]:
            raise ModelError(f"The extended tokenizer.json and the extended SentencePiece file cut '{text}' differently. "
                             f"Please report it with the model's name.")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, content: bytes) -> bytes:
    """A protobuf field that holds bytes, text or a message."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content
