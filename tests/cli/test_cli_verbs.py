"""The verbs that need no run: init, check, plan, inspect tokens; and what run prints at its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from transllm.cli import app
from transllm.cli.console import count, duration
from transllm.cli.plan import show
from transllm.cli.run import sample_conversation
from transllm.cli.segments import mask_line, piece_line
from transllm.pipeline.devices import Device
from transllm.pipeline.plan import Plan, plan
from transllm.recipe import load_recipe

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / "recipes" / "llama2-7b-chat-th.yaml"
LLAMA_CONFIG = LLAMA.with_suffix(".config.json")


def call(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def tiny_config(folder: Path, *, tied: bool = True) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": "llama", "vocab_size": 100, "hidden_size": 16, "intermediate_size": 32,
                                "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": tied}))
    return path


# init

def test_init_writes_a_recipe_that_check_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("init", "Some-Org/Nice_Model-1.5B-Chat", "th")
    assert result.exit_code == 0 and (tmp_path / "nice-model-1.5b-chat-th.yaml").exists(), result.output
    assert call("check", "nice-model-1.5b-chat-th.yaml").exit_code == 0
    again = call("init", "Some-Org/Nice_Model-1.5B-Chat", "th")
    assert again.exit_code == 1 and "exists already" in again.output
    assert call("init", "Some-Org/Nice_Model-1.5B-Chat", "th", "--force").exit_code == 0


def test_init_refuses_an_unknown_language(tmp_path: Path) -> None:
    result = call("init", "m", "tt", "--out", tmp_path / "r.yaml")
    assert result.exit_code == 2 and "no language 'tt'" in result.output
    assert call("init", "m", "tt", "--name", "Tatar", "--native", "татарча", "-o", tmp_path / "r.yaml").exit_code == 0
    assert load_recipe(tmp_path / "r.yaml").target.native == "татарча"


# check

def test_check_says_what_the_recipe_will_do() -> None:
    result = call("check", LLAMA, "--set", "pretrain.tokens=0")
    assert result.exit_code == 0, result.output
    for words in ("Thai (ไทย)", "<TH>", "skipped", "954 steps", "LoRA r=64", "all embedding rows", "is in order"):
        assert words in result.output, words


@pytest.mark.parametrize(("change", "words"), [
    ("training.train=full", ("all weights", "Note: training.train is 'full'", "is in order")),
    ("training={train: rows}", ("new embedding rows only",)),
    ("training={lora: {variant: dora}, quantize: nf4}", ("DoRA r=64", "weights of 4 bits", "Note: training.quantize"))])
def test_check_says_what_trains_and_what_that_gives_up(monkeypatch: pytest.MonkeyPatch, change: str, words: tuple[str, ...]) -> None:
    monkeypatch.setattr("transllm.recipe.machine.find_spec", lambda _: True)  # whether bitsandbytes is here or not
    result = call("check", LLAMA, "--set", change)
    assert result.exit_code == 0, result.output
    for word in words:
        assert word in " ".join(result.output.split()), word


def test_check_data_reads_a_sample_of_each_source(tmp_path: Path) -> None:
    english = [f"The number {number} is written on the door of the house." for number in range(30)]
    (tmp_path / "pairs.tsv").write_text("".join(f"{text}\tEl número {index} está escrito en la puerta de la casa.\n"
                                                for index, text in enumerate(english)), encoding="utf-8")
    (tmp_path / "broken.tsv").write_text("only one column\n" * 30)
    path = tmp_path / "r.yaml"
    path.write_text("model: org/m\nlanguage: es\ndata:\n  parallel:\n    - {files: pairs.tsv, columns: [0, 1]}\n")
    result = call("check", path, "--data")
    assert result.exit_code == 0 and "data.parallel[0]" in result.output and "30" in result.output, result.output
    bad = call("check", path, "--data", "--set", "data.parallel.0.files=broken.tsv")
    assert bad.exit_code == 2 and "data.parallel[0]" in bad.output, bad.output


# plan

def test_plan_of_the_papers_setting_needs_no_hub() -> None:
    result = call("plan", LLAMA, "--config", LLAMA_CONFIG, "--devices", 8, "--device-tflops", 300)
    assert result.exit_code == 0, result.output
    for words in ("6.7 G parameters", "adapter 159.9 M", "1,908", "954", "382", "8 devices of 300 TFLOPS"):
        assert words in result.output, words


def test_plan_by_size_says_that_it_is_about(tmp_path: Path) -> None:
    result = call("plan", LLAMA, "--parameters", "7B", "--device-tflops", 300)
    assert result.exit_code == 0 and "about 7.0 G parameters" in result.output and "proportions are assumed" in result.output
    assert call("plan", LLAMA, "--parameters", "big", "--device-tflops", 300).exit_code == 2
    for train, words in (("rows", "numbers: embedding rows alone."), ("full", "numbers: all weights.")):
        other = call("plan", LLAMA, "--parameters", "7B", "--device-tflops", 300, "--set", f"training.train={train}")
        assert words in " ".join(other.output.split()), other.output


def test_plan_counts_exactly(tmp_path: Path) -> None:
    recipe = load_recipe(LLAMA, overrides=["training.lora.r=4", "extend.vocab_size=7", "training.embeddings=new"])
    for tied in (True, False):
        shape = plan(recipe, config=tiny_config(tmp_path, tied=tied), device=Device("some", 1.0)).shape
        layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 32 + 2 * 16
        assert shape.parameters == 2 * layer + 16 + 100 * 16 * (1 if tied else 2)
        assert shape.matrix_parameters == 2 * layer + 16 + 100 * 16 and shape.tied is tied
        assert shape.lora_parameters == 2 * 4 * (2 * (16 + 16) + 2 * (16 + 8) + 3 * (16 + 32))
    trained = plan(recipe, config=tiny_config(tmp_path, tied=True), device=Device("some", 1.0)).trained
    assert trained == shape.lora_parameters + (7 + 3) * 16


def test_plan_shows_every_strategy_and_what_fits(tmp_path: Path) -> None:
    options = ("plan", LLAMA, "--config", LLAMA_CONFIG, "--devices", 8, "--device", "4090")
    result = call(*options, "--nodes", 2, "--strategy", "fsdp")
    assert result.exit_code == 0, result.output
    for words in ("8 devices of 165 TFLOPS, fsdp, on 2 nodes", "ddp: each holds the model", "zero3: all is shared", "Fits 4090",
                  "4090 has 24 GiB", "25 GB/s between devices of different nodes", "Nothing was measured"):
        assert words in result.output, words
    wrongs = ((("--strategy", "ddq"), "no strategy 'ddq'"), (("--nodes", 3), "shared evenly"), (("--device", "z80"), "no device"))
    for wrong, words in wrongs:
        refused = call(*options, *wrong)
        assert refused.exit_code == 2 and words in " ".join(refused.output.replace("│", " ").split()), refused.output


def test_plan_measures_here_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [f"{name}.{key}=64" for name in ("pretrain", "bitext", "finetune")
             for key in ("micro_tokens", "batch_tokens", "sequence_length")]
    recipe = load_recipe(LLAMA, overrides=[*small, *(f"{name}.batch_size=2" for name in ("recover", "bridge", "evaluate"))])
    show(plan(recipe, config=tiny_config(tmp_path), seconds=0.1))
    told = capsys.readouterr().out
    assert "Times are measured here" in told and "of its 2 layers" in told and "Strategies" not in told
    rough = call("plan", LLAMA, "--config", tiny_config(tmp_path), "--no-calibration")
    assert rough.exit_code == 0 and "A matrix product runs at" in rough.output and "Times are measured" not in rough.output


def test_plan_of_what_is_skipped_and_of_what_trains() -> None:
    def planned(*overrides: str) -> Plan:
        return plan(load_recipe(LLAMA, overrides=overrides), config=LLAMA_CONFIG, device=Device("some", 100.0, training=(0.3, 0.7)))

    one = planned()
    # 1e9 tokens at 4 N + 2 N for checkpointing, N = 6.7e9, are about 4e19 FLOPs: 6e5 seconds at 70 % of 100 TFLOPS.
    assert one.stages[2].steps == 1908 and 6e5 * 0.9 < one.stages[2].seconds[0] < 6e5 * 1.3
    assert planned("training.gradient_checkpointing=false").stages[2].memory_gib > 2 * one.stages[2].memory_gib
    assert planned("training.embeddings=new").trained < one.trained
    skipped = planned("pretrain.tokens=0")
    assert skipped.stages[2].seconds == (0.0, 0.0) and "skipped" in skipped.stages[2].note
    assert [stage.name for stage in one.stages] == [
        "prepare", "extend", "pretrain", "bitext", "recover", "bridge", "finetune", "merge", "evaluate"]


@pytest.mark.parametrize("content", ["", "{}", '{"model_type": "no-such"}', "[]"])
def test_plan_with_a_config_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    result = call("plan", LLAMA, "--config", tmp_path / "c.json", "--device-tflops", 1)
    assert result.exit_code == 1 and "is not the config.json of a model" in result.output.replace("\n", " ")
    missing = call("plan", LLAMA, "--config", tmp_path / "none.json", "--device-tflops", 1)
    assert missing.exit_code == 1 and "cannot be read" in missing.output


# inspect

def byte_level(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                                             show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_pieces_differ_without_colour_and_markup_is_text() -> None:
    tokenizer = byte_level(["hello hello [red]"], 270)
    line = piece_line("before", tokenizer, "hello [red]", colour=False, new_from=256).plain
    assert line.replace("|", "").replace("+", "").endswith("hello [red]") and "|" in line and "+" in line


def test_the_loss_mask_shows_with_and_without_colour() -> None:
    pieces = [("<s>Hi", False), (" the", True), (" end", True), ("</s>", True), ("pad", False), ("x", True)]
    assert mask_line(pieces, colour=False).plain == "<s>Hi⟦ the end</s>⟧pad⟦x⟧"
    coloured = mask_line(pieces, colour=True)
    assert coloured.plain == "<s>Hi the end</s>padx"
    learned = [coloured.plain[span.start:span.end] for span in coloured.spans if "underline" in str(span.style)]
    assert learned == [" the", " end", "</s>", "x"]


def test_inspect_tokens_before_the_extension(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: org/m\nlanguage: es\ndata: {}\n")
    result = call("inspect", "tokens", path, "hola", "--runs", tmp_path)
    assert result.exit_code == 1 and "--until extend" in result.output


# run's last words

def test_sample_conversation_is_of_the_last_model(tmp_path: Path) -> None:
    assert sample_conversation(tmp_path / "samples.json") == []
    turn = {"query": "¿Qué [es]?", "query_en": "What is?", "answer_en": "It\nis.", "answer": "Es."}
    (tmp_path / "samples.json").write_text(json.dumps({"conversations": [
        {"stage": "finetune", "turns": [{**turn, "query": "old"}]}, {"stage": "merge", "turns": [turn]},
        {"stage": "merge", "turns": [{**turn, "query": "second"}]}]}))
    text = "\n".join(line.plain for line in sample_conversation(tmp_path / "samples.json"))
    assert "¿Qué [es]?" in text and "It is." in text and "old" not in text and "second" not in text and "'merge'" in text


@pytest.mark.parametrize("seconds,expected", [(3.6, "4 s"), (60, "1 min"), (125, "2 min 5 s"), (12000, "3 h 20 min"), (187200, "2 d 4 h")])
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize("number,expected", [(950, "950"), (9999, "9,999"), (12345, "12.3 k"), (4.5e6, "4.5 M"), (1.2e9, "1.2 G")])
def test_counts(number: float, expected: str) -> None:
    assert count(number) == expected
