"""The formulae of a plan against sums made by hand, and its calibration on tiny models. No test looks at a speed: it differs each time."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from transllm.errors import ModelError
from transllm.model import attach
from transllm.pipeline.calibrate import Line, calibrate
from transllm.pipeline.devices import DEVICES, STRATEGIES, Cluster, Device
from transllm.pipeline.estimate import MARKERS, Estimate, Sizes
from transllm.pipeline.plan import plan
from transllm.pipeline.sample import build, cut_config, kept, random_rows
from transllm.pipeline.shape import Shape, shape_of
from transllm.pipeline.speed import Stated
from transllm.pipeline.workload import Learning, Writing, bridging, evaluating, learning, recovering
from transllm.progress import Silent
from transllm.recipe import load_recipe
from transllm.recipe.schema import Lora, ModelSource, Training, TrainStage
from transllm.training import batches_of, pack, train
from transllm.training.schedule import plan_steps

LLAMA = Path(__file__).parents[2] / "recipes" / "llama2-7b-chat-th.yaml"
LLAMA_CONFIG = LLAMA.with_suffix(".config.json")
TRAINING = Training.model_validate({"lora": {"r": 4, "alpha": 8, "dropout": 0.0}})
SEVENTY: dict[str, Any] = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
                           "num_key_value_heads": 8}


def config_file(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64,
                                "num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 2, **changes}))
    return path


def shape(folder: Path, **changes: Any) -> Shape:
    return shape_of(ModelSource(source="none"), Lora(r=4), folder=folder, config=config_file(folder, **changes))


def stage(**changes: int) -> TrainStage:
    return TrainStage.model_validate({"tokens": 1000, "batch_tokens": 256, "micro_tokens": 128, "sequence_length": 64, **changes})


@pytest.mark.parametrize(("batch", "bins", "steps"), [(256, 2, 4), (384, 3, 3), (1024, 8, 1)])
def test_steps_are_those_of_the_loop(batch: int, bins: int, steps: int, tmp_path: Path) -> None:
    work = Learning("pretrain", stage(batch_tokens=batch), 32, 1.0)
    assert (work.bins_a_step, work.steps) == (bins, steps)
    full = random_rows(tmp_path, Learning("x", stage(), 2, 1.0), tokens=2048, longest=2, vocabulary=9)  # rows that fill every bin
    assert len(plan_steps(full, stage(batch_tokens=batch), seed=1)) == steps


def test_memory_of_each_strategy_by_hand() -> None:
    held = {name: Cluster(4, 1, name).held(1000.0, 800.0, 10.0, 200.0) for name in STRATEGIES}
    assert held == {"ddp": 1000 + 160, "fsdp": 200 + 200 + 200 + 160, "zero2": 1000 + 40 + 30, "zero3": 250 + 200 + 40}
    assert Cluster(1, 1, "zero3").held(1000.0, 800.0, 10.0, 200.0) == 1160
    full = {name: Cluster(4, 1, name).held(0.0, 0.0, 100.0, 50.0, body=80.0) for name in STRATEGIES}
    assert full == {"ddp": 1600, "fsdp": 50 + 16 * (20 + 20), "zero2": 400 + 300, "zero3": 50 + 400}
    cluster = Cluster(4, 2, "fsdp", bandwidth_gbs=2.0)
    assert cluster.seconds_a_step(1e9, body=9e8) == pytest.approx(2 * 0.75 * 4e8 / 2e9)
    assert cluster.seconds_a_bin(9e9, 8e9, body=4e9) == pytest.approx(0.75 * (2 * 8e9 + 4 * 4e9) / 2e9)
    assert cluster.seconds_a_step(1e9) == pytest.approx(2 * 0.75 * 4e9 / 2e9)
    assert cluster.seconds_a_bin(9e9, 8e9) == pytest.approx(2 * 0.75 * 8e9 / 2e9)
    assert Cluster(4, 2, "ddp").seconds_a_bin(9e9, 8e9) == 0


def test_devices_share_training_only() -> None:
    recipe = load_recipe(LLAMA)
    one, eight = (plan(recipe, config=LLAMA_CONFIG, device=DEVICES["h100"], cluster=Cluster(devices, 1, "ddp", 1e9)) for devices in (1, 8))
    for before, after in zip(one.stages, eight.stages, strict=True):
        shared = 8 if before.name in ("pretrain", "bitext", "finetune") else 1
        assert after.seconds[1] * shared == pytest.approx(before.seconds[1], rel=0.05), before.name
        assert before.steps == after.steps
    slow = plan(recipe, config=LLAMA_CONFIG, device=DEVICES["h100"], cluster=Cluster(8, 8, "fsdp", 0.1))
    assert slow.stages[2].seconds[0] > 10 * eight.stages[2].seconds[0]


@pytest.mark.parametrize("vocabulary", [100, 70_000])
@pytest.mark.parametrize(("kind", "growth"), [("cpu", 0.15 * math.log(100)), ("other", 0.0)])
def test_memory_grows_with_the_steps_on_a_processor(kind: str, growth: float, vocabulary: int, tmp_path: Path) -> None:
    """All but blocks of logits that are too large for glibc to keep."""
    found = []
    for steps in (10, 1000):
        recipe = load_recipe(LLAMA, overrides=[f"pretrain.tokens={steps * 1000}", "pretrain.batch_tokens=1000",
                                               "pretrain.micro_tokens=1000", "pretrain.sequence_length=100",
                                               "training.gradient_checkpointing=false"])
        sizes = Sizes(recipe, shape(tmp_path, vocab_size=vocabulary))
        speed = Stated(sizes.shape, recipe, DEVICES["h100"], new=sizes.new, width=2)
        estimate = Estimate(recipe, sizes, speed, Cluster(1, 1, "ddp", 1.0), width=2, kind=kind)
        found.append(next(one for one in estimate.stages() if one.name == "pretrain").memory_gib)
    labels = 1 - 1 / 100
    kept = 1000 * (12 * 2 * (10 * 32 + 4 * 64) + labels * 32 * 2)
    logits = 512 * sizes.vocabulary * 2  # their gradient is written over them
    assert found[1] - found[0] == pytest.approx(growth * (kept + (logits if vocabulary < 10_000 else 0)) / 2**30, rel=1e-6)


def test_a_stated_device_by_hand(tmp_path: Path) -> None:
    config = config_file(tmp_path, tie_word_embeddings=False)
    changes = ["extend.vocab_size=17", "training.embeddings=new", "training.lora.r=4", "training.gradient_checkpointing=false",
               "pretrain.tokens=1000000", "pretrain.batch_tokens=1000", "pretrain.micro_tokens=1000", "pretrain.sequence_length=100"]
    made = plan(load_recipe(LLAMA, overrides=changes), config=config, device=Device("toy", 1e-3, training=(0.5, 1.0)))
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    multiplied, adapter = 12 * (layer + 2 * 32) + 32 + 100 * 32 + 20 * 32, 12 * 4 * (2 * 64 + 2 * 48 + 3 * 96)
    forward = 2 * (multiplied + adapter) + 4 * 12 * 32 * 50
    backward = 2 * multiplied + 4 * adapter + 8 * 12 * 32 * 50
    pretrain = made.stages[2]
    update = 1000 * 28 * made.trained / (0.3 * 50e9)
    start = 2.0 + made.stages[1].disk_gib / 0.5 + 36 * 300 * 2 * (multiplied + adapter) / 1e9
    assert pretrain.steps == 1000
    assert pretrain.seconds[0] == pytest.approx(1e6 * (forward + backward) / 1e9 + update + start, rel=0.01)
    assert pretrain.seconds[1] == pytest.approx(2 * pretrain.seconds[0], rel=0.02)
    assert made.trained == adapter + 2 * 20 * 32
    assert pretrain.disk_gib == pytest.approx((4 * made.trained + 5e6) / 2**30)
    assert pretrain.scratch_gib == pytest.approx(36 * made.trained / 2**30)


def test_seventy_billion_on_many_nodes(tmp_path: Path) -> None:
    config = config_file(tmp_path, vocab_size=128_256, **SEVENTY)
    cluster = Cluster(32, 4, "fsdp", 25.0)
    made = plan(load_recipe(LLAMA, overrides=["training.embeddings=new"]), config=config, device=DEVICES["h100"], cluster=cluster)
    assert 69e9 < made.shape.parameters < 71.5e9
    memory = {name: found[0] for name, found in made.strategies.items()}
    assert memory["ddp"] > 130 > 80 > memory["fsdp"] > memory["zero3"]  # 131 GiB of weights
    assert made.stages[2].memory_gib == memory["fsdp"]
    assert made.stages[4].memory_gib > 130  # answers are written on one device


def test_all_weights_of_seven_billion_on_eight() -> None:
    """16 bytes a weight, of the layers' 6.5 billion shared by eight; embedding and head whole."""
    recipe = load_recipe(LLAMA, overrides=["training.train=full"])
    made = plan(recipe, config=LLAMA_CONFIG, device=DEVICES["h100"], cluster=Cluster(8, 1, "fsdp"))
    memory = {name: found[0] for name, found in made.strategies.items()}
    layers = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
    assert memory["ddp"] - memory["fsdp"] == pytest.approx((16 * layers * 7 / 8 - (layers - 4096) / 32 * (2 * 2 + 2 + 4)) / 2**30, rel=1e-6)
    assert memory["ddp"] > 100 > 80 > memory["fsdp"] > memory["zero3"] and made.stages[2].memory_gib == memory["fsdp"]


@pytest.mark.parametrize("train", ["lora", "rows", "full"])
def test_arithmetic_of_what_trains(tmp_path: Path, train: str) -> None:
    """On a device that does one operation a second."""
    changes = [f"training.train={train}", "extend.vocab_size=17", "training.gradient_checkpointing=false", "training.lora.r=4"]
    changes += ["training.embeddings=new"] if train != "full" else []
    found, recipe = shape(tmp_path, tie_word_embeddings=False), load_recipe(LLAMA, overrides=changes)
    speed = Stated(found, recipe, Device("toy", 1e-12, training=(1.0, 1.0)), new=20 * 32, width=4)
    layers = 12 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32
    rows, adapter, attention = (100 + 20) * 32, 12 * 4 * (2 * 64 + 2 * 48 + 3 * 96) if train == "lora" else 0, 12 * 12 * 32 * 16
    expected = 4 * (layers + rows) + 6 * adapter + attention + (2 * (layers + rows) if train == "full" else 0)
    assert speed.training(Learning("pretrain", stage(), 32, 1.0))[0] == pytest.approx(expected)


def test_weights_in_four_bits() -> None:
    recipe = load_recipe(LLAMA, overrides=["training.quantize=nf4", "training.embeddings=new"])
    made = plan(recipe, config=LLAMA_CONFIG, device=DEVICES["h100"])
    whole = plan(load_recipe(LLAMA, overrides=["training.embeddings=new"]), config=LLAMA_CONFIG, device=DEVICES["h100"])
    layers = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
    assert whole.stages[2].memory_gib - made.stages[2].memory_gib == pytest.approx(layers * (2 - 0.516) / 2**30, rel=1e-3)
    assert any("4 bits" in assumption for assumption in made.assumptions)


def test_what_a_recipe_says_of_its_rows() -> None:
    works = {work.name: work for work in learning(load_recipe(LLAMA, overrides=["bitext.source_loss=false", "bitext.replay=0"]))}
    assert works["pretrain"].row == 300 and works["bitext"].labelled == pytest.approx(0.5)
    assert "pretrain" not in {work.name for work in learning(load_recipe(LLAMA, overrides=["pretrain.tokens=0"]))}
    assert recovering(load_recipe(LLAMA, overrides=["recover.max_new_tokens=40"]))[0].length == (40, 40)
    assert bridging(load_recipe(LLAMA, overrides=["bridge.translator=apertium"])).rows == 0
    greedy, searched = (load_recipe(LLAMA, overrides=[f"bridge.translator={{name: self, beam_size: {beams}}}",
                                                      f"evaluate.beam_size={beams}"]) for beams in (1, 4))
    assert bridging(searched).rows == 4 * bridging(greedy).rows
    assert evaluating(searched)[1].rows == 4 * evaluating(greedy)[1].rows


def test_what_is_written_for_several_answers_and_turns() -> None:
    def writings(*settings: str) -> list[Writing]:
        return recovering(load_recipe(LLAMA, overrides=["recover.count=1000", "evaluate.answers=10", "recover.prompts=[seed]",
                                                        *(f"recover.{setting}" for setting in settings)]))

    (once,) = writings("sampled=0.5")
    assert once.rows == 1010 + 500
    assert writings("sampled=0.5", "answers=3")[0].rows == 1010 + 1500
    assert writings("sampled=0.5", "answers=3", "temperature=0.7")[0].rows == 1010 + 1500 + 2000
    first, later, users = writings("sampled=0.5", "multi_turn=0.4", "most_turns=3")  # 200 have a turn more, 200 two
    assert (first.rows, later.rows, users.rows) == (1510, 900, 600) and later.prompt > first.prompt and users.length == (30, 96)


def test_a_plan_says_where_others_answer() -> None:
    def told(*settings: str) -> str:
        return " ".join(plan(load_recipe(LLAMA, overrides=[*settings]), config=LLAMA_CONFIG, device=DEVICES["h100"]).assumptions)

    assert "In recover" not in told()
    assert "a server (http://there/v1) answers, whose speed" in told("recover.engine.name=server", "recover.engine.url=http://there/v1",
                                                                      "recover.engine.model=llama")
    assert "transformers answers, on 8 Ray workers" in told("recover.ray.workers=8")


def test_a_line_over_depths() -> None:
    line = Line.through((2, 8), (5.0, 11.0))
    assert (line.head, line.layer, line.at(30)) == (3.0, 1.0, 33.0)
    assert Line.through((1, 1), (2.0, 2.0)).at(1) == 2.0
    assert Line(-1.0, 2.0).scaled(head=3, layer=4) == Line(0.0, 8.0)


def test_a_line_between_two_and_beyond() -> None:
    few, many = Line(1.0, 2.0), Line(3.0, 3.0)
    assert [few.toward(many, share) for share in (0, 0.5, 1, 3)] == [few, Line(2.0, 2.5), many, Line(7.0, 5.0)]
    assert many.toward(few, 5) == many, "more rows are never quicker, whatever the noise"


def test_a_larger_batch_is_not_so_many_small_ones(tmp_path: Path) -> None:
    """A step reads the weights once for all of its rows: with a few rows measured, their step must not be multiplied."""
    ticks = itertools.count(0.0)  # a clock for which all steps take the same
    found = calibrate(shape(tmp_path), TRAINING, [], {"one": Writing(4, 4, 10, (5, 9)), "other": Writing(400, 400, 10, (5, 9))}, new=7,
                      dtype=torch.float32, tflops=1e-5, seconds=0.1, clock=lambda: next(ticks))
    assert "fewer tokens" in found.about and found.step["one"] == found.step["other"] > 0


def test_beams_read_their_prompt_once(tmp_path: Path) -> None:
    def seconds(beams: int) -> float:
        recipe = load_recipe(LLAMA, overrides=[f"bridge.translator={{name: self, beam_size: {beams}}}", f"bridge.batch_size={100 * beams}"])
        work = bridging(recipe)
        assert work.beams == beams
        estimate = Estimate(recipe, Sizes(recipe, made), speed, Cluster(), width=2, kind="other")
        return estimate._writing_seconds("bridge", work)[0]

    made = shape(tmp_path)
    speed: Any = SimpleNamespace(prefill=lambda stage: (1.0, 1.0), step=lambda stage, work: (0.0, 0.0))
    assert seconds(1) == seconds(4) > 0


@pytest.mark.parametrize("changes", [{}, {"model_type": "qwen2"}, {"model_type": "gemma2", "head_dim": 8}])
def test_what_is_kept_grows_evenly_with_depth(tmp_path: Path, changes: dict[str, Any]) -> None:
    """So that two shallow models tell of a deep one; counted here on the deep one too."""
    config = shape(tmp_path, **changes).config
    work = Learning("x", stage(), 20, 0.5)
    rows = random_rows(tmp_path / "rows", work, tokens=100, longest=60, vocabulary=100)
    batch = next(batches_of(rows, pack(rows.lengths, capacity=1000, seed=0), device=torch.device("cpu")))
    found = {}
    for depth in (2, 4, 12):
        model = build(cut_config(config, depth, 100, 1), torch.float32, torch.device("cpu"))
        adapted = attach(model, original_size=90, size=100, training=TRAINING, dtype=torch.float32)
        adapted.quicken()
        found[depth] = kept(adapted, batch)
    assert Line.through((2, 4), (found[2], found[4])).at(12) == pytest.approx(found[12], rel=0.01)
    assert found[12] > found[2] > 0


@pytest.mark.parametrize("changes", [{}, {"num_hidden_layers": 1}, {"model_type": "qwen2", "tie_word_embeddings": True}])
def test_a_calibration_is_whole_and_positive(tmp_path: Path, changes: dict[str, Any]) -> None:
    work = Learning("pretrain", stage(), 32, 0.9)
    found = calibrate(shape(tmp_path, **changes), TRAINING, [work], {"recover": Writing(4, 4, 10, (5, 9))}, new=7, dtype=torch.float32,
                      tflops=0.05, seconds=0.1)
    assert found.training["pretrain"] > 0 and found.step["recover"] > 0 and found.prefill["recover"] > 0
    assert found.saved["pretrain"] > 0 and found.update > 0 and found.lanes >= 1
    assert "random weights" in found.about


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer(tmp_path: Path) -> None:
    work, made = Learning("pretrain", stage(), 32, 0.9), shape(tmp_path)
    plain, checkpointed = (
        calibrate(made, TRAINING.model_copy(update={"gradient_checkpointing": on}), [work], {}, new=7, dtype=torch.float32, tflops=0.05,
                  seconds=0.1).saved["pretrain"] for on in (False, True))
    assert 12 * 32 * 4 < checkpointed < plain / 4


@pytest.mark.parametrize("changes", [{}, {"model_type": "qwen2", "num_attention_heads": 2, "num_key_value_heads": 1}])
def test_a_model_that_is_too_large_is_measured_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    """As a 70B model is; here with little room."""
    monkeypatch.setattr("transllm.pipeline.calibrate.room", lambda device: 40_000.0)
    work = Learning("pretrain", stage(), 32, 0.9)
    found = calibrate(shape(tmp_path, vocab_size=400, **changes), TRAINING, [work], {}, new=7, dtype=torch.float32, tflops=0.05,
                      seconds=0.1)
    assert "1/2 as wide" in found.about and "of the vocabulary" in found.about and found.training["pretrain"] > 0


def test_a_plan_with_calibration_predicts_what_training_then_does(tmp_path: Path) -> None:
    changes = ["extend.vocab_size=5", "training.embeddings=new", "training.precision=float32", "training.gradient_checkpointing=false",
               "recover.batch_size=4", "bridge.batch_size=4", "evaluate.batch_size=4", "recover.max_new_tokens=8",
               *(f"{name}.{key}={value}" for name in ("pretrain", "bitext", "finetune")
                 for key, value in (("tokens", 1000), ("batch_tokens", 256), ("micro_tokens", 128), ("sequence_length", 64)))]
    recipe = load_recipe(LLAMA, overrides=changes)
    config = config_file(tmp_path)
    made = plan(recipe, config=config, seconds=0.1)
    pretrain = made.stages[2]
    assert made.measured and pretrain.seconds[0] == pretrain.seconds[1] > 0
    sizes = Sizes(recipe, made.shape)
    model = build(cut_config(made.shape.config, 12, sizes.vocabulary, 1), torch.float32, torch.device("cpu"))
    adapted = attach(model, original_size=100, size=105 + MARKERS, training=recipe.training, dtype=torch.float32)
    assert sum(parameter.numel() for parameter in adapted.trainable().values()) == made.trained
    rows = random_rows(tmp_path / "rows", Learning("x", stage(), 2, 1.0), tokens=2048, longest=2, vocabulary=100)
    report = train(adapted, rows, stage=recipe.pretrain, training=recipe.training, folder=tmp_path, seed=1, progress=Silent(), label="x")
    assert report.steps == pretrain.steps and 0 <= report.tokens - (pretrain.tokens or 0) < 128
    adapted.save(tmp_path / "adapter")
    size = sum(file.stat().st_size for file in (tmp_path / "adapter").iterdir())
    assert size / 2**30 == pytest.approx(pretrain.disk_gib - 5 * 1000 / 2**30, rel=0.2)


def test_no_config_no_calibration() -> None:
    made = plan(load_recipe(LLAMA), parameters=1e9, calibration=True)
    assert not made.measured and made.stages[2].seconds[0] < made.stages[2].seconds[1]
    with pytest.raises(ModelError, match="cannot be read"):
        plan(load_recipe(LLAMA), config=Path("none.json"))
