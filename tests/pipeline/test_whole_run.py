"""A whole run from the command line: every folder, every file, every key that others read."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

STAGES = ("prepare", "extend", "pretrain", "bitext", "recover", "bridge", "finetune", "merge", "evaluate")
TRAINED = ("pretrain", "bitext", "finetune")
MEASURED = ["original", "extend", "pretrain", "bitext", "finetune", "merge"]
READING = {"bits_per_byte_target", "bits_per_byte_english", "kl_to_original", "same_next_token"}
TRANSLATING = {f"{metric}_{direction}" for metric in ("chrf", "chrfpp", "bleu") for direction in ("en_target", "target_en")}
TALKING = {"tcot_well_formed", "answer_in_target", "tokens_per_answer", "seconds_per_answer"}
MANIFEST = {"stage": str, "transllm": str, "digest": str, "section": dict, "inputs": dict, "versions": dict, "seed": int, "counts": dict,
            "tokens": int, "seconds": float, "peak_memory_gib": float, "metrics": dict, "sources": list, "finished": str}


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("stage", STAGES)
def test_manifest_has_every_key_of_the_contract(finished: Any, stage: str) -> None:
    manifest = _json(finished.folder / stage / "manifest.json")
    assert {key: type(value) for key, value in manifest.items()} == MANIFEST
    assert manifest["stage"] == stage and manifest["seed"] == 3 and re.fullmatch(r"[0-9a-f]{16}", manifest["digest"])
    assert {"python", "torch", "transformers", "tokenizers", "peft", "accelerate"} <= manifest["versions"].keys()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", manifest["finished"])
    assert manifest["seconds"] > 0 and manifest["peak_memory_gib"] > 0.01
    for counted in manifest["counts"].values():
        assert counted.keys() == {"read", "kept", "dropped"} and counted["read"] == counted["kept"] + sum(counted["dropped"].values())
    for name, digest in manifest["inputs"].items():
        assert digest == _json(finished.folder / name / "manifest.json")["digest"], f"{stage} was made of another {name}"
    leftovers = [path.name for path in (finished.folder / stage).iterdir() if path.name.endswith((".tmp", ".part")) or path.name in
                 ("started.json", "checkpoints")]
    assert leftovers == []


def test_sources_state_their_licence_and_counts(finished: Any) -> None:
    assert _json(finished.folder / "prepare" / "manifest.json")["sources"] == [
        {"origin": "files:pairs.tsv", "licence": "CC0-1.0", "read": 300, "kept": 300, "dropped": {}, "used_as": "pairs"}]


def test_extend_reports_fertility_and_english(finished: Any) -> None:
    metrics = _json(finished.folder / "extend" / "manifest.json")["metrics"]
    assert metrics["new_pieces"] == 40 and metrics["vocabulary"] == metrics["original_size"] + 40 + 4
    target, english = (metrics["fertility"][side] for side in ("target", "english"))
    for side in (target, english):
        for when in ("before", "after"):
            assert all(side[when][f"tokens_per_{unit}"] > 0 for unit in ("word", "character", "byte"))
    assert target["after"]["tokens_per_word"] < 0.8 * target["before"]["tokens_per_word"]
    assert english["after"] == english["before"]
    held_out = len(_lines(finished.folder / "prepare" / "english.held_out.jsonl"))
    assert metrics["english_identical"] == {"sentences": held_out, "identical": held_out, "differences": []}


@pytest.mark.parametrize("stage", TRAINED)
def test_training_log(finished: Any, stage: str) -> None:
    lines = _lines(finished.folder / stage / "log.jsonl")
    metrics = _json(finished.folder / stage / "manifest.json")["metrics"]
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == list(range(1, metrics["steps"] + 1))
    for line in losses:
        assert line.keys() == {"step", "steps", "tokens", "loss", "bits_per_byte", "learning_rate", "gradient_norm", "tokens_per_second",
                               "matrix_share", "padding", "shared", "seconds", "memory_gib"}
        assert all(math.isfinite(value) for value in line.values())
    # Documents are learned from their first token on; of conversations some have a question in common.
    assert any(line["shared"] > 0 for line in losses) is (stage == "finetune")
    points = [line for line in lines if "held_out_bits_per_byte" in line]
    assert [line["step"] for line in points] == [0, metrics["steps"] // 2, metrics["steps"]]
    assert losses[-1]["tokens"] == _json(finished.folder / stage / "manifest.json")["tokens"] >= 2000
    if stage == "pretrain":
        assert points[-1]["held_out_bits_per_byte"] < 0.8 * points[0]["held_out_bits_per_byte"], "nothing was learned"


def test_metrics_have_exactly_the_keys_of_the_contract(finished: Any) -> None:
    metrics = _json(finished.folder / "metrics.json")
    settings = metrics.pop("settings")
    assert list(metrics) == MEASURED
    for name, figures in metrics.items():
        assert figures.keys() == READING | TRANSLATING | TALKING
        meaning = READING | (TRANSLATING if name not in ("extend", "pretrain") else set())
        meaning |= TALKING if name in ("original", "finetune", "merge") else set()
        assert {key for key, value in figures.items() if value is not None} == meaning, name
        assert all(isinstance(figures[key], (int, float)) and math.isfinite(figures[key]) for key in meaning)
    assert metrics["original"]["kl_to_original"] == 0 and metrics["original"]["same_next_token"] == 1
    assert metrics["extend"]["kl_to_original"] < 1e-6, "extending must not change what the original knows"
    assert metrics["merge"]["bits_per_byte_target"] < 0.7 * metrics["original"]["bits_per_byte_target"]
    assert settings == {"language": "Spanish", "test_pairs": "held-out part of data.parallel", "sentences": 4, "beams": 1, "queries": 4,
                        "query_source": "files:queries.txt", "documents": {"target": 4, "english": 4}, "answers": 3}


def test_samples_are_what_the_models_wrote(finished: Any) -> None:
    samples = _json(finished.folder / "evaluate" / "samples.json")
    assert {row["stage"] for row in samples["conversations"]} == {"original", "finetune", "merge"}
    assert all(turn.keys() == {"query", "query_en", "answer_en", "answer"} for row in samples["conversations"] for turn in row["turns"])
    assert len(samples["translations"]) == 4
    keys = {f"{name}_{way}" for name in ("original", "bitext", "finetune", "merge") for way in ("en_target", "target_en")}
    assert all(row.keys() == {"english", "target"} | keys for row in samples["translations"])
    written = _json(finished.folder / "evaluate" / "merge.json")
    assert [row["merge_en_target"] for row in samples["translations"]] == written["translations"]["en_target"]


def test_recovery_conversations(finished: Any, home: Any) -> None:
    rows = _lines(finished.folder / "recover" / "conversations.jsonl")
    assert len(rows) == len({row["prompt"] for row in rows}) == 15 + 3
    assert all(row.keys() == {"id", "system", "history", "prompt", "answer", "finish", "tokens", "origin", "held_out",
                              "delicate", "refusal"} for row in rows)
    assert sum(row["held_out"] for row in rows) == 3
    given = [line for line in (home.folder / "prompts.txt").read_text().splitlines()]
    assert {row["prompt"] for row in rows if row["origin"] == "files:prompts.txt"} <= set(given)
    assert sum(row["origin"] == "self" for row in rows) > 3, "the model wrote no prompts itself"
    assert all(row["finish"] == "stop" and "<|" not in row["answer"] for row in rows)


def test_samples_are_second_answers_to_prompts_that_are_not_held_out(finished: Any) -> None:
    first = {row["prompt"]: row for row in _lines(finished.folder / "recover" / "conversations.jsonl")}
    samples = _lines(finished.folder / "recover" / "samples.jsonl")
    assert {row["prompt"] for row in samples} == {prompt for prompt, row in first.items() if not row["held_out"]}
    assert len(samples) == 15
    assert sum(row["answer"] != first[row["prompt"]]["answer"] for row in samples) > 7, "sampled, not greedy"
    counts = _json(finished.folder / "recover" / "manifest.json")["counts"]["samples"]
    assert (counts["read"], counts["kept"]) == (15, len(samples))


def test_chains_are_made_of_conversations_that_are_not_held_out(finished: Any) -> None:
    held = {row["prompt"]: row["held_out"] for row in _lines(finished.folder / "recover" / "conversations.jsonl")}
    chains, rejects = (_lines(finished.folder / "bridge" / f"{name}.jsonl") for name in ("chains", "rejects"))
    assert chains and all(row.keys() >= {"query", "query_en", "answer_en", "answer"} for row in chains)
    assert all(row.keys() >= {"query", "query_en", "answer_en", "answer", "reason"} and row["reason"] for row in rejects)
    assert not any(held[row["query_en"]] for row in chains + rejects)
    counts = _json(finished.folder / "bridge" / "manifest.json")["counts"]["chains"]
    assert (counts["kept"], counts["read"]) == (len(chains), 15)


def test_report_is_one_page_that_loads_nothing(finished: Any) -> None:
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page)
    for wanted in ("Spanish bits per byte", "pairs.tsv", "CC0-1.0", *TRAINED):
        assert wanted in page


def test_what_the_command_says(finished: Any) -> None:
    told = finished.done
    assert "Spanish bits per byte" in told.out and "¿Qué hay en la biblioteca?" in told.out
    assert f"Report: {finished.folder / 'report.html'}" in told.out and f"transllm chat {finished.folder}" in told.out
    places = [told.err.index(f"{stage}  ") for stage in STAGES]
    assert places == sorted(places)
    assert "Warning" not in told.err and "%|" not in told.err, "other libraries' bars and warnings are no progress of ours"
