"""Keep the images of a split in device memory for jitted steps."""

import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int8, Int32, UInt8

from data_pipelines.loading.loader import evaluation_batches
from data_pipelines.progress import progress
from data_pipelines.tables.case_table import CaseTable

_READ_BATCH = 256


@typing.no_type_check  # JAX rebuilds it with leaves of other types
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ResidentCases:
    """Hold cases in device memory.

    Attributes:
        images: grey levels.
        labels: 1 present, 0 absent, -1 unknown.
        patient_ids: patient numbers.
        row_of: row in these arrays by case id; -1 for other cases.
    """

    images: UInt8[Array, "m size size 1"]
    labels: Int8[Array, "m findings"]
    patient_ids: Int32[Array, " m"]
    row_of: Int32[Array, " n"]

    def batch(self, case_ids: Int[Array, " batch"]) -> dict[str, Array]:
        """Gather a batch like that of ``loader.ReadCases`` inside a jitted step.

        An id without a row returns some other case, so it may be used for masked padding only.
        """
        rows = self.row_of[case_ids]
        return {
            "image": self.images[rows],
            "labels": self.labels[rows],
            "case_id": case_ids.astype(jnp.int32),
            "patient_id": self.patient_ids[rows],
        }


def load(
    table: CaseTable,
    rows: Int[np.ndarray, " m"],
    image_size: int,
    place: Callable[[ResidentCases], ResidentCases] = jax.device_put,
) -> ResidentCases:
    """Read cases once, with a progress bar, onto the device.

    Args:
        table: the source's table.
        rows: case ids.
        image_size: side of the square images in pixels.
        place: function that puts the cases on the devices of a step.

    Raises:
        InputError: an image is absent or unreadable.
    """
    images = np.empty((len(rows), image_size, image_size, 1), np.uint8)
    done = 0
    with progress(total=len(rows), desc="loading images", unit="images") as bar:
        for batch in evaluation_batches(table, rows, image_size=image_size, batch_size=_READ_BATCH):
            count = int(batch["mask"].sum())
            images[done : done + count] = batch["image"][:count]
            done += count
            bar.update(count)
    row_of = np.full(len(table.images), -1, np.int32)
    row_of[rows] = np.arange(len(rows), dtype=np.int32)
    return place(
        ResidentCases(images, table.labels[rows], table.patients[rows].astype(np.int32), row_of)
    )
