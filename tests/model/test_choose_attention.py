"""Which attention a model packs with is found by measuring, and what leaks from one document into the next is never used."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from transllm.errors import ModelError
from transllm.model import APART, PACKED, Documents, choose_attention, hidden_states

Make = Callable[..., PreTrainedModel]
LENGTHS = [5, 1, 12]


def _ids() -> torch.Tensor:
    return torch.arange(3, 3 + sum(LENGTHS)).unsqueeze(0)


def _alone(model: PreTrainedModel) -> torch.Tensor:
    parts = [model.get_decoder()(input_ids=part, use_cache=False).last_hidden_state for part in _ids().split(LENGTHS, dim=1)]
    return torch.cat(parts, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("wanted", ["packed", "sdpa", "eager"])
def test_each_back_end_can_be_asked_for(make_chat_model: Make, wanted: str) -> None:
    model = make_chat_model("tied")
    expected = _alone(model)
    assert choose_attention(model, wanted) == model.config._attn_implementation == (PACKED if wanted == "packed" else wanted)  # type: ignore[arg-type]
    torch.testing.assert_close(hidden_states(model, _ids(), Documents(LENGTHS)), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_flash_attention_is_told_where_documents_lie(make_chat_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package runs on CUDA only; here a stand-in computes what it is asked for."""

    def flash(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, *, scaling: float,
              cu_seq_lens_q: torch.Tensor, cu_seq_lens_k: torch.Tensor, max_length_q: int, max_length_k: int,
              **_: object) -> tuple[torch.Tensor, None]:
        assert mask is None and cu_seq_lens_q.dtype == torch.int32 and torch.equal(cu_seq_lens_q, cu_seq_lens_k)
        assert max_length_q == max_length_k == max(LENGTHS)
        parts = zip(*(states.split(cu_seq_lens_q.diff().tolist(), dim=2) for states in (query, key, value)), strict=True)
        return torch.cat([nn.functional.scaled_dot_product_attention(*part, is_causal=True, scale=scaling, enable_gqa=True)
                          for part in parts], dim=2).transpose(1, 2), None

    model = make_chat_model("tied")
    expected = _alone(model)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash)
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    torch.testing.assert_close(hidden_states(model, _ids(), Documents(LENGTHS)), expected, rtol=1e-4, atol=1e-4)


def test_one_that_is_not_installed_is_an_error_that_names_the_way_out(make_chat_model: Make) -> None:
    model = make_chat_model("tied")
    before = model.config._attn_implementation
    with pytest.raises(ModelError, match=r"'flash_attention_2' cannot be used.*Set 'training.attention' to auto"):
        choose_attention(model, "flash_attention_2")
    assert model.config._attn_implementation == before


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in torch and in transformers
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++, which is not installed")
def test_flex_attention_keeps_documents_apart(make_chat_model: Make) -> None:
    """Forward, which is all that a processor has of it."""
    model = make_chat_model("tied")
    expected = _alone(model)
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(hidden_states(model, _ids(), Documents(LENGTHS)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in torch and in transformers
def test_one_that_has_no_backward_here_is_an_error_before_training(make_chat_model: Make) -> None:
    """FlexAttention computes forward on a processor; training would end in a traceback at its first step."""
    model = make_chat_model("tied").requires_grad_(False)
    with pytest.raises(ModelError, match=r"'flex_attention' cannot be used.*backward.*Set 'training.attention' to auto"):
        choose_attention(model, "flex_attention")
    assert not model.get_input_embeddings()._forward_hooks


def test_one_that_cannot_do_what_the_model_asks_for_is_an_error(make_chat_model: Make) -> None:
    with pytest.raises(ModelError, match=r"'packed' cannot be used with this model here: ModelError.*softcap"):
        choose_attention(make_chat_model("gemma2"), "packed")


@torch.no_grad()
def test_a_state_that_runs_on_is_seen_and_documents_go_one_by_one() -> None:
    torch.manual_seed(1)
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2)).eval()
    expected = _alone(model)
    joined = model.get_decoder()(input_ids=_ids(), use_cache=False).last_hidden_state
    assert not torch.allclose(joined, expected, atol=1e-4), "this family does run on"
    assert choose_attention(model) == APART
    torch.testing.assert_close(hidden_states(model, _ids(), Documents(LENGTHS)), expected, rtol=1e-4, atol=1e-5)


def test_a_second_choice_is_like_the_first(make_chat_model: Make) -> None:
    model = make_chat_model("sliding").train()
    assert choose_attention(model) == choose_attention(model) == PACKED
    assert choose_attention(model, "eager") == "eager"
    assert model.training, "the mode is left as it was"
