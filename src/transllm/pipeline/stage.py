"""The contract of a stage: it reads folders, writes one folder, and its ``manifest.json`` comes last.

A folder without a manifest is unfinished work. ``started.json`` says for which inputs the unfinished work was begun: the same
inputs go on from it, others begin anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transllm.files import DiskErrors, write_json
from transllm.pipeline.memory import PeakMemory
from transllm.progress import Progress
from transllm.recipe import movable, resolved
from transllm.recipe.schema import HARMLESS, Recipe
from transllm.tcot import Renderer
from transllm.tokenizer import SpanTokenizer

MANIFEST = "manifest.json"
_STARTED = "started.json"


@dataclass
class Result:
    """What a stage tells about itself, beside its files."""

    counts: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Context:
    """What a stage function gets.

    Attributes:
        recipe: the resolved recipe.
        run: the run folder.
        folder: the stage's own folder; it exists.
        progress: where progress goes.
        cache: where wheels are kept; None is the platform's cache folder.
    """

    recipe: Recipe
    run: Path
    folder: Path
    progress: Progress
    cache: Path | None = None

    @cached_property
    def spans(self) -> SpanTokenizer:
        """The tokenizers that *extend* wrote."""
        return SpanTokenizer.load(self.run / "extend", language=self.recipe.target)

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.spans)


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
        name: its folder.
        needs: stages whose results it reads.
        sections: parts of the recipe that decide its result, as dotted paths.
        work: the function.
        version: raised when the code changes what it writes.
        shared: all processes work on it; of the others the main process takes care alone.
        apart: keys in these sections that decide the result of another stage.
    """

    name: str
    needs: tuple[str, ...]
    sections: tuple[str, ...]
    work: Callable[[Context], Result]
    version: int = 1
    shared: bool = False
    apart: tuple[str, ...] = ()

    def digest(self, recipe: Recipe, inputs: dict[str, str], extra: str = "") -> str:
        """Digest of all that decides the result: settings, seed, inputs, code version."""
        known = {"stage": self.name, "version": self.version, "seed": recipe.seed, "inputs": inputs, "extra": extra,
                 "sections": {name: _without_harmless(self._own(movable(recipe), name)) for name in self.sections}}
        return hashlib.sha256(json.dumps(known, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]

    def _own(self, recipe: dict[str, Any], path: str) -> Any:
        """A section without the keys that are another stage's."""
        section = _section(recipe, path)
        others = {key.removeprefix(f"{path}.") for key in self.apart if key.startswith(f"{path}.")}
        return {key: value for key, value in section.items() if key not in others} if others else section


def _section(recipe: dict[str, Any], path: str) -> Any:
    """A part of the dumped recipe, such as ``data.parallel``."""
    value: Any = recipe
    for key in path.split("."):
        value = value[key]
    return value


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage, or None."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return manifest


def begun_for(folder: Path) -> str | None:
    """The digest for which unfinished work was begun, or None."""
    try:
        return str(json.loads((folder / _STARTED).read_text(encoding="utf-8"))["digest"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None


def begin(folder: Path, digest: str) -> None:
    """Note for which inputs the work in this folder is."""
    if begun_for(folder) != digest:
        write_json(folder / _STARTED, {"digest": digest})


def execute(stage: Stage, context: Context, *, digest: str, inputs: dict[str, str]) -> dict[str, Any]:
    """Run a stage's function and write its manifest, last and whole."""
    sitting = _add_sitting(context.folder)
    with PeakMemory() as memory:
        started = time.monotonic()
        try:
            with DiskErrors(context.folder):
                result = stage.work(context)
        finally:
            sitting(time.monotonic() - started)
    manifest = {
        "stage": stage.name, "transllm": version("transllm"), "digest": digest,
        "section": {name: _section(resolved(context.recipe), name) for name in stage.sections}, "inputs": inputs, "versions": versions(),
        "seed": context.recipe.seed, "counts": result.counts, "tokens": result.tokens, "seconds": round(sitting(0.0), 2),
        "peak_memory_gib": round(memory.gib, 3), "metrics": result.metrics, "sources": result.sources,
        "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    write_json(context.folder / MANIFEST, manifest)
    (context.folder / _STARTED).unlink(missing_ok=True)
    return manifest


def _add_sitting(folder: Path) -> Callable[[float], float]:
    """Sum the seconds of all sittings: a stage that was stopped and went on has cost them all."""
    known = json.loads((folder / _STARTED).read_text(encoding="utf-8"))

    def add(seconds: float) -> float:
        known["seconds"] = known.get("seconds", 0.0) + seconds
        if seconds:
            write_json(folder / _STARTED, known)
        return float(known["seconds"])

    return add


def versions() -> dict[str, str]:
    """What the result was made with."""
    names = ("torch", "transformers", "tokenizers", "peft", "accelerate")
    return {"python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            **{name: version(name) for name in names}}


def _without_harmless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_harmless(inner) for key, inner in value.items() if key not in HARMLESS}
    return value
