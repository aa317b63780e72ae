"""Accelerators by name, and what training on several of them costs: memory under each way of sharing, and what goes over the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Strategy = Literal["ddp", "fsdp", "zero2", "zero3"]
STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp", "zero2", "zero3")

IN_NODE_GBS, BETWEEN_NODES_GBS = 150.0, 25.0
"""Bandwidth of a device to its neighbours, in 10⁹ bytes a second, where none is given: half of what NVLink 3 states a direction, and
a network card of 200 Gbit/s for each device."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device that is stated, not measured.

    Attributes:
        name: how it is called.
        tflops: dense bfloat16 products with sums in float32, 10¹² FLOPs a second.
        memory_gib: its own memory, as the driver shows it; None: not known.
        bandwidth_gbs: of that memory, 10⁹ bytes a second; None: not known.
        training: share of ``tflops`` that training reaches, from-to.
    """

    name: str
    tflops: float
    memory_gib: float | None = None
    bandwidth_gbs: float | None = None
    training: tuple[float, float] = (0.3, 0.7)


# From the vendors' data sheets: NVIDIA's of A10, A100 (PCIe 40 GB, SXM 80 GB), L4, L40S, H100 SXM, H200 SXM and HGX B200, the Ampere GA102
# and Ada white papers (3090, 4090), AMD's of MI300X. Rates that a sheet states with sparsity are halved. Training reaches 30 to
# 50 % of such a rate (model FLOPs utilisation as published: PaLM, arXiv 2204.02311, 46 %; Llama 3, arXiv 2407.21783, 38 to 43 %).
_STATED = (0.3, 0.5)
DEVICES = {device.name: device for device in (
    Device("a10", 125, 22.5, 600, _STATED), Device("a100-40", 312, 39.5, 1555, _STATED), Device("a100", 312, 79.2, 2039, _STATED),
    Device("l4", 121, 22.5, 300, _STATED), Device("l40s", 362, 44.5, 864, _STATED), Device("h100", 989, 79.6, 3350, _STATED),
    Device("h200", 989, 139.8, 4800, _STATED), Device("b200", 2250, 178, 8000, _STATED), Device("3090", 71, 23.7, 936, _STATED),
    Device("4090", 165, 23.7, 1008, _STATED), Device("mi300x", 1307, 191.5, 5300, _STATED))}


@dataclass(frozen=True, slots=True)
class Cluster:
    """Devices that train side by side.

    Attributes:
        devices: on all nodes together.
        nodes: how many machines.
        strategy: what each device holds of the model.
        bandwidth_gbs: of the slowest link that a ring over all devices takes, 10⁹ bytes a second.
    """

    devices: int = 1
    nodes: int = 1
    strategy: Strategy = "ddp"
    bandwidth_gbs: float = IN_NODE_GBS

    def held(self, frozen: float, shareable: float, trained: float, lent: float, *, body: float = 0.0) -> float:
        """Bytes of weights, gradients and optimiser on one device.

        ``ddp``: all of it. ``fsdp``: the layers are shared, and some are lent at a time; an adapter stays whole, as do embedding and head.
        ``zero2``: gradients and Adam's moments are shared. ``zero3``: everything is.

        Args:
            frozen: bytes of all frozen weights.
            shareable: bytes of those that lie in the layers.
            trained: numbers that train; 4 bytes each for value and gradient, 8 for the moments.
            lent: bytes of the layers at work.
            body: those of the trained that are the layers' own weights.
        """
        n = self.devices
        if self.strategy == "ddp" or n == 1:
            return frozen + 16 * trained
        if self.strategy == "fsdp":
            return frozen - shareable + shareable / n + lent + 16 * self.own(trained, body)
        if self.strategy == "zero2":
            return frozen + (4 + 12 / n) * trained
        return frozen / n + lent + 16 * self.own(trained, body)

    def own(self, trained: float, body: float) -> float:
        """How many of the trained numbers lie on one device; see ``held``."""
        shared = {"fsdp": body, "zero3": trained}.get(self.strategy, 0.0)
        return trained - shared + shared / self.devices

    def seconds_a_step(self, trained: float, *, body: float = 0.0) -> float:
        """Summing the gradients of what trains over all devices, once a step, in a ring: 2 (n - 1) / n times their bytes. Where the layers'
        own weights train and are shared, theirs are summed with each micro batch."""
        once = trained - body if self.strategy in ("fsdp", "zero3") else trained
        return 2 * (self.devices - 1) / self.devices * 4 * once / (self.bandwidth_gbs * 1e9)

    def seconds_a_bin(self, weights: float, layers: float, *, body: float = 0.0) -> float:
        """Lending weights, forward and backward, for each micro batch, and summing the layers' own gradients. It overlaps with computing.

        Args:
            weights: bytes of all that can be lent.
            layers: bytes of those that lie in the layers.
            body: see ``held``.
        """
        shared = {"fsdp": layers, "zero3": weights}.get(self.strategy, 0.0)
        gradients = 4 * body if shared else 0.0
        return (self.devices - 1) / self.devices * (2 * shared + gradients) / (self.bandwidth_gbs * 1e9)
