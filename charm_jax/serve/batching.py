"""Run the requests of several clients in one batch."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from charm_jax.serve.refusal import Refusal


class Batches:
    """Collect what comes while a batch runs into the next one."""

    def __init__(self, work: Callable[[list[Any]], list[Any]], largest: int):
        """Wrap ``work``, which maps a list of at most ``largest`` items to their results."""
        self._work, self._largest = work, largest
        self._waiting: asyncio.Queue[tuple[Any, asyncio.Future]] = asyncio.Queue()
        self._task: asyncio.Task | None = None

    @property
    def are_running(self) -> bool:
        """Whether batches are run."""
        return self._task is not None and not self._task.done()

    async def submit(self, item: Any) -> Any:
        """Return the result of an item, or raise what its batch raised."""
        result = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((item, result))
        return await result

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run batches, one at a time, in a thread of their own while the block runs."""
        with ThreadPoolExecutor(1) as thread:
            self._task = asyncio.create_task(self._run(thread))
            try:
                yield
            finally:
                self._task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._task

    async def _run(self, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            some = [await self._waiting.get()]
            while len(some) < self._largest and not self._waiting.empty():
                some.append(self._waiting.get_nowait())
            items, futures = zip(*some, strict=True)
            try:
                results = await loop.run_in_executor(thread, self._work, list(items))
            except Exception as error:
                results = [error] * len(futures)
            for future, result in zip(futures, results, strict=True):
                if future.done():  # its client is gone
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)


class Queue:
    """Count the requests that are decoded, wait or run."""

    def __init__(self, most: int):
        self.most, self.length = most, 0

    def check(self) -> None:
        """Refuse another request if the queue is full.

        Raises:
            Refusal: it is.
        """
        if self.length >= self.most:
            raise Refusal(429, f"{self.most} images are waiting: send this one again in a second.")

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place in the queue.

        Raises:
            Refusal: it is full.
        """
        self.check()
        self.length += 1
        try:
            yield
        finally:
            self.length -= 1
