"""Experiment trackers: the numbers of the log, where people look at curves of many runs.

accelerate speaks to the services. TensorBoard's files are written here: the writer that accelerate would use hands each number to a thread,
and where the disk is full the thread ends, and the process waits for it for ever.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transllm.errors import MissingExtraError, kind_and_line
from transllm.files import write_json
from transllm.recipe.training import EXTRA_TRACKERS, Tracker

log = logging.getLogger(__name__)

_IDS = "trackers.json"


def require(names: Sequence[Tracker]) -> None:
    """Raise if a tracker's package is missing: before the work, not after it.

    Raises:
        MissingExtraError: it is, with the extra that brings it.
    """
    for name in names:
        if name in EXTRA_TRACKERS and importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, name, f"The tracker '{name}' of training.trackers")


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
        if "mlflow" in names:
            active = next(tracker for tracker in self._trackers if tracker.name == "mlflow").tracker
            _remember(folder, "mlflow", active.info.run_id)

    def log(self, line: dict[str, Any]) -> None:
        """Pass the numbers of a line on."""
        numbers = {key: value for key, value in line.items() if key not in ("step", "steps") and isinstance(value, int | float)}
        self._each(lambda tracker: tracker.log(numbers, step=line["step"]))

    def finish(self) -> None:
        """Write what is waiting and close."""
        self._each(lambda tracker: tracker.finish())

    def _each(self, call: Callable[[Any], object]) -> None:
        """Ask all of them. A service that fails is told of once and left out: a training of days must not end for it."""
        for tracker in [*self._trackers]:
            try:
                call(tracker)
            except Exception as error:
                if isinstance(tracker, TensorBoard):  # its files are ours, and what goes wrong with them is the disk
                    raise
                log.warning("The tracker '%s' has failed (%s); training goes on without it. log.jsonl has all its numbers.", tracker.name,
                            kind_and_line(error))
                self._trackers.remove(tracker)


class TensorBoard:
    """TensorBoard's event files, one a sitting.

    Args:
        folder: where they lie.
        step: the last step that is done; the points of earlier files that lie behind it are taken back.
    """

    name = "tensorboard"

    def __init__(self, folder: Path, *, step: int) -> None:
        self._folder, self._step = folder, step

    def start(self) -> None:
        """Open a file."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._folder.mkdir(parents=True, exist_ok=True)
        # Files of one second are told apart, and read in their order, by the end of their name.
        self._writer = EventsWriter(str(self._folder / "events"), filename_suffix=f".{time.time_ns()}")
        first = self._step + 1 if self._step else 0  # before the first step stands a measurement, which is made again too
        self._write(first, session_log=SessionLog(status=SessionLog.START))

    def log(self, values: dict[str, float], step: int) -> None:
        """Write the numbers of a step, to the disk at once."""
        from tensorboardX.proto.summary_pb2 import Summary

        self._write(step, summary=Summary(value=[Summary.Value(tag=key, simple_value=value) for key, value in values.items()]))

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
        self._writer.flush()


def _tracker(name: Tracker, folder: Path, step: int) -> Any:
    if name == "tensorboard":
        return TensorBoard(folder / "tensorboard", step=step)
    from accelerate import PartialState, tracking

    PartialState()  # its trackers log, and its logger must know which process this is
    run = f"{folder.parent.name}-{folder.name}"
    if name == "mlflow":
        return tracking.MLflowTracker("transllm", run_id=_known(folder).get("mlflow"), run_name=run)
    known = _known(folder).get(name) or _remember(folder, name, f"{run}-{uuid.uuid4().hex[:8]}")
    if name == "wandb":
        return tracking.WandBTracker("transllm", name=run, id=known, resume="allow", dir=str(folder))
    return tracking.TrackioTracker("transllm", name=known, resume="allow")


def _known(folder: Path) -> dict[str, str]:
    """Ids of the runs that earlier sittings of this stage began."""
    file = folder / _IDS
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def _remember(folder: Path, name: str, identity: str) -> str:
    write_json(folder / _IDS, {**_known(folder), name: identity})
    return identity
