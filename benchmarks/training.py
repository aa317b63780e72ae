"""Our training against TRL's SFTTrainer and LLaMA-Factory: same model, LoRA, rows and tokens a step, in turns of a few steps, in one call.

    python benchmarks/training.py --quick                        # five minutes on two cores, once the peers are installed
    python benchmarks/training.py --write docs/benchmarks.md     # more rounds, and the lengths of rows and sizes of data too
    python benchmarks/training.py --sweep --write docs/benchmarks.md   # each contender's best setting, anew

How it is measured: docs/benchmarks.md. Prints what is running, a table, and last one line of JSON; a figure whose peer could not be
installed or was lost is null. Leave the machine alone meanwhile: each turn says what share of it others took.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peers import cuda
from peers.contender import Turn
from peers.data import Shape
from peers.environments import python_of
from peers.page import results_page, write_between
from peers.race import Track, besides_attention, labels, middle, race, ratio, spread, summary, tell, tokens
from peers.settings import AXES, PEERS, shown
from peers.sweep import sweep, table
from results import processor

_ROOT = Path(__file__).resolve().parents[1]
_PARTS = ("pretrain", "finetune", "lengths", "data")
_LENGTH, _BATCH = 512, 2048
_ROWS = 65_536
"""Tokens of the rows at 1x: more than the rounds of a race need."""
_LONG_BATCH = 8192
Figures = dict[str, Any]


def main() -> None:
    """Measure and print."""
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that contenders are ended too
    installed = {peer: python_of(peer, given.envs) for peer in (cuda.PEERS if given.device == "cuda" else given.peers)}
    pythons = {"ours": Path(sys.executable)} | {peer: python for peer, python in installed.items() if python is not None}
    track = Track(given.work.absolute(), pythons, given.device, warm=1 if given.quick else 2, limit=given.limit, hurried=given.quick)
    if given.device == "cuda":
        figures = cuda.figures(track, rounds=given.rounds)
        print(json.dumps({**figures, **_circumstances(given)}))
    elif given.sweep is not None:
        _sweep(track, given)
    else:
        _measure(track, given)


def _measure(track: Track, given: argparse.Namespace) -> None:
    figures: Figures = dict.fromkeys([f"{task}_vs_{peer}" for task in ("pretrain", "finetune") for peer in PEERS])
    figures |= {"share_of_floor": None, "memory_vs_trl": None}
    for task in ("pretrain", "finetune"):
        if task in given.parts:
            figures |= _task(track, task, given)
    if "lengths" in given.parts:
        figures["lengths"] = _lengths(track, given.rounds)
    if "data" in given.parts:
        figures["data"] = _data(track, given.rounds)
    figures |= _circumstances(given)
    page = results_page(figures)
    print("\n" + page)
    if given.write is not None:
        write_between(given.write, "results", page)
    print(json.dumps(figures))


def _task(track: Track, task: str, given: argparse.Namespace) -> Figures:
    """A race of all contenders on one task."""
    tell(f"\n{task}: {given.batch_tokens} tokens a step in rows of up to {given.length}")
    names = ["ours", *(["floor"] if task == "pretrain" else []), *(peer for peer in PEERS if peer in track.pythons)]
    shape = Shape(task, given.length, given.rows)
    contenders = [track.contender(name, shape, batch_tokens=given.batch_tokens) for name in names]
    turns = race(contenders, rounds=given.rounds, steps=given.steps, limit=track.limit)
    figure = tokens if task == "pretrain" else labels
    found: Figures = {}
    for peer in PEERS:
        ratios = ratio(turns, "ours", peer, figure)
        found[f"{task}_vs_{peer}"], found[f"{task}_vs_{peer}_spread"] = summary(ratios), spread(ratios)
    found[task] = {name: _seen(held) for name, held in turns.items()}
    for one in contenders:
        if one.name in turns and one.name != "floor":
            found[task][one.name]["settings"] = shown(one.ask["settings"])
    if task == "pretrain":
        found |= _floor(turns)
        memory = ratio(turns, "ours", "trl", lambda turn: turn.peak_gib)[-1:]  # peaks only grow: the last round's
        found["memory_vs_trl"] = summary(memory)
    return found


def _floor(turns: Mapping[str, Sequence[Turn]]) -> Figures:
    """Share of the floor that our step reaches, token for token, and the rates of both in TFLOP/s."""
    shares = ratio(turns, "ours", "floor", tokens)
    floor = turns.get("floor", ())
    rate = middle(floor, lambda turn: turn.flops * turn.steps / turn.seconds / 1e9)
    return {"share_of_floor": summary(shares), "share_of_floor_spread": spread(shares), "floor_tflops": rate and round(rate / 1e3, 3)}


def _lengths(track: Track, rounds: int) -> Figures:
    """Ours at the same tokens a step on documents of exactly so many tokens, with each length's floor, in turns; then TRL."""
    shapes = {length: Shape("blocks", length, 16 * _LONG_BATCH) for length in (512, 2048, 8192)}
    tell(f"\nlengths: {_LONG_BATCH} tokens a step in rows of {', '.join(map(str, shapes))}")
    contenders = [track.contender(name, shape, batch_tokens=_LONG_BATCH, label=f"{name} {length}")
                  for length, shape in shapes.items() for name in ("ours", "floor")]
    turns = race(contenders, rounds=max(2, rounds // 2), steps=1, limit=track.limit)
    found: Figures = {}
    for length, shape in shapes.items():
        ours, first = f"ours {length}", f"ours {min(shapes)}"
        shares, rest = ratio(turns, ours, f"floor {length}", tokens), ratio(turns, ours, first, besides_attention)
        held = turns.get(ours, ())
        if not all(turn.attention_seconds for turn in held):  # not clocked: attention is torch's
            rest = []
        found[str(length)] = {
            **_seen(held), "share_of_floor": summary(shares), "share_of_floor_spread": spread(shares),
            "besides_attention": middle(held, besides_attention) if rest else None, "besides_attention_vs_first": summary(rest),
            "besides_attention_vs_first_spread": spread(rest)}
        if "trl" in track.pythons:
            tell(f"\nlengths: rows of {length}, against TRL")
            peers = race([track.contender(name, shape, batch_tokens=_LONG_BATCH) for name in ("ours", "trl")], rounds=max(2, rounds // 4),
                         steps=1, limit=track.limit)
            ratios = ratio(peers, "ours", "trl", tokens)
            found[str(length)] |= {"trl": _seen(peers.get("trl", ())), "vs_trl": summary(ratios), "vs_trl_spread": spread(ratios)}
    return found


def _data(track: Track, rounds: int) -> Figures:
    """Ours on 1, 4 and 16 times the rows, in turns."""
    tell("\ndata: ours on 1, 4 and 16 times the rows")
    contenders = [track.contender("ours", Shape("pretrain", _LENGTH, times * _ROWS), label=f"{times}x") for times in (1, 4, 16)]
    turns = race(contenders, rounds=max(2, rounds // 2), steps=2, limit=track.limit)
    return {name: _seen(held) for name, held in turns.items()}


def _seen(turns: Sequence[Turn]) -> Figures:
    """What a race saw of one contender."""
    rates = sorted(turn.tokens_a_second for turn in turns)
    return {"tokens_per_second": middle(turns, tokens), "spread": [round(rates[0], 1), round(rates[-1], 1)] if rates else None,
            "labels_per_second": middle(turns, labels), "peak_gib": round(turns[-1].peak_gib, 2) if turns else None,
            "seconds_per_step": round(sum(turn.seconds for turn in turns) / sum(turn.steps for turn in turns), 2) if turns else None,
            "others": round(max(turn.others for turn in turns), 2) if turns else None, "threads": turns[0].threads if turns else None}


def _sweep(track: Track, given: argparse.Namespace) -> None:
    trials = []
    for name, task in AXES:
        if name in track.pythons and task in given.parts and (not given.sweep or name in given.sweep):
            _, tried = sweep(track, name, Shape(task, given.length, given.rows), rounds=given.rounds)
            trials += tried
    page = f"{_where(_circumstances(given))}\n\n{table(trials)}"
    print("\n" + page)
    if given.write is not None:
        write_between(given.write, "sweep", page)


def _circumstances(given: argparse.Namespace) -> Figures:
    """Where and when this was measured."""
    commit = subprocess.run(["git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "-C", str(_ROOT), "status", "--porcelain", "--untracked-files=no", "src", "benchmarks"],
                             capture_output=True, text=True, check=False)
    return {"machine": f"{processor()}, {os.cpu_count()} cores",
            "commit": commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"), "rounds": given.rounds, "steps_a_turn": given.steps, "quick": given.quick}


def _where(figures: Figures) -> str:
    return f"{figures['date']}, commit {figures['commit']}, {figures['machine']}, {figures['rounds']} rounds."


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds, no lengths, no data, no peer compiled")
    parser.add_argument("--sweep", nargs="*", metavar="CONTENDER", help="search the best settings instead, of all contenders or of these")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, help="only these parts")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="only against these (none: ours alone)")
    parser.add_argument("--rounds", type=int, help="turns of each contender (quick: 2, else 6; a sweep's duel: 3)")
    parser.add_argument("--steps", type=int, default=1, help="optimiser steps in a turn")
    parser.add_argument("--write", type=Path, help="put the results (or the sweep) between their marks in this page")
    parser.add_argument("--envs", type=Path, default=_ROOT / ".peers", help="where the peers' environments lie")
    parser.add_argument("--work", type=Path, default=_ROOT / ".peers" / "work", help="where model, rows and logs lie")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds that loading, compiling and warming up may take")
    parser.add_argument("--length", type=int, default=_LENGTH, help="for trying the tool out: tokens of a row at most")
    parser.add_argument("--batch-tokens", type=int, default=_BATCH, help="for trying the tool out: tokens of a step")
    parser.add_argument("--rows", type=int, default=_ROWS, help="for trying the tool out: tokens of all rows")
    given = parser.parse_args()
    given.parts = given.parts or (_PARTS[:2] if given.quick or given.sweep is not None else _PARTS)
    given.rounds = given.rounds or (2 if given.quick else 3 if given.sweep is not None else 6)
    return given


if __name__ == "__main__":
    main()
