"""Put learned pieces and markers into a tokenizer without moving anything that is there.

Pieces go into the model itself (vocabulary and merges, or pieces and scores, of ``tokenizer.json``), so they are found at the speed of
the original; only the few markers are added tokens. Ids that exist stay; new ones follow the highest: pieces, markers, pad.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from transllm.errors import ModelError
from transllm.tokenizer.backend import plain_backend, plain_ids
from transllm.tokenizer.family import Family, family_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

    from transllm.tokenizer.learn import Learned

DEFAULT_PAD = "<|pad|>"


def extend_tokenizer(tokenizer: PreTrainedTokenizerFast, learned: Learned, *, markers: Sequence[str],
                     pad: str | None) -> PreTrainedTokenizerFast:
    """A new tokenizer with the learned pieces, the markers and a pad token of its own; the given one is left as it is.

    Ids start after the highest that exists. If there are holes below it, they are filled with placeholders that no text
    reaches, so that the size of the tokenizer and the highest id agree. Chat template, special tokens and maximal length
    are taken over.

    Args:
        tokenizer: of any family in ``family.py``.
        learned: from :func:`transllm.tokenizer.learn_merges` on the same tokenizer.
        markers: texts of the marker tokens, each one atomic and special.
        pad: name of the pad token, used only if the tokenizer has none or pads with its end of sequence. None: a default name.

    Raises:
        ModelError: another kind of tokenizer, a marker that exists or comes twice, pieces that do not fit the tokenizer,
            or a check of the result that fails.
    """
    family = family_of(tokenizer)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    first = id_limit(tokenizer)
    new_pad = pad or DEFAULT_PAD
    wants_pad = tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token
    atoms = [*markers, *([new_pad] if wants_pad else [])]
    _check_markers(atoms, vocabulary, learned)
    _check_pieces(learned, vocabulary, family)

    parsed = family.parsed
    family.insert(learned, vocabulary, atoms)
    parsed["added_tokens"] += [
        {"id": token_id, "content": atom, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for token_id, atom in enumerate(atoms, start=first + len(learned.pieces))]
    # Padding that is set in the file names the old pad token. The caller of a tokenizer chooses padding and cutting anew.
    parsed["padding"] = parsed["truncation"] = None

    extended = _rebuilt(tokenizer, parsed, pad=new_pad if wants_pad else None)
    _verify(tokenizer, extended, learned, atoms, family)
    return extended


def id_limit(tokenizer: PreTrainedTokenizerFast) -> int:
    """One more than the highest id: how many embedding rows the tokenizer can address."""
    return max(tokenizer.get_vocab().values()) + 1


def sub_tokens(original: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast, *,
               descriptions: Mapping[str, str] | None = None) -> dict[int, list[int]]:
    """For each new id, the original ids that it stands for, in text order: what its embedding row can start from.

    A piece stands for the original tokens that its merges join, which are those that the original model saw in its place; in a
    Unigram model, for its cut by the original. A character that the vocabulary lacked stands for its bytes. An added token stands
    for its description (e.g. ``{"<ES>": "Spanish:"}``), or for its own characters if it has none.

    Raises:
        ModelError: an added token or a piece that gives no original token.
    """
    known: dict[str, int] = original.get_vocab()
    first = id_limit(original)
    parts: dict[str, list[int]] = {}
    found: dict[int, list[int]] = {}
    vocabulary: dict[str, int] = extended.get_vocab()
    backend = plain_backend(original)

    def originals(piece: str) -> list[int]:
        return parts.get(piece) or ([known[piece]] if piece in known else [token.id for token in backend.model.tokenize(piece)])

    for left, right in family_of(extended).parsed["model"].get("merges", []):
        # Of a piece's merges, the first is the one that it was learned from.
        if vocabulary[left + right] >= first and left + right not in parts:
            parts[left + right] = [*originals(left), *originals(right)]
    added = {token.content for token in extended.added_tokens_decoder.values()}
    for content, token_id in vocabulary.items():
        if token_id < first:
            continue
        if content in added:
            described = plain_ids(backend, [(descriptions or {}).get(content, ""), content])
            found[token_id] = described[0] or described[1]
        else:
            found[token_id] = originals(content)
        if not found[token_id]:
            raise ModelError(f"The new token '{content}' stands for no original token, so its embedding has nothing to start "
                             f"from. Give it a description that the original tokenizer can encode.")
    return dict(sorted(found.items()))


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer so that ``tokenizer.json`` alone says how it works, in every version of transformers.

    Model-specific classes rebuild parts of a tokenizer in code, and version 5 writes a class name that version 4 does not
    know; the general class reads the file as it is and exists in both.
    """
    tokenizer.save_pretrained(folder)
    _edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def _edit(path: Path, **values: str) -> None:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for transient in ("is_local", "local_files_only", "auto_map", "gguf_file"):
        config.pop(transient, None)  # how this process loaded it says nothing about the files
    config.update(values)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_markers(atoms: Sequence[str], vocabulary: Mapping[str, int], learned: Learned) -> None:
    taken = set(learned.pieces)
    for atom in atoms:
        if not atom or atom != atom.strip():
            raise ModelError(f"The marker '{atom}' is empty or has space around it. Give it a visible name such as <XX>.")
        if atom in vocabulary:
            raise ModelError(f"The token '{atom}' is in the tokenizer's vocabulary already (id {vocabulary[atom]}). "
                             f"Extend the original tokenizer, or choose another name.")
        if atom in taken:
            raise ModelError(f"The token '{atom}' is given twice, or is also a learned piece. Choose another name.")
        taken.add(atom)


def _check_pieces(learned: Learned, vocabulary: Mapping[str, int], family: Family) -> None:
    advice = "Learn the merges on this very tokenizer."
    if not family.fits(learned):
        raise ModelError(f"The learned merges do not make the learned pieces. {advice}")
    merge_of = {left + right: (left, right) for left, right in learned.merges}
    known = set(vocabulary)
    for piece in learned.pieces:
        for part in merge_of.get(piece, ()):
            if part not in known:
                raise ModelError(f"The learned piece '{piece}' has a part '{part}' that is not in the vocabulary. {advice}")
        if piece in known:
            raise ModelError(f"The learned piece '{piece}' is in the tokenizer's vocabulary already. {advice}")
        known.add(piece)


def _rebuilt(tokenizer: PreTrainedTokenizerFast, parsed: dict[str, Any], *, pad: str | None) -> PreTrainedTokenizerFast:
    """The tokenizer with another ``tokenizer.json``, by way of a folder: what users load later is what is checked here."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tokenizer(tokenizer, folder)
        (folder / "tokenizer.json").write_text(json.dumps(parsed, ensure_ascii=False), encoding="utf-8")
        if pad is not None:
            _edit(folder / "tokenizer_config.json", pad_token=pad)
        rebuilt = load_tokenizer(folder)
    rebuilt.name_or_path = tokenizer.name_or_path
    return rebuilt


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read what :func:`save_tokenizer` wrote; never asks the hub."""
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    return tokenizer


def keeps_rule(tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig) -> bool:
    """Whether ``AutoTokenizer`` takes a pre-tokenizer's rule from the files of a folder that holds a model with this configuration.

    For some kinds of models (``qwen2``) it builds the rule anew in code, so a changed one would be lost to all who load the folder.
    """
    from transformers import AutoTokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own = [backend.pre_tokenizer] if backend.pre_tokenizer is not None else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x"), "isolated"), *own])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        backend.save(str(folder / "tokenizer.json"))
        loaded = AutoTokenizer.from_pretrained(folder).backend_tokenizer.pre_tokenizer
    return loaded is not None and len(loaded.pre_tokenize_str("axa")) == len(backend.pre_tokenizer.pre_tokenize_str("axa"))


def _verify(original: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast, learned: Learned, atoms: Sequence[str],
            family: Family) -> None:
    """Hold the result to its promises. Each is a bug of ours or of a library if it fails, and would spoil a whole run."""
    def require(holds: bool, promise: str) -> None:
        if not holds:
            raise ModelError(f"The extended tokenizer breaks a promise: {promise}. Please report it with the model's name.")

    old, new = original.get_vocab(), extended.get_vocab()
    first, added = id_limit(original), [*learned.pieces, *atoms]
    require(all(new.get(token) == token_id for token, token_id in old.items()), "every old id means the same token")
    require([new.get(token) for token in added] == list(range(first, first + len(added))), "new ids are contiguous")
    require(len(extended) == id_limit(extended) == first + len(added), "its size is its highest id and one")
    require(extended.pad_token_id is not None and extended.pad_token_id != extended.eos_token_id, "pad is not the end of sequence")
    require(extended.chat_template == original.chat_template, "the chat template is the original's")
    require(extended.model_max_length == original.model_max_length, "the maximal length is the original's")
    require({**original.special_tokens_map, "pad_token": 0} == {**extended.special_tokens_map, "pad_token": 0},
            "the special tokens are the original's")

    plain, before = plain_backend(extended), plain_backend(original)
    texts = [family.bytes_of(piece).decode(errors="ignore") for piece in learned.pieces]
    decoded = zip(texts, plain.decode_batch(plain_ids(plain, texts)), before.decode_batch(plain_ids(before, texts)), strict=True)
    # Some decoders take the space at a text's head away.
    require(all(now.strip() in (then.strip(), text.strip()) for text, now, then in decoded), "every new piece round-trips")
    for atom in atoms:
        require(extended.encode(atom, add_special_tokens=False) == [new[atom]], f"'{atom}' is atomic")
        require(new[atom] not in plain.encode(f"{atom} a{atom}", add_special_tokens=False).ids, f"a typed '{atom}' is plain text")

    with tempfile.TemporaryDirectory() as name:
        save_tokenizer(extended, Path(name))
        require(load_tokenizer(Path(name)).backend_tokenizer.to_str() == extended.backend_tokenizer.to_str(),
                "it is the same after saving and loading")
