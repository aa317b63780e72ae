"""The engine in this process: a transformers model, prompts sorted by length, batches that shrink.

A long prompt does not make many short ones as long as itself: it goes ahead (``batch_of``).
Rows that are done leave the batch as soon as an eighth of them is, so that a few long answers do not make the rest of their
batch compute for nothing. What all prompts of a batch begin with, such as a template's system prompt, is read once. On a processor
the cores share a large batch out among them. Each row has random numbers of its own: what is sampled for a prompt does not depend
on its company, so work that was stopped goes on as if it had not been.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count
from queue import SimpleQueue
from threading import Event

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from transllm.errors import ModelError
from transllm.generation.beams import BeamSearch
from transllm.generation.cache import is_plain, make_cache
from transllm.generation.engine import Generated, Guide, Sampling
from transllm.lanes import lanes

_NUCLEUS = 1024
_WORTH_SHARING = 8  # tokens
_STEP = {"cpu": 64}  # tokens of prompts that are read in the time of one step of a small batch, roughly
_STEP_ELSEWHERE = 1024
_READ_AT_ONCE = 65_536  # tokens, with padding: what a batch may keep in memory before it has written a word
_ROWS_A_LANE = 32  # with fewer, reading the weights once more for each lane costs what the lanes gain


@dataclass
class _Row:
    index: int
    prompt: Sequence[int]
    left: int
    seed: int
    ids: list[int] = field(default_factory=list)
    overruled: dict[int, int] = field(default_factory=dict)


class LocalEngine:
    """Continues prompts with a model in memory.

    Args:
        model: a decoder in evaluation mode.
        pad_id: any valid id; padded places are hidden from attention.
        batch_size: prompts in work at once.
        vocabulary: only ids below can be written; None is all. Padding rows of a matrix must never be.
    """

    def __init__(self, model: PreTrainedModel, *, pad_id: int, batch_size: int = 64, vocabulary: int | None = None) -> None:
        self._model = model
        self._pad = pad_id
        self._batch_size = batch_size
        self._vocabulary = vocabulary
        self._context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 2**31)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, limits: Sequence[int] | None = None,
                 on_token: Callable[[int, int], None] | None = None, draws: Sequence[int] | None = None) -> Iterator[Generated]:
        """See ``Engine.generate``.

        Args:
            draws: which of a prompt's samples each is to be, see ``Conversation.draw``. None counts equal prompts.

        Raises:
            ModelError: a prompt leaves no room in the model's context.
        """
        for number, prompt in enumerate(prompts):
            if not prompt or len(prompt) >= self._context:
                raise ModelError(f"Prompt {number} has {len(prompt)} tokens; the model takes 1 to {self._context - 1}. Shorten it.")
        seeds = _seeds(prompts, sampling.seed, draws) if sampling.temperature else [0] * len(prompts)
        # Longest first: memory peaks at the start, where it is noticed, and like lengths share a batch.
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        while order:
            lengths = [len(prompts[number]) for number in order[: max(1, self._batch_size // sampling.beams)]]
            size = batch_of(lengths, extra=sampling.max_new_tokens * _STEP.get(self._model.device.type, _STEP_ELSEWHERE))
            numbers, order = order[:size], order[size:]
            rows = [_Row(number, prompts[number], seed=seeds[number], left=min(
                sampling.max_new_tokens, self._context - len(prompts[number]),
                limits[number] if limits is not None else sampling.max_new_tokens)) for number in numbers]
            width = (min(torch.get_num_threads(), len(rows), len(rows) * sampling.beams // _ROWS_A_LANE)
                     if self._model.device.type == "cpu" else 1)
            with closing(self._side_by_side(rows, sampling, on_token, width=width) if width > 1 else
                         self._continue(rows, sampling, on_token)) as made:
                yield from made

    def _side_by_side(self, rows: list[_Row], sampling: Sampling, on_token: Callable[[int, int], None] | None, *,
                      width: int) -> Generator[Generated, None, None]:
        """Continue one batch in lanes; each takes every so many rows, so that all have prompts of like lengths."""
        found: SimpleQueue[Generated | None] = SimpleQueue()
        stop = Event()

        def lane(part: list[_Row]) -> None:
            try:
                with torch.inference_mode():  # a thread's own
                    for made in self._continue(part, sampling, on_token, stop=stop):
                        found.put(made)
            finally:
                found.put(None)

        with lanes(width) as run:
            ended = run(lane, [rows[start::width] for start in range(width)])
            try:
                for _ in range(width):
                    yield from iter(found.get, None)
                list(ended)  # raises what a lane raised
            finally:
                stop.set()

    def _continue(self, rows: list[_Row], sampling: Sampling, on_token: Callable[[int, int], None] | None, *,
                  stop: Event | None = None) -> Generator[Generated, None, None]:
        """Continue one batch."""
        return (self._beams if sampling.beams > 1 else self._batch)(rows, sampling, on_token, stop or Event())

    def _beams(self, rows: list[_Row], sampling: Sampling, on_token: Callable[[int, int], None] | None,
               stop: Event) -> Generator[Generated, None, None]:
        """Continue one batch with several beginnings for each prompt; prompts that are done leave it."""
        cache, mask, logits = self._prefill([row.prompt for row in rows])
        search = BeamSearch([row.left for row in rows], beams=sampling.beams, stop_ids=sampling.stop_ids)
        while not stop.is_set():
            if sampling.repetition_penalty != 1:
                logits = _penalised(logits, search.said, sampling)
            parents, done = search.step(logits[:, : self._vocabulary])
            for best in done:
                index = rows[best.place].index
                if on_token is not None:
                    for token in best.ids:
                        on_token(index, token)
                yield Generated(index, best.ids, best.finish)
            if not parents:
                return
            keep = torch.tensor(parents, device=mask.device)
            cache.batch_select_indices(keep)
            last = torch.tensor([ids[-1] for ids in search.said], device=mask.device)
            mask, logits = self._step(cache, mask[keep], last)

    def _batch(self, rows: list[_Row], sampling: Sampling, on_token: Callable[[int, int], None] | None,
               stop: Event) -> Generator[Generated, None, None]:
        """Continue one batch; rows that are done leave it."""
        cache, mask, logits = self._prefill([row.prompt for row in rows])
        draws = _draws(rows).to(self._model.device) if sampling.temperature else None
        for step in count():
            if stop.is_set():
                return
            if sampling.repetition_penalty != 1:
                logits = _penalised(logits, [row.ids for row in rows], sampling)
            last = self._choose(logits, sampling, draws[:, step] if draws is not None else None)
            if sampling.guide is not None:
                last = _guided(rows, last, sampling.guide)
            yield from self._collect(rows, last, sampling, on_token)
            alive = [place for place, row in enumerate(rows) if row.left > 0]
            if not alive:
                return
            if len(alive) <= len(rows) * 7 // 8:
                rows = [rows[place] for place in alive]
                keep = torch.tensor(alive, device=last.device)
                cache.batch_select_indices(keep)
                mask, last = mask[keep], last[keep]
                draws = draws[keep] if draws is not None else None
            mask, logits = self._step(cache, mask, last)

    def _step(self, cache: DynamicCache, mask_BT: Tensor, last_B: Tensor) -> tuple[Tensor, Tensor]:
        """The mask with one more token in each row, and the logits of what comes next (B, V)."""
        mask = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], dim=1)
        # Rows that are done but still in the batch may run past the context; their positions must stay in it.
        positions = (mask.sum(1, keepdim=True) - 1).clamp_max(self._context - 1)
        output = self._model(input_ids=last_B.unsqueeze(1), attention_mask=mask, position_ids=positions, past_key_values=cache,
                             use_cache=True)
        return mask, output.logits[:, -1]

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[DynamicCache, Tensor, Tensor]:
        """The cache after the prompts, their mask (B, T) and the logits of what comes next (B, V)."""
        cache = make_cache(self._model)
        shared = self._prefill_shared(prompts, cache)
        longest = max(map(len, prompts)) - shared
        device = self._model.device
        ids = torch.full((len(prompts), longest), self._pad, device=device)
        mask = torch.zeros(len(prompts), shared + longest, dtype=torch.long, device=device)
        mask[:, :shared] = 1
        for place, prompt in enumerate(prompts):
            rest = prompt[shared:]
            ids[place, longest - len(rest):] = torch.tensor(list(rest), device=device)
            mask[place, shared + longest - len(rest):] = 1
        # The last place as an index, not as the number 1: that would hand the head a view with gaps, for which torch copies the head's
        # matrix once a row (15 s for 100 rows of 50,000 columns).
        output = self._model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)[:, shared:],
                             past_key_values=cache, use_cache=True, logits_to_keep=torch.tensor([longest - 1], device=device))
        return cache, mask, output.logits[:, -1]

    def _prefill_shared(self, prompts: Sequence[Sequence[int]], cache: DynamicCache) -> int:
        """Read what all prompts begin with once for all of them, such as a template's system prompt; gives how many tokens that were."""
        first, last = min(prompts, key=list), max(prompts, key=list)  # what these two share, all share
        shared = next((place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other),
                      min(len(first), len(last)))
        shared = min(shared, min(map(len, prompts)) - 1)  # each has a token left to read, whose logits come next
        if len(prompts) == 1 or shared < _WORTH_SHARING or not is_plain(cache):
            return 0
        device = self._model.device
        self._model(input_ids=torch.tensor([list(first[:shared])], device=device), past_key_values=cache, use_cache=True,
                    logits_to_keep=torch.tensor([shared - 1], device=device))
        cache.batch_select_indices(torch.zeros(len(prompts), dtype=torch.long, device=device))
        return shared

    def _choose(self, logits_BV: Tensor, sampling: Sampling, draws_B: Tensor | None) -> Tensor:
        """The next token of each row (B,), from numbers in [0, 1) if it is to be sampled."""
        logits = logits_BV[:, : self._vocabulary]
        if draws_B is None:
            return logits.max(-1).indices  # argmax says the same and takes three times as long on a processor
        probabilities = (logits.float() / sampling.temperature).softmax(-1)
        if sampling.top_p == 1:
            return _inverse(probabilities, draws_B)
        # The nucleus is sought among the likeliest tokens: sorting a whole vocabulary costs as much as the model's step.
        ordered, places = probabilities.topk(min(_NUCLEUS, probabilities.shape[-1]))
        ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0
        return places.gather(-1, _inverse(ordered, draws_B).unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def _collect(rows: Sequence[_Row], last: Tensor, sampling: Sampling,
                 on_token: Callable[[int, int], None] | None) -> Iterator[Generated]:
        for row, token in zip(rows, last.tolist(), strict=True):
            if row.left <= 0:
                continue
            row.ids.append(token)
            row.left -= 1
            if on_token is not None:
                on_token(row.index, token)
            if token in sampling.stop_ids or row.left == 0:
                row.left = 0
                yield Generated(row.index, row.ids, "stop" if token in sampling.stop_ids else "length", row.overruled)


def _guided(rows: Sequence[_Row], last_B: Tensor, guide: Guide) -> Tensor:
    """The tokens to write (B,), where the model chose others noted in the rows."""
    chosen = last_B.tolist()
    written = [guide(row.ids, token) if row.left > 0 else token for row, token in zip(rows, chosen, strict=True)]
    for row, token, instead in zip(rows, chosen, written, strict=True):
        if instead != token:
            row.overruled[len(row.ids)] = token
    return last_B.new_tensor(written)


def _penalised(logits_BV: Tensor, said_B: Sequence[Sequence[int]], sampling: Sampling) -> Tensor:
    """Logits with those of the tokens that a row said since its last fresh start divided by the penalty (multiplied, if negative)."""
    said = [(place, token) for place, ids in enumerate(said_B) for token in _since(ids, sampling.fresh_ids)]
    if not said:
        return logits_BV
    at = torch.tensor(said, device=logits_BV.device).unbind(1)
    old = logits_BV[at]
    return logits_BV.index_put(at, torch.where(old > 0, old / sampling.repetition_penalty, old * sampling.repetition_penalty))


def _since(ids: Sequence[int], fresh_ids: frozenset[int]) -> set[int]:
    """The tokens that were said since the last of these ids."""
    start = next((place + 1 for place in range(len(ids) - 1, -1, -1) if ids[place] in fresh_ids), 0)
    return set(ids[start:])


def batch_of(lengths: Sequence[int], *, extra: int) -> int:
    """How many of the prompts at hand, longest first, are worth a batch of their own.

    All in a batch are padded to its longest: one prompt of 3,000 tokens among 63 short ones would cost as much as 64 such, in time and in
    memory. So the longest go ahead where the padding that this saves costs more than one more batch does.

    Args:
        lengths: of the prompts in tokens, not rising.
        extra: what the steps of one more batch cost, in tokens of prompts.
    """
    size = max(1, min(len(lengths), _READ_AT_ONCE // lengths[0]))
    while size > 1:
        saved, first = max(((size - place) * (lengths[0] - lengths[place]), place) for place in range(1, size))
        if saved <= extra:
            break
        size = first
    return size


def _seeds(prompts: Sequence[Sequence[int]], seed: int, draws: Sequence[int] | None = None) -> list[int]:
    """A seed for each prompt, of what it says and of how often it was said before: not of its place or its neighbours."""
    said: Counter[bytes] = Counter()
    found = []
    for place, prompt in enumerate(prompts):
        ids = array("q", prompt).tobytes()
        number = said[ids] if draws is None else draws[place]
        digest = blake2b(ids, digest_size=7, salt=number.to_bytes(8, "little"), key=str(seed).encode()).digest()
        found.append(int.from_bytes(digest, "big"))
        said[ids] += 1
    return found


def _draws(rows: Sequence[_Row]) -> Tensor:
    """Numbers in [0, 1), one for each token that a row may have, (B, T)."""
    longest = max(row.left for row in rows)
    return torch.stack([torch.rand(longest, generator=torch.Generator().manual_seed(row.seed)) for row in rows])


def _inverse(weights_BV: Tensor, draws_B: Tensor) -> Tensor:
    """The place in each row (B,) where the share of the weights so far passes the draw. Never one of weight 0."""
    sums = weights_BV.cumsum(-1)
    total = sums[:, -1]
    sought = torch.minimum(draws_B * total, torch.nextafter(total, total.new_zeros(())))
    return torch.searchsorted(sums, sought.unsqueeze(-1), right=True).squeeze(-1)
