"""``transllm plan``: what a recipe will cost, without loading weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from transllm.cli.check import Overrides, refuse_problems
from transllm.cli.console import count, err, listing, out

if TYPE_CHECKING:
    from transllm.pipeline.devices import Cluster, Device
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
    device: Annotated[str | None, typer.Option(metavar="NAME", help="A device by its data sheet: h100, a100, l4, 4090 ... "
                                               "Default: this machine, measured.")] = None,
    device_tflops: Annotated[float | None, typer.Option(min=1e-6, help="Matrix-product speed of a device that has no name here.")] = None,
    calibration: Annotated[bool, typer.Option(help="Measure a few layers of the model (20 s), or a matrix product only (2 s).")] = True,
    devices: Annotated[int, typer.Option(min=1, help="Devices that train side by side, on all nodes together.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that they are in.")] = 1,
    strategy: Annotated[str, typer.Option(help="What each device holds: ddp, fsdp, zero2 or zero3.")] = "ddp",
    bandwidth_gbs: Annotated[float | None, typer.Option(min=1e-6, help="Between devices. Default: 150 in a node, 25 between.")] = None,
) -> None:
    """Say what a recipe will cost: steps, tokens, time, memory and disk of each stage. Loads no weights."""
    from transllm.recipe import load_recipe

    recipe = load_recipe(recipe_file, overrides=overrides or ())
    refuse_problems(recipe, recipe_file)
    from transllm.pipeline.plan import plan as make_plan

    stated = _device(device, device_tflops)
    cluster = _cluster(devices, nodes, strategy, bandwidth_gbs)
    if config is None and parameters is None:
        err().print(f"Reading the config of {recipe.model.source} ...", markup=False, style="dim")
    if stated is None and calibration and parameters is None:
        err().print("Measuring a few layers with random weights, some 20 s ...", style="dim")
    made = make_plan(recipe, config=config, parameters=parameters, device=stated, calibration=calibration, cluster=cluster)
    show(made)


def _device(name: str | None, tflops: float | None) -> Device | None:
    """The device that the options state, if they do."""
    from transllm.pipeline.devices import DEVICES, Device

    if name is not None:
        if name.lower() not in DEVICES:
            raise typer.BadParameter(f"There is no device '{name}' in the table. Known: {', '.join(DEVICES)}. Give another's speed with "
                                     "--device-tflops.", param_hint="--device")
        return DEVICES[name.lower()]
    return Device("the device", tflops) if tflops is not None else None


def _cluster(devices: int, nodes: int, strategy: str, bandwidth: float | None) -> Cluster:
    from transllm.pipeline.devices import BETWEEN_NODES_GBS, IN_NODE_GBS, STRATEGIES, Cluster

    chosen = next((one for one in STRATEGIES if one == strategy), None)
    if chosen is None:
        raise typer.BadParameter(f"There is no strategy '{strategy}'. Use one of {', '.join(STRATEGIES)}.", param_hint="--strategy")
    if devices % nodes:
        raise typer.BadParameter(f"{devices} devices cannot be shared evenly by {nodes} nodes. --devices counts those of all nodes.",
                                 param_hint="--nodes")
    return Cluster(devices, nodes, chosen, bandwidth or (IN_NODE_GBS if nodes == 1 else BETWEEN_NODES_GBS))


def show(made: Plan) -> None:
    """Print a plan: a table of stages, one of strategies where there are several devices, and what was measured or assumed."""
    console, shape, cluster = out(), made.shape, made.cluster
    about = "" if shape.exact else "about "
    console.print(f"Model: {about}{count(shape.parameters)} parameters, {shape.layers} layers of {shape.hidden}, "
                  f"vocabulary {shape.vocabulary:,}. Training {count(made.trained)} numbers: {_trained(made)}.")
    devices = f"{cluster.devices} device" + ("s" if cluster.devices != 1 else "")
    numbers = ("Steps", "Tokens", "Time", "Memory, GiB", "Disk, GiB")
    table = listing("Stage", *numbers, "What", title=f"On {devices} of {made.device.tflops:.3g} TFLOPS"
                    f"{f', {cluster.strategy}' if cluster.devices > 1 else ''}"
                    f"{f', on {cluster.nodes} nodes' if cluster.nodes > 1 else ''}", numbers=numbers)
    for stage in made.stages:
        table.add_row(stage.name, f"{stage.steps:,}" if stage.steps is not None else "", count(stage.tokens) if stage.tokens else "",
                      _times(*stage.seconds), _gib(stage.memory_gib), _gib(stage.disk_gib), stage.note)
    table.add_section()
    table.add_row("all", "", "", _times(*made.seconds), _gib(made.memory_gib), _gib(made.disk_gib),
                  "memory: the peak on " + ("an accelerator" if made.stages[1].host else "one device"))
    console.print(table)
    _show_strategies(made)
    scratch = max(stage.scratch_gib for stage in made.stages)
    has = made.device.memory_gib
    if has is not None:
        large = [stage.name for stage in made.stages if not stage.host and stage.memory_gib > has]
        console.print(f"{made.device.name} has {has:.0f} GiB: " + (f"{', '.join(large)} will not fit." if large else "all of it fits."))
    if scratch:
        console.print(f"Checkpoints take up to {scratch:.1f} GiB of disk more while a stage trains.")
    console.print("Measured and assumed:" if made.measured else "Estimates, from best to worst case. Assumed:")
    for assumption in made.assumptions:
        console.print(f"  - {assumption}", markup=False)


def _trained(made: Plan) -> str:
    if made.train != "lora":
        return {"rows": "embedding rows alone", "full": "all weights"}[made.train]
    adapter = made.shape.lora_parameters
    return f"adapter {count(adapter)}, embedding rows {count(made.trained - adapter)}"


def _show_strategies(made: Plan) -> None:
    """Training on many devices, by strategy."""
    if not made.strategies:
        return
    columns = ("Training on all devices", "Time", "Memory, GiB", f"Fits {made.device.name}")
    table = listing(*columns, title="Strategies", numbers=columns[1:3])
    what = {"ddp": "each holds the model", "fsdp": "layers are shared", "zero2": "gradients and optimiser are shared",
            "zero3": "all is shared"}
    for name, (memory, seconds) in made.strategies.items():
        fits = "not known" if made.device.memory_gib is None else "yes" if memory <= made.device.memory_gib else "no"
        table.add_row(f"{name}: {what[name]}", _times(*seconds), _gib(memory), fits)
    out().print(table)


def _times(low: float, high: float) -> str:
    """From-to in one unit, that of the longer time."""
    unit, size = next(((name, size) for name, size in (("d", 86400), ("h", 3600), ("min", 60)) if high >= 1.5 * size), ("s", 1))
    return f"{_span(*(f'{seconds / size:.{0 if seconds >= 10 * size else 1}f}' for seconds in (low, high)))} {unit}" if high else ""


def _gib(value: float) -> str:
    return f"{value:.1f}" if value >= 0.05 else "0"


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"
