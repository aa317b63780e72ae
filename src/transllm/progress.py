"""How long work tells what it does. The command line draws it; the library only speaks this protocol."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Task(Protocol):
    """One long step."""

    def advance(self, n: float, note: str = "") -> None:
        """``n`` more units are done; ``note`` is shown beside the bar."""


class Progress(Protocol):
    """Where progress goes."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def task(self, label: str, total: float, unit: str) -> contextlib.AbstractContextManager[Task]:
        """A long step; ``total`` is 0 where its end is not known."""

    def say(self, text: str) -> None:
        """A line of text."""


class Silent:
    """Progress that goes nowhere."""

    def stage(self, name: str) -> None: ...

    def say(self, text: str) -> None: ...

    def advance(self, n: float, note: str = "") -> None: ...

    @contextlib.contextmanager
    def task(self, label: str, total: float, unit: str) -> Iterator[Silent]:
        yield self
