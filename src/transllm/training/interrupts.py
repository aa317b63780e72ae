"""Ctrl-C and SIGTERM stop training between two steps, never inside one: weights, optimiser and log must agree on the step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupts:
    """While entered, both signals raise KeyboardInterrupt, but wait until a ``whole()`` block is done."""

    def __init__(self) -> None:
        self._whole = self._waiting = False

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Take the signals over; they are given back at the end. Only the main thread can, elsewhere this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._caught) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """What is inside is done as a whole; a signal that came meanwhile is raised after it."""
        self._whole = True
        try:
            yield
        finally:
            self._whole = False
        if self._waiting:
            self._waiting = False
            raise KeyboardInterrupt

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if not self._whole:
            raise KeyboardInterrupt
        self._waiting = True
