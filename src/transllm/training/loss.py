"""Losses that never hold all logits: hidden states are projected only where something is learned, in chunks.

``summed_cross_entropy`` learns tokens, ``summed_kl`` another model's distribution. Both say what a chunk's logits cost and what the
gradient is; ``_Chunked`` does the rest. What a divergence does to its logits is a ``Kernel``, which can be compiled. Gradients with respect
to the hidden states and the head are taken chunk by chunk in the forward pass, so a chunk's logits (of both models, for a KL) are the most
that is ever in memory.

Shapes: T tokens of a packed row, N places among them where something is learned, n of these in a chunk; D hidden size, V columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from transllm.model.rounding import to_round
from transllm.model.rows import SplitHead

IGNORE = -100
CHUNK = 512
"""Places whose logits are in memory at once. A processor lays out the head's whole matrix anew for each product with it: on one with AMX
512 rows take as long as 256."""

_CACHED_ROWS = 16

Divergence = Literal["forward", "reverse", "mixed"]
_Measure = Callable[[slice, Tensor, Tensor | None], Tensor]
"""(which of the places, their logits (n, V), where to write the gradient or None) -> the places' summed loss. Where to write may be the
logits' own memory, if it is said that the measure allows that."""

Kernel = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(the student's logits (n, V), the original's (n, V or fewer), where to write the gradient (n, V) or None) -> the summed divergence."""


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
    """Runs a measure over all places, a chunk at a time.

    All chunks' logits lie in the same memory, one after the other. On a processor the gradient is written over them where nobody reads them
    afterwards: memory that is touched for the first time costs as much as the softmax.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, measure: _Measure, head: nn.Module, finish: Callable[[Tensor], Tensor], in_place: bool,
                *trained: Tensor) -> Tensor:
        wanted = any(tensor.requires_grad for tensor in (hidden_ND, *trained))
        total = torch.zeros((), dtype=torch.promote_types(hidden_ND.dtype, torch.float32), device=hidden_ND.device)
        hidden_gradient = torch.empty_like(hidden_ND)
        gradients = [torch.zeros_like(weight) for weight in trained]
        most = min(CHUNK, len(hidden_ND))
        project = head.into(most + to_round(most, hidden_ND.device), like=hidden_ND) if isinstance(head, SplitHead) else head
        for start in range(0, len(hidden_ND), CHUNK):
            part = slice(start, start + CHUNK)
            count = len(hidden_ND[part])
            chunk = nn.functional.pad(hidden_ND[part].detach(), (0, 0, 0, to_round(count, hidden_ND.device))).requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                raw = project(chunk)
                logits = finish(raw)
            gradient: Tensor | None = None
            if wanted:
                gradient = logits.detach() if in_place and logits is raw and logits.device.type == "cpu" else torch.empty_like(logits)
            total += measure(part, logits.detach()[:count], None if gradient is None else gradient[:count])
            if gradient is not None:
                gradient[count:] = 0
                # A row that the projection leaves out (new ones, in a KL) has no gradient.
                chunk_gradient, *rest = torch.autograd.grad(logits, [chunk, *trained], gradient, allow_unused=True)
                hidden_gradient[part] = chunk_gradient[:count]
                for weight, one in zip(gradients, rest, strict=True):
                    if one is not None:
                        weight += one
        ctx.save_for_backward(hidden_gradient, *gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, *rest = ctx.saved_tensors
        scale = gradients[0]
        return hidden_gradient * scale, *[None] * 4, *(gradient * scale for gradient in rest)


def _summed(hidden_ND: Tensor, measure: _Measure, *, head: nn.Module, finish: Callable[[Tensor], Tensor], in_place: bool) -> Tensor:
    """The measure's sum over all places; the head's trained parameters get gradients.

    Args:
        in_place: the measure is done with a logit when it writes that one's gradient.
    """
    # Weights of a loaded model ask for gradients by default; what counts is whether any are being taken.
    trained: Sequence[Tensor] = [parameter for parameter in head.parameters() if parameter.requires_grad and torch.is_grad_enabled()]
    total: Tensor = _Chunked.apply(hidden_ND, measure, head, finish, in_place, *trained)  # type: ignore[no-untyped-call]  # torch's own
    return total


def _by_chunk(wanted_N: Tensor) -> list[Tensor]:
    """Which places of each chunk are wanted. An accelerator is waited for twice in all, not in each chunk."""
    places = wanted_N.nonzero().squeeze(-1)
    counts = torch.bincount(places // CHUNK, minlength=math.ceil(len(wanted_N) / CHUNK)).tolist()
    return [part % CHUNK for part in places.split(counts)]


def _few_rows(logits_NV: Tensor) -> Iterator[slice]:
    """Rows to take at once: on a processor so few that they stay in its cache, elsewhere all."""
    rows = _CACHED_ROWS if logits_NV.device.type == "cpu" else max(1, len(logits_NV))
    return (slice(start, start + rows) for start in range(0, len(logits_NV), rows))


def _softmax_loss(logits_NV: Tensor, labels_N: Tensor, *, gradient: Tensor | None, drawn: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Sum of the cross entropies in float32, and their gradient (softmax minus one-hot) into ``gradient`` if one is given.

    One softmax serves both. It runs a few rows at a time, so that on a processor they stay in its cache: on whole matrices of
    50,000 columns memory, not arithmetic, sets the time. The kernel sums in float32 and rounds its results to the logits'
    precision, so a loss read off them is off by at most that rounding (in bfloat16 0.4 % of a probability: 0.004 nats, either
    way). Where no gradient is taken, the loss is exact.

    Args:
        gradient: may be the logits' own memory: a row's softmax is written when its logits have been read.
        drawn: which of the N are learned by drawn tokens (S,), and these (S, M): their gradient is softmax minus the share of each.
    """
    if gradient is None:
        nats = [nn.functional.cross_entropy(logits_NV[few].float(), labels_N[few], reduction="sum") for few in _few_rows(logits_NV)]
        return torch.stack(nats).sum()
    for few in _few_rows(logits_NV):
        torch.softmax(logits_NV[few], -1, out=gradient[few])
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
        number, learned = part.start // CHUNK, None
        if soft is not None:
            learned = drawn[number], soft.drawn_SM.index_select(0, which_N[part].index_select(0, drawn[number]))
        nats = _softmax_loss(logits_nV, labels_N[part], gradient=gradient, drawn=learned)
        if gradient is not None and weighed:
            rows = weighed[number]
            gradient[rows] = gradient[rows] * times_N[part].to(gradient.dtype)[rows].unsqueeze(1)
        return nats

    return _summed(hidden_TD.index_select(0, places), measure, head=head, finish=finish, in_place=True)


def summed_kl(student_ND: Tensor, teacher_ND: Tensor, *, head: SplitHead, finish: Callable[[Tensor], Tensor], kernel: Kernel,
              teacher_head: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Sum over places of the divergence between the original model's distribution and the student's, in nats.

    Args:
        student_ND: hidden states at the places, from the model that trains.
        teacher_ND: hidden states at the same places, from the original model; nothing flows back into them.
        head: the student's head; its trained old rows get gradients.
        finish: what follows the head, see ``final_logits``.
        kernel: of the divergence; see ``divergence_kernel``.
        teacher_head: the original's own head. None: the old rows of ``head``, which are the original's unless they train.

    Raises:
        ValueError: the old rows train and no ``teacher_head`` is given.
    """
    if teacher_head is None and head.rows.old.requires_grad:
        raise ValueError("the old rows of this head train, so they are not the original's: give a teacher_head")
    original = teacher_head or head.original

    def measure(part: slice, logits_nV: Tensor, gradient: Tensor | None) -> Tensor:
        wanted_nU = finish(original(teacher_ND[part].detach()))
        total = torch.zeros((), dtype=torch.promote_types(logits_nV.dtype, torch.float32), device=logits_nV.device)
        for few in _few_rows(logits_nV):  # so that the float32 copies that differences of logarithms need are never a whole chunk's
            total += kernel(logits_nV[few], wanted_nU[few], None if gradient is None else gradient[few])
        return total

    return _summed(student_ND, measure, head=head, finish=finish, in_place=False)


def divergence_kernel(kind: Divergence = "forward", *, temperature: float = 1.0, share: float = 0.5) -> Kernel:
    """How far a student Q is from the original model P, over the original's U tokens, the first of the student's V.

    Both are distributions over the original vocabulary: the student's logits are cut to it and normalised anew. To that comes what the
    student gives to new tokens where the original speaks: minus the logarithm of the rest. Without it a student that would rather write a
    marker than a word is told nothing (two thirds of a demo's chains were left without an English answer). The sum of a forward KL and this
    is the KL over the whole vocabulary.

    - ``forward``: KL(P||Q). The student covers all that the original says.
    - ``reverse``: KL(Q||P). The student says nothing that the original does not.
    - ``mixed``: the generalised Jensen-Shannon divergence, ``b KL(P||M) + (1 - b) KL(Q||M)`` with ``M = b P + (1 - b) Q`` and b the
      ``share``. Between both, and never more than ln 2 (arXiv 2306.13649).

    Args:
        temperature: both logits are divided by it. The sum is multiplied by its square, so that gradients stay as large as they were.
        share: b of ``mixed``, above 0 and below 1.

    Raises:
        ValueError: a setting is out of range.
    """
    if kind not in ("forward", "reverse", "mixed") or not temperature > 0 or not 0 < share < 1:
        raise ValueError(f"there is no divergence of kind '{kind}' at temperature {temperature} with share {share}")

    def kernel(student_nV: Tensor, teacher_nU: Tensor, gradient: Tensor | None) -> Tensor:
        size = teacher_nU.shape[-1]
        old, wanted = (logits.to(torch.promote_types(logits.dtype, torch.float32)) for logits in (student_nV[:, :size], teacher_nU))
        total, slope = _divergence(torch.log_softmax(old / temperature, -1), torch.log_softmax(wanted / temperature, -1), kind, share)
        total, slope = total * temperature**2, slope.mul_(temperature)  # by the chain rule 1 / temperature, times the square of it
        if student_nV.shape[-1] > size:
            new = student_nV[:, size:].to(old.dtype)
            of_old, of_new = old.logsumexp(-1, keepdim=True), new.logsumexp(-1, keepdim=True)
            of_all = torch.logaddexp(of_old, of_new)
            total += (of_all - of_old).sum()
            # With m the probability of all new tokens, the gradient is their own there, and -m times that among the old ones elsewhere.
            slope -= (old - of_old).exp_().mul_((of_new - of_all).exp())
            if gradient is not None:
                gradient[:, size:] = (new - of_all).exp_()
        if gradient is not None:
            gradient[:, :size] = slope
        return total

    return kernel


def _divergence(log_q: Tensor, log_p: Tensor, kind: Divergence, share: float) -> tuple[Tensor, Tensor]:
    """Sum of the divergences of rows, and their gradient with respect to the student's logits.

    A divergence ``sum q g`` whose g is ``log q - log m`` has the gradient ``q (g - sum q g)``; the forward one has ``q - p``.
    """
    q = log_q.exp()
    if kind == "forward":
        p = log_p.exp()
        return (p * (log_p - log_q)).sum(), q.sub_(p)
    # For the mixture m the logarithm of b p + (1 - b) q is taken without leaving logarithms: both may be far below 1.
    log_m = log_p if kind == "reverse" else torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))
    weight = 1.0 if kind == "reverse" else 1 - share
    ratio = log_q - log_m
    inner = (q * ratio).sum(-1, keepdim=True)
    total = weight * inner.sum()
    if kind == "mixed":
        total = total + share * (log_p.exp() * (log_p - log_m)).sum()
    return total, ratio.sub_(inner).mul_(q).mul_(weight)
