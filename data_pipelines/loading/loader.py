"""Batches by Grain: the same images in the same order for any number of threads or processes."""

import dataclasses
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from data_pipelines.errors import InputError
from data_pipelines.tables.case_table import CaseTable

if TYPE_CHECKING:
    import grain

# Threads, not worker processes: faster on few cores, and the position of a stream stays one number
# that does not depend on how many there are.
DEFAULT_THREADS = 8

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ReadCases:
    """From case ids to a batch; a whole batch at once, so that a store can read in one go.

    Attributes:
        table: the source's table.
        image_size: side of the square images in pixels.
    """

    table: CaseTable
    image_size: int

    def __call__(self, case_ids: Int[np.ndarray, " batch"]) -> Batch:
        """The cases in the order of their ids.

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
    """Consecutive batches of equal size; the last is filled up with id 0 and masked.

    Of every batch only the share of one among several processes.
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
    """From padded ids to a batch whose padding is zero."""

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


def _share(batch_size: int, process: int, processes: int) -> slice:
    """The rows of every batch that are one process's."""
    share = batch_size // processes
    return slice(process * share, (process + 1) * share)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Full batches in ``n`` images; the rest is left out, another rest in each epoch."""
    return n // batch_size


def case_id_batches(
    rows: Int[np.ndarray, " n"],
    *,
    batch_size: int,
    seed: int,
    epochs: int,
    batch_key: str,
    process: int = 0,
    processes: int = 1,
) -> "grain.MapDataset[np.ndarray]":
    """Shuffled case ids of ``epochs`` epochs, a batch each; what every mode of loading follows.

    Every epoch is a new permutation of the rows; its last partial batch is dropped, so no batch
    holds two epochs. The order is a function of ``rows``, ``batch_size`` and ``seed`` alone.

    Args:
        rows: case ids of the part.
        batch_size: images B in a batch, from 1 to n.
        seed: any non-negative number.
        epochs: at least 1.
        batch_key: the config key that gives ``batch_size``, for the error message, e.g.
            ``config.stages.bce.batch_size``.
        process: number of this process among those that train together.
        processes: how many they are; each gets its share of every batch, in their order.

    Raises:
        InputError: a batch size that n images cannot fill or the processes cannot share.
    """
    import grain

    if batch_size % processes:
        raise InputError(
            f"{batch_key} is {batch_size} and {processes} processes share it: set it to a multiple "
            f"of {processes}."
        )
    if not 1 <= batch_size <= len(rows):
        raise InputError(
            f"{batch_key} is {batch_size} but the part has {len(rows)} images: set it to a number "
            f"from 1 to {len(rows)}."
        )
    # Grain seeds epoch e with seed + e: spread the seeds, or run 1 would repeat run 0 from its
    # second epoch on.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    mine = _share(batch_size, process, processes)
    # The batch stage hands Grain's shuffle the epoch with each index, so every repeat reshuffles.
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
    """The batches that ``case_id_batches`` lists as their ids alone, for cases on the device."""
    return iter(case_ids[start_step:].map(_named_ids).to_iter_dataset())


def _named_ids(ids: np.ndarray) -> Batch:
    return {"case_id": ids.astype(np.int32)}


def evaluation_ids(
    rows: Int[np.ndarray, " n"], *, batch_size: int, process: int = 0, processes: int = 1
) -> Iterator[Batch]:
    """The batches of ``evaluation_batches`` as ids and mask alone, for cases on the device."""
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
) -> "grain.DatasetIterator[Batch]":
    """The batches that ``case_id_batches`` lists.

    Args:
        table: the source's table.
        case_ids: of each batch.
        image_size: side S of the images in pixels.
        threads: threads that decode, a batch each; 0 decodes in the caller's thread.
        workers: processes that decode in place of threads, for files that are slow to decode and a
            machine with many cores; 0 for none.
        start_step: batches to leave out, for a run that is taken up again.

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
    """All rows once, in order, in batches of one size.

    Args:
        table: the source's table.
        rows: case ids of the part.
        image_size: side S of the images in pixels.
        batch_size: images B in a batch, at least 1; may exceed n.
        threads: as in ``training_batches``.
        workers: as in ``training_batches``.
        process: as in ``case_id_batches``.
        processes: as in ``case_id_batches``; the batch size is a multiple of it.

    Returns:
        An iterator over batches as in ``training_batches`` with ``mask`` bool ``[B]``: False for
        the rows of zeros that fill up the last batch.

    Raises:
        InputError: from ``next``, an absent or unreadable image.
    """
    import grain

    batches = grain.MapDataset.source(_PaddedIds(rows, batch_size, process, processes))
    return _stream(batches.map(_ReadPadded(ReadCases(table, image_size))), threads, workers)


def _stream(
    batches: "grain.MapDataset[Batch]", threads: int, workers: int
) -> "grain.DatasetIterator[Batch]":
    import grain

    if workers:
        from absl import flags

        # JAX's flags are unread in a worker process, and Grain's worker reads its own.
        flags.FLAGS.mark_as_parsed()
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        stream = batches.to_iter_dataset(options)
        return iter(stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)))
    # Two batches ahead of the threads hide a slow disk without filling the memory.
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=threads + 2 * (threads > 0)
    )
    return iter(batches.to_iter_dataset(options))
