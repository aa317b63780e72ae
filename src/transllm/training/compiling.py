"""What a training compiles: the model's layers, and what a divergence does to logits, each where that is measured to be faster."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from transllm.model.adapter import Adapted
from transllm.model.compiled import Steps, compile_if_faster, compile_layers
from transllm.training.loss import CHUNK
from transllm.training.packing import batches_of
from transllm.training.rows import Rows
from transllm.training.schedule import Plan
from transllm.training.step import LossModule

_TRIED = 3  # bins on which layers are tried

Compiled = dict[str, dict[str, Any]]
"""``layers`` and ``divergence``, as far as they were tried, with what ``compile_if_faster`` says of them."""


def compile_what_pays(adapted: Adapted, module: LossModule, rows: Rows, plan: Plan, *, mirrored: bool,
                      before: Mapping[str, bool]) -> Compiled:
    """Compile what is faster so. For accelerators: on a processor nothing is, and to find that out takes longer than a demo's stage.

    Args:
        mirrored: whether bins are held against the original.
        before: what was found when this training began.
    """
    found: Compiled = {}
    if not adapted.sharded:
        bins = [members for step in plan[:_TRIED] for members in step][:_TRIED]
        parameters = list(adapted.trainable().values())
        steps = [lambda batch=batch: torch.autograd.grad(module(batch).whole, parameters, allow_unused=True)
                 for batch in batches_of(rows, bins, device=adapted.device)]
        found["layers"] = compile_layers(adapted.base, steps, before=before.get("layers"))
    if mirrored:
        found["divergence"] = compile_divergence(module, _chunks(adapted, module), before=before.get("divergence"))
    return found


def compile_divergence(module: LossModule, steps: Steps, *, before: bool | None = None, backend: str = "inductor") -> dict[str, Any]:
    """Compile the divergence's kernel if that pays: as written it passes over the logits, in float32, some twenty times.

    The cross entropy has nothing to gain: it is one softmax, which reads its logits and writes its gradient once.
    """
    plain = module.kernel

    def take() -> None:
        # Not ``dynamic``: columns never change, and are known in the code. Rows do with the last chunk, which makes a second graph for all.
        module.kernel = torch.compile(plain, backend=backend)

    def leave() -> None:
        module.kernel = plain

    return compile_if_faster(take, leave, steps, before=before)


def _chunks(adapted: Adapted, module: LossModule) -> Steps:
    """A full chunk and a last one."""
    student_nV = torch.zeros(CHUNK, adapted.size, device=adapted.device, dtype=adapted.head.rows.compute_dtype)
    teacher_nU, gradient_nV = student_nV[:, : adapted.original_size].contiguous(), torch.empty_like(student_nV)

    def chunk(rows: int) -> None:
        module.kernel(student_nV[:rows], teacher_nU[:rows], gradient_nV[:rows])

    return [partial(chunk, CHUNK), partial(chunk, CHUNK // 3)]
