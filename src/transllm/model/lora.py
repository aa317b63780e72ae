"""The LoRA layer that training runs: peft's, with forward and backward written as a few products and nothing else.

peft computes ``W x + s B (A x)`` with separate kernels for the cast, the scale and the sum. On a processor these cost as much
as the products. Here both branches accumulate into one result, forward and backward, and only ``x`` (or what it is made from, see
``again``) and ``A x`` are kept.
Layers that read the same input (query, key and value; gate and up) share their products: their weights are stacked, which
gives fewer and larger products, and one gradient of the input instead of a sum. Weights of the adapter stay float32 and are cast for each
product, so an update smaller than bfloat16's step is not lost.

Dropout is peft's: of each adapter's input some numbers are left out at random, for each layer others. On a processor which ones is a
function of the bin's seed (``drops``) and the layer, so bins can be computed side by side and in any order.

Shapes: n tokens, i inputs, o outputs (of all siblings), r rank (of all siblings).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn

from transllm.model.again import Again, again
from transllm.model.pages import forget

_PRIME = 1_000_003  # layers of a bin, and bins of neighbouring seeds, draw unlike numbers
_BIN = threading.local()
_PERIOD: object | None = None  # see ``unchanged``


@contextlib.contextmanager
def drops(seed: int) -> Iterator[None]:
    """Inside, in this thread, layers on a processor drop out what this seed says. Elsewhere they draw from torch's generator, as on an
    accelerator, which computes one bin at a time and whose backward pass is another thread.
    """
    _BIN.seed = seed
    try:
        yield
    finally:
        del _BIN.seed


class LoraLinear(PeftLoraLinear):
    """peft's LoRA layer; the plain case (one adapter, on, not merged, no DoRA) takes the short way."""

    family: _Family | None = None
    number = 0
    """Among the layers of a model; see ``drops``."""
    short_way = True
    """Off where layers are compiled: the compiler joins the small kernels itself."""

    def plain(self) -> bool:
        """Whether the layer now computes ``W x + b + s B (A x)``, of ``x`` or what dropout leaves of it, and no more."""
        name = str(self.active_adapters[0]) if len(self.active_adapters) == 1 else ""
        return name in self.lora_A and name not in self.lora_variant and not self.disable_adapters and not self.merged

    @property
    def left_out(self) -> float:
        """The share of its input that the adapter does not see now."""
        dropout = self.lora_dropout[str(self.active_adapters[0])]
        return dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., i) -> (..., o)."""
        if kwargs or not self.plain():
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        return (self.family or _Family([self])).output(self, x) if self.short_way else self._in_small_kernels(x)

    def _in_small_kernels(self, x: Tensor) -> Tensor:
        """As peft, but in the precision of ``x``: peft casts it to the adapter's float32, which costs a product several times as much."""
        name = str(self.active_adapters[0])
        a_ri, b_or = (cast(Tensor, part[name].weight).to(x.dtype) for part in (self.lora_A, self.lora_B))
        base: Tensor = self.base_layer(x)
        inner = nn.functional.linear(self.lora_dropout[name](x), a_ri)
        return base + nn.functional.linear(inner, b_or) * float(self.scaling[name])

    def seen(self, x_ni: Tensor) -> Tensor:
        """Which numbers of its input the adapter sees, drawn anew. (n, i)"""
        seed = getattr(_BIN, "seed", None) if x_ni.device.type == "cpu" else None
        generator = None if seed is None else torch.Generator().manual_seed((seed + self.number * _PRIME) % 2**63)
        return torch.empty_like(x_ni, dtype=torch.bool).bernoulli_(1 - self.left_out, generator=generator)


class _LoraProduct(torch.autograd.Function):
    """``x W' + b + s (x A') B'`` for a frozen W and b, as one tensor a sibling.

    W and A of all siblings are one product; each B takes part in its own columns alone. ``weights`` are the siblings' A and B in
    float32, for autograd to see; the products take their copies in ``stacked``. With dropout there is one of ``seen`` a sibling, so each
    A has an input of its own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, origin: Again | None, stacked: _Stacked, seen: Sequence[Tensor],
                *weights: Tensor) -> tuple[Tensor, ...]:
        x_ni = x.reshape(-1, x.shape[-1])
        if seen:
            inner_nr = torch.cat([(x_ni * one) @ a_ri.T for one, a_ri in zip(seen, stacked.a_ri.split(stacked.ranks), strict=True)], dim=1)
        else:
            inner_nr = x_ni @ stacked.a_ri.T
        weight_io = stacked.frozen.weight_oi.T
        result_no = x_ni @ weight_io if stacked.frozen.bias_o is None else torch.addmm(stacked.frozen.bias_o, x_ni, weight_io)
        results = result_no.split(stacked.outputs, dim=1)
        for result, inner, b_or in zip(results, inner_nr.split(stacked.ranks, dim=1), stacked.b_or, strict=True):
            result.addmm_(inner, b_or.T)
        ctx.save_for_backward(inner_nr, *seen, *(x_ni,) if origin is None else origin.of)
        ctx.make, ctx.stacked, ctx.shape, ctx.seen = origin and origin.make, stacked, x.shape, len(seen)
        return tuple(result.view(*x.shape[:-1], -1) for result in results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inner_nr, *others = ctx.saved_tensors
        seen, source = others[: ctx.seen], others[ctx.seen:]
        stacked: _Stacked = ctx.stacked
        parts = [gradient.reshape(len(inner_nr), -1) for gradient in gradients]
        inner_gradient_nr = torch.empty_like(inner_nr)
        inner_parts = inner_gradient_nr.split(stacked.ranks, dim=1)
        for part, b_or, inner_gradient in zip(parts, stacked.b_or, inner_parts, strict=True):
            torch.mm(part, b_or, out=inner_gradient)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            gradient_no = _side_by_side(parts)
            x_gradient = gradient_no @ stacked.frozen.weight_oi
            if not seen:
                x_gradient.addmm_(inner_gradient_nr, stacked.a_ri)
            for one, a_ri, inner in zip(seen, stacked.a_ri.split(stacked.ranks), inner_parts, strict=False):
                x_gradient += (inner @ a_ri).mul_(one)
            x_gradient = x_gradient.view(ctx.shape)
        x_ni = (ctx.make(x_gradient, *source) if ctx.make else source[0]).reshape(len(inner_nr), -1)
        if seen:
            a_gradients = [(inner.T @ (x_ni * one)).float() for one, inner in zip(seen, inner_parts, strict=True)]
        else:
            a_gradients = [*(inner_gradient_nr.T @ x_ni).float().split(stacked.ranks)]
        b_gradients = [(part.T @ inner).float().mul_(scale) for part, inner, scale in
                       zip(parts, inner_nr.split(stacked.ranks, dim=1), stacked.scales, strict=True)]
        return x_gradient, None, None, None, *a_gradients, *b_gradients


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Parts of the same rows as one matrix; where they lie side by side in memory already, it is that memory. (n, o) each"""
    first, width = parts[0], sum(part.shape[1] for part in parts)
    if len(parts) == 1:
        return first
    memory, place = first.untyped_storage().data_ptr(), first.storage_offset()
    for part in parts:
        if part.untyped_storage().data_ptr() != memory or part.storage_offset() != place or part.stride() != (width, 1):
            return torch.cat(list(parts), dim=1)
        place += part.shape[1]
    return first.as_strided((len(first), width), (width, 1))


class _Frozen(NamedTuple):
    """The weights of the siblings' own layers, one below the other."""

    weight_oi: Tensor
    bias_o: Tensor | None


class _Stacked:
    """The adapters of siblings in the precision of the products: all A one below the other, each B by itself, times its scale."""

    def __init__(self, members: Sequence[LoraLinear], frozen: _Frozen, period: object | None = None) -> None:
        self._period = period
        self.frozen, self._parts = frozen, _parts_of(members)
        self.trained = (*self._parts.a, *self._parts.b)
        self.ranks, self.outputs, self.scales = [len(one) for one in self._parts.a], [len(one) for one in self._parts.b], self._parts.scales
        self.a_ri = torch.empty(sum(self.ranks), self.trained[0].shape[1], dtype=frozen.weight_oi.dtype, device=self.trained[0].device)
        self.b_or = [torch.empty_like(weight, dtype=frozen.weight_oi.dtype) for weight in self._parts.b]
        self._copy()

    def follow(self, members: Sequence[LoraLinear], period: object) -> bool:
        """Hold the members' adapters as they are in this period, if they are the same ones."""
        if self._period is not period:
            now = _parts_of(members)
            if now.scales != self.scales or any(one is not other for one, other in zip((*now.a, *now.b), self.trained, strict=True)):
                return False
            self._copy()
            self._period = period
        return True

    @torch.no_grad()
    def _copy(self) -> None:
        for weight, rows in zip(self._parts.a, self.a_ri.split(self.ranks), strict=True):
            rows.copy_(weight)
        for weight, copied, scale in zip(self._parts.b, self.b_or, self.scales, strict=True):
            copied.copy_(weight * scale)


class _Adapters(NamedTuple):
    """A, B and the scale of each sibling."""

    a: list[Tensor]
    b: list[Tensor]
    scales: list[float]


def _parts_of(members: Sequence[LoraLinear]) -> _Adapters:
    names = [str(member.active_adapters[0]) for member in members]
    return _Adapters([cast(Tensor, member.lora_A[name].weight) for member, name in zip(members, names, strict=True)],
                     [cast(Tensor, member.lora_B[name].weight) for member, name in zip(members, names, strict=True)],
                     [member.scaling[name] / (1 - member.left_out) for member, name in zip(members, names, strict=True)])


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Inside, in all threads, adapters stay as they are: their copies in the precision of the products are made once for all passes.

    A version that torch counts would not do: its fused optimisers do not count it up.
    """
    global _PERIOD  # the process's: lanes are other threads
    _PERIOD = object()
    try:
        yield
    finally:
        _PERIOD = None


class _Family:
    """Layers that are given the same input, in the order in which they are called. The first call computes all of them.

    What waits for the later calls is kept for each thread by itself.
    """

    def __init__(self, members: Sequence[LoraLinear]) -> None:
        self._members = list(members)
        self._frozen = _stack_in_place(members)
        self._held: _Stacked | None = None
        self._lock = threading.Lock()
        self._waiting = threading.local()
        for member in members:
            member.family = self

    def output(self, member: LoraLinear, x: Tensor) -> Tensor:
        """(..., i) -> (..., o) of this member."""
        held: tuple[Tensor, dict[LoraLinear, Tensor]] | None = getattr(self._waiting, "held", None)
        if held is None or held[0] is not x or member not in held[1]:
            stacked = self._now()
            seen = [one.seen(x.reshape(-1, x.shape[-1])) for one in self._members] if member.left_out else []
            outputs = _LoraProduct.apply(x, again(x), stacked, seen, *stacked.trained)  # type: ignore[no-untyped-call]  # torch's own
            held = (x, dict(zip(self._members, outputs, strict=True)))
        output = held[1].pop(member)
        self._waiting.held = held if held[1] else None
        return output

    def _now(self) -> _Stacked:
        """The adapters as they are; see ``unchanged``.

        Copies stay where they are from one period to the next: made anew each time, between tensors that come and go with each bin, they
        left holes that a heap could not fill again.
        """
        period = _PERIOD
        if period is None:
            return _Stacked(self._members, self._frozen)
        with self._lock:
            if self._held is None or not self._held.follow(self._members, period):
                self._held = _Stacked(self._members, self._frozen, period)
            return self._held


def _stack_in_place(members: Sequence[LoraLinear]) -> _Frozen:
    """One matrix for all; the layers' own weights become views of its rows, so that no weight is held twice."""
    layers: list[Any] = [member.base_layer for member in members]
    if len(layers) == 1:
        return _Frozen(layers[0].weight, layers[0].bias)
    weight_oi = torch.cat([layer.weight.detach() for layer in layers])
    for layer, rows in zip(layers, weight_oi.split([len(layer.weight) for layer in layers]), strict=True):
        forget(layer.weight)
        layer.weight.data = rows
    return _Frozen(weight_oi, None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers]))


def join_siblings(model: nn.Module, run: Callable[[], object]) -> int:
    """Find the layers that are given the same tensor, one after the other, and let each such family compute together.

    Which are is seen, not read off their names: ``run()`` is one forward pass of the model.

    Returns:
        how many families of two layers or more there are.
    """
    calls: list[tuple[LoraLinear, Tensor]] = []
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    hooks = [layer.register_forward_pre_hook(lambda layer, inputs: calls.append((layer, inputs[0]))) for layer in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    families: list[tuple[Tensor, list[LoraLinear]]] = []
    for layer, x in calls:
        if families and families[-1][0] is x:
            families[-1][1].append(layer)
        else:
            families.append((x, [layer]))
    if len({layer for layer, _ in calls}) < len(calls):
        return 0  # a layer that is used twice in a pass is no one's sibling
    joined = [_Family(members) for _, members in families if len(members) > 1 and _alike(members)]
    return len(joined)


def _alike(members: Sequence[LoraLinear]) -> bool:
    return all(member.plain() for member in members) and len({(member.base_layer.bias is None, member.left_out) for member in members}) == 1


def number_layers(model: nn.Module) -> None:
    """Tell each layer which one of the model's it is."""
    for number, layer in enumerate(module for module in model.modules() if isinstance(module, LoraLinear)):
        layer.number = number


def use_our_layer(config: LoraConfig) -> LoraConfig:
    """Tell peft to build ``LoraLinear`` for every plain ``nn.Linear``. The saved adapter is an ordinary one."""
    config._register_custom_module({nn.Linear: cast(Any, _our_layer)})
    return config


def _our_layer(target: nn.Module, adapter_name: str, **kwargs: Any) -> LoraLinear | None:
    """Our layer on a plain one; None leaves all others to peft. A quantised layer is an ``nn.Linear`` too, whose weight is no matrix."""
    return LoraLinear(target, adapter_name, **kwargs) if type(target) is nn.Linear else None
