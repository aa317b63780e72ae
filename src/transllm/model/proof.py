"""What the extension promises of the model: old rows bit for bit, sizes that agree, in memory and in the files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from transllm.errors import ModelError
from transllm.model.load import check_sizes, load_folder, weight_of


@dataclass(frozen=True, slots=True)
class Rows:
    """Copies of a model's embedding and head, (rows, width); the same tensor where they are tied."""

    embedding: Tensor
    head: Tensor


@dataclass(frozen=True, slots=True)
class RowProof:
    """How many rows of the embedding are old, new, and padding that no id addresses; whether the head is the same matrix."""

    old: int
    new: int
    padding: int
    tied: bool


def copy_rows(model: PreTrainedModel, *, size: int) -> Rows:
    """The rows of the first ``size`` ids, before the model is changed."""
    embedding, head = weight_of(model.get_input_embeddings()), weight_of(model.get_output_embeddings())
    copied = embedding.detach()[:size].clone()
    return Rows(copied, copied if embedding.data_ptr() == head.data_ptr() else head.detach()[:size].clone())


def prove_rows(before: Rows, model: PreTrainedModel, folder: Path) -> RowProof:
    """Hold an extended model and the folder it was saved in to what was there before.

    Args:
        before: from :func:`copy_rows`, of all ids that the original tokenizer has.
        folder: holds the saved model and the extended tokenizer.

    Raises:
        ModelError: an old row has another bit, or config, tokenizer, embedding and head disagree on the size.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    check_sizes(model, tokenizer, where=str(folder))
    embedding, head = weight_of(model.get_input_embeddings()), weight_of(model.get_output_embeddings())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written = config.get("text_config", config).get("vocab_size")
    if written != embedding.shape[0]:
        raise ModelError(f"The config in {folder} says {written} rows, but the embedding has {embedding.shape[0]}. Run 'extend' again.")
    saved = _saved(model, folder)
    old = before.embedding.shape[0]
    for where, found, expected in (("embedding", embedding, before.embedding), ("head", head, before.head),
                                   ("saved embedding", saved.embedding, before.embedding), ("saved head", saved.head, before.head)):
        differ = _different(found.detach()[:old], expected)
        if differ:
            raise ModelError(f"{differ} of {old} old rows of the {where} are not bit for bit as before. "
                             "This is a bug in the extension; please report it with the model's name.")
    if _different(saved.embedding, embedding.detach()) or _different(saved.head, head.detach()):
        raise ModelError(f"The model in {folder} is not the one in memory. Check the disk and run 'extend' again.")
    return RowProof(old, len(tokenizer) - old, embedding.shape[0] - len(tokenizer), before.head is before.embedding)


def _different(found: Tensor, expected: Tensor) -> int:
    """How many rows differ in any bit (0.0 and -0.0 are equal numbers and other bits)."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return max(found.shape[0], expected.shape[0])
    return int((found.contiguous().view(torch.uint8) != expected.contiguous().view(torch.uint8)).any(dim=1).sum())


def _saved(model: PreTrainedModel, folder: Path) -> Rows:
    """Embedding and head as the files have them. Only the two are read, unless the files have names of their own."""
    embedding, head = weight_of(model.get_input_embeddings()), weight_of(model.get_output_embeddings())
    names = {id(tensor): [name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is tensor]
             for tensor in (embedding, head)}
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            found |= {name: file.get_tensor(name) for name in {*names[id(embedding)], *names[id(head)]} & keys}
    own, its = ([found[name] for name in names[id(tensor)] if name in found] for tensor in (embedding, head))
    if own and its:
        return Rows(own[0], its[0])
    loaded, _ = load_folder(folder)
    return Rows(*(weight_of(module).detach() for module in (loaded.get_input_embeddings(), loaded.get_output_embeddings())))
