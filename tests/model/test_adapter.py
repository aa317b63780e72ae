"""The adapter: the original stays inside, what trains is saved, and merging gives the same model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from transllm.errors import ModelError
from transllm.model import Adapted, Documents, adapter_digest, attach, enable_packed, load_folder, load_merged
from transllm.model.load import save_folder
from transllm.recipe.schema import Training
from transllm.tokenizer import SpanTokenizer

Make = Callable[..., PreTrainedModel]
KINDS = ["tied", "untied", "padded", "gemma", "gemma2"]


def _ids(size: int) -> torch.Tensor:
    """Ids of all the vocabulary; every fourth is one of the last, which are new if ``size`` has new ones."""
    ids = torch.randint(0, size, (1, 24), generator=torch.Generator().manual_seed(5))
    ids[0, ::4] = size - 1 - torch.arange(6)
    return ids


def _train(adapted: Adapted, *, steps: int = 3) -> None:
    """A few large steps on random labels."""
    optimizer = torch.optim.SGD(adapted.trainable().values(), lr=0.5)
    ids = _ids(adapted.size)
    for _ in range(steps):
        logits = adapted.logits(ids, Documents([10, 14]))
        loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids).logits
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_original_is_the_original_bit_for_bit_after_training(make_chat_model: Make, adapt: Callable[..., Adapted],
                                                             tiny_spans: SpanTokenizer, kind: str, dtype: torch.dtype) -> None:
    original, size = make_chat_model(kind, dtype=dtype), tiny_spans.original_size
    adapted = adapt(kind, dtype=dtype)
    ids = _ids(size)
    trains = adapted.trainable().keys()
    with adapted.original():
        untouched = _logits(adapted.base, ids)
        assert adapted.trainable().keys() == trains, "a checkpoint that is asked for now is whole"
    _train(adapted)
    trained = _logits(adapted.base, ids)
    with adapted.original():
        now = _logits(adapted.base, ids)
    assert torch.equal(untouched, now), "training must not reach the original"
    assert torch.equal(now, _logits(original, ids)[..., :size])
    assert now.shape[-1] == size and trained.shape[-1] == tiny_spans.size
    assert (trained[..., :size] - now).abs().max() > 0.01, "the test means nothing if training changed nothing"
    assert torch.equal(_logits(adapted.base, ids), trained), "outside, the adapter is on again"


def test_original_ends_when_an_error_passes(adapt: Callable[..., Adapted]) -> None:
    adapted = adapt()
    with pytest.raises(RuntimeError), adapted.original():
        raise RuntimeError
    assert _logits(adapted.base, _ids(adapted.size)).shape[-1] == adapted.size


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing(make_extended: Make, adapt: Callable[..., Adapted], kind: str) -> None:
    adapted = adapt(kind)
    ids = _ids(adapted.size)
    expected = _logits(make_extended(kind), ids)[..., : adapted.size]
    torch.testing.assert_close(_logits(adapted.base, ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "embeddings"), [("tied", "new"), ("untied", "new"), ("padded", "new"), ("tied", "all"),
                                                  ("untied", "all")])
def test_what_should_train_changes_and_what_should_not_does_not(adapt: Callable[..., Adapted], kind: str, embeddings: str) -> None:
    adapted = adapt(kind, embeddings=embeddings)
    before = {name: parameter.detach().clone() for name, parameter in adapted.peft.named_parameters()}
    _train(adapted)
    changed = {name for name, parameter in adapted.peft.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(adapted.trainable())
    assert any("lora_A" in name for name in changed) and any("lora_B" in name for name in changed)
    rows = sorted(name.rsplit(".", 1)[1] for name in changed if "lora_" not in name)
    assert rows == sorted((["new", "old"] if embeddings == "all" else ["new"]) * (2 if kind == "untied" else 1))
    assert all(parameter.dtype == torch.float32 for parameter in adapted.trainable().values())


def test_head_and_embedding_get_no_lora(adapt: Callable[..., Adapted]) -> None:
    places = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in adapt("padded").trainable() if "lora_" in name}
    assert places == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_trained_weights_stay_float32_beside_a_bfloat16_model(adapt: Callable[..., Adapted]) -> None:
    adapted = adapt("tied", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in adapted.trainable().values()} == {torch.float32}
    assert {parameter.dtype for parameter in adapted.peft.parameters() if not parameter.requires_grad} == {torch.bfloat16}
    assert _logits(adapted.base, _ids(adapted.size)).dtype == torch.bfloat16


@pytest.mark.parametrize(("kind", "embeddings"), [("tied", "new"), ("untied", "new"), ("padded", "new"), ("gemma2", "new"),
                                                  ("tied", "all"), ("untied", "all")])
def test_saved_loaded_and_merged(adapt: Callable[..., Adapted], make_folders: Callable[[str], Any], tmp_path: Path, kind: str,
                                 embeddings: str) -> None:
    adapted = adapt(kind, embeddings=embeddings)
    _train(adapted)
    ids = _ids(adapted.size)
    expected = _logits(adapted.base, ids)
    adapted.save(tmp_path / "adapter")

    again = adapt(kind, embeddings=embeddings)
    assert not torch.equal(_logits(again.base, ids), expected)
    again.load(tmp_path / "adapter")
    assert torch.equal(_logits(again.base, ids), expected)

    merged, tokenizer = load_merged(make_folders(kind).extended, tmp_path / "adapter")
    assert not merged.training and len(tokenizer) == adapted.size
    torch.testing.assert_close(_logits(merged, ids)[..., : adapted.size], expected, rtol=1e-4, atol=1e-4)
    save_folder(merged, tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    reloaded, _ = load_folder(tmp_path / "merged")
    assert torch.equal(_logits(reloaded, ids), _logits(merged, ids))
    same = reloaded.get_input_embeddings().weight.data_ptr() == reloaded.get_output_embeddings().weight.data_ptr()
    assert same is (kind != "untied")


def test_merged_without_an_adapter_is_the_extended_model(make_extended: Make, make_folders: Callable[[str], Any]) -> None:
    model, _ = load_merged(make_folders("untied").extended, None, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.get_output_embeddings().weight, make_extended("untied").get_output_embeddings().weight.bfloat16())


def test_merging_adds_up_in_float32_before_it_casts(adapt: Callable[..., Adapted], make_folders: Callable[[str], Any],
                                                    tmp_path: Path) -> None:
    adapted = adapt("tied")
    _train(adapted)
    adapted.save(tmp_path)
    exact, _ = load_merged(make_folders("tied").extended, tmp_path)
    cast, _ = load_merged(make_folders("tied").extended, tmp_path, dtype=torch.bfloat16)
    for (name, left), right in zip(exact.named_parameters(), cast.parameters(), strict=True):
        assert torch.equal(left.bfloat16(), right), name


def test_state_goes_round(adapt: Callable[..., Adapted]) -> None:
    adapted = adapt()
    _train(adapted)
    again = adapt()
    again.load_state(adapted.state())
    ids = _ids(adapted.size)
    assert torch.equal(_logits(again.base, ids), _logits(adapted.base, ids))
    with pytest.raises(ModelError, match="other weights"):
        again.load_state({name: tensor for name, tensor in adapted.state().items() if "lora_A" not in name})
    with pytest.raises(ModelError):
        adapt(r=2).load_state(adapted.state())


def test_the_adapter_is_an_ordinary_peft_folder(adapt: Callable[..., Adapted], tmp_path: Path) -> None:
    adapt("untied").save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 4
    names = load_file(str(tmp_path / "adapter_model.safetensors")).keys()
    assert names and all("lora_" in name for name in names), "the rows are in a file of their own"
    assert load_file(str(tmp_path / "rows.safetensors")).keys() == {"embedding.new", "head.new"}


def test_the_digest_covers_both_files(adapt: Callable[..., Adapted], tmp_path: Path) -> None:
    adapted = adapt()
    adapted.save(tmp_path)
    first = adapter_digest(tmp_path)
    adapted.save(tmp_path)
    assert adapter_digest(tmp_path) == first
    for name in ("rows.safetensors", "adapter_model.safetensors"):
        before = adapter_digest(tmp_path)
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        assert adapter_digest(tmp_path) != before


@pytest.mark.parametrize("missing", ["adapter_model.safetensors", "rows.safetensors"])
def test_a_missing_file_is_an_error(adapt: Callable[..., Adapted], make_folders: Callable[[str], Any], tmp_path: Path,
                                    missing: str) -> None:
    adapted = adapt()
    adapted.save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ModelError, match=missing):
        adapted.load(tmp_path)
    with pytest.raises(ModelError, match=missing):
        load_merged(make_folders("tied").extended, tmp_path)


def test_an_adapter_of_another_model_is_an_error(adapt: Callable[..., Adapted], tmp_path: Path) -> None:
    adapt(r=4).save(tmp_path / "rank")
    with pytest.raises(ModelError, match="Run its stage again"):
        adapt(r=8).load(tmp_path / "rank")

    adapt("untied").save(tmp_path / "untied")
    with pytest.raises(ModelError):
        adapt("tied").load(tmp_path / "untied")
    with pytest.raises(ModelError):
        adapt("tied", embeddings="all").load(tmp_path / "rank")
    adapt("tied", embeddings="all").save(tmp_path / "all")
    with pytest.raises(ModelError, match="embeddings"):
        adapt("tied").load(tmp_path / "all")


@pytest.mark.parametrize("edit", ["fewer", "more"])
def test_an_adapter_with_fewer_or_more_weights_is_an_error(adapt: Callable[..., Adapted], tmp_path: Path, edit: str) -> None:
    adapt().save(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(str(file))
    name = next(iter(tensors))
    if edit == "fewer":
        del tensors[name]
    else:
        tensors[name.replace("layers.0", "layers.7")] = tensors[name].clone()
    save_file(tensors, str(file))
    with pytest.raises(ModelError, match="Run its stage again"):
        adapt().load(tmp_path)


def test_rows_of_another_vocabulary_are_an_error(adapt: Callable[..., Adapted], tmp_path: Path) -> None:
    adapt().save(tmp_path)
    file = tmp_path / "rows.safetensors"
    save_file({name: tensor[:-1] for name, tensor in load_file(str(file)).items()}, str(file),
              metadata={"transllm": json.dumps({"first_new_id": 320, "train": "lora"})})
    with pytest.raises(ModelError, match="vocabulary"):
        adapt().load(tmp_path)


def test_packed_works_on_an_adapted_model_with_padding(adapt: Callable[..., Adapted]) -> None:
    assert enable_packed(adapt("padded").base)


def test_an_embedding_that_does_more_than_look_up_is_an_error(make_extended: Make, make_training: Callable[..., Training]) -> None:
    class Normed(torch.nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(super().forward(ids))

    model = make_extended("untied")
    embedding = Normed(400, 32)
    model.set_input_embeddings(embedding)
    with pytest.raises(ModelError, match="Normed"):
        attach(model, original_size=320, size=354, training=make_training(), dtype=torch.float32)
