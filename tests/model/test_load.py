"""Loading: folders, templates, digests, and what is said when there is nothing to load."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from transllm.errors import ModelError
from transllm.model import load_chat_model, load_folder, original_digest
from transllm.recipe.schema import ModelSource


def _source(folder: Path, **settings: Any) -> ModelSource:
    return ModelSource(source=str(folder), **settings)


def test_a_folder(make_folders: Callable[[str], Any], make_chat_model: Callable[..., Any], tmp_path: Path) -> None:
    folder = make_folders("untied").original
    loaded = load_chat_model(_source(folder), folder=tmp_path)
    assert torch.equal(loaded.model.get_output_embeddings().weight, make_chat_model("untied").get_output_embeddings().weight)
    assert loaded.model.dtype == torch.float32 and not loaded.model.training
    assert loaded.tokenizer.chat_template and len(loaded.tokenizer) == 320
    assert load_chat_model(_source(folder, dtype="bfloat16"), folder=tmp_path).model.dtype == torch.bfloat16
    relative = ModelSource(source=os.path.relpath(folder, folder.parent.parent))
    assert load_chat_model(relative, folder=folder.parent.parent).name == relative.source


def test_a_template_of_the_recipe(make_folders: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}", encoding="utf-8")
    loaded = load_chat_model(_source(make_folders("tied").original, chat_template="mine.jinja"), folder=tmp_path)
    assert loaded.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "[x]"


def test_no_template_is_an_error(make_folders: Callable[[str], Any], make_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    folder = make_folders("tied").original
    for file in folder.iterdir():
        if file.suffix != ".jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="no chat template"):
        load_chat_model(_source(tmp_path), folder=tmp_path)


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no folder"):
        load_chat_model(ModelSource(source="./nothing"), folder=tmp_path)
    with pytest.raises(ModelError, match="no file"):
        load_chat_model(ModelSource(source="nothing.gguf"), folder=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_chat_model(_source(tmp_path / "empty"), folder=tmp_path)
    with pytest.raises(ModelError, match="no model to load"):
        load_folder(tmp_path / "empty")
    with pytest.raises(ModelError, match="matches 0 files"):
        load_chat_model(_source(tmp_path / "empty", file="*.gguf"), folder=tmp_path)


def test_a_folder_that_was_changed_is_an_error(make_folders: Callable[[str], Any], tmp_path: Path) -> None:
    folders = make_folders("untied")
    for file in folders.original.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((folders.extended / "tokenizer.json").read_bytes())
    with pytest.raises(ModelError, match="Sizes disagree"):
        load_folder(tmp_path)


def test_the_digest_of_a_local_model_follows_its_files(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(b"1")
    first = original_digest(_source(tmp_path / "model"), folder=tmp_path)
    assert original_digest(_source(tmp_path / "model"), folder=tmp_path) == first
    file.write_bytes(b"12")
    assert original_digest(_source(tmp_path / "model"), folder=tmp_path) != first
    hub = {original_digest(ModelSource(source="someone/model", revision=revision), folder=tmp_path) for revision in (None, "a", "b")}
    assert len(hub) == 3
