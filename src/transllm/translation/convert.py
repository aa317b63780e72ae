"""Hugging Face models of translation as CTranslate2 models, converted once."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from transllm.errors import ModelError, first_line
from transllm.model.source import quiet


def model_folder(name: str) -> Path:
    """The folder of a model: ``name`` itself, or the hub's snapshot of it.

    Raises:
        ModelError: there is no such folder, and the hub does not give it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise ModelError(f"bridge.translator.model names the folder '{name}', which does not exist. Name a folder, or a model of the hub "
                         "(org/name).")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.h5", "*.msgpack", "*.ot", "onnx/*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"The model '{name}' of bridge.translator.model cannot be had from the hub ({first_line(error)}). See to "
                         "the name and the connection, or name a folder.") from error


def converted(folder: Path, name: str, cache: Path) -> Path:
    """The folder of CTranslate2's weights: ``folder`` itself, or what its model was converted to, once, in the cache.

    Raises:
        ModelError: it holds no model that CTranslate2 can run.
    """
    if (folder / "model.bin").is_file():
        return folder
    made = cache / "ctranslate2" / f"{folder.name}-{_digest(folder)}"
    if (made / "model.bin").is_file():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(made.parent / ".lock"):
        if not (made / "model.bin").is_file():  # another process may have been first
            partial = made.with_name(f"partial-{made.name}")  # of a process that was killed, if it is there: nobody else writes here now
            shutil.rmtree(partial, ignore_errors=True)
            try:
                _convert(folder, partial)
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise ModelError(f"The model '{name}' cannot be converted for CTranslate2 ({first_line(error)}). It must be the "
                                 "whole folder of an NLLB-200, M2M-100 or Opus-MT model.") from error
            partial.rename(made)
    return made


def _convert(folder: Path, result: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):  # type: ignore[misc, unused-ignore]
        """With the language tokens of M2M-100, which its tokenizer leaves out of its vocabulary in transformers 5 (the ids are free)."""

        def load_tokenizer(self, *arguments: Any, **settings: Any) -> Any:
            tokenizer = super().load_tokenizer(*arguments, **settings)
            known, own = tokenizer.get_vocab, getattr(tokenizer, "lang_token_to_id", {})
            tokenizer.get_vocab = lambda: {**known(), **own}
            return tokenizer

    with quiet():
        Converter(str(folder)).convert(str(result))


def _digest(folder: Path) -> str:
    """Of the files' names, sizes and times, and the converter's version."""
    import ctranslate2

    files = sorted(file for file in folder.resolve().iterdir() if file.is_file())
    told = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join([ctranslate2.__version__, str(folder.resolve()), *told]).encode()).hexdigest()[:16]
