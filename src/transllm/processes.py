"""Several processes at work on one run: who is the main one, who waits for whom, and what happens when one of them ends.

A launcher (``torchrun``, ``accelerate launch``) starts the same command many times and tells each its number in the environment. What
processes tell each other goes over the processors' network (gloo), tensors of an accelerator over its own (NCCL). gloo notices at once
that a process has ended, and a wait for the main process may take days, where NCCL would give up after minutes.

With one process every function here does the plain thing, so that callers need not ask how many there are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from transllm.errors import Ended, LostProcessError, RunError, first_line

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_ANSWER_WITHIN = timedelta(minutes=30)
_WAIT_AT_MOST = timedelta(days=30)
_BUCKET = 2**24  # numbers that travel together: few messages, and little memory beside the gradients
_waiting: Any = None  # the group in which processes wait for the main one


def world() -> int:
    """How many processes there are."""
    return _distributed().get_world_size() if _joined() else 1


def rank() -> int:
    """This process's number, from 0."""
    return _distributed().get_rank() if _joined() else 0


def is_main() -> bool:
    """Whether this is the process that writes, prints and runs all that is not training."""
    return rank() == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes of one launch know each other. Nothing happens without a launcher, or inside another ``joined()``.

    Raises:
        Ended: another process failed and has said why, so this one ends without a word.
        RunError: a node has fewer accelerators than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or _joined():
        yield
        return
    _join()
    if not is_main():
        logging.disable(logging.WARNING)  # the main process says the same
    try:
        yield
    except Ended:
        raise
    except BaseException as error:
        if _first_to_fail(error):
            raise
        raise Ended(_exit_code(error)) from error
    _leave()


def on_main(work: Callable[[], T]) -> T:
    """The main process works, the others wait for its result (small, and of plain types), however long that takes.

    Raises:
        Ended: on the others, if the work failed; the main process raises what went wrong.
        LostProcessError: the main process was killed.
    """
    if world() == 1:
        return work()
    result, error = None, None
    if is_main():
        try:
            result = work()
        except BaseException as caught:
            error = caught
    told: list[Any] = [(error is None, result)]
    with contextlib.suppress(LostProcessError) if error is not None else contextlib.nullcontext(), _talking():
        _distributed().broadcast_object_list(told, src=0, group=_waiting)
    if error is not None:
        raise error
    done, given = told[0]
    if not done:
        raise Ended
    return cast(T, given)


def summed(*values: float) -> list[float]:
    """The sums of some numbers over all processes.

    Raises:
        LostProcessError: one of them has ended.
    """
    if world() == 1:
        return list(values)
    import torch

    numbers = torch.tensor(values, dtype=torch.float64)
    with _talking():
        _distributed().all_reduce(numbers)
    return [float(number) for number in numbers]


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one dtype and device by their sums over all processes, the same bits on each.

    Raises:
        LostProcessError: one of them has ended.
    """
    if world() > 1:
        _together(tensors, lambda flat: _distributed().all_reduce(flat))


def copy_main(tensors: Sequence[Tensor]) -> None:
    """Give tensors of one dtype and device the main process's values.

    Raises:
        LostProcessError: one of them has ended.
    """
    if world() > 1:
        _together(tensors, lambda flat: _distributed().broadcast(flat, src=0))


def is_shared(tensor: Tensor) -> bool:
    """Whether each process holds a part of a tensor (FSDP2)."""
    return hasattr(tensor, "full_tensor")


def part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that all share; any other as it is."""
    own: Any = tensor.detach()
    return cast("Tensor", own.to_local() if is_shared(own) else own)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that all share, whole, on the processor of the main process. All must ask; the others get an empty one, so that a machine
    holds the model once. Any other tensor as it is.

    Raises:
        LostProcessError: one of them has ended.
    """
    own: Any = tensor.detach()
    if not is_shared(own):
        return cast("Tensor", own)
    with _talking():
        joint: Tensor = own.full_tensor()
    return joint.cpu() if is_main() else joint.new_empty(0, device="cpu")


def parted(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has, shared out as ``like`` is; itself where that is whole."""
    if not is_shared(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    shared: Any = like
    return distribute_tensor(tensor, shared.device_mesh, shared.placements, src_data_rank=None)  # None: nothing is sent


def lending() -> contextlib.AbstractContextManager[None]:
    """Inside, weights that processes share may be asked for.

    Raises:
        LostProcessError: one of them has ended. NCCL does not notice: there it is the launcher that ends this process.
    """
    return _talking("gloo")


def _together(tensors: Sequence[Tensor], send: Callable[[Tensor], object]) -> None:
    """Send tensors joined to a few long ones."""
    import torch

    def flush() -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        with _talking():
            send(flat)
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))
        bucket.clear()

    bucket: list[Tensor] = []
    with torch.no_grad():
        for tensor in tensors:
            bucket.append(tensor)
            if sum(part.numel() for part in bucket) >= _BUCKET:
                flush()
        if bucket:
            flush()


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed


def _joined() -> bool:
    """Asked before torch is imported too: without a launcher it costs nothing."""
    return "RANK" in os.environ and bool(_distributed().is_initialized())


def _join() -> None:
    global _waiting
    import torch

    distributed = _distributed()
    backend = "gloo"
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
        if local >= there:
            raise RunError(f"This node has {there} accelerators and more processes. Start one for each: --nproc-per-node {there}.")
        torch.accelerator.set_device_index(local)
        backend = f"cpu:gloo,{accelerator.type}:{distributed.get_default_backend_for_device(accelerator)}"
    distributed.init_process_group(backend, timeout=_ANSWER_WITHIN)
    _waiting = distributed.new_group(backend="gloo", timeout=_WAIT_AT_MOST)


def _leave() -> None:
    global _waiting
    with _talking():
        _distributed().barrier(group=_waiting)  # none takes its connections away while another still speaks
    _distributed().destroy_process_group()
    _waiting = None
    logging.disable(logging.NOTSET)


def _exit_code(error: BaseException) -> int:
    """The command line's, for the same end."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return 128 + int(getattr(error, "number", signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM))
    return int(getattr(error, "exit_code", 1))


def _first_to_fail(error: BaseException) -> bool:
    """Whether no other process has failed before: an error is told once, not by each that then misses the one that had it."""
    from torch.distributed.distributed_c10d import _get_default_store

    try:
        return int(_get_default_store().add("transllm/failed", 1)) == 1
    except RuntimeError:
        # The process that keeps the list has ended. It has said why, unless it was killed: then all that is known here is that it is lost.
        return isinstance(error, LostProcessError)


@contextlib.contextmanager
def _talking(sign: str = "") -> Iterator[None]:
    """Inside, an error of another library that has this sign is one of the connection."""
    try:
        yield
    except RuntimeError as error:
        import torch

        if sign not in str(error) or isinstance(error, torch.OutOfMemoryError):
            raise
        raise LostProcessError("The connection to the other processes of this run broke off: one of them was killed, ran out of memory or "
                               "lost its network. Run the same command again to go on from the last checkpoint. "
                               f"({first_line(error)})") from error
