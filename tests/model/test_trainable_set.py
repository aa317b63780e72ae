"""What can train: rows alone, LoRA in its variants, all weights. What should change does, nothing is lost on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from transllm.errors import ModelError
from transllm.model import Adapted, Documents, adapter_digest, attach, enable_packed, load_folder, load_merged, saved, trained_parameters
from transllm.model.load import save_folder
from transllm.model.lora import LoraLinear
from transllm.recipe.schema import Lora, Training
from transllm.tokenizer import SpanTokenizer

Make = Callable[..., PreTrainedModel]
Adapt = Callable[..., Adapted]
CHOICES: dict[str, dict[str, Any]] = {
    "rows": {"train": "rows"}, "all rows": {"train": "rows", "embeddings": "all"}, "rslora": {"variant": "rslora"},
    "dora": {"variant": "dora"}, "full": {"train": "full"}}
KEEPING = ["rows", "rslora", "dora"]


def _training(choice: str) -> Training:
    settings = dict(CHOICES[choice])
    return Training(lora=Lora(r=4, alpha=8, dropout=0.0, variant=settings.pop("variant", "lora")), **settings)


@pytest.fixture
def adapt(make_extended: Make, tiny_spans: SpanTokenizer) -> Adapt:
    def make(choice: str, kind: str = "tied", *, dtype: torch.dtype = torch.float32, stored: torch.dtype = torch.float32) -> Adapted:
        torch.manual_seed(3)
        adapted = attach(make_extended(kind, dtype=stored), original_size=tiny_spans.original_size, size=tiny_spans.size,
                         training=_training(choice), dtype=dtype)
        adapted.peft.eval()
        return adapted

    return make


def _ids(size: int) -> torch.Tensor:
    """Ids of all the vocabulary; every fourth is one of the last, which are new."""
    ids = torch.randint(0, size, (1, 24), generator=torch.Generator().manual_seed(5))
    ids[0, ::4] = size - 1 - torch.arange(6)
    return ids


def _train(adapted: Adapted, *, steps: int = 3, rate: float = 0.1) -> None:
    optimizer = torch.optim.SGD(adapted.trainable().values(), lr=rate)
    ids = _ids(adapted.size)
    for _ in range(steps):
        logits = adapted.logits(ids, Documents([10, 14]))
        torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()


def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids).logits
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["tied", "untied", "padded", "gemma2"])
@pytest.mark.parametrize("choice", CHOICES)
def test_what_should_train_changes_and_what_should_not_does_not(adapt: Adapt, choice: str, kind: str, dtype: torch.dtype) -> None:
    adapted = adapt(choice, kind, dtype=dtype)
    before = {name: parameter.detach().clone() for name, parameter in adapted.peft.named_parameters()}
    _train(adapted)
    changed = {name for name, parameter in adapted.peft.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(adapted.trainable())
    assert all(parameter.dtype == torch.float32 for parameter in adapted.trainable().values())
    assert _logits(adapted.base, _ids(adapted.size)).dtype == dtype
    kinds = {"lora": any("lora_B" in name for name in changed), "magnitude": any("magnitude" in name for name in changed),
             "norm": any("norm" in name for name in changed), "old": any(name.endswith(".old") for name in changed)}
    assert [kind for kind, present in kinds.items() if present] == {
        "rows": [], "all rows": ["old"], "rslora": ["lora"], "dora": ["lora", "magnitude"], "full": ["norm", "old"]}[choice]
    assert sum(name.endswith(".new") for name in changed) == (2 if kind == "untied" else 1)
    if choice == "full":
        assert changed == before.keys(), "all weights train"


@pytest.mark.parametrize("kind", ["tied", "untied", "padded", "gemma", "gemma2"])
@pytest.mark.parametrize("choice", CHOICES)
def test_nothing_is_changed_by_preparing_to_train(adapt: Adapt, make_extended: Make, choice: str, kind: str) -> None:
    adapted = adapt(choice, kind)
    ids = _ids(adapted.size)
    torch.testing.assert_close(_logits(adapted.base, ids), _logits(make_extended(kind), ids)[..., : adapted.size], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("choice", KEEPING)
def test_the_original_is_inside_bit_for_bit(adapt: Adapt, make_chat_model: Make, tiny_spans: SpanTokenizer, choice: str,
                                            dtype: torch.dtype) -> None:
    adapted, ids = adapt(choice, dtype=dtype), _ids(tiny_spans.original_size)
    adapted.quicken()
    _train(adapted)
    adapted.base.set_attn_implementation("sdpa")
    with adapted.original():
        off = _logits(adapted.base, ids)
    original = make_chat_model(dtype=dtype)
    original.set_attn_implementation("sdpa")
    assert torch.equal(off, _logits(original, ids))
    on = _logits(adapted.base, ids)[..., : off.shape[-1]]
    assert torch.equal(on, off) is (choice == "rows"), "new rows alone change nothing of what the original reads and writes"


def test_with_all_weights_the_original_is_not_inside_and_says_so(adapt: Adapt) -> None:
    with pytest.raises(ModelError, match="not inside"), adapt("full").original():
        raise AssertionError("the original cannot be had")


@pytest.mark.parametrize("kind", ["tied", "untied", "padded"])
@pytest.mark.parametrize("choice", CHOICES)
def test_saved_loaded_and_merged(adapt: Adapt, make_folders: Callable[[str], Any], tmp_path: Path, choice: str, kind: str) -> None:
    adapted = adapt(choice, kind)
    _train(adapted)
    ids = _ids(adapted.size)
    expected = _logits(adapted.base, ids)
    adapted.save(tmp_path / "stage")
    again = adapt(choice, kind)
    assert not torch.equal(_logits(again.base, ids), expected)
    again.load(tmp_path / "stage")
    assert torch.equal(_logits(again.base, ids), expected)
    assert all(torch.equal(left, right) for left, right in zip(adapted.state().values(), again.state().values(), strict=True))

    merged, tokenizer = load_merged(make_folders(kind).extended, tmp_path / "stage")
    torch.testing.assert_close(_logits(merged, ids)[..., : adapted.size], expected, rtol=1e-4, atol=1e-4)
    save_folder(merged, tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    assert torch.equal(_logits(load_folder(tmp_path / "merged")[0], ids), _logits(merged, ids))

    first = adapter_digest(tmp_path / "stage")
    for file in sorted((tmp_path / "stage").glob("*.safetensors")):
        kept = file.read_bytes()
        file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        assert adapter_digest(tmp_path / "stage") != first, file.name
        file.write_bytes(kept)


def test_a_checkpoint_of_all_weights_goes_round(adapt: Adapt) -> None:
    adapted, again = adapt("full", dtype=torch.bfloat16), adapt("full", dtype=torch.bfloat16)
    _train(adapted)
    again.load_state(adapted.state())
    ids = _ids(adapted.size)
    assert torch.equal(_logits(again.base, ids), _logits(adapted.base, ids))


def test_all_weights_in_shards(adapt: Adapt, make_folders: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(saved, "save_torch_state_dict",
                        lambda *args, **options: save_torch_state_dict(*args, **options, max_shard_size=8000))
    adapted = adapt("full")
    _train(adapted)
    adapted.save(tmp_path)
    index = json.loads((tmp_path / "body.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    ids = _ids(adapted.size)
    merged, _ = load_merged(make_folders("tied").extended, tmp_path)
    torch.testing.assert_close(_logits(merged, ids)[..., : adapted.size], _logits(adapted.base, ids), rtol=1e-4, atol=1e-4)
    (tmp_path / shards[1]).unlink()
    for use in (lambda: adapted.load(tmp_path), lambda: load_merged(make_folders("tied").extended, tmp_path),
                lambda: adapter_digest(tmp_path)):
        with pytest.raises(ModelError, match=shards[1]):
            use()


def test_weights_of_another_model_or_another_training_are_an_error(adapt: Adapt, tmp_path: Path) -> None:
    for choice in ("full", "rows", "rslora"):
        adapt(choice).save(tmp_path / choice)
    for choice, folder in (("rows", "full"), ("full", "rows"), ("rslora", "full"), ("full", "rslora")):
        with pytest.raises(ModelError, match=r"train: (full|rows|lora)', but the recipe says"):
            adapt(choice).load(tmp_path / folder)
    with pytest.raises(ModelError, match=r"other weights.*training\.lora"):
        adapt("dora").load(tmp_path / "rslora")
    body = tmp_path / "full" / "body.safetensors"
    tensors = load_file(str(body))
    name = next(iter(tensors))
    fewer = {key: value for key, value in tensors.items() if key != name}
    for edited, said in ((fewer, "lack"), (tensors | {"more": tensors[name].clone()}, "more"), (tensors | {name: torch.zeros(3)}, name)):
        save_file(edited, str(body))
        with pytest.raises(ModelError, match=said):
            adapt("full").load(tmp_path / "full")


def test_rslora_counts_more_and_dora_is_not_joined(adapt: Adapt, tmp_path: Path) -> None:
    layers = {choice: [module for module in adapt(choice).base.modules() if isinstance(module, LoraLinear)]
              for choice in ("rslora", "dora")}
    assert {layer.scaling["default"] for layer in layers["rslora"]} == {8 / 4**0.5}
    assert all(layer.plain() for layer in layers["rslora"]) and not any(layer.plain() for layer in layers["dora"])
    assert adapt("rslora").quicken()["joined_layers"] > 0 == adapt("dora").quicken()["joined_layers"]
    for choice, key in (("rslora", "use_rslora"), ("dora", "use_dora")):
        adapt(choice).save(tmp_path / choice)
        assert json.loads((tmp_path / choice / "adapter_config.json").read_text())[key] is True


@pytest.mark.parametrize("choice", CHOICES)
def test_small_updates_are_not_lost_beside_bfloat16(adapt: Adapt, choice: str) -> None:
    """A hundred steps, each of about 1e-5 of a weight, arrive whole; in bfloat16 none of them would."""
    adapted = adapt(choice, dtype=torch.bfloat16, stored=torch.bfloat16)
    for parameter in adapted.trainable().values():
        parameter.data = torch.full_like(parameter, 0.5)
    optimizer = torch.optim.SGD(adapted.trainable().values(), lr=1.0)
    for _ in range(100):
        for parameter in adapted.trainable().values():
            parameter.grad = torch.full_like(parameter, 0.5e-5)
        optimizer.step()
    for name, parameter in adapted.trainable().items():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 0.5 - 0.5e-3), rtol=0, atol=1e-5, msg=name)
    stalled = torch.full((1,), 0.5, dtype=torch.bfloat16)
    for _ in range(100):
        stalled -= 0.5e-5
    assert stalled == 0.5, "the test means nothing if bfloat16 would do"


def test_all_weights_compute_as_their_rounded_selves(adapt: Adapt, make_folders: Callable[[str], Any], tmp_path: Path) -> None:
    """What trains in bfloat16 is what a bfloat16 model made of it computes, bit for bit."""
    adapted = adapt("full", "untied", dtype=torch.bfloat16)
    _train(adapted)
    adapted.save(tmp_path)
    merged, _ = load_merged(make_folders("untied").extended, tmp_path, dtype=torch.bfloat16)
    ids = _ids(adapted.size)
    assert torch.equal(_logits(merged, ids)[..., : adapted.size], _logits(adapted.base, ids))
    assert enable_packed(adapted.base)


def test_rows_that_train_keep_the_digits_that_are_stored(adapt: Adapt, make_extended: Make, tiny_spans: SpanTokenizer) -> None:
    """The model computes in bfloat16, but float32 rows of a checkpoint are not rounded on their way."""
    rows = make_extended().get_input_embeddings().weight
    adapted = adapt("full", dtype=torch.bfloat16)
    assert torch.equal(adapted.row_parameters()["embedding.new"], rows[tiny_spans.original_size: tiny_spans.size])
    assert torch.equal(adapted.row_parameters()["embedding.old"], rows[: tiny_spans.original_size])


@pytest.mark.parametrize("kind", ["tied", "untied", "padded"])
@pytest.mark.parametrize("choice", CHOICES)
def test_the_count_needs_no_weights(adapt: Adapt, make_extended: Make, tiny_spans: SpanTokenizer, choice: str, kind: str) -> None:
    exact = sum(parameter.numel() for parameter in adapt(choice, kind).trainable().values())
    hollow = make_extended(kind).to("meta")
    hollow.tie_weights()
    found = trained_parameters(hollow, original_size=tiny_spans.original_size, size=tiny_spans.size, training=_training(choice))
    assert found == exact
