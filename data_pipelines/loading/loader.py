"""Make Grain batches, in the same order for any number of threads."""

import dataclasses
import operator
import re
import signal
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from data_pipelines import stopping
from data_pipelines.errors import InputError
from data_pipelines.tables.case_table import CaseTable

if TYPE_CHECKING:
    import grain

# Threads, not worker processes: faster on few cores, and the position of a stream stays one number
# that does not depend on their number.
DEFAULT_THREADS = 8
# A page that /dev/shm does not have; not on Windows.
_BUS_ERROR = getattr(signal, "SIGBUS", None)

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ReadCases:
    """Read a whole batch at once by its case ids.

    Attributes:
        table: the source's table.
        image_size: side of the square images in pixels.
    """

    table: CaseTable
    image_size: int

    def __call__(self, case_ids: Int[np.ndarray, " batch"]) -> Batch:
        """Read the cases in the order of their ids.

        Returns:
            ``image`` uint8 ``[B, S, S, 1]``, ``labels`` int8 ``[B, F]``, ``case_id`` and
            ``patient_id`` int32 ``[B]``.

        Raises:
            InputError: an image is absent or unreadable.
        """
        return {
            "image": self.table.store.read(case_ids, self.image_size),
            "labels": self.table.labels[case_ids],
            "case_id": case_ids.astype(np.int32),
            "patient_id": self.table.patients[case_ids].astype(np.int32),
        }


@dataclasses.dataclass(frozen=True)
class _PaddedIds:
    """List consecutive batches of equal size; the last is padded and masked.

    Each of several processes gets its share of every batch.
    """

    rows: np.ndarray
    batch_size: int
    process: int
    processes: int

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        ids = self.rows[index * self.batch_size : (index + 1) * self.batch_size]
        filled = np.arange(self.batch_size) < len(ids)
        padded = np.zeros(self.batch_size, np.int32)
        padded[filled] = ids
        mine = _share(self.batch_size, self.process, self.processes)
        return {"case_id": padded[mine], "mask": filled[mine]}


@dataclasses.dataclass(frozen=True)
class _ReadPadded:
    """Read padded ids into a batch whose padding is zero."""

    read: ReadCases

    def __call__(self, ids: Batch) -> Batch:
        mask = ids["mask"]
        batch = self.read(ids["case_id"][mask])
        missing = len(mask) - int(mask.sum())
        padded = {
            key: np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1))
            for key, value in batch.items()
        }
        return padded | {"mask": mask}


@dataclasses.dataclass(frozen=True)
class _DrawnIds:
    """Draw batches of rows of random sets; a batch depends on the seed and its index alone."""

    sets: Sequence[np.ndarray]
    batch_size: int
    seed: int
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> np.ndarray:
        generator = np.random.default_rng((self.seed, index))
        chosen = generator.integers(len(self.sets), size=self.batch_size)
        sizes = np.array([own.size for own in self.sets])
        places = generator.integers(sizes[chosen])
        return np.array([self.sets[k][at] for k, at in zip(chosen, places, strict=True)])


def _share(batch_size: int, process: int, processes: int) -> slice:
    """Return the rows of every batch that belong to one process."""
    share = batch_size // processes
    return slice(process * share, (process + 1) * share)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Count the full batches in ``n`` images; each epoch drops another rest."""
    return n // batch_size


def rows_by_finding(
    labels: Int[np.ndarray, "cases findings"], rows: Int[np.ndarray, " n"]
) -> list[Int[np.ndarray, " _"]]:
    """Return the rows with each finding, and last those with none that is known to be present."""
    present = labels[rows] == 1
    return [*(rows[column] for column in present.T), rows[~present.any(axis=1)]]


def case_id_batches(
    rows: Int[np.ndarray, " n"],
    *,
    batch_size: int,
    seed: int,
    epochs: int,
    batch_key: str,
    process: int = 0,
    processes: int = 1,
    sets: Sequence[Int[np.ndarray, " _"]] = (),
    at_random: bool = False,
) -> "grain.MapDataset[np.ndarray]":
    """Shuffle case ids into the batches of ``epochs`` epochs.

    Every epoch is a new permutation of the rows; its last partial batch is dropped, so no batch
    holds two epochs. The order is a function of ``rows``, ``batch_size``, ``seed`` and ``sets``.

    Args:
        rows: case ids of the split.
        batch_size: images B in a batch, from 1 to n.
        seed: not negative.
        epochs: at least 1.
        batch_key: the config key that gives ``batch_size``, for the error message, e.g.
            ``config.stages.bce.batch_size``.
        process: index of this process among those that train together.
        processes: number of these processes; each gets its share of every batch, in their order.
        sets: the rows of each data set, to draw as many of each: the sets take turns, and each
            starts over, in another order, when all its rows are used. An epoch has as many batches
            as without. A row may be in several sets.
        at_random: whether each image is one of a random set rather than of the next, drawn with
            replacement.

    Raises:
        InputError: n images cannot fill the batch, or the processes cannot share it.
    """
    import grain

    if batch_size % processes:
        raise InputError(
            f"{batch_key} is {batch_size} and {processes} processes share it: set it to a multiple "
            f"of {processes}."
        )
    if not 1 <= batch_size <= len(rows):
        raise InputError(
            f"{batch_key} is {batch_size} but the split has {len(rows)} images: set it to a number "
            f"from 1 to {len(rows)}."
        )
    # Grain seeds epoch e with seed + e: without spread seeds, run 1 would repeat run 0 from its
    # second epoch.
    spread, *others = np.random.SeedSequence(seed).generate_state(1 + len(sets)).tolist()
    mine = _share(batch_size, process, processes)
    if sets:
        steps = epochs * steps_per_epoch(len(rows), batch_size)
        filled = [own for own in sets if own.size]
        if at_random:
            drawn = _DrawnIds(filled, batch_size, spread, steps)
            return grain.MapDataset.source(drawn).map(operator.itemgetter(mine))
        endless = [
            grain.MapDataset.source(own).shuffle(seed=other).repeat()
            for own, other in zip(sets, others, strict=True)
            if own.size
        ]
        batches = grain.MapDataset.mix(endless).batch(batch_size)
        return batches[:steps].map(operator.itemgetter(mine))
    # The batch stage passes the epoch to Grain's shuffle, so every repeat reshuffles.
    return (
        grain.MapDataset.source(rows)
        .shuffle(seed=spread)
        .batch(batch_size, drop_remainder=True)
        .repeat(epochs)
        .map(operator.itemgetter(mine))
    )


def training_ids(
    case_ids: "grain.MapDataset[np.ndarray]", start_step: int = 0
) -> "grain.DatasetIterator[Batch]":
    """Iterate over training batches of ids alone, for resident cases."""
    return iter(case_ids[start_step:].map(_named_ids).to_iter_dataset())


def _named_ids(ids: np.ndarray) -> Batch:
    return {"case_id": ids.astype(np.int32)}


def evaluation_ids(
    rows: Int[np.ndarray, " n"], *, batch_size: int, process: int = 0, processes: int = 1
) -> Iterator[Batch]:
    """Iterate over evaluation batches of ids and mask, for resident cases."""
    padded = _PaddedIds(rows, batch_size, process, processes)
    return (padded[i] for i in range(len(padded)))


def training_batches(
    table: CaseTable,
    case_ids: "grain.MapDataset[np.ndarray]",
    *,
    image_size: int,
    threads: int = DEFAULT_THREADS,
    workers: int = 0,
    start_step: int = 0,
) -> Iterator[Batch]:
    """Read the batches that ``case_id_batches`` lists.

    Args:
        table: the source's table.
        case_ids: case ids of each batch.
        image_size: side S of the images in pixels.
        threads: decoding threads, one for each batch; 0 decodes in the caller's thread.
        workers: decoding processes in place of threads, for slow files on many cores; 0 for none.
        start_step: batches to skip when a run resumes.

    Returns:
        An iterator over the batches of ``ReadCases``. ``close()`` ends threads and processes.

    Raises:
        InputError: from ``next``, an absent or unreadable image.
    """
    batches = case_ids[start_step:].map(ReadCases(table, image_size))
    return _stream(batches, threads, workers)


def evaluation_batches(
    table: CaseTable,
    rows: Int[np.ndarray, " n"],
    *,
    image_size: int,
    batch_size: int,
    threads: int = DEFAULT_THREADS,
    workers: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Read all rows once, in order, in batches of equal size.

    Args:
        table: the source's table.
        rows: case ids of the split.
        image_size: side S of the images in pixels.
        batch_size: images B in a batch, at least 1; may exceed n.
        threads: see ``training_batches``.
        workers: see ``training_batches``.
        process: see ``case_id_batches``.
        processes: see ``case_id_batches``; ``batch_size`` is a multiple of it.

    Returns:
        An iterator over the batches of ``training_batches`` with ``mask`` bool ``[B]``: False for
        the padding of the last batch.

    Raises:
        InputError: from ``next``, an absent or unreadable image.
    """
    import grain

    batches = grain.MapDataset.source(_PaddedIds(rows, batch_size, process, processes))
    return _stream(batches.map(_ReadPadded(ReadCases(table, image_size))), threads, workers)


def _stream(batches: "grain.MapDataset[Batch]", threads: int, workers: int) -> Iterator[Batch]:
    import grain

    if workers:
        from absl import flags

        # A worker process has not parsed JAX's flags, and Grain's worker reads its own.
        flags.FLAGS.mark_as_parsed()
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        processes = grain.MultiprocessingOptions(num_workers=workers)
        stream = batches.to_iter_dataset(options).mp_prefetch(processes, _start_worker)
        return _from_processes(stream)
    # Two batches ahead of the threads hide a slow disk without filling the memory.
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=threads + 2 * (threads > 0)
    )
    return iter(batches.to_iter_dataset(options))


def _start_worker(index: int, count: int) -> None:
    stopping.end_with_parent()


def _from_processes(batches: "grain.IterDataset[Batch]") -> Iterator[Batch]:
    """Yield the batches of worker processes, and close them at the end.

    Raises:
        InputError: a process was killed, or /dev/shm, through which batches pass, is full.
    """
    stream = iter(batches)
    try:
        # They start with the first batch.
        with stopping.for_children(signal.SIGINT, signal.SIGTERM):
            batch = next(stream, None)
        while batch is not None:
            yield batch
            batch = next(stream, None)
    except (OSError, RuntimeError) as error:
        code = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
        # Semaphores have no name, segments have this one.
        shared = str(getattr(error, "filename", None) or "/dev/shm").startswith("/dev/shm")
        if (isinstance(error, OSError) and shared) or (code and -int(code[1]) == _BUS_ERROR):
            reason = getattr(error, "strerror", None) or "a bus error"
            raise InputError(
                f"Loader processes find too little shared memory in /dev/shm ({reason}): set "
                "--config.data.processes=0, or start the container with a larger --shm-size."
            ) from error
        if code:
            raise InputError(
                f"A loader process was killed (exit code {code[1]}), perhaps for lack of memory: "
                "set a smaller --config.data.processes; 0 loads in threads."
            ) from error
        raise
    finally:
        stream.close()
