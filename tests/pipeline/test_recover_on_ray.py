"""*recover* with its engine in two Ray workers: every file is that of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transllm.files import read_jsonl
from transllm.pipeline import transform
from transllm.recipe import load_recipe

pytest.importorskip("ray", reason="Ray is not installed (pip install 'transllm[ray]'): recover.ray is not tested")


def test_what_recover_writes_is_that_of_one_process(finished: Any, home: Any, tmp_path: Path) -> None:
    run = finished.copy(tmp_path, without=("recover", "bridge", "finetune", "merge", "evaluate"))
    spread = ("recover.ray.workers=2", "recover.ray.cpus=1", "recover.ray.gpus=0", "recover.ray.block=5")
    transform(load_recipe(home.recipe, overrides=spread), runs=tmp_path, until="recover")
    for name in ("candidates", "conversations", "samples", "rejects"):
        assert read_jsonl(run / "recover" / f"{name}.jsonl") == read_jsonl(finished.folder / "recover" / f"{name}.jsonl"), name
    assert read_jsonl(run / "recover" / "conversations.jsonl")
