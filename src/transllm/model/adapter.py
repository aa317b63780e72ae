"""What trains: an adapter on a frozen chat model and the rows of the new tokens; or the rows alone; or all weights.

``Adapted`` is the model while it trains, one for all stages. ``model/saved.py`` says what its folder holds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from transllm import processes
from transllm.errors import ModelError
from transllm.model.attention import PACKED, Documents
from transllm.model.gate import use_our_gate
from transllm.model.load import place, weight_of
from transllm.model.lora import join_siblings, number_layers, use_our_layer
from transllm.model.masters import keep_masters, plain_name
from transllm.model.norm import use_our_norm
from transllm.model.packed import choose_attention, hidden_states, probe
from transllm.model.rotation import use_our_rotation
from transllm.model.rows import SplitEmbedding, SplitHead
from transllm.model.saved import ADAPTER, ROWS, load_body, read_file, save_body, save_rows, trained_as
from transllm.model.source import quiet
from transllm.native import kernels
from transllm.recipe.schema import Attention, Lora, Training


class Adapted:
    """A chat model with split embedding rows and, mostly, an adapter.

    Attributes:
        peft: the model with LoRA layers; the model itself where there are none. It holds ``SplitEmbedding`` and ``SplitHead``.
        train: ``lora``, ``rows`` or ``full``, as in the recipe.
        original_size: ids below are the original model's.
        size: ids that the head can predict.
        sharded: whether processes share the layers' weights out among them; see ``shard``.
    """

    sharded = False

    def __init__(self, peft: PeftModel | PreTrainedModel, *, train: str, original_size: int, size: int) -> None:
        self.peft = peft
        self.train = train
        self.original_size = original_size
        self.size = size
        self._own_attention = str(self.base.config._attn_implementation)

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model inside."""
        return cast(PreTrainedModel, self.peft.get_base_model()) if isinstance(self.peft, PeftModel) else self.peft

    @property
    def shares_trained(self) -> bool:
        """Whether a process holds a part only of what trains. Then what gives or writes the whole of it needs all processes."""
        return self.sharded and self.train == "full"

    @property
    def head(self) -> SplitHead:
        return cast(SplitHead, self.base.get_output_embeddings())

    @property
    def device(self) -> torch.device:
        return cast(SplitEmbedding, self.base.get_input_embeddings()).old.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that trains; a tied row matrix comes once."""
        return {name: parameter for name, parameter in self.peft.named_parameters() if parameter.requires_grad}

    def row_parameters(self) -> dict[str, nn.Parameter]:
        """The embedding rows that train, by ``embedding.new``, ``head.old`` and the like; a tied head has none of its own."""
        embedding, head = cast(SplitEmbedding, self.base.get_input_embeddings()), self.head
        named = {"embedding": embedding} | ({} if head.rows is embedding else {"head": head.rows})
        return {f"{name}.{part}": getattr(rows, part) for name, rows in named.items() for part in ("old", "new")
                if getattr(rows, part).requires_grad}

    def body_parameters(self) -> dict[str, nn.Parameter]:
        """All weights but the rows, by their names in the plain model."""
        rows = {id(parameter) for module in (self.base.get_input_embeddings(), self.head) for parameter in module.parameters()}
        return {plain_name(name): parameter for name, parameter in self.base.named_parameters() if id(parameter) not in rows}

    def hidden(self, ids_1T: Tensor, documents: Documents) -> Tensor:
        """Last hidden states of a packed row. (1, T) -> (1, T, D)"""
        return hidden_states(self.base, ids_1T, documents)

    def pass_by(self) -> Tensor:
        """The least pass, for company: weights that processes lend each other come and go with a pass, so all must make as many."""
        return self.hidden(torch.zeros(1, 1, dtype=torch.long, device=self.device), Documents([1], device=self.device))

    def take_back(self) -> None:
        """Take back what is still lent after a pass without a backward one (fsdp_reshard_after_forward: false)."""
        from torch.distributed.fsdp import FSDPModule

        if self.sharded:
            for module in self.base.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

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
        found = {"attention": "packed" if chosen == PACKED else chosen, "joined_layers": 0, "fast_norms": 0, "lean_gates": 0,
                 "fast_rotation": False, "compiled_kernels": self.device.type == "cpu" and kernels() is not None}
        if self.sharded:  # the others hold on to weights that come and go
            self.take_back()
            return found
        ids_1T, documents = probe(self.base)
        with torch.no_grad():
            siblings = join_siblings(self.base, lambda: hidden_states(self.base, ids_1T, documents))
        return {**found, "joined_layers": siblings, "fast_norms": use_our_norm(self.base), "lean_gates": use_our_gate(self.base),
                "fast_rotation": use_our_rotation(self.base)}

    @contextlib.contextmanager
    def original(self) -> Iterator[None]:
        """Inside, the model is the original chat model bit for bit: adapter off, logits cut to the original vocabulary.

        Raises:
            ModelError: all weights train, so the original is not inside.
        """
        if self.train == "full":
            raise ModelError("All weights of this model train, so the original chat model is not inside it. Load the original by itself, "
                             "or set training.train to 'lora'.")
        embeddings = {self.head.rows, cast(SplitEmbedding, self.base.get_input_embeddings())}
        # Not peft's disable_adapter(): it makes a report of all layers each time, and for so long no layer wants gradients, which a
        # checkpoint that a signal asks for then would read.
        layers = [module for module in self.peft.modules() if isinstance(module, BaseTunerLayer)]
        try:
            for layer in layers:
                layer._disable_adapters = True
            for rows in embeddings:
                rows.original_only = True
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False
            for rows in embeddings:
                rows.original_only = False

    @contextlib.contextmanager
    def answering(self) -> Iterator[PreTrainedModel]:
        """Inside, the model can be handed to an engine: in evaluation mode, with the attention that it came with. Packed rows and the
        cache of an answer are not for one attention."""
        training, packing = self.peft.training, self.base.config._attn_implementation
        self.peft.eval()
        self.base.set_attn_implementation(self._own_attention)
        try:
            yield self.base
        finally:
            self.base.set_attn_implementation(packing)
            self.peft.train(training)

    def state(self) -> dict[str, Tensor]:
        """All trained tensors, whole, by their name in the model; see ``processes.whole``."""
        return {name: processes.whole(parameter) for name, parameter in self.trainable().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put trained tensors back.

        Raises:
            ModelError: names or shapes differ from what trains here.
        """
        parameters = self.trainable()
        if _shapes(parameters) != _shapes(state):
            raise ModelError("The saved adapter trains other weights than this recipe does. Did 'training' change? "
                             "Run the stage again from its start.")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(processes.parted(state[name], like=parameter))

    def save(self, folder: Path) -> None:
        """Write what trained, see ``model/saved.py``. All processes must call it; the main one writes."""
        body = {name: processes.whole(parameter) for name, parameter in self.body_parameters().items()} if self.train == "full" else {}

        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            if isinstance(self.peft, PeftModel):
                self.peft.peft_config["default"].save_pretrained(str(folder))
                save_file({name: tensor.contiguous().cpu() for name, tensor in _lora_state(self.peft).items()}, str(folder / ADAPTER))
            elif self.train == "full":
                save_body(body, folder)
            save_rows(self.row_parameters(), folder, first_new=self.original_size, train=self.train)

        processes.on_main(write)

    def load(self, folder: Path) -> None:
        """Go on from what ``save`` wrote.

        Raises:
            ModelError: it does not fit this model.
        """
        rows, own, train = read_file(folder, ROWS), self.row_parameters(), trained_as(folder)
        if train != self.train:
            raise ModelError(f"The folder '{folder}' was trained with 'train: {train}', but the recipe says 'train: {self.train}'. Run its "
                             "stage again; all stages of one model share 'training.train'.")
        if isinstance(self.peft, PeftModel):
            self._load_adapter(self.peft, folder)
        elif self.train == "full":
            load_body(self.body_parameters(), folder)
        if rows.keys() != own.keys():
            raise ModelError(f"The rows in '{folder}' ({', '.join(sorted(rows))}) are not those that this recipe trains "
                             f"({', '.join(sorted(own))}). Use one setting of 'embeddings' in all stages of one model.")
        with torch.no_grad():
            for name, tensor in rows.items():
                if own[name].shape != tensor.shape:
                    raise ModelError(f"The rows in '{folder}' belong to another vocabulary. Run the stage again after 'extend'.")
                own[name].copy_(tensor)

    def _load_adapter(self, peft: PeftModel, folder: Path) -> None:
        saved = read_file(folder, ADAPTER)
        if _shapes(saved) != _shapes(_lora_state(peft)):
            raise ModelError(f"The adapter in '{folder}' has other weights than this model. Was it made for another model, or with another "
                             "'training.lora'? Run its stage again.")
        set_peft_model_state_dict(peft, saved)


def attach(model: PreTrainedModel, *, original_size: int, size: int, training: Training, dtype: torch.dtype) -> Adapted:
    """Split a model's rows at the original vocabulary, freeze what does not train, and put a fresh adapter on it. Changes the model.

    Args:
        model: an extended model.
        original_size: length of the original tokenizer; ids below stay frozen.
        size: length of the extended tokenizer.
        training: what trains, LoRA and embedding settings.
        dtype: precision that computes, and of the frozen weights; trained ones are float32.
    """
    stored, stored_head = weight_of(model.get_input_embeddings()), weight_of(model.get_output_embeddings())
    tied, train_old = stored is stored_head, training.trains_old_rows

    def split(weight: Tensor, scale: Tensor | None = None) -> SplitEmbedding:
        return SplitEmbedding(weight[:original_size], weight[original_size:size], train_old=train_old, scale=scale, dtype=dtype)

    embedding = split(stored, _embedding_scale(model.get_input_embeddings()))
    head = SplitHead(embedding if tied else split(stored_head))
    if training.train == "full":
        keep_masters(model, dtype)
    else:
        model.requires_grad_(False)
        place(model, model.device, dtype)
    model.set_input_embeddings(embedding)
    model.set_output_embeddings(head)
    peft: PeftModel | PreTrainedModel = model
    if training.train == "lora":
        with quiet():
            peft = cast(PeftModel, get_peft_model(model, use_our_layer(_peft_config(training.lora))))
        number_layers(peft)
    for rows in {embedding, head.rows}:
        rows.new.requires_grad_(True)
        rows.old.requires_grad_(train_old)
    return Adapted(peft, train=training.train, original_size=original_size, size=size)


def trained_parameters(model: PreTrainedModel, *, original_size: int, size: int, training: Training) -> int:
    """How many numbers ``attach`` would train. Changes the model, which may be on torch's meta device (shapes, no weights): the count
    of a model of any size takes a second and no memory.
    """
    with torch.device(model.device):
        adapted = attach(model, original_size=original_size, size=size, training=training, dtype=torch.float32)
    return sum(parameter.numel() for parameter in adapted.trainable().values())


def _peft_config(lora: Lora) -> LoraConfig:
    return LoraConfig(r=lora.r, lora_alpha=cast(int, lora.alpha), lora_dropout=lora.dropout, target_modules=lora.targets,
                      use_rslora=lora.variant == "rslora", use_dora=lora.variant == "dora", task_type="CAUSAL_LM")


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
