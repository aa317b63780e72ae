"""What a training stage leaves on disk, and the plain model that it makes of the extended one.

=====  ==============================================================================================
train  files
=====  ==============================================================================================
lora   ``adapter_config.json`` and ``adapter_model.safetensors`` (an ordinary peft adapter), ``rows.safetensors``
rows   ``rows.safetensors``
full   ``body.safetensors`` (or its shards and their index: all weights but the rows, float32), ``rows.safetensors``
=====  ==============================================================================================

``rows.safetensors`` holds the trained embedding rows; its metadata the first new id and which of the three the folder is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import save_torch_state_dict
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from transllm.errors import ModelError
from transllm.model.load import load_folder, place, weight_of
from transllm.model.source import quiet

ADAPTER, ROWS, BODY = "adapter_model.safetensors", "rows.safetensors", "body.safetensors"
_INDEX = "body.safetensors.index.json"
_KEY = "transllm"  # one only: safetensors writes several in another order each time, and the same weights would be another file


def save_rows(rows: Mapping[str, Tensor], folder: Path, *, first_new: int, train: str) -> None:
    """Write the trained rows, by ``embedding.new`` and the like, and what else the folder holds."""
    save_file({name: tensor.detach().contiguous().cpu().clone() for name, tensor in rows.items()}, str(folder / ROWS),
              metadata={_KEY: json.dumps({"first_new_id": first_new, "train": train})})


def read_file(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one of a folder's files.

    Raises:
        ModelError: it is not there.
    """
    return load_file(str(_existing(folder, name)))


def trained_as(folder: Path) -> str:
    """``lora``, ``rows`` or ``full``."""
    return str(_metadata(folder)["train"])


def save_body(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write all weights but the rows, in shards as transformers writes them."""
    save_torch_state_dict({name: tensor.detach() for name, tensor in weights.items()}, folder, filename_pattern="body{suffix}.safetensors")


@torch.no_grad()
def load_body(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Put saved weights into a model's, one shard in memory at a time.

    Args:
        weights: the model's own, by their plain names.

    Raises:
        ModelError: a file is missing, or the names or shapes are another model's.
    """
    missing = dict(weights)
    for file in _body_files(folder):
        for name, tensor in read_file(folder, file).items():
            own = missing.pop(name, None)
            if own is None or own.shape != tensor.shape:
                raise ModelError(f"The weights in '{folder}' are not this model's ('{name}'). Run the stage that wrote them again.")
            own.copy_(tensor)
    if missing:
        raise ModelError(f"The weights in '{folder}' lack '{next(iter(missing))}'. Run the stage that wrote them again.")


def load_merged(base: Path, adapter: Path | None, *, dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, Any]:
    """A plain model: the extended one with what a stage trained folded in, in float32 arithmetic, then cast.

    Args:
        base: folder of the extended model.
        adapter: folder of a training stage; None gives the extended model itself.
        dtype: precision of the result; None keeps the stored one.

    Returns:
        model in evaluation mode, and its tokenizer.
    """
    if adapter is None:
        return load_folder(base, dtype=dtype)
    model, tokenizer = load_folder(base)
    stored = model.dtype
    place(model, model.device, torch.float32)
    rows, train = read_file(adapter, ROWS), trained_as(adapter)
    embedding, head = weight_of(model.get_input_embeddings()), weight_of(model.get_output_embeddings())
    first_new = _metadata(adapter)["first_new_id"]
    with torch.no_grad():
        for name, tensor in rows.items():
            weight = embedding if name.startswith("embedding") else head
            start = first_new if name.endswith("new") else 0
            weight[start: start + tensor.shape[0]] = tensor
    if train == "full":
        load_body({name: weight for name, weight in model.named_parameters() if weight is not embedding and weight is not head}, adapter)
    elif train == "lora":
        _existing(adapter, ADAPTER)
        with quiet():
            loaded: Any = PeftModel.from_pretrained(model, str(adapter), torch_device="cpu")
            model = cast(PreTrainedModel, loaded.merge_and_unload())
    return place(model, model.device, dtype or stored).eval(), tokenizer


def adapter_digest(folder: Path) -> str:
    """Digest of all weights that a stage trained."""
    files = {"lora": [ADAPTER], "rows": [], "full": _body_files(folder)}[trained_as(folder)]
    digest = hashlib.sha256()
    for name in (*files, ROWS):
        with _existing(folder, name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _body_files(folder: Path) -> list[str]:
    if not (folder / _INDEX).is_file():
        return [BODY]
    return sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))


def _metadata(folder: Path) -> dict[str, Any]:
    with safe_open(str(_existing(folder, ROWS)), framework="pt") as file:
        found = (file.metadata() or {}).get(_KEY)
    if found is None:
        raise ModelError(f"'{folder / ROWS}' does not say what was trained. An earlier version or another tool wrote it; run its stage "
                         "again.")
    return dict(json.loads(found))


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise ModelError(f"There is no adapter in '{folder}' ({name} is missing). Run the stage that writes it.")
    return folder / name
