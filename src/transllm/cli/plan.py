"""``transllm plan``: what a recipe will cost, without loading weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from transllm.cli.check import Overrides, refuse_problems
from transllm.cli.console import count, err, listing, out

if TYPE_CHECKING:
    from transllm.pipeline.plan import Plan


def _size(text: str) -> float:
    """``7B``, ``135M`` or a number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMbB]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise typer.BadParameter(f"'{text}' is no size. Write 7B, 135M or a number of parameters.")
    return float(match[1]) * {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}[match[2].lower()]


def plan(
    recipe_file: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe.")],
    overrides: Overrides = None,
    config: Annotated[Path | None, typer.Option(help="A config.json in place of the model's own, e.g. without the hub.")] = None,
    parameters: Annotated[float | None, typer.Option(parser=_size, metavar="SIZE", help="The model's size (7B), if no config.")] = None,
    device_tflops: Annotated[float | None, typer.Option(min=1e-6, help="Matrix-product speed of a device. Default: measured here.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="Devices that train side by side.")] = 1,
) -> None:
    """Say what a recipe will cost: steps, tokens, time, memory and disk of each stage. Loads no weights."""
    from transllm.recipe import load_recipe

    recipe = load_recipe(recipe_file, overrides=overrides or ())
    refuse_problems(recipe, recipe_file)
    if config is None and parameters is None:
        err().print(f"Reading the config of {recipe.model.source} ...", markup=False, style="dim")
    from transllm.pipeline.plan import plan as make_plan

    made = make_plan(recipe, config=config, parameters=parameters, device_tflops=device_tflops, devices=devices)
    _show(made)


def _show(made: Plan) -> None:
    console, shape = out(), made.shape
    about = "" if shape.exact else "about "
    console.print(f"Model: {about}{count(shape.parameters)} parameters, {shape.layers} layers of {shape.hidden}, "
                  f"vocabulary {shape.vocabulary:,}. Training {count(made.trained)} numbers: "
                  f"adapter {count(shape.lora_parameters)}, embedding rows {count(made.trained - shape.lora_parameters)}.")
    devices = f"{made.devices} device" + ("s" if made.devices != 1 else "")
    numbers = ("Steps", "Tokens", "Time", "Memory, GiB", "Disk, GiB")
    table = listing("Stage", *numbers, "What", title=f"On {devices} of {made.tflops:.3g} TFLOPS", numbers=numbers)
    for stage in made.stages:
        table.add_row(stage.name, f"{stage.steps:,}" if stage.steps is not None else "", count(stage.tokens) if stage.tokens else "",
                      _times(*stage.seconds), _span(*map(_gib, stage.memory_gib)), _gib(stage.disk_gib), stage.note)
    table.add_section()
    table.add_row("all", "", "", _times(*made.seconds), _span(*map(_gib, made.memory_gib)), _gib(made.disk_gib), "memory: the peak")
    console.print(table)
    console.print("Estimates, from best to worst case. Assumed:")
    for assumption in made.assumptions:
        console.print(f"  - {assumption}", markup=False)


def _times(low: float, high: float) -> str:
    """From-to in one unit, that of the longer time."""
    unit, size = next(((name, size) for name, size in (("d", 86400), ("h", 3600), ("min", 60)) if high >= 1.5 * size), ("s", 1))
    return f"{_span(*(f'{seconds / size:.{0 if seconds >= 10 * size else 1}f}' for seconds in (low, high)))} {unit}" if high else ""


def _gib(value: float) -> str:
    return f"{value:.1f}" if value >= 0.05 else "0"


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"
