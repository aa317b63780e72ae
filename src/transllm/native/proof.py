"""Whether compiled kernels compute what they should: compilers differ, and a wrong gradient would train for days before anybody sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transllm.native import Kernels

_CLOSE = {torch.bfloat16: 0.01, torch.float32: 1e-5}
_Pair = tuple[str, Tensor, Tensor]
"""What was computed, the kernel's, and torch's in float64."""


@torch.no_grad()
def wrong(kernels: Kernels) -> list[str]:
    """The kernels that are off by more than rounding, on random numbers (some ten milliseconds)."""
    draw = torch.Generator().manual_seed(1)
    return sorted({f"{name} in {str(dtype).removeprefix('torch.')}" for dtype, close in _CLOSE.items()
                   for name, ours, expected in _pairs(kernels, dtype, draw) if not _near(ours, expected, close)})


def _near(ours: Tensor, expected: Tensor, close: float) -> bool:
    distance = (ours.double().view_as(expected) - expected).norm()
    return bool(distance <= close * expected.norm())  # no where there is NaN


def _pairs(kernels: Kernels, dtype: torch.dtype, draw: torch.Generator) -> Iterator[_Pair]:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    gate, up, gradient = random(5, 77)[:, :37], random(5, 90)[:, 50: 87], random(5, 37)  # no multiple of a vector, and strides
    wide = [one.double().requires_grad_() for one in (gate, up)]
    with torch.enable_grad():
        product = nn.functional.silu(wide[0]) * wide[1]
        gradients = torch.autograd.grad(product, wide, gradient.double())
    yield "gate", kernels.gate(gate, up), product
    yield from (("gate_back", *pair) for pair in zip(kernels.gate_back(gradient, gate, up), (product, *gradients), strict=True))

    x, weight = random(5, 37), random(37)
    wide = [x.double().requires_grad_()]
    with torch.enable_grad():
        product = nn.functional.rms_norm(wide[0], (37,), weight.double(), 1e-5)
        gradients = torch.autograd.grad(product, wide, gradient.double())
    out, normed, inverse = kernels.norm(x, weight, 1e-5)
    yield "norm", out, product
    yield "norm_back", kernels.norm_back(gradient, normed, inverse, weight), gradients[0]
    yield "weigh", kernels.weigh(normed, weight), product

    heads, cos, sin = random(7, 5, 24)[:, :3].transpose(0, 1).unsqueeze(0), random(1, 1, 7, 24), random(1, 1, 7, 24)
    first, second = heads.double().chunk(2, -1)
    turned = heads.double() * cos.double() + torch.cat([-second, first], -1) * sin.double()
    yield "rotate", kernels.rotate(heads, cos, sin, back=False), turned
    of_sin = heads.double() * sin.double()
    first, second = of_sin.chunk(2, -1)
    yield "rotate", kernels.rotate(heads, cos, sin, back=True), heads.double() * cos.double() + torch.cat([second, -first], -1)

    if dtype == torch.bfloat16 and kernels.has_attention:
        yield from _attention(kernels, random)


def _attention(kernels: Kernels, random: Callable[..., Tensor]) -> Iterator[_Pair]:
    """Two documents, the second of which begins with ten tokens of the first; two query heads on one, and a window."""
    from transllm.native import Extent, Heads

    places = torch.cat([torch.arange(40), torch.arange(10), torch.arange(40, 105)])
    extent, heads = Extent(torch.tensor([40, 75]), torch.tensor([0, 10]), places, True), Heads(2, 1, 32)
    query, key, value, gradient = random(105, 64), random(105, 32), random(105, 32), random(105, 64)
    out, log_sums = kernels.attention(query, key, value, extent, heads, scale=0.2, window=50)
    ours = kernels.attention_back(gradient, query, key, value, out, log_sums, extent, heads, scale=0.2, window=50)

    wide = [one.double().requires_grad_() for one in (query, key, value)]
    expected = torch.zeros(105, 64, dtype=torch.float64)
    with torch.enable_grad():
        for own, at in zip((0, 10), places.split([40, 75]), strict=True):
            q, k, v = (one[at].view(len(at), -1, 32).transpose(0, 1) for one in wide)
            back = torch.arange(len(at)).unsqueeze(1) - torch.arange(len(at))
            scores = (q @ k.transpose(1, 2) * 0.2).masked_fill((back < 0) | (back >= 50), -torch.inf)
            expected = expected.index_add(0, at[own:], (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(at), 64)[own:])
        gradients = torch.autograd.grad(expected, wide, gradient.double())
    yield "attention", out, expected
    yield from (("attention_back", *pair) for pair in zip(ours, gradients, strict=True))
