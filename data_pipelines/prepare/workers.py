"""Write shards in several processes, with one progress bar over images."""

import concurrent.futures
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event

from tqdm import tqdm

from data_pipelines import stopping
from data_pipelines.errors import InputError
from data_pipelines.images.store import ImageArray
from data_pipelines.prepare.shard_writer import Report, write_shard
from data_pipelines.prepared.shards import Layout
from data_pipelines.progress import progress
from data_pipelines.tables.case_table import CaseTable

_POLL_SECONDS = 0.3


def write_shards(
    table: CaseTable, layout: Layout, indices: Sequence[int], processes: int
) -> Iterator[tuple[int, Report]]:
    """Write shards; closing the iterator early abandons the unfinished ones.

    Args:
        table: the source's full table.
        layout: layout of the prepared data set.
        indices: numbers of the shards to write.
        processes: at least 1; with 1, or images in memory, the caller's process does the work.

    Yields:
        Index and report of each shard, in order of completion.

    Raises:
        InputError: a worker process was killed, or /dev/shm is full or missing.
    """
    total = layout.present_in(indices, table)
    with progress(total=total, desc="preparing images", unit="images") as bar:
        # Each worker gets a pickle of the table, and would get a copy of images in memory.
        in_memory = isinstance(table.store, ImageArray)
        if in_memory or min(processes, len(indices)) <= 1:
            for index in indices:
                yield index, write_shard(table, layout, index, lambda: _counted(bar))
        else:
            yield from _in_processes(table, layout, indices, processes, bar)


def _counted(bar: tqdm) -> bool:
    bar.update()
    return False


def _in_processes(
    table: CaseTable, layout: Layout, indices: Sequence[int], processes: int, bar: tqdm
) -> Iterator[tuple[int, Report]]:
    # A fork would copy the locks of threads; JAX does not support it.
    context = multiprocessing.get_context("spawn")
    try:
        count, stop = context.Value("q", 0), context.Event()
    except OSError as error:
        raise InputError(
            f"Processes cannot share memory here (/dev/shm: {error.strerror}): give --processes=1, "
            "or start the container with a larger --shm-size."
        ) from error
    with concurrent.futures.ProcessPoolExecutor(
        min(processes, len(indices)), context, _start_worker, (table, layout, count, stop)
    ) as pool:
        try:
            with stopping.for_children(signal.SIGINT):
                waiting = {pool.submit(_work, index): index for index in indices}
            while waiting:
                done, _ = concurrent.futures.wait(
                    waiting, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED
                )
                bar.update(count.value - bar.n)
                for future in done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise InputError(
                f"A process that prepared images for {layout.directory} was killed, perhaps for "
                "lack of memory: start the command again with fewer --processes."
            ) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


class _Worker:
    """Hold the arguments of a worker process."""

    write: Callable[[int], Report | None]


def _work(index: int) -> Report | None:
    return _Worker.write(index)


def _start_worker(
    table: CaseTable, layout: Layout, count: "Synchronized[int]", stop: Event
) -> None:
    stopping.end_with_parent()

    def step() -> bool:
        with count.get_lock():
            count.value += 1
        return stop.is_set()

    _Worker.write = lambda index: write_shard(table, layout, index, step)
