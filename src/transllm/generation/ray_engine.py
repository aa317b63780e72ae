"""Conversations spread over workers on one machine or many, with Ray. A worker is a process that holds an engine of its own.

Why Ray's actors and not Ray Data: Ray Data starts its actors for a dataset and ends them with it, so each call would load the model
again in every worker, and *recover* makes many calls (rounds of self-prompting, turns, chunks). It also hands over whole blocks. Here
workers stay until ``close()``, each reply arrives when it is done, and when a worker ends only what it had not answered goes to another.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from transllm.errors import ModelError, TransLLMError
from transllm.generation.conversation import Conversation, ConversationEngine, Reply, ReplySampling, numbered
from transllm.generation.ray_cluster import Cluster

log = logging.getLogger(__name__)

_PATIENCE = 3  # workers in a row that end without a reply, until it is the work's fault and not the machine's
_POLL = 0.02  # seconds; Ray's own wait turns a signal into another exception than the program's handler raises
_LOOK_ROUND = 30.0  # seconds without a word, after which the cluster is asked whether it still has room


@dataclass(frozen=True)
class _Failed:
    """An error of a worker as text: not every exception can be pickled, and Ray would put its traceback around it."""

    text: str


@dataclass
class _Block:
    """Conversations that one worker has in work.

    Attributes:
        open: those that are not answered, by their number.
        sent: numbers in the order in which they were sent to the worker.
        deaths: workers that ended since the last reply.
    """

    open: dict[int, Conversation]
    sent: list[int] = field(default_factory=list)
    deaths: int = 0


@dataclass(eq=False)
class _Worker:
    """A worker as seen from here.

    Attributes:
        actor: Ray's handle.
        hears: what it was asked for: the opening of its engine, or a stream of replies. None: nothing.
        block: what it has in work.
    """

    actor: Any
    hears: Any
    opened: bool = False
    block: _Block | None = None


class _Inside:
    """What runs in a worker's process."""

    def __init__(self, opener: Callable[[], ConversationEngine], cpus: int) -> None:
        self._opener, self._cpus = opener, cpus

    def open(self) -> _Failed | None:
        """Open the engine, on as many threads as the worker has processors."""
        torch.set_num_threads(self._cpus)
        os.environ["OMP_NUM_THREADS"] = str(self._cpus)  # what other engines go by
        try:
            self._engine = self._opener()
        except Exception as error:
            return _told(error)
        return None

    def generate(self, conversations: Sequence[Conversation], sampling: ReplySampling) -> Iterator[Reply | _Failed]:
        """The engine's replies as they are done."""
        try:
            yield from self._engine.generate(conversations, sampling=sampling)
        except Exception as error:
            yield _told(error)


def _told(error: Exception) -> _Failed:
    return _Failed(str(error) if isinstance(error, TransLLMError) else f"A worker failed ({type(error).__name__}: {error}).")


class RayEngine:
    """Goes on with conversations on the workers of a Ray cluster. Replies are those of one engine in one process.

    Args:
        opener: makes the engine, once in each worker; it is pickled. What it reads must lie at the same path on every machine.
        workers: how many.
        address: of a cluster that runs (``auto``: the one that ``ray start`` began here; ``host:port``). None starts one on this
            machine, which ends with ``close()``.
        block: conversations that a worker gets at once.
        cpus: processors of a worker; its engine gets as many threads. None shares out those that there are.
        gpus: of a worker; it sees no others. None: one, if this machine has any.

    Raises:
        MissingExtraError: Ray is not installed.
        ModelError: no cluster answers, or it has no room for a worker.
    """

    name = "ray"

    def __init__(self, opener: Callable[[], ConversationEngine], *, workers: int = 2, address: str | None = None, block: int = 64,
                 cpus: int | None = None, gpus: float | None = None) -> None:
        self._opener, self._block, self._count = opener, block, workers
        self._workers: list[_Worker] = []
        self._deaths = 0
        self._cluster = Cluster(address, cpus=max(workers * (cpus or 1), os.cpu_count() or 1))
        try:
            self._gpus = float(torch.cuda.is_available()) if gpus is None else gpus
            self._cpus = cpus or self._cluster.share(workers)
            seats = self._cluster.seats(self._cpus, self._gpus)
            if seats < workers:
                log.warning("The Ray cluster has room for %d of %d workers; the others wait until there is more.", seats, workers)
            self._workers = [self._new_worker() for _ in range(workers)]
        except BaseException:
            self.close()
            raise

    def generate(self, conversations: Sequence[Conversation], *, sampling: ReplySampling) -> Iterator[Reply]:
        """See ``ConversationEngine.generate``.

        Raises:
            ModelError: an engine failed, or workers end again and again.
        """
        blocks = deque(self._blocks(conversations))
        try:
            while blocks or any(worker.block for worker in self._workers):
                for worker in self._workers:
                    if blocks and worker.opened and worker.block is None:
                        _hand(worker, blocks.popleft(), sampling)
                for worker in self._heard():
                    yield from self._take(worker, blocks)
        finally:
            for worker in self._workers:
                if worker.block is not None:  # left before the end; what it is asked next waits behind the rest of its block
                    worker.block = worker.hears = None

    def close(self) -> None:
        """End the workers, and the cluster if it was started here."""
        import ray

        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers = []
        self._cluster.close()

    def _blocks(self, conversations: Sequence[Conversation]) -> Iterator[_Block]:
        """Long ones first, so that like lengths share a batch; small blocks where there is little, so that all have some."""
        order = sorted(enumerate(numbered(conversations)), key=lambda pair: -sum(len(turn.content) for turn in pair[1].turns))
        size = max(1, min(self._block, -(-len(order) // self._count)))
        for start in range(0, len(order), size):
            yield _Block(dict(order[start: start + size]))

    def _heard(self) -> list[_Worker]:
        """Those that have something to say, as soon as there are any."""
        import ray

        asked = {worker.hears: worker for worker in self._workers if worker.hears is not None}
        looked = time.monotonic()
        while True:
            ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
            if ready:
                return [asked[one] for one in ready]
            time.sleep(_POLL)
            if time.monotonic() - looked > _LOOK_ROUND:
                looked = time.monotonic()
                if not any(worker.opened for worker in self._workers):
                    self._cluster.seats(self._cpus, self._gpus)

    def _take(self, worker: _Worker, blocks: deque[_Block]) -> Iterator[Reply]:
        """What a worker has to say: that its engine is open, or a reply, or that all is said. Or it has ended."""
        import ray

        try:
            said = ray.get(next(worker.hears) if worker.opened else worker.hears)
        except StopIteration:
            self._finished(worker)
            return
        except ray.exceptions.RayTaskError as error:  # it could not even take the work
            raise _not_begun(error) from None
        except ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):
                raise _not_begun(error) from None
            self._replace(worker, blocks)
            return
        if isinstance(said, _Failed):
            raise ModelError(said.text)
        if worker.block is None:
            worker.opened, worker.hears, self._deaths = True, None, 0
            return
        number = worker.block.sent[said.index]
        del worker.block.open[number]
        worker.block.deaths = 0
        yield replace(said, index=number)

    @staticmethod
    def _finished(worker: _Worker) -> None:
        block, worker.block, worker.hears = worker.block, None, None
        if block is not None and block.open:
            raise ModelError(f"The engine of a worker left {len(block.open)} conversations without a reply. This is a bug in that engine.")

    def _replace(self, worker: _Worker, blocks: deque[_Block]) -> None:
        """Another worker in place of one that has ended; what that one had not answered is the next work."""
        import ray

        block = worker.block
        if block is None:
            self._deaths += 1
            deaths, where = self._deaths, "while they open their engine"
        else:
            block.deaths += 1
            deaths, where = block.deaths, "at the same conversations"
        if deaths >= _PATIENCE:
            raise ModelError(f"The workers of Ray end again and again {where}: {deaths} in a row. Mostly their memory is short: give "
                             "recover.ray fewer workers or lower recover.batch_size.")
        log.warning("A worker of Ray was killed or lost; another takes its place%s.", f" and its {len(block.open)} open conversations"
                    if block else "")
        if block is not None:
            blocks.appendleft(block)
        ray.kill(worker.actor)
        self._workers[self._workers.index(worker)] = self._new_worker()

    def _new_worker(self) -> _Worker:
        import ray

        actor = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0)(_Inside).remote(self._opener, self._cpus)
        return _Worker(actor, actor.open.remote())


def _not_begun(error: Exception) -> ModelError:
    """Ray's error holds the worker's whole traceback; its last line says what was wrong."""
    line = str(error).strip().splitlines()[-1].strip()
    return ModelError(f"A worker of Ray could not begin ({line}). Every machine needs the same version of transllm and of what the engine "
                      "imports.")


def _hand(worker: _Worker, block: _Block, sampling: ReplySampling) -> None:
    block.sent = list(block.open)
    worker.block = block
    worker.hears = worker.actor.generate.options(num_returns="streaming").remote(list(block.open.values()), sampling)
