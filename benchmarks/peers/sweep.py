"""The search for each contender's best setting: the best so far and one that differs in one thing take turns; the faster one stays."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from peers.contender import Contender, Lost, Turn
from peers.data import Shape
from peers.race import Track, tell
from peers.settings import Settings, challenges, shown

_CLEARLY = 1.02  # a smaller gain is noise


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting that was tried.

    Attributes:
        ratio: figure of the challenger to that of the best so far, median over rounds; None if it was lost.
        spread: smallest and largest of these.
        rate: the challenger's tokens (pretrain) or labels (finetune) a second.
        peak_gib: its memory.
        outcome: "taken", "left", or why it was lost.
    """

    contender: str
    task: str
    tried: str
    against: str
    ratio: float | None
    spread: tuple[float, float] | None
    rate: float | None
    peak_gib: float | None
    outcome: str


def sweep(track: Track, name: str, shape: Shape, *, rounds: int) -> tuple[Settings, list[Trial]]:
    """Try every value of every axis.

    Returns:
        the best setting, and all trials.
    """
    best, trials = track.best(name, shape.task), list[Trial]()
    holder = _ready(track, name, shape, best)
    if isinstance(holder, str):
        return best, [Trial(name, shape.task, "the default", "", None, None, None, None, holder)]
    try:
        for axis, value in challenges(name, shape.task, bfloat16=track.bfloat16):
            if best[axis] == value:
                continue
            settings = {**best, axis: value}
            tell(f"{name} {shape.task}: {axis} {value} against {best[axis]}")
            challenger = _ready(track, name, shape, settings)
            outcome = challenger if isinstance(challenger, str) else _duel(holder, challenger, rounds)
            trial = _trial(name, shape.task, f"{axis} {value}", f"{axis} {best[axis]}", outcome)
            trials.append(trial)
            tell(f"  {trial.outcome}" + (f", {trial.ratio:.2f} times" if trial.ratio else ""))
            if isinstance(challenger, str):
                continue
            loser = challenger
            if trial.outcome == "taken":
                holder, loser, best = challenger, holder, settings
            loser.stop()
    finally:
        holder.stop()
    tell(f"{name} {shape.task}: best is {shown(best)}")
    return best, trials


def table(trials: Sequence[Trial]) -> str:
    """The trials in Markdown."""
    lines = ["| contender | task | tried | against | times as fast (spread) | tokens/s, labels/s in finetune | peak GiB | outcome |",
             "|---|---|---|---|---|---|---|---|"]
    for one in trials:
        measured = f"{one.ratio:.2f} ({one.spread[0]:.2f}–{one.spread[1]:.2f})" if one.ratio and one.spread else "–"  # noqa: RUF001
        lines.append(f"| {one.contender} | {one.task} | {one.tried} | {one.against} | {measured} | {_number(one.rate, 0)} | "
                     f"{_number(one.peak_gib, 2)} | {one.outcome} |")
    return "\n".join(lines)


def _ready(track: Track, name: str, shape: Shape, settings: Settings) -> Contender | str:
    """A contender that is warm, or why there is none."""
    one = track.contender(name, shape, settings=settings, label=f"{name} {'-'.join(map(str, settings.values()))}")
    one.start()
    try:
        one.ready(track.limit)
    except Lost as lost:
        one.stop()
        return str(lost)
    return one


def _duel(holder: Contender, challenger: Contender, rounds: int) -> list[tuple[Turn, Turn]] | str:
    try:
        return [(holder.go(1, 1800.0), challenger.go(1, 1800.0)) for _ in range(rounds)]
    except Lost as lost:
        return str(lost)


def _trial(name: str, task: str, tried: str, against: str, outcome: list[tuple[Turn, Turn]] | str) -> Trial:
    if isinstance(outcome, str):
        return Trial(name, task, tried, against, None, None, None, None, outcome.split(" (all of it")[0].replace("|", "/"))
    rates = [tuple(turn.labels_a_second if task == "finetune" else turn.tokens_a_second for turn in pair) for pair in outcome]
    ratios = sorted(new / old for old, new in rates)
    middle = statistics.median(ratios)
    return Trial(name, task, tried, against, middle, (ratios[0], ratios[-1]), statistics.median(new for _, new in rates),
                 outcome[-1][1].peak_gib, "taken" if middle > _CLEARLY else "left")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001
