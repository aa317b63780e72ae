"""An engine by name, from a description that can be sent elsewhere; ``auto`` measures, chooses, says why, and remembers."""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from transllm.errors import MissingExtraError, ModelError
from transllm.generation import Conversation, EngineSpec, ReplySampling, Turn, engine_for, fastest, open_engine, require_engine
from transllm.recipe.schema import EngineSettings, ModelSource

ASKED = Conversation((Turn("user", "Who are you?"),))


@pytest.fixture
def spec(make_folders: Callable[[str], Any], tmp_path: Path) -> Callable[..., EngineSpec]:
    def make(**settings: Any) -> EngineSpec:
        model = ModelSource(source=str(make_folders("untied").original))
        return EngineSpec(EngineSettings(**settings), model, tmp_path, tmp_path / "cache", "float32", 8)

    return make


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Packages that are not installed."""
    find = importlib.util.find_spec

    def leave_out(*packages: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in packages else find(name, *rest))

    return leave_out


def test_a_spec_can_be_sent_and_opened(spec: Callable[..., EngineSpec]) -> None:
    sent = pickle.loads(pickle.dumps(spec(name="transformers")))
    assert sent == spec(name="transformers")
    engine = open_engine(sent)
    (reply,) = engine.generate([ASKED], sampling=ReplySampling(4))
    assert reply.tokens == 4 and engine.name == "transformers"


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="the extra 'llamacpp' is not installed")
def test_llama_cpp_of_a_folder_says_the_same_and_its_file_is_written_once(spec: Callable[..., EngineSpec], tmp_path: Path) -> None:
    replies = []
    times = []
    for name in ("transformers", "llamacpp", "llamacpp"):
        engine = open_engine(spec(name=name))
        replies.append(next(iter(engine.generate([ASKED], sampling=ReplySampling(8)))))
        engine.close()
        times += [file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.gguf")]
    assert replies[0] == replies[1] == replies[2]
    assert len(times) == 2 and times[0] == times[1]


def test_what_is_missing_is_told_before_the_work(without: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    without("xllamacpp", "vllm")
    for name in ("llamacpp", "vllm"):
        with pytest.raises(MissingExtraError, match=rf"transllm\[{name}\]"):
            require_engine(EngineSettings(name=name))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match="vLLM is installed and cannot be imported"):
        require_engine(EngineSettings(name="vllm"))
    for name, known, value in (("vllm", "LLM", None), ("vllm.platforms", "current_platform", SimpleNamespace(is_cpu=lambda: False))):
        module = ModuleType(name)  # of a build for CUDA
        setattr(module, known, value)
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ModelError, match="needs a CUDA device"):
        require_engine(EngineSettings(name="vllm"))


def test_auto_takes_the_fastest_and_says_why(spec: Callable[..., EngineSpec], without: Callable[..., None]) -> None:
    without("vllm")
    engine, choice = fastest(spec(name="auto"))
    assert engine.name == choice.name == max(choice.tokens_per_second, key=lambda name: choice.tokens_per_second[name])
    assert "transformers" in choice.tokens_per_second
    assert "transllm[vllm]" in choice.left_out["vllm"] and "no url" in choice.left_out["server"]
    assert choice.name in choice.why and "transllm[vllm]" in choice.why
    assert list(engine.generate([ASKED], sampling=ReplySampling(2)))
    engine.close()


def test_work_that_goes_on_takes_the_engine_it_began_with(spec: Callable[..., EngineSpec], without: Callable[..., None],
                                                          tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    without("xllamacpp", "vllm")
    told: list[str] = []
    engine, choice = engine_for(spec(name="auto"), file, say=told.append)
    engine.close()
    assert choice.name == "transformers" and len(told) == 1
    again, same = engine_for(spec(name="auto"), file, say=told.append)
    again.close()
    assert same == choice and len(told) == 1  # not measured a second time
    file.write_text(json.dumps({"name": "llamacpp"}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"begun with the engine 'llamacpp'.*transllm\[llamacpp\].*engine\.json"):
        engine_for(spec(name="auto"), file)


def test_an_engine_that_the_recipe_names_is_not_measured(spec: Callable[..., EngineSpec], tmp_path: Path) -> None:
    engine, choice = engine_for(spec(name="transformers"), tmp_path / "engine.json")
    engine.close()
    assert choice.name == "transformers" and not choice.tokens_per_second and not (tmp_path / "engine.json").exists()
