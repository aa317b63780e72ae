"""Lengths that a processor has met before.

oneDNN writes machine code for each product of a new size: some five milliseconds, and the code of a thousand sizes is kept. The fifty
products of a bin are all of a new size for each new number of tokens, and bins have nearly as many lengths as there are tokens in them. So
tokens are rounded up to a number that comes again; the few that are added are computed and thrown away.
"""

from __future__ import annotations

import torch

_STEP = 32
"""Not more: each bin has half of this too many in the middle. Not less: a bin of 1,024 has 32 lengths, of which most come rarely."""


def to_round(count: int, device: torch.device) -> int:
    """How many tokens to add to so many; none on accelerators, which have kernels for all."""
    return -count % _STEP if device.type == "cpu" else 0
