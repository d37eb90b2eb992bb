"""Batches by Grain: the same images in the same order for any number of threads."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.case_table import CaseTable
from data_pipelines.decode import read_image
from data_pipelines.errors import InputError

if TYPE_CHECKING:
    import grain

# Threads, not worker processes: faster on few cores, and the position of a stream stays one number
# that does not depend on how many there are.
DEFAULT_THREADS = 8

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ImageRows:
    """Rows of a table as a random-access source.

    Attributes:
        table: the source's table.
        rows: ``[n]`` row numbers, i.e. case ids.
        image_size: side of the square images in pixels.
    """

    table: CaseTable
    rows: np.ndarray
    image_size: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | np.int32]:
        """One case.

        Returns:
            ``image`` uint8 ``[S, S, 1]``, ``labels`` int8 ``[F]``, ``case_id`` and ``patient_id``
            int32.

        Raises:
            InputError: the image is missing or unreadable.
        """
        row = int(self.rows[index])
        name = str(self.table.images[row])
        if name not in self.table.files:
            raise InputError(
                f"The image {name} is listed but its file is absent: fetch it, or set "
                "--config.data.missing=skip."
            )
        return {
            "image": read_image(self.table.files[name], self.image_size),
            "labels": self.table.labels[row],
            "case_id": np.int32(row),
            "patient_id": np.int32(self.table.patients[row]),
        }


@dataclasses.dataclass(frozen=True)
class _PaddedBatches:
    """Consecutive batches of equal size; the last is filled up with zeros and masked."""

    images: ImageRows
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        start = index * self.batch_size
        stop = min(start + self.batch_size, len(self.images))
        cases = [self.images[i] for i in range(start, stop)]
        pad = self.batch_size - len(cases)
        batch = {key: np.stack([case[key] for case in cases]) for key in cases[0]}
        batch = {
            key: np.pad(value, [(0, pad)] + [(0, 0)] * (value.ndim - 1))
            for key, value in batch.items()
        }
        return batch | {"mask": np.arange(self.batch_size) < len(cases)}


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Full batches in ``n`` images; the rest is left out, another rest in each epoch."""
    return n // batch_size


def training_batches(
    table: CaseTable,
    rows: np.ndarray,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    epochs: int,
    batch_key: str,
    threads: int = DEFAULT_THREADS,
    start_step: int = 0,
) -> "grain.DatasetIterator[Batch]":
    """Shuffled batches of ``epochs`` epochs.

    Every epoch is a new permutation of the rows; its last partial batch is dropped, so no batch
    holds two epochs. The stream is a function of ``rows``, ``batch_size`` and ``seed`` alone.

    Args:
        table: the source's table.
        rows: ``[n]`` row numbers of the part.
        image_size: side S of the images in pixels.
        batch_size: images B in a batch, from 1 to n.
        seed: any non-negative number.
        epochs: at least 1.
        batch_key: the config key that gives ``batch_size``, for the error message, e.g.
            ``config.stages.bce.batch_size``.
        threads: threads that decode, a batch each; 0 decodes in the caller's thread.
        start_step: batches to leave out, for a run that is taken up again.

    Returns:
        An iterator over ``image`` uint8 ``[B, S, S, 1]``, ``labels`` int8 ``[B, F]``, ``case_id``
        and ``patient_id`` int32 ``[B]``. ``get_state()`` is ``{"next_index": step}``,
        ``set_state`` takes it back, ``close()`` ends the threads.

    Raises:
        InputError: a batch size that n images cannot fill; from ``next``, an unreadable image.
    """
    import grain

    if not 1 <= batch_size <= len(rows):
        raise InputError(
            f"{batch_key} is {batch_size} but the part has {len(rows)} images: set it to a number "
            f"from 1 to {len(rows)}."
        )
    # Grain seeds epoch e with seed + e: spread the seeds, or run 1 would repeat run 0 from its
    # second epoch on.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    # The batch stage hands Grain's shuffle the epoch with each index, so every repeat reshuffles.
    batches = (
        grain.MapDataset.source(ImageRows(table, rows, image_size))
        .shuffle(seed=spread)
        .batch(batch_size, drop_remainder=True)
        .repeat(epochs)
    )
    stream = iter(batches.to_iter_dataset(_read_options(threads)))
    stream.set_state({"next_index": start_step})
    return stream


def evaluation_batches(
    table: CaseTable,
    rows: np.ndarray,
    *,
    image_size: int,
    batch_size: int,
    threads: int = DEFAULT_THREADS,
) -> Iterator[Batch]:
    """All rows once, in order, in batches of one size.

    Args:
        table: the source's table.
        rows: ``[n]`` row numbers of the part.
        image_size: side S of the images in pixels.
        batch_size: images B in a batch, at least 1; may exceed n.
        threads: threads that decode, a batch each; 0 decodes in the caller's thread.

    Returns:
        An iterator over batches as in ``training_batches`` with ``mask`` bool ``[B]``: False for
        the rows of zeros that fill up the last batch.

    Raises:
        InputError: from ``next``, an unreadable image.
    """
    import grain

    batches = grain.MapDataset.source(
        _PaddedBatches(ImageRows(table, rows, image_size), batch_size)
    )
    return iter(batches.to_iter_dataset(_read_options(threads)))


def _read_options(threads: int) -> "grain.ReadOptions":
    import grain

    # Two batches ahead of the threads hide a slow disk without filling the memory.
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2 * (threads > 0))
