"""A tokenizer as its own ``tokenizer.json``, and as a backend that reads nothing into a text.

No kind of tokenizer is known here; what differs between kinds is in ``family.py`` and the files behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from transllm.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# How SentencePiece writes a space. Byte-level vocabularies do not hold this sign.
SPACE = "▁"
_INSIDE = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}


def parsed_json(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The parsed content of the tokenizer's ``tokenizer.json``, merges as pairs.

    Raises:
        ModelError: it has none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ModelError("The tokenizer has no tokenizer.json (it is not a fast tokenizer), so its vocabulary cannot be extended. "
                         "Take a model whose folder holds tokenizer.json.")
    parsed: dict[str, Any] = json.loads(backend.to_str())
    return parsed


def steps(parsed: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """The steps of the ``normalizer`` or the ``pre_tokenizer``, sequences opened."""
    def opened(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        if step is not None and step["type"] == "Sequence":
            for part in step[_INSIDE[name]]:
                yield from opened(part)
        elif step is not None:
            yield step

    return opened(parsed[name])


def plain_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the tokenizer's backend that adds nothing to a text and reads nothing into it.

    Special tokens typed in a text stay text, no beginning-of-text token is added, nothing is cut or padded. The space that a
    SentencePiece tokenizer puts before a text's first word is part of its normal form and stays; decoding takes it away again.
    """
    return plain(tokenizer.backend_tokenizer.to_str())


def plain(serialized: str) -> Tokenizer:
    """:func:`plain_backend` of a ``tokenizer.json``."""
    backend = Tokenizer.from_str(serialized)
    if backend.token_to_id(SPACE) is not None:
        special = {token.content: number for number, token in backend.get_added_tokens_decoder().items() if token.special}
        reached = {content for content, number in special.items() if [token.id for token in backend.model.tokenize(content)] == [number]}
        if reached:
            backend = Tokenizer.from_str(json.dumps(_hidden(json.loads(serialized), reached)))
    backend.post_processor = None
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def first_space(tokenizer: PreTrainedTokenizerFast) -> str:
    """Where the tokenizer puts a space of its own before a text: "never", "first" (where the text begins) or "always" (also after each
    special token in it)."""
    parsed = parsed_json(tokenizer)
    if any(step["type"] == "Prepend" for step in steps(parsed, "normalizer")):
        return "always"
    return next((str(step["prepend_scheme"]) for step in steps(parsed, "pre_tokenizer") if step["type"] == "Metaspace"), "never")


def continuing_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """:func:`plain_backend` for text that goes on after other text: without a space of its own before it."""
    parsed = parsed_json(tokenizer)
    for step in steps(parsed, "pre_tokenizer"):
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
    kept = [step for step in steps(parsed, "normalizer") if step["type"] != "Prepend"]
    parsed["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    return plain(json.dumps(parsed))


def plain_ids(backend: Tokenizer, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of each text, by a backend from :func:`plain_backend`."""
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _hidden(parsed: dict[str, Any], contents: set[str]) -> dict[str, Any]:
    """The tokenizer with these special tokens out of reach of its model, which finds a typed ``</s>`` like any other piece.

    A Unigram model gets another name for them: one with a space, which no text holds once spaces are written as ▁.
    """
    model = parsed["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [[f" {piece}" if piece in contents else piece, score] for piece, score in model["vocab"]]
        for token in parsed["added_tokens"]:
            token["content"] = f" {token['content']}" if token["content"] in contents else token["content"]
    else:
        model["merges"] = [merge for merge in model["merges"] if "".join(merge) not in contents]
    return parsed
