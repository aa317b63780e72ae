"""A run folder as the report sees it: everything that is there, typed, and a note for everything that is not as it should be.

A run may be half done, so every part may be missing; what is missing is None or empty and the page says so. What is there
but broken is an error that names the file: a report must not leave out a figure because it could not read it. Only a log is
read leniently, since a kill may tear its last line; torn lines are counted in ``notes``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from transllm.errors import DataError, RunError
from transllm.evaluation.metrics import MEASURED, Metrics
from transllm.languages import LANGUAGES, Language

STAGES = ("extend", "pretrain", "bitext", "recover", "bridge", "finetune", "merge", "evaluate")
TRAINING_STAGES = ("pretrain", "bitext", "finetune")

State = Literal["done", "unfinished", "not run yet"]


class _Part(BaseModel):
    """A part of a file. Keys that the report does not use are none of its business."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class RowCount(_Part):
    """Rows of one kind: how many were read, kept and dropped by reason."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = {}


class SourceCount(_Part):
    """One source of text and what was taken from it."""

    origin: str
    licence: str | None = None
    read: int | None = None
    kept: int | None = None


class Manifest(_Part):
    """What a finished stage says of itself."""

    transllm: str | None = None
    digest: str | None = None
    versions: dict[str, str | None] = {}
    seed: int | None = None
    counts: dict[str, RowCount] = {}
    tokens: int | None = None
    seconds: float | None = None
    peak_memory_gib: float | None = None
    metrics: dict[str, Any] = {}
    sources: list[SourceCount] = []
    finished: str | None = None


class Turn(_Part):
    """One exchange. ``answer`` is None where the chain could not be parsed."""

    query: str
    query_en: str | None = None
    answer_en: str | None = None
    answer: str | None = None


class Conversation(_Part):
    """A sample conversation with the model of one stage."""

    stage: str
    turns: list[Turn]


class Samples(_Part):
    """evaluate/samples.json. A translation has ``english``, ``target`` and ``STAGE_en_target``, ``STAGE_target_en``."""

    conversations: list[Conversation] = []
    translations: list[dict[str, str | None]] = []


@dataclass(frozen=True, slots=True)
class Curve:
    """The log of one training stage, in order of steps: (tokens, value) points."""

    loss: list[tuple[int, float]] = field(default_factory=list)
    """Nats a label."""
    bits_per_byte: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    """Bits per byte of held-out text."""


@dataclass(frozen=True, slots=True)
class RunView:
    """All that the page shows of a run."""

    folder: Path
    name: str
    model: str
    language: Language
    recipe: str
    """The text of recipe.yaml."""
    states: dict[str, State]
    manifests: dict[str, Manifest]
    """Of the finished stages."""
    curves: dict[str, Curve]
    metrics: Metrics
    samples: Samples
    notes: list[str]
    only_extension: bool
    """The recipe trains nothing: what ``transllm extend`` makes."""


def read_run(folder: Path) -> RunView:
    """Read a run folder, finished or not.

    Raises:
        RunError: it is no run folder.
        DataError: a file in it is broken; the message names it.
    """
    recipe_file = folder / "recipe.yaml"
    if not recipe_file.is_file():
        raise RunError(f"{folder} is not a run folder: it has no recipe.yaml. Name the folder that 'transllm run' wrote, e.g. runs/NAME.")
    text = _text(recipe_file)
    recipe = _recipe(recipe_file, text)
    states: dict[str, State] = {}
    manifests = {}
    for stage in STAGES:
        manifest = folder / stage / "manifest.json"
        if manifest.is_file():
            manifests[stage] = _parse(Manifest, manifest)
        states[stage] = "done" if stage in manifests else "unfinished" if manifest.parent.is_dir() else "not run yet"
    notes: list[str] = []
    curves = {stage: read_log(log, notes) for stage in TRAINING_STAGES if (log := folder / stage / "log.jsonl").is_file()}
    for stage in TRAINING_STAGES:
        said = manifests[stage].metrics.get("notices", []) if stage in manifests else []
        notes += [note for note in map(str, said) if note not in notes]
    metrics_file, samples_file = folder / "metrics.json", folder / "evaluate" / "samples.json"
    source = recipe.get("model", "")
    model = source.get("source", "") if isinstance(source, dict) else source
    return RunView(folder=folder, name=str(recipe.get("name") or folder.resolve().name), model=short_model(str(model)),
                   language=_language(recipe.get("language")), recipe=text, states=states, manifests=manifests, curves=curves,
                   metrics=Metrics.read(metrics_file) if metrics_file.is_file() else Metrics(),
                   samples=_parse(Samples, samples_file) if samples_file.is_file() else Samples(), notes=notes,
                   only_extension=all((recipe.get(stage) or {}).get("tokens") == 0 for stage in TRAINING_STAGES))


def read_log(path: Path, notes: list[str]) -> Curve:
    """Read log.jsonl of a training stage. A step that a resumed run wrote again counts once, as last written.

    Args:
        path: the log.
        notes: gets a sentence if lines could not be read.
    """
    training: dict[int, dict[str, Any]] = {}
    held_out: dict[int, dict[str, Any]] = {}
    torn = 0
    for line in _text(path).splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step, tokens = int(row["step"]), int(row["tokens"])
        except (ValueError, KeyError, TypeError):
            torn += 1
            continue
        (held_out if "held_out_bits_per_byte" in row else training)[step] = {**row, "tokens": tokens}
    if torn:
        notes.append(f"{path.parent.name}/log.jsonl: {torn} line{'s' if torn > 1 else ''} could not be read (a kill can tear one) and "
                     f"{'are' if torn > 1 else 'is'} not plotted.")
    return Curve(loss=_points(training, "loss"), bits_per_byte=_points(training, "bits_per_byte"),
                 held_out=_points(held_out, "held_out_bits_per_byte"))


def short_model(source: str) -> str:
    """A model's source as a reader would say it: without the scheme, and only the name of a folder or file."""
    name = source.removeprefix("package:").removeprefix("hub:").replace("==", " ")
    return name.rstrip("/").rsplit("/", 1)[-1] or "The model"


def translation_stages(translations: list[dict[str, str | None]]) -> list[str]:
    """The stages that translated, in order."""
    keys = {key for translation in translations for key in translation}
    return [stage for stage in MEASURED if f"{stage}_en_target" in keys or f"{stage}_target_en" in keys]


def _points(rows: dict[int, dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(row["tokens"], float(row[key])) for _, row in sorted(rows.items()) if isinstance(row.get(key), (int, float))]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace" if path.suffix == ".jsonl" else "strict")
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}). Grant access to it.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Run its stage again to rewrite it.") from error


def _recipe(path: Path, text: str) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not valid YAML ({' '.join(str(error).split())}). Restore it from the recipe of the run.") from error
    if not isinstance(recipe, dict):
        raise DataError(f"{path} holds no recipe. Restore it from the recipe of the run.")
    return recipe


def _language(value: Any) -> Language:
    """The recipe was checked when the run began, so an odd language is shown as it is."""
    if isinstance(value, dict):
        known = {key: value[key] for key in Language.__slots__ if key in value}
        code = str(known.get("code", "und"))
        return Language(**{"code": code, "name": code, "native": code, **known})
    code = str(value or "und")
    return LANGUAGES.get(code, Language(code, code, code))


_Model = TypeVar("_Model", bound=_Part)


def _parse(kind: type[_Model], path: Path) -> _Model:
    try:
        return kind.model_validate(json.loads(_text(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise DataError(f"{path}: {where}: {first['msg']}. Run its stage again to rewrite it.") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}). Run its stage again to rewrite it.") from error
