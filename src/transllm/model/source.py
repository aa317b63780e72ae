"""Where a chat model lies, and how its tokenizer is read: all that is needed to speak with it, without its weights."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from transllm.data.package import package_file
from transllm.digests import file_digest
from transllm.errors import ModelError, first_line
from transllm.recipe.schema import ModelSource

log = logging.getLogger(__name__)

# How a GGUF file's ``tokenizer.ggml.pre`` splits text before BPE, where that is not the plain GPT-2 rule which
# transformers assumes for every GGUF tokenizer. These families isolate each digit first, which changes how spaces before
# numbers are cut.
_DIGITS_FIRST = {"smollm", "starcoder", "refact", "command-r", "codeshell"}


@dataclass(frozen=True, slots=True)
class ChatTokenizer:
    """What is needed to speak with a chat model whose weights are elsewhere.

    Attributes:
        tokenizer: fast tokenizer with a chat template.
        stops: all ids on which the model's own generation stops.
        context: how many tokens the model takes.
    """

    tokenizer: PreTrainedTokenizerFast
    stops: frozenset[int]
    context: int


def load_chat_tokenizer(source: ModelSource, *, folder: Path, cache: Path | None = None) -> ChatTokenizer:
    """What is needed to speak with the chat model that a recipe names where another program holds its weights.

    Raises:
        ModelError: as ``load_chat_model``.
    """
    path, options = located(source, folder=folder, cache=cache)
    with reading(source, gguf="gguf_file" in options):
        tokenizer = chat_tokenizer(source, path, options, folder=folder)
        config = AutoConfig.from_pretrained(path, **options)
        try:
            generation = GenerationConfig.from_pretrained(path, **{key: value for key, value in options.items() if key != "gguf_file"})
        except OSError:  # it has none: as transformers, what the config says
            generation = GenerationConfig.from_model_config(config)
    return ChatTokenizer(tokenizer, frozenset(stop_ids(generation, tokenizer)), context_of(config))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and notices of transformers and peft; our own progress speaks. Errors still come through."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        # The GGUF reader draws a bar that no setting turns off.
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            # peft asks transformers for a property by its old name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def reading(source: ModelSource, *, gguf: bool) -> Iterator[None]:
    """Inside, nothing is drawn, a GGUF file is read once, and what transformers raises is an error that names the model."""
    with quiet(), _gguf_read_once() if gguf else contextlib.nullcontext():
        try:
            yield
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(f"The model '{source.source}' cannot be loaded: {first_line(error)}. "
                             "Check the name, or give a folder, a .gguf file or package:NAME==VERSION.") from error


def located(source: ModelSource, *, folder: Path, cache: Path | None) -> tuple[str, dict[str, Any]]:
    """A path or hub id, and the options with which transformers reads it; ``gguf_file`` is among them for a GGUF."""
    path, gguf = _resolve(source, folder=folder, cache=cache)
    options: dict[str, Any] = {"revision": source.revision} if source.revision else {}
    return path, options | ({"gguf_file": gguf} if gguf is not None else {})


def commit_of(path: str, options: dict[str, Any]) -> str:
    """The commit of a hub model; empty for local files."""
    return str(getattr(AutoConfig.from_pretrained(path, **options), "_commit_hash", None) or "")


def original_digest(source: ModelSource, *, folder: Path, cache: Path | None = None) -> str:
    """Digest of what the recipe names: of the files' content for local models and templates, else of the name."""
    digest = hashlib.sha256(repr((source.source, source.file, source.revision)).encode())
    files: list[Path] = []
    if (folder / Path(source.source).expanduser()).exists():
        digest = hashlib.sha256()
        path, gguf = _resolve(source, folder=folder, cache=cache)
        files = sorted(Path(path).glob(gguf or "*"))
    if source.chat_template is not None and "{" not in source.chat_template:
        files.append(folder / source.chat_template)
    for file in files:
        if file.is_file():
            digest.update(f"{file.name} {file_digest(file, cache=cache)}\n".encode())
    return digest.hexdigest()[:16]


def context_of(config: PreTrainedConfig) -> int:
    """How many tokens a model takes; a model that sets no bound takes very many."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2**31)


def chat_tokenizer(source: ModelSource, path: str, options: dict[str, Any], *, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a chat model, with the template that the recipe gives it."""
    if getattr(AutoConfig.from_pretrained(path, **options), "is_encoder_decoder", False):
        raise ModelError(f"'{source.source}' is an encoder-decoder model. TransLLM transforms decoder-only chat models.")
    tokenizer = AutoTokenizer.from_pretrained(path, **options)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"The tokenizer of '{source.source}' has no fast (tokenizers) form. Convert it to a tokenizer.json first.")
    if "gguf_file" in options:
        _mend_gguf_tokenizer(tokenizer, Path(path) / options["gguf_file"])
    if source.chat_template is not None:
        template = folder / source.chat_template
        tokenizer.chat_template = template.read_text(encoding="utf-8") if "{" not in source.chat_template else source.chat_template
    if not tokenizer.chat_template:
        raise ModelError(f"The model '{source.source}' has no chat template, so it is not a chat model that TransLLM can talk to. "
                         "Take the chat variant of the model, or give one with model: {source: ..., chat_template: FILE}.")
    return tokenizer


def stop_ids(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = []
    for value in (generation.eos_token_id if generation else None, tokenizer.eos_token_id):
        ids.extend(value if isinstance(value, list) else [] if value is None else [value])
    return sorted(set(ids))


def _resolve(source: ModelSource, *, folder: Path, cache: Path | None) -> tuple[str, str | None]:
    """A path or hub id that transformers takes, and the GGUF file in it, if it is one."""
    if source.source.startswith("package:"):
        file = package_file(source.source.removeprefix("package:"), source.file or "*.gguf", cache=cache)
        return str(file.parent), file.name
    local = Path(source.source).expanduser()
    local = local if local.is_absolute() else folder / local
    if local.suffix == ".gguf":
        if not local.is_file():
            raise ModelError(f"There is no file '{local}'. Check model.source in the recipe.")
        return str(local.parent), local.name
    if local.is_dir():
        if source.file is None:
            return str(local), None
        found = sorted(local.glob(source.file))
        if len(found) != 1:
            raise ModelError(f"'{source.file}' matches {len(found)} files in '{local}'; it must match one. Make model.file narrower.")
        return str(local), found[0].name
    if source.source.startswith((".", "/", "~")):
        raise ModelError(f"There is no folder '{local}'. Check model.source in the recipe.")
    return source.source, source.file


@contextlib.contextmanager
def _gguf_read_once() -> Iterator[None]:
    """transformers reads a GGUF file's header anew for its config, tokenizer and weights, and the names of all tensors for each layer:
    inside, each is read once, and turned into Python's values once more where the weights are wanted (30 of 40 s for a vocabulary of
    49,152)."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils

    reader: Any = gguf
    checkpoints: Any = modeling_gguf_pytorch_utils
    load = checkpoints.load_gguf_checkpoint
    header = functools.cache(load)

    def load_once(path: str, return_tensors: bool = False, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = load(path, return_tensors, **options) if return_tensors else copy.deepcopy(header(path))
        return found  # a copy, since its readers change it

    own = {name: getattr(reader, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in own.items():
        setattr(reader, name, functools.cache(function))
    checkpoints.load_gguf_checkpoint = load_once
    try:
        yield
    finally:
        checkpoints.load_gguf_checkpoint = load
        for name, function in own.items():
            setattr(reader, name, function)


def _mend_gguf_tokenizer(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Give the tokenizer the pre-tokenizer that the GGUF file names, which transformers leaves at the GPT-2 rule."""
    from gguf import GGUFReader

    field = GGUFReader(str(file)).fields.get("tokenizer.ggml.pre")
    kind = str(field.contents()) if field is not None else "default"
    if kind in _DIGITS_FIRST:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer])
    elif kind not in {"default", "gpt-2", "llama-bpe", "qwen2"}:
        log.warning("The GGUF file splits text by the rule '%s', which transformers does not know; the GPT-2 rule is used. "
                    "Take the model in safetensors form to be exact.", kind)
