"""Hidden states of a packed row, by whichever attention keeps its documents apart on this model and machine.

Which does is measured on a few documents, because what a family does inside a layer cannot be read off its configuration: attention that
looks across, a state that runs on from one document into the next.

Shapes: T tokens of all documents of a row, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from transllm.errors import ModelError, kind_and_line
from transllm.model.attention import PACKED, Documents, Shared
from transllm.model.rounding import to_round
from transllm.recipe.schema import Attention

APART = "apart"
"""Each document by itself, where nothing else keeps them apart."""

# Largest difference to each document alone, as a share of the largest hidden state: rounding, and nothing else.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_ROUNDED = 0.05


def hidden_states(model: PreTrainedModel, ids_1T: Tensor, documents: Documents) -> Tensor:
    """Last hidden states of a packed row. (1, T) -> (1, T, D)

    Positions restart in each document, which also tells transformers' own attention where documents end. Only our attention knows shared
    beginnings; all others compute each document whole.
    """
    decoder = model.get_decoder()
    apart = getattr(model, "documents_apart", False)
    if documents.copies is not None and (apart or model.config._attn_implementation != PACKED):
        whole = Documents(documents.lengths, device=ids_1T.device)
        return hidden_states(model, ids_1T[:, documents.places_W], whole)[:, documents.own_T]
    if apart:
        parts = zip(*(tensor.split(documents.lengths, dim=1) for tensor in (ids_1T, documents.positions_1T)), strict=True)
        return torch.cat([decoder(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state for ids, positions in parts], 1)
    extra: dict[str, Any] = {}
    if model.config._attn_implementation == PACKED:
        # Without gradients the length stays: the original, heard through the adapter's model, is the original to the last bit.
        more = to_round(ids_1T.shape[1], ids_1T.device) if torch.is_grad_enabled() else 0
        if more:
            return hidden_states(model, F.pad(ids_1T, (0, more)), documents.rounded)[:, :-more]
        extra = {"documents": documents}
    elif model.config._attn_implementation.startswith("flash_attention"):  # else it reads the borders off positions, waiting in each layer
        borders, longest = documents.borders, max(documents.lengths)
        extra = {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest}
    output = decoder(input_ids=ids_1T, position_ids=documents.positions_1T, use_cache=False, **extra)
    return cast(Tensor, output.last_hidden_state)


def probe(model: PreTrainedModel) -> tuple[Tensor, Documents]:
    """Three documents in a packed row, two of which begin alike, to see how a model behaves."""
    rows = int(model.config.get_text_config().vocab_size)
    ids_1T = (torch.arange(40, device=model.device) * 7 % rows).unsqueeze(0)
    return ids_1T, Documents([13, 17, 15], shared=[Shared(2, of=1, tokens=5)], device=model.device)


@torch.no_grad()
def choose_attention(model: PreTrainedModel, wanted: Attention = "auto") -> str:
    """Let the model use an attention that gives every document of a packed row what it gets alone.

    Args:
        wanted: ``auto`` takes the first that does so of FlashAttention (on an accelerator, where the package is installed), ours, and the
            model's own; if none does, documents are computed one by one.

    Returns:
        its name: one of transformers', ``PACKED`` or ``APART``.

    Raises:
        ModelError: the one that is wanted cannot be used, or does not keep documents apart.
    """
    own = model.config._attn_implementation
    own = "eager" if own == PACKED else own  # ours is on from an earlier call; every family has eager
    training = model.training
    model.eval()
    try:
        model.documents_apart = True  # type: ignore[assignment]
        model.set_attn_implementation(own)
        expected = hidden_states(model, *probe(model))
        for name in _candidates(model, own) if wanted == "auto" else [PACKED if wanted == "packed" else wanted]:
            problem = _problem(model, name, expected, backward=wanted != "auto")
            if not problem:
                return name
        model.set_attn_implementation(own)
        if wanted != "auto":
            raise ModelError(f"Attention '{wanted}' cannot be used with this model here: {problem}. Set 'training.attention' to auto.")
        model.documents_apart = True  # type: ignore[assignment]
        return APART
    finally:
        model.train(training)


def enable_packed(model: PreTrainedModel) -> bool:
    """``choose_attention``; whether ours is on."""
    return choose_attention(model) == PACKED


def _candidates(model: PreTrainedModel, own: str) -> Sequence[str]:
    flash = ["flash_attention_2"] if model.device.type == "cuda" and is_flash_attn_2_available() else []
    return [*flash, PACKED, own]


def _problem(model: PreTrainedModel, name: str, expected: Tensor, *, backward: bool) -> str:
    """Switch to an attention; why it cannot stay, or nothing. Of those that are asked for by name some have no backward pass
    (FlexAttention on a processor)."""
    model.documents_apart = False  # type: ignore[assignment]
    try:
        model.set_attn_implementation(name)
        states = _there_and_back(model) if backward else hidden_states(model, *probe(model))
    except (ModelError, ImportError, ValueError, RuntimeError, NotImplementedError) as error:  # each back end says no in its own way
        return kind_and_line(error)
    difference = (states.float() - expected.float()).abs().max() / expected.float().abs().max()
    if bool(difference < _TOLERANCE.get(expected.dtype, _ROUNDED)):
        return ""
    return "documents of a packed row do not get what they get alone"


def _there_and_back(model: PreTrainedModel) -> Tensor:
    """The probe's states, after a gradient of them with respect to the embeddings, which is there for frozen weights too."""
    embedded: list[Tensor] = []

    def watch(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = model.get_input_embeddings().register_forward_hook(watch)
    try:
        with torch.enable_grad():
            states = hidden_states(model, *probe(model))
            torch.autograd.grad(states.sum(), embedded)
    finally:
        hook.remove()
    return states.detach()
