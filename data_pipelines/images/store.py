"""Read the pixels of a table's images from files or memory."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from data_pipelines.errors import InputError
from data_pipelines.images.decode import (
    CONTAINER,
    Check,
    Decoded,
    check_header,
    decoded_array,
    examine,
    read_image,
)


@runtime_checkable
class ImageStore(Protocol):
    """Read images by case id, the row number in the table."""

    @property
    def value_range(self) -> str:
        """Values that are black and white; see ``decode.decode``."""

    @property
    def present(self) -> Bool[np.ndarray, " n"]:
        """Whether the store has each image of the table."""

    def read(
        self, case_ids: Int[np.ndarray, " batch"], size: int
    ) -> UInt8[np.ndarray, "batch size size 1"]:
        """Read grey squares of ``size`` pixels, in the order of the ids.

        Raises:
            InputError: an image is absent or unreadable, or the store has another size only.
        """

    def check_size(self, size: int) -> None:
        """Check that images can be read at a size.

        Raises:
            InputError: the store has another size only.
        """

    def examine(self, case_id: int, size: int) -> tuple[UInt8[np.ndarray, "size size 1"], Check]:
        """Read a present image after checking all of it; zeros where there is a fault."""

    def check_header(self, case_id: int, *, checksums: bool = False) -> Check:
        """Check the header of a present image, and the checksums that it has if asked to."""


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Decode image files whenever they are read.

    Attributes:
        names: ``[n]`` image names of the table.
        paths: file of each image that is present, by case id.
        value_range: see ``decode.decode``.
    """

    names: np.ndarray
    paths: Mapping[int, str | Path]
    value_range: str = CONTAINER

    @property
    def present(self) -> Bool[np.ndarray, " n"]:
        """Whether each image has a file."""
        present = np.zeros(len(self.names), bool)
        present[list(self.paths)] = True
        return present

    def read(
        self, case_ids: Int[np.ndarray, " batch"], size: int
    ) -> UInt8[np.ndarray, "batch size size 1"]:
        """Decode and resize; see ``ImageStore``."""
        images = np.empty((len(case_ids), size, size, 1), np.uint8)
        for image, case_id in zip(images, case_ids.tolist(), strict=True):
            if case_id not in self.paths:
                raise InputError(
                    f"The image {self.names[case_id]} is listed but its file is absent: fetch it, "
                    "or set --config.data.missing=skip."
                )
            image[:] = read_image(Path(self.paths[case_id]), size, self.value_range)
        return images

    def check_size(self, size: int) -> None:
        """Accept any size."""

    def examine(self, case_id: int, size: int) -> tuple[UInt8[np.ndarray, "size size 1"], Check]:
        """Check and read the file; see ``ImageStore``."""
        return examine(Path(self.paths[case_id]), size, self.value_range)

    def check_header(self, case_id: int, *, checksums: bool = False) -> Check:
        """Check the file's header; see ``ImageStore``."""
        return check_header(Path(self.paths[case_id]), checksums=checksums)


@dataclasses.dataclass(frozen=True)
class ImageArray:
    """Resize images in memory whenever they are read.

    Attributes:
        images: grey images by case id.
        value_range: see ``decode.decode``.
    """

    images: UInt8[np.ndarray, "n height width"]
    value_range: str = CONTAINER

    @property
    def present(self) -> Bool[np.ndarray, " n"]:
        """True for every image."""
        return np.ones(len(self.images), bool)

    def read(
        self, case_ids: Int[np.ndarray, " batch"], size: int
    ) -> UInt8[np.ndarray, "batch size size 1"]:
        """Resize; see ``ImageStore``."""
        images = np.empty((len(case_ids), size, size, 1), np.uint8)
        for image, case_id in zip(images, case_ids.tolist(), strict=True):
            image[:] = self._decoded(case_id).square(size)
        return images

    def check_size(self, size: int) -> None:
        """Accept any size."""

    def examine(self, case_id: int, size: int) -> tuple[UInt8[np.ndarray, "size size 1"], Check]:
        """Resize the image and measure its range; see ``ImageStore``."""
        decoded = self._decoded(case_id)
        return decoded.square(size), Check(sliver=decoded.sliver())

    def check_header(self, case_id: int, *, checksums: bool = False) -> Check:
        """Find no fault; see ``ImageStore``."""
        return Check()

    def _decoded(self, case_id: int) -> Decoded:
        return decoded_array(Image.fromarray(self.images[case_id]), self.value_range)
