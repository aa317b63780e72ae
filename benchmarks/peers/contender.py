"""The driver's side of the race: start contenders, give them turns one after the other, and see that those who wait do."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from peers import GIVEN

BENCHMARKS = Path(__file__).resolve().parents[1]


class Lost(Exception):
    """A contender ended, or took too long; the text says which."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a contender.

    Attributes:
        steps: optimiser steps.
        tokens, labels: trained on, without padding.
        seconds: on the clock.
        cpu_seconds: of all its threads.
        peak_gib: the most memory the process ever held.
        threads: that torch was given.
        flops: of the floor's products in one step; 0 for all others.
        matrix_flops: a second, of one large product; measured by the floor on an accelerator, else 0.
        attention_seconds: that all cores would take for attention alone; 0 where that is not known.
        others: share of the machine's cores that other processes than this one took meanwhile.
    """

    steps: int
    tokens: int
    labels: int
    seconds: float
    cpu_seconds: float
    peak_gib: float
    threads: int
    flops: int = 0
    matrix_flops: float = 0.0
    attention_seconds: float = 0.0
    others: float = 0.0

    @property
    def tokens_a_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def labels_a_second(self) -> float:
        return self.labels / self.seconds


@dataclass
class Contender:
    """One process that trains in turns.

    Args:
        name: for tables.
        module: below ``peers``.
        python: the interpreter of its environment.
        ask: what it is asked for; the one argument of the module.
        log: where all that it prints goes.
    """

    name: str
    module: str
    python: Path
    ask: Mapping[str, Any]
    log: Path
    turns: list[Turn] = field(default_factory=list)
    _process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it; it loads, and trains its warm-up steps."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        Path(self.ask["scratch"]).mkdir(parents=True, exist_ok=True)
        quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
                 "HF_HOME": str(self.ask["scratch"]), "DISABLE_VERSION_CHECK": "1", "WANDB_DISABLED": "true", "PYTHONUNBUFFERED": "1"}
        with self.log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [str(self.python), "-m", f"peers.{self.module}", json.dumps(dict(self.ask))], cwd=BENCHMARKS, env={**GIVEN, **quiet},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def ready(self, limit: float) -> Turn:
        """Wait for the end of the warm-up.

        Raises:
            Lost: it ended, or was not there in ``limit`` seconds.
        """
        return self._report(limit)

    def go(self, steps: int, limit: float = 3600.0) -> Turn:
        """Train ``steps`` steps while all others sleep; kept in ``turns``.

        Raises:
            Lost: see ``ready``.
        """
        assert self._process is not None and self._process.stdin is not None
        before, started = _busy(), time.monotonic()
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise Lost(self._why("ended")) from error
        turn = self._report(limit)
        room = (time.monotonic() - started) * (os.cpu_count() or 1)
        others = max(0.0, (_busy() - before - turn.cpu_seconds) / room)
        self.turns.append(replace(turn, others=others))
        return self.turns[-1]

    def stop(self) -> None:
        """End it. It writes nothing."""
        if self._process is None:
            return
        if self._process.poll() is None:  # compilers have workers
            for child in psutil.Process(self._process.pid).children(recursive=True):
                child.kill()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _report(self, limit: float) -> Turn:
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout=limit):
                raise Lost(self._why(f"was not done after {limit:.0f} s"))
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise Lost(self._why(f"ended with exit code {self._process.returncode}"))
        return Turn(**json.loads(line))

    def _why(self, what: str) -> str:
        said = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f"{self.name} {what}; the last it said: {said[-1][:300] if said else 'nothing'} (all of it: {self.log})"


def _busy() -> float:
    """Seconds that the machine's cores have worked, for anybody; what a host took away counts as others' work."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))
