"""What a recipe needs of the machine is told before a run begins, and only for stages that are still to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from transllm.recipe import load_recipe, missing_here

GOOD = """
model: org/some-chat-model
language: es
data: {parallel: [{hub: org/pairs}], held_out: 0.02}
"""
SERVER = "recover.engine={name: server, url: 'http://localhost:1/v1', model: m, key_env: MINE}"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with no programs, no extras and no keys."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for key in ("DEEPL_AUTH_KEY", "MINE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr("transllm.recipe.machine.find_spec", lambda _: None)


def _missing(folder: Path, *overrides: str, stages: tuple[str, ...] = ("recover", "bridge")) -> list[str]:
    (folder / "r.yaml").write_text(GOOD)
    return missing_here(load_recipe(folder / "r.yaml", overrides=overrides), stages)


@pytest.mark.parametrize("override,expected", [
    ("bridge.translator=apertium", ["which is not installed"]),
    ("bridge.translator=deepl", ["pip install 'transllm[deepl]'", "'DEEPL_AUTH_KEY' is not set"]),
    ("bridge.encoder=use", ["pip install 'transllm[encoder]'"]),
    ("recover.engine=llamacpp", ["pip install 'transllm[llamacpp]'"]),
    ("recover.engine=vllm", ["pip install 'transllm[vllm]'"]),
    (SERVER, ["pip install 'transllm[server]'", "'MINE' is not set"]),
    ("recover.ray.workers=2", ["pip install 'transllm[ray]'"]),
    ("recover.engine=auto", []),
    ("seed=1", [])])
def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path, override: str, expected: list[str]) -> None:
    found = _missing(tmp_path, override)
    assert len(found) == len(expected) and all(part in one for part, one in zip(expected, found, strict=True))


@pytest.mark.parametrize("override,expected", [("training.trackers=[tensorboard,mlflow]", "pip install 'transllm[mlflow]'"),
                                               ("training.quantize=nf4", "pip install 'transllm[qlora]'")])
def test_what_training_needs(tmp_path: Path, override: str, expected: str) -> None:
    (found,) = _missing(tmp_path, override, stages=("finetune",))
    assert expected in found and _missing(tmp_path, override) == []


def test_what_is_there_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "a key")
    monkeypatch.setattr("transllm.recipe.machine.find_spec", lambda _: True)
    assert _missing(tmp_path, SERVER, "bridge.encoder=use", "recover.ray.workers=2") == []


def test_stages_that_are_done_or_skipped_need_nothing(tmp_path: Path) -> None:
    assert _missing(tmp_path, SERVER, "bridge.translator=deepl", stages=("finetune", "evaluate")) == []
    assert len(_missing(tmp_path, SERVER, "bridge.translator=deepl", stages=("bridge",))) == 2
    assert _missing(tmp_path, "bridge.translator=deepl", "finetune.tokens=0") == []
