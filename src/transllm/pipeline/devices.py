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

    def held(self, frozen: float, shareable: float, trained: float, unit: float) -> float:
        """Bytes of weights, gradients and optimiser on one device.

        ``ddp``: all of it. ``fsdp``: the layers' frozen weights are shared, and two layers are lent at a time; what trains stays whole, as
        do embedding and head. ``zero2``: gradients and Adam's moments are shared. ``zero3``: everything is.

        Args:
            frozen: bytes of all frozen weights.
            shareable: bytes of those that lie in the layers.
            trained: numbers that train; 4 bytes each for value and gradient, 8 for the moments.
            unit: bytes of one layer's frozen weights.
        """
        n, lent = self.devices, min(2 * unit, shareable)
        if self.strategy == "ddp" or n == 1:
            return frozen + 16 * trained
        if self.strategy == "fsdp":
            return frozen - shareable + shareable / n + lent + 16 * trained
        if self.strategy == "zero2":
            return frozen + (4 + 12 / n) * trained
        return frozen / n + lent + 16 * trained / n

    def seconds_a_step(self, trained: float) -> float:
        """Summing the gradients of what trains over all devices, once a step, in a ring: 2 (n - 1) / n times their bytes."""
        return 2 * (self.devices - 1) / self.devices * 4 * trained / (self.bandwidth_gbs * 1e9)

    def seconds_a_bin(self, frozen: float, shareable: float) -> float:
        """Lending the weights of all layers, forward and backward, for each micro batch. It overlaps with computing."""
        shared = {"fsdp": shareable, "zero3": frozen}.get(self.strategy, 0.0)
        return 2 * (self.devices - 1) / self.devices * shared / (self.bandwidth_gbs * 1e9)
