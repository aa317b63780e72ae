"""Put learned pieces and markers into a tokenizer without moving anything that is there.

Pieces go into the BPE model itself (vocabulary and merges of ``tokenizer.json``), so they are found by merging, at the speed of
the original; only the few markers are added tokens. Ids that exist stay; new ones follow the highest: pieces, markers, pad.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transllm.errors import ModelError
from transllm.tokenizer.bytelevel import piece_bytes, plain_backend, plain_ids, structure
from transllm.tokenizer.script import whole_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from transllm.tokenizer.learn import Learned

DEFAULT_PAD = "<|pad|>"
_HOLE = "<|unused_{}|>"


def extend_tokenizer(tokenizer: PreTrainedTokenizerFast, learned: Learned, *, markers: Sequence[str],
                     pad: str | None) -> PreTrainedTokenizerFast:
    """A new tokenizer with the learned pieces, the markers and a pad token of its own; the given one is left as it is.

    Ids start after the highest that exists. If there are holes below it, they are filled with placeholders that no text
    reaches, so that the size of the tokenizer and the highest id agree. Chat template, special tokens and maximal length
    are taken over.

    Args:
        tokenizer: a byte-level BPE.
        learned: from :func:`transllm.tokenizer.learn_merges` on the same tokenizer.
        markers: texts of the marker tokens, each one atomic and special.
        pad: name of the pad token, used only if the tokenizer has none or pads with its end of sequence. None: a default name.

    Raises:
        ModelError: another kind of tokenizer, a marker that exists or comes twice, pieces that do not fit the tokenizer,
            or a check of the result that fails.
    """
    parsed = structure(tokenizer)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    first = id_limit(tokenizer)
    new_pad = pad or DEFAULT_PAD
    wants_pad = tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token
    atoms = [*markers, *([new_pad] if wants_pad else [])]
    _check_markers(atoms, vocabulary, learned)
    _check_pieces(learned, vocabulary)

    model_vocabulary: dict[str, int] = parsed["model"]["vocab"]
    # Loading numbers an added token by its entry in the model, and else counts on from the size of the model: without an entry
    # of their own, the old added tokens would be counted on from the new pieces.
    model_vocabulary.update(vocabulary)
    taken = set(vocabulary.values())
    model_vocabulary.update({_HOLE.format(hole): hole for hole in range(first) if hole not in taken})
    for token_id, content in enumerate([*learned.pieces, *atoms], start=first):
        model_vocabulary[content] = token_id
    parsed["model"]["merges"] += [list(merge) for merge in learned.merges]
    if learned.whole_words:
        parsed["pre_tokenizer"] = whole_words(parsed["pre_tokenizer"], learned.script)
    parsed["added_tokens"] += [
        {"id": model_vocabulary[atom], "content": atom, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True} for atom in atoms]
    # Padding that is set in the file names the old pad token. The caller of a tokenizer chooses padding and cutting anew.
    parsed["padding"] = parsed["truncation"] = None

    extended = _rebuilt(tokenizer, parsed, pad=new_pad if wants_pad else None)
    _verify(tokenizer, extended, learned, atoms)
    return extended


def id_limit(tokenizer: PreTrainedTokenizerFast) -> int:
    """One more than the highest id: how many embedding rows the tokenizer can address."""
    return max(tokenizer.get_vocab().values()) + 1


def sub_tokens(original: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast, *,
               descriptions: Mapping[str, str] | None = None) -> dict[int, list[int]]:
    """For each new id, the original ids that it stands for, in text order: what its embedding row can start from.

    A piece stands for the original tokens that its merges join, which are those that the original model saw in its place. An
    added token stands for its description (e.g. ``{"<ES>": "Spanish:"}``), or for its own characters if it has none.

    Raises:
        ModelError: an added token whose description, or a piece whose merges, give no original token.
    """
    known: dict[str, int] = original.get_vocab()
    first = id_limit(original)
    parts: dict[str, list[int]] = {}
    found: dict[int, list[int]] = {}
    vocabulary: dict[str, int] = extended.get_vocab()
    for left, right in structure(extended)["model"]["merges"]:
        piece = left + right
        if vocabulary[piece] >= first and piece not in parts:
            parts[piece] = [*(parts.get(left) or [known[left]]), *(parts.get(right) or [known[right]])]
    backend = plain_backend(original)
    for content, token_id in vocabulary.items():
        if token_id < first:
            continue
        found[token_id] = parts.get(content) or plain_ids(backend, [(descriptions or {}).get(content) or content])[0]
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


def _check_pieces(learned: Learned, vocabulary: Mapping[str, int]) -> None:
    advice = "Learn the merges on this very tokenizer."
    known = set(vocabulary)
    if [left + right for left, right in learned.merges] != learned.pieces:
        raise ModelError(f"The learned merges do not make the learned pieces. {advice}")
    for left, right in learned.merges:
        if left not in known or right not in known:
            raise ModelError(f"The learned merge of '{left}' and '{right}' has a part that is not in the vocabulary. {advice}")
        if left + right in known:
            raise ModelError(f"The learned piece '{left + right}' is in the tokenizer's vocabulary already. {advice}")
        known.add(left + right)


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


def _verify(original: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast, learned: Learned, atoms: Sequence[str]) -> None:
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

    plain = plain_backend(extended)
    texts = [piece_bytes(piece).decode(errors="ignore") for piece in learned.pieces]
    require(plain.decode_batch(plain_ids(plain, texts)) == plain_backend(original).decode_batch(
        plain_ids(plain_backend(original), texts)), "every new piece round-trips")
    for atom in atoms:
        require(extended.encode(atom, add_special_tokens=False) == [new[atom]], f"'{atom}' is atomic")
        require(new[atom] not in plain.encode(f"{atom} a{atom}", add_special_tokens=False).ids, f"a typed '{atom}' is plain text")

    with tempfile.TemporaryDirectory() as name:
        save_tokenizer(extended, Path(name))
        require(load_tokenizer(Path(name)).backend_tokenizer.to_str() == extended.backend_tokenizer.to_str(),
                "it is the same after saving and loading")
