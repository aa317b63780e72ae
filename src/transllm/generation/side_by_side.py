"""Many requests in work at once, results as they come: what the engines that speak to another process have in common."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

Client = TypeVar("Client")
Made = TypeVar("Made")


def side_by_side(opened: AbstractAsyncContextManager[Client], work: Callable[[Client, int], Awaitable[Made]], count: int, *,
                 width: int) -> Generator[Made, None, None]:
    """Work on numbers below ``count``, so many at once, on a thread of its own.

    The first error ends all, after the results that were done. Closing the generator drops what is in work at once: Ctrl-C does not
    wait for replies.

    Args:
        opened: gives the client, whose connections belong to the thread's event loop.
        work: makes the result of one number with it.

    Yields:
        Results as they are done.
    """
    found: SimpleQueue[tuple[bool, Made | None]] = SimpleQueue()
    stopped: list[Callable[[], object]] = []
    failed: list[BaseException] = []

    async def lane(client: Client, numbers: list[int]) -> None:
        while numbers:
            found.put((True, await work(client, numbers.pop())))

    async def everything() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        stopped.append(lambda: loop.call_soon_threadsafe(task.cancel))
        numbers = list(range(count - 1, -1, -1))
        async with opened as client:
            lanes = [asyncio.ensure_future(lane(client, numbers)) for _ in range(min(width, count))]
            try:
                await asyncio.gather(*lanes)
            finally:
                for one in lanes:
                    one.cancel()
                await asyncio.gather(*lanes, return_exceptions=True)

    def run() -> None:
        try:
            asyncio.run(everything())
        except asyncio.CancelledError:
            pass  # nobody waits for more
        except BaseException as error:  # raised again where the results are read
            failed.append(error)
        finally:
            found.put((False, None))

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            more, made = found.get()
            if not more:
                break
            yield made  # type: ignore[misc]
    finally:
        while thread.is_alive() and not stopped:
            thread.join(0.01)  # it is about to begin
        if thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it has just ended
                stopped[0]()
        thread.join()
    if failed:
        raise failed[0]
