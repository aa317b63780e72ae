"""What this room needs to know of a byte-level BPE tokenizer, read off its own ``tokenizer.json``.

A byte-level BPE writes every byte as one printable character (GPT-2's alphabet), cuts a text into pre-tokens and merges
neighbours inside a pre-token in the order of its list of merges. GPT-2, Llama 3, Qwen and SmolLM are of this kind. Any other
kind is refused here, so that the rest of the room can rely on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from transllm.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SHOWN = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
_BYTE_OF = {chr(byte): byte for byte in _SHOWN} | {chr(256 + place): byte for place, byte in enumerate(_HIDDEN)}
_CHAR_OF = {byte: char for char, byte in _BYTE_OF.items()}


def piece_bytes(piece: str) -> bytes:
    """The bytes that a piece of the byte-level alphabet stands for. Characters outside the alphabet stand for themselves."""
    return b"".join(bytes([_BYTE_OF[char]]) if char in _BYTE_OF else char.encode() for char in piece)


def byte_piece(raw: bytes) -> str:
    """Bytes in the byte-level alphabet: the inverse of :func:`piece_bytes`."""
    return "".join(_CHAR_OF[byte] for byte in raw)


def structure(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The tokenizer as the parsed content of its ``tokenizer.json``, merges as pairs.

    Raises:
        ModelError: it is not a byte-level BPE.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ModelError("The tokenizer has no tokenizer.json (it is not a fast tokenizer), so its vocabulary cannot be extended. "
                         "Take a model whose folder holds tokenizer.json.")
    parsed: dict[str, Any] = json.loads(backend.to_str())
    kind = _foreign_kind(parsed)
    if kind is not None:
        raise ModelError(f"The tokenizer is {kind}, not a byte-level BPE, so its vocabulary cannot be extended. "
                         f"Take a model with a byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM and their like).")
    return parsed


def _foreign_kind(parsed: dict[str, Any]) -> str | None:
    """The name of a kind that this room cannot extend; None for a byte-level BPE."""
    model = parsed["model"]
    steps = {step["type"] for step in _flat(parsed["pre_tokenizer"], "pretokenizers")}
    if model["type"] != "BPE":
        return f"a {model['type']} model"
    if model.get("byte_fallback") or "Metaspace" in steps:
        return "a SentencePiece BPE (Metaspace or byte fallback)"
    if "ByteLevel" not in steps and "ByteLevel" not in {step["type"] for step in _flat(parsed["normalizer"], "normalizers")}:
        return "a character-level BPE"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "a BPE with marks at the borders of words"
    if model.get("dropout"):
        return "a BPE with dropout, which cuts the same text differently each time"
    return None


def _flat(step: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer or normalizer, sequences opened."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [leaf for part in step[inside] for leaf in _flat(part, inside)]
    return [step]


def plain_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the tokenizer's backend that adds nothing to a text and reads nothing into it.

    Special tokens typed in a text stay text, no beginning-of-text token is added, nothing is cut or padded.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = None
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def plain_ids(backend: Tokenizer, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of each text, by a backend from :func:`plain_backend`."""
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
