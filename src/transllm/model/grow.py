"""Grow a model's embedding and head for an extended tokenizer. Old rows stay bit for bit; new rows are addressed by id.

The matrix may be larger than the tokenizer (padding rows): new ids then fall *into* the padding, so rows are never
addressed from the end (a silent error of other trainers, see docs/architecture.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from transllm.errors import ModelError
from transllm.model.initial import Start, SubTokens, mean_of


def grow(model: PreTrainedModel, *, size: int, sub_tokens: SubTokens, start: Start | None = None, head_start: Start | None = None) -> None:
    """Give the model rows for all ids below ``size``. Changes the model, or leaves it as it was and raises.

    Args:
        model: a decoder with tied or untied embedding and head.
        size: length of the extended tokenizer.
        sub_tokens: new id -> the original ids that it stands for; for every new id.
        start: how new rows start, in both matrices; ids that it does not name start as the mean of their sub-tokens. None: all do.
        head_start: how the rows of an untied head start, if otherwise.

    Raises:
        ModelError: a sub-token is not an original id, a start is not of new ids, or the head has a shape that cannot grow or is tied
            and is to start otherwise.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise ModelError(f"The model's embedding is a {type(embedding).__name__} and its head a {type(head).__name__}; "
                         "only plain nn.Embedding and nn.Linear can be grown.")
    if head.bias is not None:
        raise ModelError("The model's head has a bias, which extension does not support yet. Open an issue with the model's name.")
    tied = embedding.weight.data_ptr() == head.weight.data_ptr()
    if tied and head_start is not None:
        raise ModelError("The model's head is tied to its embedding: one matrix serves both, and its rows start in one way. "
                         "Take extend.head_init out of the recipe.")
    old_rows = embedding.weight.shape[0]
    lowest = min(sub_tokens, default=min(size, old_rows))
    wrong = sorted({part for parts in sub_tokens.values() for part in parts if not 0 <= part < min(lowest, old_rows)}
                   | {new_id for new_id in sub_tokens if new_id >= size})
    if wrong:
        raise ModelError(f"New rows would be initialised from ids that are not the original's: {wrong[:5]}. "
                         "This is a bug in the extension; please report it.")
    rows = max(size, old_rows)
    grown = _grown(embedding.weight, rows, lowest, sub_tokens, start)
    grown_head = grown if tied else _grown(head.weight, rows, lowest, sub_tokens, head_start or start)
    embedding.weight, head.weight = grown, grown_head
    embedding.num_embeddings = head.out_features = rows
    text_config = model.config.get_text_config()
    text_config.vocab_size = rows
    text_config.tie_word_embeddings = tied
    model.config.tie_word_embeddings = tied


def _grown(weight_VD: nn.Parameter, rows: int, lowest: int, sub_tokens: SubTokens, start: Start | None) -> nn.Parameter:
    old = weight_VD.detach()
    grown = torch.empty(rows, old.shape[1], dtype=old.dtype, device=old.device)
    grown[: old.shape[0]] = old
    # A row that no sub-token describes (padding) starts at the mean of all rows: a neutral logit.
    grown[old.shape[0]:] = old.float().mean(0).to(old.dtype)
    for part in (mean_of(sub_tokens), *([start] if start is not None else [])):
        _put(grown, part, old[:lowest], sub_tokens)
    return nn.Parameter(grown, requires_grad=weight_VD.requires_grad)


def _put(grown: Tensor, start: Start, old_VD: Tensor, sub_tokens: SubTokens) -> None:
    """Write the rows of a start to their ids, and to no other."""
    foreign = sorted(set(start.ids) - sub_tokens.keys())
    rows_ND = start.rows(old_VD).to(grown.dtype)
    if foreign or rows_ND.shape != (len(start.ids), old_VD.shape[1]) or not rows_ND.isfinite().all():
        raise ModelError(f"A method of starting new rows gave {tuple(rows_ND.shape)} numbers for {len(start.ids)} ids (not new: "
                         f"{foreign[:5]}), or some that are not finite. This is a bug in the method; please report it.")
    if start.ids:
        grown[torch.tensor(list(start.ids), device=grown.device)] = rows_ND
