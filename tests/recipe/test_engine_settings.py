"""``recover.engine``: a name or a section; what contradicts itself is told; what changes only how work is done leaves the stage fresh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from transllm.errors import RecipeError
from transllm.pipeline.stages import STAGES
from transllm.recipe import dump_recipe, load_recipe
from transllm.recipe.schema import Recipe

SERVER = {"name": "server", "url": "http://127.0.0.1:8000/v1", "model": "smol"}


def read(folder: Path, engine: Any, *overrides: str) -> Recipe:
    file = folder / "r.yaml"
    file.write_text(yaml.safe_dump({"model": "org/chat", "language": "es", "data": {}, "recover": {"engine": engine}}), encoding="utf-8")
    return load_recipe(file, overrides=overrides)


def digest(recipe: Recipe) -> str:
    (stage,) = [stage for stage in STAGES if stage.name == "recover"]
    return stage.digest(recipe, {})


def test_a_name_is_short_for_a_section(tmp_path: Path) -> None:
    recipe = read(tmp_path, "llamacpp")
    assert recipe.recover.engine.name == "llamacpp"
    assert read(tmp_path, {"name": "llamacpp"}) == recipe
    assert read(tmp_path, "llamacpp", "recover.engine.concurrency=3").recover.engine.concurrency == 3
    dump_recipe(recipe, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml").recover.engine == recipe.recover.engine


@pytest.mark.parametrize(("engine", "said"), [
    ("lamacpp", "'lamacpp'"),
    ("server", "a server needs its 'url' and the 'model'"),
    ({"name": "server", "url": "127.0.0.1:8000", "model": "m"}, "must begin with http"),
    ({"name": "vllm", "url": "http://127.0.0.1:8000"}, "'url' is for the engine 'server'"),
    ({**SERVER, "api_key": "sk-secret"}, "Unknown key 'api_key'"),
    ({**SERVER, "concurrency": 0}, "recover.engine.concurrency must be at least 1"),
])
def test_what_contradicts_itself_is_told(tmp_path: Path, engine: Any, said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        read(tmp_path, engine)
    assert said in str(raised.value)
    assert len(raised.value.problems) == 1


def test_another_engine_makes_recover_stale_and_another_address_does_not(tmp_path: Path) -> None:
    own = digest(read(tmp_path, SERVER))
    moved = {**SERVER, "url": "http://other:1/v1", "key_env": "KEY", "concurrency": 2, "requests_a_minute": 9, "attempts": 1,
             "timeout_seconds": 5}
    assert digest(read(tmp_path, moved)) == own
    others = ("transformers", "auto", {**SERVER, "model": "x"}, {**SERVER, "body": {"top_k": 0}})
    assert len({own, *(digest(read(tmp_path, engine)) for engine in others)}) == 5
