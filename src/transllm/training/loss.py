"""Losses that never hold all logits: hidden states are projected only where something is learned, in chunks.

``summed_cross_entropy`` learns tokens, ``summed_kl`` another model's distribution. Both say what a chunk's logits cost and what the
gradient is; ``_Chunked`` does the rest. Gradients with respect to the hidden states and the head are taken chunk by chunk in the
forward pass, so a chunk's logits (of both models, for a KL) are the most that is ever in memory.

Shapes: T tokens of a packed row, N places among them where something is learned, n of these in a chunk; D hidden size, V columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from transllm.model.rows import SplitHead

IGNORE = -100
_CHUNK = 256
_CACHED_ROWS = 16

Divergence = Literal["forward", "reverse", "mixed"]
_Measure = Callable[[slice, Tensor, Tensor | None], Tensor]
"""(which of the places, their logits (n, V), where to write the gradient or None) -> the places' summed loss."""


class SoftLabels(NamedTuple):
    """Labels in whose place tokens are learned that were drawn from a distribution: in the gradient each counts its share.

    Attributes:
        which_T: for each place of a packed row its row of ``drawn_SM``, or -1.
        drawn_SM: M tokens for each of S places.
    """

    which_T: Tensor
    drawn_SM: Tensor


def final_logits(config: Any) -> Callable[[Tensor], Tensor]:
    """What the model's family does to its logits after the head: nothing, a soft cap (Gemma 2) or a scale (Cohere, Granite)."""
    config = config.get_text_config()  # a model of text and images keeps it one level down
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1.0
    scale = scale / (getattr(config, "logits_scaling", None) or 1.0)

    def finish(logits: Tensor) -> Tensor:
        if scale != 1.0:
            logits = logits * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return finish


class _Chunked(torch.autograd.Function):
    """Runs a measure over all places, a chunk at a time."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, measure: _Measure, project: Callable[[Tensor], Tensor], *trained: Tensor) -> Tensor:
        wanted = any(tensor.requires_grad for tensor in (hidden_ND, *trained))
        total = torch.zeros((), dtype=torch.promote_types(hidden_ND.dtype, torch.float32), device=hidden_ND.device)
        hidden_gradient = torch.empty_like(hidden_ND)
        gradients = [torch.zeros_like(weight) for weight in trained]
        for start in range(0, len(hidden_ND), _CHUNK):
            part = slice(start, start + _CHUNK)
            chunk = hidden_ND[part].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                logits = project(chunk)
            gradient = torch.empty_like(logits) if wanted else None
            total += measure(part, logits.detach(), gradient)
            if gradient is not None:
                # A row that the projection leaves out (new ones, in a KL) has no gradient.
                chunk_gradient, *rest = torch.autograd.grad(logits, [chunk, *trained], gradient, allow_unused=True)
                hidden_gradient[part] = chunk_gradient
                for weight, one in zip(gradients, rest, strict=True):
                    if one is not None:
                        weight += one
        ctx.save_for_backward(hidden_gradient, *gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, *rest = ctx.saved_tensors
        scale = gradients[0]
        return hidden_gradient * scale, None, None, *(gradient * scale for gradient in rest)


def _summed(hidden_ND: Tensor, measure: _Measure, *, head: nn.Module, project: Callable[[Tensor], Tensor]) -> Tensor:
    """The measure's sum over all places; the head's trained parameters get gradients."""
    # Weights of a loaded model ask for gradients by default; what counts is whether any are being taken.
    trained: Sequence[Tensor] = [parameter for parameter in head.parameters() if parameter.requires_grad and torch.is_grad_enabled()]
    total: Tensor = _Chunked.apply(hidden_ND, measure, project, *trained)  # type: ignore[no-untyped-call]  # torch's own
    return total


def _by_chunk(wanted_N: Tensor) -> list[Tensor]:
    """Which places of each chunk are wanted. An accelerator is waited for twice in all, not in each chunk."""
    places = wanted_N.nonzero().squeeze(-1)
    counts = torch.bincount(places // _CHUNK, minlength=math.ceil(len(wanted_N) / _CHUNK)).tolist()
    return [part % _CHUNK for part in places.split(counts)]


def _softmax_loss(logits_NV: Tensor, labels_N: Tensor, *, gradient: Tensor | None, drawn: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Sum of the cross entropies in float32, and their gradient (softmax minus one-hot) into ``gradient`` if one is given.

    One softmax serves both. It runs a few rows at a time, so that on a processor they stay in its cache: on whole matrices of
    50,000 columns memory, not arithmetic, sets the time. The kernel sums in float32 and rounds its results to the logits'
    precision, so a loss read off them is off by at most that rounding (in bfloat16 0.4 % of a probability: 0.004 nats, either
    way). Where no gradient is taken, the loss is exact.

    Args:
        drawn: which of the N are learned by drawn tokens (S,), and these (S, M): their gradient is softmax minus the share of each.
    """
    if gradient is None:
        return nn.functional.cross_entropy(logits_NV.float(), labels_N, reduction="sum")
    rows = _CACHED_ROWS if logits_NV.device.type == "cpu" else len(logits_NV)
    for start in range(0, len(logits_NV), max(1, rows)):
        torch.softmax(logits_NV[start: start + rows], -1, out=gradient[start: start + rows])
    at_label = (torch.arange(len(labels_N), device=labels_N.device), labels_N)
    chosen = gradient[at_label]
    once = torch.ones_like(chosen)
    if drawn is not None:
        places_S, drawn_SM = drawn
        once[places_S] = 0
    gradient[at_label] = chosen - once  # not scatter_, which copies the whole matrix
    if drawn is not None:
        share = torch.full_like(drawn_SM, -1 / drawn_SM.shape[1], dtype=gradient.dtype)
        gradient.index_put_((places_S.unsqueeze(1).expand_as(drawn_SM), drawn_SM), share, accumulate=True)
    return -chosen.float().clamp_min(torch.finfo(torch.float32).tiny).log().sum()


def summed_cross_entropy(hidden_TD: Tensor, labels_T: Tensor, *, head: nn.Module, finish: Callable[[Tensor], Tensor],
                         heavy: Mapping[int, float] | None = None, soft: SoftLabels | None = None, soft_weight: float = 1.0) -> Tensor:
    """Sum of the negative log likelihoods of all labels, in nats.

    Args:
        hidden_TD: hidden states of a packed row.
        labels_T: next tokens; IGNORE where nothing is learned.
        head: projection to logits; its trained parameters get gradients.
        finish: what follows the head, see ``final_logits``.
        heavy: tokens whose labels count so many times in the gradient. The sum counts all alike, so that it stays what bits per
            byte are made of.
        soft: labels whose gradient is that of drawn tokens. In the sum they count as they are, for the same reason.
        soft_weight: how many times those count in the gradient, whatever token it is.
    """
    places = (labels_T != IGNORE).nonzero().squeeze(-1)
    labels_N = labels_T.index_select(0, places)
    times_N = torch.ones_like(labels_N, dtype=hidden_TD.dtype)
    for token, times in (heavy or {}).items():
        times_N.masked_fill_(labels_N == token, times)
    drawn: list[Tensor] = []
    if soft is not None:
        which_N = soft.which_T.index_select(0, places)
        drawn = _by_chunk(which_N >= 0)
        times_N.masked_fill_(which_N >= 0, soft_weight)
    # A few rows of a chunk; weighing the whole matrix would pass over it once more.
    weighed = _by_chunk(times_N != 1) if heavy or soft is not None else []

    def measure(part: slice, logits_nV: Tensor, gradient: Tensor | None) -> Tensor:
        number, learned = part.start // _CHUNK, None
        if soft is not None:
            learned = drawn[number], soft.drawn_SM.index_select(0, which_N[part].index_select(0, drawn[number]))
        nats = _softmax_loss(logits_nV, labels_N[part], gradient=gradient, drawn=learned)
        if gradient is not None and weighed:
            rows = weighed[number]
            gradient[rows] = gradient[rows] * times_N[part].to(gradient.dtype)[rows].unsqueeze(1)
        return nats

    return _summed(hidden_TD.index_select(0, places), measure, head=head, project=lambda chunk: finish(head(chunk)))


def summed_kl(student_ND: Tensor, teacher_ND: Tensor, *, head: SplitHead, finish: Callable[[Tensor], Tensor],
              teacher_head: Callable[[Tensor], Tensor] | None = None, kind: Divergence = "forward", temperature: float = 1.0,
              share: float = 0.5) -> Tensor:
    """Sum over places of the divergence between the original model's distribution and the student's, in nats.

    Both are distributions over the original vocabulary: the student's logits are cut to it and normalised anew. To that comes what the
    student gives to new tokens where the original speaks: minus the logarithm of the rest. Without it a student that would rather write a
    marker than a word is told nothing (two thirds of a demo's chains were left without an English answer). The sum of a forward KL and this
    is the KL over the whole vocabulary. Of the original P and the student Q:

    - ``forward``: KL(P||Q). The student covers all that the original says.
    - ``reverse``: KL(Q||P). The student says nothing that the original does not.
    - ``mixed``: the generalised Jensen-Shannon divergence, ``b KL(P||M) + (1 - b) KL(Q||M)`` with ``M = b P + (1 - b) Q`` and b the
      ``share``. Between both, and never more than ln 2 (arXiv 2306.13649).

    Args:
        student_ND: hidden states at the places, from the model that trains.
        teacher_ND: hidden states at the same places, from the original model; nothing flows back into them.
        head: the student's head; its trained old rows get gradients.
        finish: what follows the head, see ``final_logits``.
        teacher_head: the original's own head. None: the old rows of ``head``, which are the original's unless they train.
        temperature: both logits are divided by it. The sum is multiplied by its square, so that gradients stay as large as they were.
        share: b of ``mixed``, above 0 and below 1.

    Raises:
        ValueError: a setting is out of range, or the old rows train and no ``teacher_head`` is given.
    """
    if kind not in ("forward", "reverse", "mixed") or not temperature > 0 or not 0 < share < 1:
        raise ValueError(f"there is no divergence of kind '{kind}' at temperature {temperature} with share {share}")
    if teacher_head is None and head.rows.old.requires_grad:
        raise ValueError("the old rows of this head train, so they are not the original's: give a teacher_head")
    original = teacher_head or head.original

    def measure(part: slice, logits_nV: Tensor, gradient: Tensor | None) -> Tensor:
        with torch.no_grad():
            wanted_nV = finish(original(teacher_ND[part].detach()))
        old = slice(0, wanted_nV.shape[-1])
        nats = _divergence(logits_nV[:, old], wanted_nV, kind=kind, temperature=temperature, share=share,
                           gradient=None if gradient is None else gradient[:, old])
        return nats + _strayed(logits_nV, old.stop, gradient=gradient)

    return _summed(student_ND, measure, head=head, project=lambda chunk: finish(head(chunk)))


def _strayed(logits_nV: Tensor, size: int, *, gradient: Tensor | None) -> Tensor:
    """Sum of minus the logarithms of the probability of the first ``size`` tokens. With q the probabilities among these and m that of all
    others, the gradient is ``-m q`` there and the probability itself elsewhere; it is added to, or written into, ``gradient``."""
    dtype = torch.promote_types(logits_nV.dtype, torch.float32)
    total = torch.zeros((), dtype=dtype, device=logits_nV.device)
    rows = _CACHED_ROWS if logits_nV.device.type == "cpu" else max(1, len(logits_nV))
    for start in range(0, len(logits_nV) if logits_nV.shape[-1] > size else 0, rows):
        part = slice(start, start + rows)
        old, new = logits_nV[part, :size].to(dtype), logits_nV[part, size:].to(dtype)
        of_old, of_new = old.logsumexp(-1, keepdim=True), new.logsumexp(-1, keepdim=True)
        of_all = torch.logaddexp(of_old, of_new)
        total += (of_all - of_old).sum()
        if gradient is not None:
            gradient[part, :size] -= ((old - of_old).exp_().mul_((of_new - of_all).exp())).to(gradient.dtype)
            gradient[part, size:] = (new - of_all).exp_().to(gradient.dtype)
    return total


def _divergence(student_nV: Tensor, teacher_nV: Tensor, *, kind: Divergence, temperature: float, share: float,
                gradient: Tensor | None) -> Tensor:
    """Sum of the divergences of rows of logits, and their gradient with respect to the student's into ``gradient`` if one is given.

    A few rows at a time, as in ``_softmax_loss``: the float32 copies that differences of logarithms need are never a whole chunk's.
    With q the student's probabilities, a divergence ``sum q g`` whose g is ``log q - log m`` has the gradient ``q (g - sum q g)``; the
    forward one has ``q - p``.
    """
    dtype = torch.promote_types(student_nV.dtype, torch.float32)
    total = torch.zeros((), dtype=dtype, device=student_nV.device)
    rows = _CACHED_ROWS if student_nV.device.type == "cpu" else max(1, len(student_nV))
    for start in range(0, len(student_nV), rows):
        part = slice(start, start + rows)
        log_q, log_p = (torch.log_softmax(logits[part].to(dtype) / temperature, -1) for logits in (student_nV, teacher_nV))
        q = log_q.exp()
        if kind == "forward":
            p = log_p.exp()
            total += (p * (log_p - log_q)).sum()
            slope = q.sub_(p)
        else:
            # For the mixture m the logarithm of b p + (1 - b) q is taken without leaving logarithms: both may be far below 1.
            log_m = log_p if kind == "reverse" else torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))
            weight = 1.0 if kind == "reverse" else 1 - share
            ratio = log_q - log_m
            inner = (q * ratio).sum(-1, keepdim=True)
            total += weight * inner.sum()
            if kind == "mixed":
                total += share * (log_p.exp() * (log_p - log_m)).sum()
            slope = ratio.sub_(inner).mul_(q).mul_(weight)
        if gradient is not None:
            gradient[part] = slope.mul_(temperature)  # 1 / temperature by the chain rule, times the square of it
    return total * temperature**2
