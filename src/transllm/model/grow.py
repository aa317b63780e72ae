"""Grow a model's embedding and head for an extended tokenizer. Old rows stay bit for bit; new rows are addressed by id.

The matrix may be larger than the tokenizer (padding rows): new ids then fall *into* the padding, so rows are never
addressed from the end (a silent error of other trainers, see docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from transllm.errors import ModelError


def grow(model: PreTrainedModel, *, size: int, sub_tokens: Mapping[int, Sequence[int]]) -> None:
    """Give the model rows for all ids below ``size``, each new one the mean of its sub-tokens' rows. Changes the model.

    Args:
        model: a decoder with tied or untied embedding and head.
        size: length of the extended tokenizer.
        sub_tokens: new id -> the original ids that it stands for.

    Raises:
        ModelError: a sub-token is not an original id, or the head has a shape that cannot grow.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise ModelError(f"The model's embedding is a {type(embedding).__name__} and its head a {type(head).__name__}; "
                         "only plain nn.Embedding and nn.Linear can be grown.")
    if head.bias is not None:
        raise ModelError("The model's head has a bias, which extension does not support yet. Open an issue with the model's name.")
    tied = embedding.weight.data_ptr() == head.weight.data_ptr()
    old_rows = embedding.weight.shape[0]
    lowest = min(sub_tokens, default=size)
    wrong = sorted({part for parts in sub_tokens.values() for part in parts if not 0 <= part < min(lowest, old_rows)})
    if wrong:
        raise ModelError(f"New rows would be initialised from ids that are not the original's: {wrong[:5]}. "
                         "This is a bug in the extension; please report it.")
    rows = max(size, old_rows)
    embedding.weight = _grown(embedding.weight, rows=rows, sub_tokens=sub_tokens)
    embedding.num_embeddings = rows
    head.weight = embedding.weight if tied else _grown(head.weight, rows=rows, sub_tokens=sub_tokens)
    head.out_features = rows
    text_config = model.config.get_text_config()
    text_config.vocab_size = rows
    text_config.tie_word_embeddings = tied
    model.config.tie_word_embeddings = tied


def _grown(weight_VD: nn.Parameter, *, rows: int, sub_tokens: Mapping[int, Sequence[int]]) -> nn.Parameter:
    old = weight_VD.detach()
    grown = torch.empty(rows, old.shape[1], dtype=old.dtype)
    grown[: old.shape[0]] = old
    # A row that no sub-token describes (padding) starts at the mean of all rows: a neutral logit.
    grown[old.shape[0]:] = old.float().mean(0).to(old.dtype)
    for new_id, parts in sub_tokens.items():
        grown[new_id] = old[list(parts)].float().mean(0).to(old.dtype)
    return nn.Parameter(grown, requires_grad=weight_VD.requires_grad)
