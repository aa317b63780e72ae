"""A chat model as a Hugging Face folder, for engines that read nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

from transllm.data.package import default_cache
from transllm.model.load import load_chat_model, save_folder
from transllm.model.source import located, original_digest
from transllm.recipe.schema import ModelSource


def folder_of(source: ModelSource, *, folder: Path, cache: Path | None = None) -> Path | str:
    """A folder (or a hub id, as it stands) with a recipe's model; of a GGUF file one is written, once, with its weights as this library
    reads them."""
    path, options = located(source, folder=folder, cache=cache)
    if "gguf_file" not in options:
        return path
    target = (cache or default_cache()) / "folders" / f"{original_digest(source, folder=folder, cache=cache)}-{source.dtype}"
    if not target.is_dir():
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        loaded = load_chat_model(source, folder=folder, cache=cache)
        save_folder(loaded.model, partial)
        loaded.tokenizer.save_pretrained(partial)
        partial.rename(target)
    return target
