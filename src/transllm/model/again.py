"""Tensors that are made again in the backward pass, because that costs less than to keep them.

Much of what training holds are inputs of products that a cheap step made from what is held already: a norm's output from the normed
states, a gated product from its two factors. Such a tensor carries how it was made, and who would keep it keeps that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Again(NamedTuple):
    """How a tensor is made: ``make(gradient, *of)``, to the last bit.

    The gradient is the tensor's own, or None where it is not known: for who makes both in one pass.
    """

    make: Callable[..., Tensor]
    of: tuple[Tensor, ...]


def made(x: Tensor, make: Callable[..., Tensor], *of: Tensor) -> Tensor:
    """The tensor, with how it was made; it is passed on as it is. What it was made of must be kept by somebody anyway."""
    x._transllm_again = Again(make, tuple(one.detach() for one in of))  # type: ignore[attr-defined]
    return x


def again(x: Tensor) -> Again | None:
    """How it was made, where that is known."""
    return getattr(x, "_transllm_again", None)
