"""Run a recipe: every stage in its order, finished ones skipped, changed ones again, killed ones from where they were."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transllm import processes
from transllm.data.patterns import names_on_disk
from transllm.digests import file_digest
from transllm.errors import RecipeError, RunError
from transllm.evaluation.metrics import Metrics
from transllm.generation import require_engine
from transllm.model.shard import launcher_notice, sharing_asked
from transllm.model.source import original_digest
from transllm.pipeline.memory import give_back_memory
from transllm.pipeline.stage import MANIFEST, Context, Stage, begin, begun_for, execute, read_manifest
from transllm.pipeline.stages import STAGES
from transllm.progress import Progress, Silent
from transllm.recipe import check_recipe, dump_recipe, load_recipe, missing_here, movable
from transllm.recipe.schema import Recipe
from transllm.report import build_report

_SEEN_WITHIN = 30.0  # seconds

State = Literal["done", "stale", "unfinished", "waiting"]


@dataclass(frozen=True)
class Run:
    """A run folder after ``transform``.

    Attributes:
        folder: the run folder.
        report: the page, if there is one.
        metrics: figures of all stages, once *evaluate* is done.
    """

    folder: Path
    report: Path | None
    metrics: Metrics | None


@dataclass(frozen=True, slots=True)
class StageStatus:
    """Where a stage stands: its name, state, seconds and tokens if it is done, and a note."""

    name: str
    state: State
    seconds: float | None
    tokens: int | None
    note: str


def transform(
    recipe: Recipe,
    *,
    runs: Path = Path("runs"),
    until: str | None = None,
    start: str | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Run:
    """Run the stages of a recipe in ``runs/NAME``.

    Under a launcher (torchrun, accelerate launch) all processes call this: they train together, and wait while the main one does the rest.

    Args:
        until: the last stage to run; None runs all.
        start: run this stage and those after it again, even if they are done.
        progress: where progress goes.
        cache: where wheels are kept.

    Raises:
        RecipeError: the recipe has problems.
        RunError: the folder belongs to another recipe, another run is at work in it, or not all processes see it.
        MissingExtraError: the package of a tracker or of the engine is not installed.
        ModelError: the engine of *recover* has no key or no device.
    """
    with processes.joined():
        return _transform(recipe, folder=runs / recipe.name, chosen=_chosen(until, start), start=start,
                          progress=progress if progress is not None and processes.is_main() else Silent(), cache=cache)


def _launched(recipe: Recipe) -> str | None:
    """What to say about the launcher's configuration; raises where it does not go with the recipe."""
    if sharing_asked(recipe.training) and recipe.finetune.tokens and recipe.recover.by != "text" and recipe.recover.logits.own_samples:
        raise RunError("The student cannot answer while processes share out its weights (FSDP2, ZeRO-3), and finetune would ask it to. "
                       "Set recover.logits.own_samples to 0, or launch with torchrun.")
    return launcher_notice(recipe.training)


def _transform(recipe: Recipe, *, folder: Path, chosen: Sequence[Stage], start: str | None, progress: Progress, cache: Path | None) -> Run:
    waiting = [stage.name for stage in chosen if read_manifest(folder / stage.name) is None]
    problems = processes.on_main(lambda: [*check_recipe(recipe), *missing_here(recipe, waiting)])
    if problems:
        raise RecipeError(problems, where=recipe.name)
    if "recover" in waiting:
        processes.on_main(lambda: require_engine(recipe.recover.engine))
    # What the launcher asks for and cannot have, or gets in another way, is told before the work.
    if notice := processes.on_main(lambda: _launched(recipe)):
        progress.say(f"Note: {notice}")
    processes.on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
    with contextlib.ExitStack() as stack:
        holder = processes.on_main(lambda: stack.enter_context(_lock(folder)))
        _see(folder, holder)
        processes.on_main(lambda: _claim(folder, recipe))
        again = _names()[_names().index(start):] if start else []
        digests: dict[str, str] = {}
        for stage in chosen:
            digests[stage.name], worked = _run_stage(stage, recipe, folder, digests, again=stage.name in again, progress=progress,
                                                     cache=cache)
            if worked or stage is chosen[-1]:
                processes.on_main(lambda: str(build_report(folder)))  # after each stage, so that a long run can be watched
    metrics = folder / "metrics.json"
    report = folder / "report.html"
    return Run(folder, report if report.exists() else None, Metrics.read(metrics) if metrics.exists() else None)


def status(folder: Path) -> list[StageStatus]:
    """Where each stage of a run folder stands.

    Raises:
        RunError: there is no run.
    """
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"'{folder}' is no run folder: it has no recipe.yaml. Give a folder that 'transllm run' made, such as runs/NAME.")
    recipe = load_recipe(folder / "recipe.yaml")
    digests: dict[str, str] = {}
    result = []
    for stage in STAGES:
        digest, _ = _digest(stage, recipe, digests)
        digests[stage.name] = digest
        manifest = read_manifest(folder / stage.name)
        if manifest is None:
            begun = (folder / stage.name).is_dir()
            result.append(StageStatus(stage.name, "unfinished" if begun else "waiting", None, None, "goes on from here" if begun else ""))
        else:
            same = manifest["digest"] == digest
            result.append(StageStatus(stage.name, "done" if same else "stale", manifest["seconds"], manifest["tokens"] or None,
                                      "" if same else "the recipe or an input changed: will run again"))
    return result


def _dependents(stage: Stage) -> list[str]:
    """The stages that read what this one writes, at any remove."""
    found = {stage.name}
    for later in STAGES:  # in the order in which they run
        if found & set(later.needs):
            found.add(later.name)
    return sorted(found - {stage.name})


def _run_stage(stage: Stage, recipe: Recipe, run: Path, digests: dict[str, str], *, again: bool, progress: Progress,
               cache: Path | None) -> tuple[str, bool]:
    """Bring one stage up to date; gives its digest, and whether there was work."""
    digest, inputs, done = processes.on_main(lambda: _begin_stage(stage, recipe, run, digests, again=again, progress=progress, cache=cache))
    if done:
        return digest, False
    context = Context(recipe, run, run / stage.name, progress, cache)

    def whole() -> None:
        execute(stage, context, digest=digest, inputs=inputs)

    if not stage.shared:
        processes.on_main(whole)
    elif processes.is_main():
        whole()
    else:
        stage.work(context)  # the manifest is the main process's
    give_back_memory()
    return digest, True


def _begin_stage(stage: Stage, recipe: Recipe, run: Path, digests: dict[str, str], *, again: bool, progress: Progress,
                 cache: Path | None) -> tuple[str, dict[str, str], bool]:
    """Make a stage's folder ready; gives its digest, those of its inputs, and whether it is done already."""
    digest, inputs = _digest(stage, recipe, digests, cache=cache)
    folder = run / stage.name
    manifest = read_manifest(folder)
    if manifest is not None and manifest["digest"] == digest and not again:
        progress.say(f"{stage.name}: done already ({manifest['seconds']:.0f} s)")
        return digest, inputs, True
    if folder.exists() and (manifest is not None or begun_for(folder) != digest):
        (folder / MANIFEST).unlink(missing_ok=True)  # first: a kill while the rest goes must not leave a stage that looks finished
        shutil.rmtree(folder)
    for later in _dependents(stage):  # their digests do not tell that this result is made anew: by hand, by --from, or by other code
        (run / later / MANIFEST).unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)
    begin(folder, digest)
    progress.stage(stage.name)
    return digest, inputs, False


def _digest(stage: Stage, recipe: Recipe, digests: dict[str, str], *, cache: Path | None = None) -> tuple[str, dict[str, str]]:
    inputs = {name: digests[name] for name in stage.needs}
    extra = original_digest(recipe.model, folder=recipe.folder, cache=cache) if "model" in stage.sections else ""
    return stage.digest(recipe, inputs, extra + _files_digest(recipe, stage, cache)), inputs


def _files_digest(recipe: Recipe, stage: Stage, cache: Path | None) -> str:
    """Content of the local files that a stage's sections name: a changed file makes it stale, one that was copied or touched does not."""
    from transllm.recipe.check import sources_of

    found = []
    for where, source in sources_of(recipe):
        if source.files is None or not any(where.startswith(f"{section}.") for section in stage.sections):
            continue
        for pattern in [source.files] if isinstance(source.files, str) else source.files:
            for name in names_on_disk(pattern, recipe.folder, language=recipe.target.code):
                file = Path(name)
                found.append(f"{file.name}:{file_digest(file, cache=cache) if file.is_file() else 'no file'}")
    return ",".join(found)


def _names() -> list[str]:
    return [stage.name for stage in STAGES]


def _known(name: str) -> str:
    if name not in _names():
        raise RunError(f"There is no stage '{name}'. The stages are: {', '.join(_names())}.")
    return name


def _chosen(until: str | None, start: str | None) -> Sequence[Stage]:
    """The stages up to ``until``; ``start`` is to be one of them."""
    chosen = STAGES if until is None else STAGES[: _names().index(_known(until)) + 1]
    if start is not None and _known(start) not in [stage.name for stage in chosen]:
        raise RunError(f"The stage '{start}' to start from comes after the last one, '{until}'. Exchange them, or leave one out.")
    return chosen


def _claim(folder: Path, recipe: Recipe) -> None:
    """The folder is this recipe's: same model and language. Settings may change; stages that depend on them run again."""
    file = folder / "recipe.yaml"
    if file.exists():
        other = load_recipe(file)
        own, its = (movable(one)["model"]["source"] for one in (recipe, other))
        if (its, other.target.code) != (own, recipe.target.code):
            raise RunError(f"'{folder}' belongs to another recipe: {other.model.source} to {other.target.name}. "
                           "Give this recipe another name, or another folder with --runs.")
    dump_recipe(recipe, file)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[str]:
    """One run at a time; gives what the lock's file says of it. The system frees the lock when the process ends, however it ends."""
    import fcntl

    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise RunError(f"Another process ({file.read().strip() or 'unknown'}) is at work in '{folder}'. "
                           "Wait for it, stop it, or give another folder with --runs.") from error
        holder = f"process {os.getpid()}"
        file.truncate(0)
        file.write(holder)
        file.flush()
        yield holder


def _see(folder: Path, holder: str) -> None:
    """Make sure that this process sees the run folder as the main one does; a network's file system may take a moment."""
    patience = time.monotonic() + _SEEN_WITHIN
    while not ((folder / ".lock").is_file() and (folder / ".lock").read_text(encoding="utf-8") == holder):
        if time.monotonic() > patience:
            raise RunError(f"Process {processes.rank()} does not see the main process's run folder '{folder}'. All nodes must share it: "
                           "put --runs on a file system that each of them mounts at the same path.")
        time.sleep(0.2)
