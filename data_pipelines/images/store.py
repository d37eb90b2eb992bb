"""Read the pixels of a table's images from files or memory."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from data_pipelines.errors import InputError
from data_pipelines.images.decode import fault, read_image, to_square


@runtime_checkable
class ImageStore(Protocol):
    """Read images by case id, the row number in the table."""

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

    def fault(self, case_id: int, *, whole: bool) -> str:
        """Say briefly why a present image is unusable; empty if it is fine.

        With ``whole`` all of it is checked, else only its header.
        """


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Decode image files whenever they are read.

    Attributes:
        names: ``[n]`` image names of the table.
        paths: file of each image that is present, by case id.
    """

    names: np.ndarray
    paths: Mapping[int, Path]

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
            image[:] = read_image(self.paths[case_id], size)
        return images

    def check_size(self, size: int) -> None:
        """Accept any size."""

    def fault(self, case_id: int, *, whole: bool) -> str:
        """Check the file; see ``ImageStore``."""
        return fault(self.paths[case_id], whole)


@dataclasses.dataclass(frozen=True)
class ImageArray:
    """Resize images in memory whenever they are read.

    Attributes:
        images: grey images by case id.
    """

    images: UInt8[np.ndarray, "n height width"]

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
            image[:] = to_square(Image.fromarray(self.images[case_id]), size)
        return images

    def check_size(self, size: int) -> None:
        """Accept any size."""

    def fault(self, case_id: int, *, whole: bool) -> str:
        """Return no fault; see ``ImageStore``."""
        return ""
