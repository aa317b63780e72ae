"""One adapter through all stages: LoRA on the linear layers and the rows of the new tokens, on a frozen chat model.

``Adapted`` is what trains. Its folder holds an ordinary peft adapter and ``rows.safetensors`` (the trained embedding rows, by
their first id). ``load_merged`` gives a plain model with both folded in.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from transllm.errors import ModelError
from transllm.model.attention import PACKED, Documents
from transllm.model.load import load_folder, place, quiet, weight_of
from transllm.model.lora import join_siblings, use_our_layer
from transllm.model.norm import use_our_norm
from transllm.model.packed import Attention, choose_attention, hidden_states, probe
from transllm.model.rows import SplitEmbedding, SplitHead
from transllm.recipe.schema import Lora, Training

_WEIGHTS, _ROWS = "adapter_model.safetensors", "rows.safetensors"


class Adapted:
    """A chat model with an adapter and split embedding rows.

    Attributes:
        peft: the model with LoRA layers; its base holds ``SplitEmbedding`` and ``SplitHead``.
        original_size: ids below are the original model's.
        size: ids that the head can predict.
    """

    def __init__(self, peft: PeftModel, *, original_size: int, size: int) -> None:
        self.peft = peft
        self.original_size = original_size
        self.size = size

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model inside."""
        return cast(PreTrainedModel, self.peft.get_base_model())

    @property
    def head(self) -> SplitHead:
        return cast(SplitHead, self.base.get_output_embeddings())

    @property
    def device(self) -> torch.device:
        return cast(SplitEmbedding, self.base.get_input_embeddings()).old.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that trains; a tied row matrix comes once."""
        return {name: parameter for name, parameter in self.peft.named_parameters() if parameter.requires_grad}

    def hidden(self, ids_1T: Tensor, documents: Documents) -> Tensor:
        """Last hidden states of a packed row. (1, T) -> (1, T, D)"""
        return hidden_states(self.base, ids_1T, documents)

    def logits(self, ids_1T: Tensor, documents: Documents) -> Tensor:
        """All logits of a packed row, for checks; training and scoring never hold them. (1, T) -> (1, T, V)"""
        return cast(Tensor, self.head(self.hidden(ids_1T, documents)))

    def quicken(self, attention: Attention = "auto") -> dict[str, Any]:
        """Let this model take all the short ways of training that compute what it computes; found out by running it once.

        Args:
            attention: which one to use, see ``choose_attention``.

        Returns:
            which were found, for the stage's metrics.

        Raises:
            ModelError: the attention that is asked for cannot be used.
        """
        chosen = choose_attention(self.base, attention)
        ids_1T, documents = probe(self.base)
        with torch.no_grad():
            siblings = join_siblings(self.base, lambda: hidden_states(self.base, ids_1T, documents))
        return {"attention": "packed" if chosen == PACKED else chosen, "joined_layers": siblings, "fast_norms": use_our_norm(self.base)}

    @contextlib.contextmanager
    def original(self) -> Iterator[None]:
        """Inside, the model is the original chat model bit for bit: adapter off, logits cut to the original vocabulary."""
        embeddings = {self.head.rows, cast(SplitEmbedding, self.base.get_input_embeddings())}
        with self.peft.disable_adapter():
            for rows in embeddings:
                rows.original_only = True
            try:
                yield
            finally:
                for rows in embeddings:
                    rows.original_only = False

    def state(self) -> dict[str, Tensor]:
        """All trained tensors, by their name in the model."""
        return {name: parameter.detach() for name, parameter in self.trainable().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put trained tensors back.

        Raises:
            ModelError: names or shapes differ from what trains here.
        """
        parameters = self.trainable()
        if _shapes(parameters) != _shapes(state):
            raise ModelError("The saved adapter trains other weights than this recipe does. Did 'training.lora' or 'training.embeddings' "
                             "change? Run the stage again from its start.")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])

    def save(self, folder: Path) -> None:
        """Write the adapter (peft's format) and the trained rows."""
        folder.mkdir(parents=True, exist_ok=True)
        self.peft.peft_config["default"].save_pretrained(str(folder))
        save_file({name: tensor.contiguous().cpu() for name, tensor in _lora_state(self.peft).items()}, str(folder / _WEIGHTS))
        save_file(_rows_state(self.base), str(folder / _ROWS), metadata={"first_new_id": str(self.original_size)})

    def load(self, folder: Path) -> None:
        """Go on from an adapter that ``save`` wrote.

        Raises:
            ModelError: the adapter does not fit this model.
        """
        saved = _adapter_file(folder, _WEIGHTS)
        if _shapes(saved) != _shapes(_lora_state(self.peft)):
            raise ModelError(f"The adapter in '{folder}' has other weights than this model. Was it made for another model, or with another "
                             "'training.lora'? Run its stage again.")
        set_peft_model_state_dict(self.peft, saved)
        rows = _adapter_file(folder, _ROWS)
        own = _row_parameters(self.base)
        if rows.keys() != own.keys():
            raise ModelError(f"The rows in '{folder}' ({', '.join(sorted(rows))}) are not those that this recipe trains "
                             f"({', '.join(sorted(own))}). Use one setting of 'embeddings' in all stages of one model.")
        with torch.no_grad():
            for name, tensor in rows.items():
                if own[name].shape != tensor.shape:
                    raise ModelError(f"The rows in '{folder}' belong to another vocabulary. Run the stage again after 'extend'.")
                own[name].copy_(tensor)


def attach(model: PreTrainedModel, *, original_size: int, size: int, training: Training, dtype: torch.dtype) -> Adapted:
    """Freeze a model, split its rows at the original vocabulary and put a fresh adapter on it. Changes the model.

    Args:
        model: an extended model.
        original_size: length of the original tokenizer; ids below stay frozen.
        size: length of the extended tokenizer.
        training: LoRA and embedding settings.
        dtype: precision of the frozen weights; trained ones are float32.
    """
    place(model, model.device, dtype)
    model.requires_grad_(False)
    embedding_weight, head_weight = weight_of(model.get_input_embeddings()), weight_of(model.get_output_embeddings())
    tied = embedding_weight.data_ptr() == head_weight.data_ptr()
    train_old = training.embeddings == "all"

    def split(weight: Tensor, scale: Tensor | None = None) -> SplitEmbedding:
        return SplitEmbedding(weight[:original_size], weight[original_size:size], train_old=train_old, scale=scale)

    embedding = split(embedding_weight, _embedding_scale(model.get_input_embeddings()))
    head = SplitHead(embedding if tied else split(head_weight))
    model.set_input_embeddings(embedding)
    model.set_output_embeddings(head)
    with quiet():
        peft = get_peft_model(model, use_our_layer(_peft_config(training.lora)))
    for module in {embedding, head.rows}:
        module.new.requires_grad_(True)
        module.old.requires_grad_(train_old)
    return Adapted(peft, original_size=original_size, size=size)


def load_merged(base: Path, adapter: Path | None, *, dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, Any]:
    """A plain model: the extended one with an adapter folded in, in float32 arithmetic, then cast.

    Args:
        base: folder of the extended model.
        adapter: folder of an adapter; None gives the extended model itself.
        dtype: precision of the result; None keeps the stored one.

    Returns:
        model in evaluation mode, and its tokenizer.
    """
    if adapter is None:
        return load_folder(base, dtype=dtype)
    model, tokenizer = load_folder(base)
    stored = model.dtype
    place(model, model.device, torch.float32)
    _existing(adapter, _WEIGHTS)
    rows = _adapter_file(adapter, _ROWS)
    embedding, head = weight_of(model.get_input_embeddings()), weight_of(model.get_output_embeddings())
    first_new = _first_new(adapter)
    with torch.no_grad():
        for name, tensor in rows.items():
            weight = embedding if name.startswith("embedding") else head
            start = first_new if name.endswith("new") else 0
            weight[start: start + tensor.shape[0]] = tensor
    with quiet():
        loaded: Any = PeftModel.from_pretrained(model, str(adapter), torch_device="cpu")
        merged: PreTrainedModel = loaded.merge_and_unload()
    return place(merged, model.device, dtype or stored).eval(), tokenizer


def adapter_digest(folder: Path) -> str:
    """Digest of an adapter's weights."""
    digest = hashlib.sha256()
    for name in (_WEIGHTS, _ROWS):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def _peft_config(lora: Lora) -> LoraConfig:
    return LoraConfig(r=lora.r, lora_alpha=cast(int, lora.alpha), lora_dropout=lora.dropout, target_modules=lora.targets,
                      task_type="CAUSAL_LM")


def _row_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    embedding, head = cast(SplitEmbedding, model.get_input_embeddings()), cast(SplitHead, model.get_output_embeddings())
    named = {"embedding": embedding} | ({} if head.rows is embedding else {"head": head.rows})
    return {f"{name}.{part}": getattr(rows, part) for name, rows in named.items() for part in ("old", "new")
            if getattr(rows, part).requires_grad}


def _rows_state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().contiguous().cpu().clone() for name, parameter in _row_parameters(model).items()}


def _first_new(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(str(_existing(folder, _ROWS)), framework="pt") as file:
        return int(file.metadata()["first_new_id"])


def _adapter_file(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(str(_existing(folder, name)))


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise ModelError(f"There is no adapter in '{folder}' ({name} is missing). Run the stage that writes it.")
    return folder / name


def _lora_state(peft: PeftModel) -> dict[str, Tensor]:
    state = get_peft_model_state_dict(peft, save_embedding_layers=False)
    return {name: tensor for name, tensor in state.items() if "lora_" in name}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _embedding_scale(embedding: nn.Module) -> Tensor | None:
    """What an embedding multiplies its rows with. One that does anything else cannot be split without changing the model."""
    if type(embedding).forward is nn.Embedding.forward:
        return None
    scale = getattr(embedding, "embed_scale", None)
    if scale is None:
        raise ModelError(f"The model's embedding is a {type(embedding).__name__}, which does more than look rows up, so an adapter on it "
                         "would change the original model. Open an issue with the model's name.")
    return torch.as_tensor(scale)
