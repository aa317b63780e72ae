"""Experiment trackers: the numbers of the log, where people look at curves of many runs. accelerate knows how to speak to each."""

from __future__ import annotations

import importlib.util
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transllm.errors import MissingExtraError
from transllm.files import write_json
from transllm.recipe.schema import Tracker

_PACKAGES: dict[Tracker, tuple[str, ...]] = {
    "tensorboard": ("tensorboardX", "tensorboard"), "wandb": ("wandb",), "mlflow": ("mlflow",), "trackio": ("trackio",)}
_IDS = "trackers.json"


def require(names: Sequence[Tracker]) -> None:
    """Raise if a tracker's package is missing: before the work, not after it.

    Raises:
        MissingExtraError: it is, with the extra that brings it.
    """
    for name in names:
        if not any(importlib.util.find_spec(package) for package in _PACKAGES[name]):
            raise MissingExtraError(_PACKAGES[name][0], name, f"The tracker '{name}' of training.trackers")


class Trackers:
    """All trackers of one sitting of a stage.

    A sitting that goes on writes to the same run as the one before. TensorBoard's file is told to forget what lies behind the checkpoint;
    the others are told the step, and what they hold of it already is the same number, since a resumed training repeats it exactly.

    Args:
        names: which; none is none.
        folder: the stage's; TensorBoard's files go to ``tensorboard/`` there, ids of runs to ``trackers.json``.
        step: the last step that is done.
    """

    def __init__(self, names: Sequence[Tracker], *, folder: Path, step: int) -> None:
        require(names)
        self._trackers = [_tracker(name, folder, step) for name in dict.fromkeys(names)]
        for tracker in self._trackers:
            tracker.start()
            if tracker.name == "tensorboard":
                _let_go_at_exit(tracker.writer)
        if "mlflow" in names:
            active = next(tracker for tracker in self._trackers if tracker.name == "mlflow").tracker
            _remember(folder, "mlflow", active.info.run_id)

    def log(self, line: dict[str, Any]) -> None:
        """Pass the numbers of a line on."""
        numbers = {key: value for key, value in line.items() if key not in ("step", "steps") and isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.log(numbers, step=line["step"])

    def finish(self) -> None:
        """Write what is waiting and close."""
        for tracker in self._trackers:
            tracker.finish()


def _tracker(name: Tracker, folder: Path, step: int) -> Any:
    from accelerate import tracking

    run = f"{folder.parent.name}-{folder.name}"
    if name == "tensorboard":
        # With room for a whole line: where the disk is full its thread ends, and a full queue would wait for it for ever.
        return tracking.TensorBoardTracker("tensorboard", folder, purge_step=step + 1 if step else 0, max_queue=10_000)
    if name == "mlflow":
        return tracking.MLflowTracker("transllm", run_id=_known(folder).get("mlflow"), run_name=run)
    known = _known(folder).get(name) or _remember(folder, name, f"{run}-{uuid.uuid4().hex[:8]}")
    if name == "wandb":
        return tracking.WandBTracker("transllm", name=run, id=known, resume="allow", dir=str(folder))
    return tracking.TrackioTracker("transllm", name=known, resume="allow")


def _let_go_at_exit(writer: Any) -> None:
    """tensorboardX passes events to its thread through a pipe: where the disk is full the thread ends, and a process that ends would wait
    for somebody to empty the pipe. What is written in good order, ``finish`` has waited for."""
    queue = getattr(getattr(writer.file_writer, "event_writer", None), "_event_queue", None)
    if queue is not None:
        queue.cancel_join_thread()


def _known(folder: Path) -> dict[str, str]:
    """Ids of the runs that earlier sittings of this stage began."""
    file = folder / _IDS
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def _remember(folder: Path, name: str, identity: str) -> str:
    write_json(folder / _IDS, {**_known(folder), name: identity})
    return identity
