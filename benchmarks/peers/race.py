"""Races: contenders take turns in rounds, and what is compared is always of one round."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from peers.contender import Contender, Lost, Turn
from peers.data import Shape, model_folder, rows_a_step, rows_folder
from peers.settings import LEARNING_RATE, LORA, Settings, best, shown
from transllm.model import compute_dtype

Figure = Callable[[Turn], float]


def tokens(turn: Turn) -> float:
    """Tokens without padding a second."""
    return turn.tokens_a_second


def besides_attention(turn: Turn) -> float:
    """Tokens a second, were attention done in no time."""
    return turn.tokens / (turn.seconds - turn.attention_seconds)


def labels(turn: Turn) -> float:
    """Labels a second."""
    return turn.labels_a_second


@dataclass(frozen=True)
class Track:
    """What all races of a call share.

    Attributes:
        work: model, rows, logs.
        pythons: interpreter of each peer that could be installed; "ours" is this one.
        device: "cpu" or "cuda".
        warm: steps that are not counted.
        limit: seconds that loading and warming up may take.
        hurried: without torch.compile, which takes minutes to warm up.
    """

    work: Path
    pythons: Mapping[str, Path]
    device: str
    warm: int
    limit: float = 900.0
    hurried: bool = False

    @property
    def bfloat16(self) -> bool:
        """Whether the device gains from it, by our own measure."""
        return compute_dtype("auto", torch.device(self.device)) == torch.bfloat16

    def best(self, family: str, task: str) -> Settings:
        """The best known setting of ours or a peer here."""
        return best(family, "finetune" if task == "finetune" else "pretrain", bfloat16=self.bfloat16)

    def contender(self, name: str, shape: Shape, *, settings: Settings | None = None, batch_tokens: int = 2048, label: str = "",
                  model: Path | None = None) -> Contender:
        """A contender on some rows.

        Args:
            name: ours, floor or a peer; what follows a hyphen tells environments of one peer apart.
            settings: None takes the best known.
            label: what tables call it; None: its name.
            model: a folder; None is the extended SmolLM2.
        """
        family = "ours" if name in ("ours", "floor") else name
        own = settings if settings is not None else self.best(family, shape.task)
        if self.hurried and own.get("compile"):
            own = {**own, "compile": False}
        rows = rows_folder(self.work, shape)
        label, word = label or name, (label or name).replace(" ", "-")
        ask = {"task": shape.task, "length": shape.length, "model": str(model or model_folder(self.work)), "rows": str(rows),
               "lora": LORA, "learning_rate": LEARNING_RATE, "batch_tokens": batch_tokens, "rows_a_step": rows_a_step(rows, batch_tokens),
               "settings": own, "warm": self.warm, "device": self.device, "scratch": str(self.work / "scratch" / word)}
        return Contender(label, name.split("-")[0], self.pythons[family], ask, self.work / "logs" / f"{shape.task}-{word}.log")


@contextlib.contextmanager
def lined_up(contenders: Sequence[Contender], limit: float) -> Iterator[list[Contender]]:
    """Those of the contenders that load and warm up, one after the other; all are ended at the end. Who is lost is told."""
    ready, threads = list[Contender](), dict[str, int]()
    try:
        for one in contenders:
            one.start()
            try:
                warm = one.ready(limit)
            except Lost as lost:
                one.stop()
                tell(f"LOST: {lost}")
                continue
            ready.append(one)
            if warm.threads != threads.setdefault("all", warm.threads):
                tell(f"UNFAIR: {one.name} has {warm.threads} threads, others {threads['all']}. Set OMP_NUM_THREADS.")
            tell(f"{one.name}: warm after {warm.seconds:.0f} s, {warm.threads} threads; {shown(one.ask['settings'])}")
        yield ready
    finally:
        for one in contenders:
            one.stop()


def race(contenders: Sequence[Contender], *, rounds: int, steps: int, limit: float) -> dict[str, list[Turn]]:
    """Turns of each contender, round by round; of those that are lost, none."""
    with lined_up(contenders, limit) as ready:
        for number in range(1, rounds + 1):
            for one in list(ready):
                try:
                    turn = one.go(steps)
                except Lost as lost:
                    tell(f"LOST: {lost}")
                    ready.remove(one)
                    continue
                tell(f"round {number}/{rounds}  {one.name:24} {turn.tokens_a_second:7.0f} tokens/s {turn.labels_a_second:7.0f} labels/s "
                     f"{turn.peak_gib:6.2f} GiB  others took {turn.others:4.0%} of the machine")
        return {one.name: one.turns for one in ready}


def ratio(turns: Mapping[str, Sequence[Turn]], left: str, right: str, figure: Figure) -> list[float]:
    """``figure`` of one contender to that of another in the same round, smallest first; empty where one is missing."""
    return sorted(figure(one) / figure(two) for one, two in zip(turns.get(left, ()), turns.get(right, ()), strict=False))


def summary(ratios: Sequence[float], digits: int = 2) -> float | None:
    """The median; None of nothing."""
    return round(statistics.median(ratios), digits) if ratios else None


def spread(ratios: Sequence[float], digits: int = 2) -> list[float] | None:
    """Smallest and largest; None of nothing."""
    return [round(ratios[0], digits), round(ratios[-1], digits)] if ratios else None


def middle(turns: Sequence[Turn], figure: Figure) -> float | None:
    """Median of a figure over the rounds."""
    return round(statistics.median(figure(turn) for turn in turns), 1) if turns else None


def tell(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stdout, flush=True)
