"""What an extended tokenizer promises, shown on text and bytes: nothing that was there is cut otherwise, and nothing is lost.

Each function measures and gives a typed result, or raises where a promise is broken: a tokenizer that loses a byte or misplaces a
piece would spoil everything that is trained with it.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, models

from transllm.errors import ModelError
from transllm.tokenizer.backend import SPACE, plain_backend, plain_ids
from transllm.tokenizer.bytelevel import ByteLevel
from transllm.tokenizer.family import family_of
from transllm.tokenizer.fertility import Comparison, compare
from transllm.tokenizer.modelfile import processor_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LEAST_IDENTICAL = 0.998
"""Share of sentences that a Latin-script language must leave as they were; another script leaves all."""
_FEW = 1000
"""Of fewer sentences than these, as many may differ as of these: one of a hundred is no evidence for a share."""


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """What was encoded and decoded and came back: single bytes, strings of random bytes, texts of random characters.

    What the original itself loses is not tried: bytes that it has no piece for (``lacking``; all of them for a Unigram model without byte
    fallback, and for some byte-level vocabularies control characters and bytes that no UTF-8 text holds), texts with what it does not know.
    """

    single_bytes: int
    byte_strings: int
    texts: int
    lacking: list[int]


def prove_kept(original: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast, sentences: Iterable[str], *, what: str,
               least: float) -> Comparison:
    """Compare the cut of sentences that must stay as it was; the result holds every difference.

    Args:
        what: "English" or "code", for the message.
        least: share of sentences that must be cut alike; 1.0 for a language of another script.

    Raises:
        ModelError: fewer are.
    """
    texts = list(sentences)
    found = compare(original, extended, texts, keep=len(texts))
    differ = found.sentences - found.identical
    if differ > (1 - least) * max(_FEW, found.sentences):
        shown = "; ".join(f"'{str(item['text'])[:60]}'" for item in found.differences[:3])
        raise ModelError(f"{differ:,} of {found.sentences:,} sentences of {what} that nothing was learned from are cut otherwise than "
                         f"before ({shown}); at most {1 - least:.1%} may be. Give more English text (data.english), take fewer sub-words "
                         "(extend.vocab_size), or accept it (extend.min_identical).")
    return found


def prove_round_trips(original: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast, *, texts: Sequence[str] = (), count: int = 500,
                      seed: int = 0) -> RoundTrips:
    """Every byte that had a token has one, and byte strings and texts come back as they were, or as the original gives them back: in
    its normal form.

    Args:
        texts: further texts to try, such as target-language sentences.
        count: random byte strings, and as many random texts.

    Raises:
        ModelError: one does not come back.
    """
    family, old, new = family_of(original), plain_backend(original), plain_backend(extended)
    draw = random.Random(seed)

    def back(backend: Tokenizer, raw: bytes) -> bytes:
        return b"".join(map(family.bytes_of, family.cut_bytes(backend, raw) or []))

    had = bytes(byte for byte in range(256) if back(old, bytes([byte])) == bytes([byte]))
    strings = [bytes([byte]) for byte in had]
    if had:
        strings += [bytes(draw.choices(had, k=draw.randrange(2, 64))) for _ in range(count)]
    for raw in strings:
        if back(new, raw) != raw:
            raise ModelError(f"The extended tokenizer loses the bytes {raw.hex(' ')}. "
                             "This is a bug; please report it with the model's name.")
    made = [*texts, *(_random_text(draw) for _ in range(count))]
    ids = plain_ids(old, made)
    if family.unknown is not None:
        kept = [place for place, row in enumerate(ids) if family.unknown not in row]
        made, ids = [made[place] for place in kept], [ids[place] for place in kept]
    for text, before, after in zip(made, old.decode_batch(ids), new.decode_batch(plain_ids(new, made)), strict=True):
        if after != before and after.strip() != text.strip():  # some decoders take the space at a text's head away
            raise ModelError(f"The extended tokenizer does not give back the text {text[:80]!r}, but {after[:80]!r}. "
                             "This is a bug; please report it with the model's name.")
    return RoundTrips(len(had), len(strings) - len(had), len(made), [byte for byte in range(256) if byte not in had])


def _random_text(draw: random.Random) -> str:
    """Characters of all planes and scripts, with spaces, line ends and signs between them."""
    def char() -> str:
        kind = draw.randrange(4)
        if kind == 0:
            return chr(draw.randrange(128))
        if kind == 1:
            return draw.choice(" \n\t  ")
        point = draw.randrange(0x3000) if kind == 2 else draw.randrange(0x110000 - 0x800)
        return chr(point if point < 0xD800 else point + 0x800)  # no halves of surrogate pairs: they are no text

    return "".join(char() for _ in range(draw.randrange(1, 40)))


def prove_gguf(extended: PreTrainedTokenizerFast, *, first: int) -> int:
    """Write the new pieces as the metadata of a GGUF file, read them back, and find each as one token, by what was read.

    A byte-level vocabulary goes into such a file as pieces and merges, a SentencePiece one as pieces and scores; of the latter, the cut is
    SentencePiece's own. The old pieces came out of such a file or go into it as they are, and reading takes 40 microseconds a string, so
    they are left out. The file has no place for a pre-tokenizer's rule: it names one that the engine knows. What is shown here is that
    pieces, ids, merges and scores survive.

    Args:
        first: the lowest new id.

    Returns:
        How many new pieces were found.

    Raises:
        ModelError: one is not.
    """
    parsed = family_of(extended).parsed
    added = {token["content"] for token in parsed["added_tokens"]}
    new = [piece for piece, number in sorted(extended.get_vocab().items(), key=lambda entry: entry[1])
           if number >= first and piece not in added]
    if not new:
        return 0
    lost = (_lost_merges if isinstance(family_of(extended), ByteLevel) else _lost_scores)(parsed, new)
    if lost:
        raise ModelError(f"{len(lost):,} of {len(new):,} new pieces are not themselves again in a GGUF file, such as "
                         f"{family_of(extended).bytes_of(lost[0])!r}. This is a bug; please report it with the model's name.")
    return len(new)


def _lost_merges(parsed: dict[str, Any], new: list[str]) -> list[str]:
    """The new pieces that a BPE with the merges of a GGUF file does not find."""
    vocabulary: dict[str, int] = parsed["model"]["vocab"]
    merges = [(left, right) for left, right in parsed["model"]["merges"]]
    own = set(new)
    late = [merge for merge in merges if "".join(merge) in own]
    if len(late) < len(new):
        return sorted(own - {"".join(merge) for merge in late})
    fields = _through_gguf("gpt2", new, merges=[" ".join(merge) for merge in late])
    found = {token: token_id for token, token_id in vocabulary.items() if token not in own}
    found |= {token: vocabulary[piece] for token, piece in zip(fields["tokens"], new, strict=True)}
    parts = [merge.partition(" ") for merge in fields["merges"]]
    if not all(part in found for left, _, right in parts for part in (left, right)):
        return new
    old = [merge for merge in merges if "".join(merge) not in own]
    bpe = Tokenizer(models.BPE(vocab=found, merges=[*old, *((left, right) for left, _, right in parts)]))
    return [piece for piece in new if [token.id for token in bpe.model.tokenize(piece)] != [vocabulary[piece]]]


def _lost_scores(parsed: dict[str, Any], new: list[str]) -> list[str]:
    """The new pieces that SentencePiece does not find by the scores of a GGUF file. A BPE's are the ranks of its merges."""
    model = parsed["model"]
    unigram = model["type"] == "Unigram"
    if unigram:
        scores: dict[str, float] = dict(model["vocab"])
    else:
        scores = {piece: 0.0 for piece in model["vocab"] if len(piece) == 1}
        for rank, (left, right) in enumerate(model["merges"]):
            scores.setdefault(left + right, -1.0 - rank)
    unscored = [piece for piece in new if piece not in scores]
    if unscored:
        return unscored
    fields = _through_gguf("llama", new, scores=[scores[piece] for piece in new])
    for piece in new:
        del scores[piece]
    scores |= zip(fields["tokens"], fields["scores"], strict=True)
    cut = processor_of(scores, unigram=unigram).encode([piece.replace(SPACE, " ") for piece in new], out_type=str)
    return [piece for piece, found in zip(new, cut, strict=True) if found != [piece]]


def _through_gguf(kind: str, tokens: list[str], *, merges: list[str] | None = None,
                  scores: list[float] | None = None) -> dict[str, list[Any]]:
    """What a GGUF file gives back of a vocabulary."""
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "vocabulary.gguf")
        writer: Any = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model(kind)
        writer.add_token_list(tokens)
        if merges is not None:
            writer.add_token_merges(merges)
        if scores is not None:
            writer.add_token_scores(scores)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        fields: Any = gguf.GGUFReader(path).fields
        prefix = "tokenizer.ggml."
        return {name.removeprefix(prefix): field.contents() for name, field in fields.items() if name.startswith(prefix)}
