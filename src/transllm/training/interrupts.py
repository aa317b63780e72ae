"""Ctrl-C and SIGTERM stop training between two steps, never inside one: weights, optimiser and log must agree on the step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from transllm import processes


class Interrupted(KeyboardInterrupt):
    """Stopped by a signal; the state was saved.

    Attributes:
        number: the signal. The command line exits with 128 + this.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


class Interrupts:
    """While entered, the first signal raises KeyboardInterrupt, but waits until a ``whole()`` block is done.

    All that come after it are ignored: who presses Ctrl-C again and again, or a scheduler that repeats itself, must not disturb the
    saving that the first one began. SIGKILL is left for who does not want to wait.

    Of several processes none may leave a step alone, the others would wait for it: there a signal is noted only, until all ``agree``.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._whole = False
        self._noted = processes.world() > 1

    @property
    def number(self) -> int:
        """The signal that came; SIGINT where none did and KeyboardInterrupt was raised by other means."""
        return signal.SIGINT if self._number is None else self._number

    @property
    def name(self) -> str:
        """The signal as people call it."""
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name

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
        if self._number is not None and not self._noted:
            raise KeyboardInterrupt

    def agree(self) -> None:
        """Between two steps: raise KeyboardInterrupt in all processes if a signal came to one of them."""
        if not self._noted:
            return
        asked, ctrl_c = processes.summed(self._number is not None, self._number == signal.SIGINT)
        if asked:
            self._number = self._number or (signal.SIGINT if ctrl_c else signal.SIGTERM)
            raise KeyboardInterrupt

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None:
            return
        self._number = number
        if not self._whole and not self._noted:
            raise KeyboardInterrupt
