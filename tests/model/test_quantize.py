"""Weights of 4 bits: what is asked for where it cannot be had is an error; where bitsandbytes is installed, the path is run."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from transllm.errors import MissingExtraError, ModelError
from transllm.model import Documents, attach, load_merged, load_to_train
from transllm.model.lora import LoraLinear
from transllm.model.quantize import load_nf4
from transllm.recipe.schema import Lora, Training
from transllm.tokenizer import SpanTokenizer

NF4 = Training(quantize="nf4", lora=Lora(r=4, alpha=8, dropout=0.0))
CPU = torch.device("cpu")


def test_without_the_package_the_extra_is_named(make_folders: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest))
    with pytest.raises(MissingExtraError, match=r"transllm\[qlora\]"):
        load_to_train(make_folders("tied").extended, training=NF4, device=torch.device("cuda"), dtype=torch.bfloat16)


def test_without_cuda_it_says_what_to_do(make_folders: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: object())
    with pytest.raises(ModelError, match=r"CUDA.*training\.quantize to 'none'"):
        load_to_train(make_folders("tied").extended, training=NF4, device=CPU, dtype=torch.bfloat16)


def test_without_the_wish_it_is_the_stored_model(make_folders: Callable[[str], Any]) -> None:
    model = load_to_train(make_folders("tied").extended, training=Training(), device=CPU, dtype=torch.bfloat16)
    assert model.dtype == torch.float32 and not hasattr(model.config, "quantization_config")


def test_an_adapter_learns_on_four_bits(make_folders: Callable[[str], Any], tiny_spans: SpanTokenizer, tmp_path: Path) -> None:
    """bitsandbytes runs on a processor too, slowly: enough to see that the parts fit."""
    pytest.importorskip("bitsandbytes", reason="the extra 'qlora' is not installed")
    from bitsandbytes.nn import Linear4bit
    from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit

    extended = make_folders("untied").extended
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes' own, about its kernels for processors
        model = load_nf4(extended, device=CPU, dtype=torch.float32)
        adapted = attach(model, original_size=tiny_spans.original_size, size=tiny_spans.size, training=NF4, dtype=torch.float32)
        adapted.peft.train()  # in evaluation bitsandbytes repacks weights for processors, which needs wider layers than these
        layers = [module for module in adapted.base.modules() if isinstance(module, PeftLinear4bit)]
        assert len(layers) == 14 and not any(isinstance(module, LoraLinear) for module in adapted.base.modules())
        assert all(isinstance(layer.base_layer, Linear4bit) and layer.base_layer.weight.dtype == torch.uint8 for layer in layers)
        assert layers[0].base_layer.weight.quant_state.quant_type == "nf4" and layers[0].base_layer.compute_dtype == torch.float32
        assert {parameter.dtype for parameter in adapted.trainable().values()} == {torch.float32}
        ids, frozen = torch.arange(30).unsqueeze(0), [layer.base_layer.weight.clone() for layer in layers]
        optimizer = torch.optim.AdamW(adapted.trainable().values(), lr=0.02)
        losses = []
        for _ in range(20):
            logits = adapted.logits(ids, Documents([30]))
            loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 1
        assert all(torch.equal(layer.base_layer.weight, before) for layer, before in zip(layers, frozen, strict=True))
        adapted.save(tmp_path)
        merged, _ = load_merged(extended, tmp_path)
        with torch.no_grad():
            logits = merged(input_ids=ids).logits[..., : tiny_spans.size]
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
        assert loss.item() < losses[0] - 1, "what was learned on rounded weights holds on those that were not"
