"""Where the pixels of a table's images are: in files, in memory, or (``prepared``) in records."""

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
    """What a source's table reads its pixels from; case ids are row numbers of that table."""

    @property
    def present(self) -> Bool[np.ndarray, " n"]:
        """Whether the store has each image of the table."""

    def read(
        self, case_ids: Int[np.ndarray, " batch"], size: int
    ) -> UInt8[np.ndarray, "batch size size 1"]:
        """Grey images as squares of ``size`` pixels, in the order of the ids.

        Raises:
            InputError: one is absent or unreadable, or the store has another size only.
        """

    def check_size(self, size: int) -> None:
        """Says at once whether images can be read at a size.

        Raises:
            InputError: the store has another size only.
        """

    def fault(self, case_id: int, *, whole: bool) -> str:
        """Why an image that is present cannot be used, in a few words; empty if it can.

        With ``whole`` all of it is looked at, else what is quickly read.
        """


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files, decoded whenever they are read.

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
        """Decodes and resizes; see ``ImageStore``."""
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
        """Any size will do."""

    def fault(self, case_id: int, *, whole: bool) -> str:
        """Looks at the file; see ``ImageStore``."""
        return fault(self.paths[case_id], whole)


@dataclasses.dataclass(frozen=True)
class ImageArray:
    """Images in memory, resized whenever they are read; none is absent or damaged.

    Attributes:
        images: grey images by case id.
    """

    images: UInt8[np.ndarray, "n height width"]

    @property
    def present(self) -> Bool[np.ndarray, " n"]:
        """Every image is there."""
        return np.ones(len(self.images), bool)

    def read(
        self, case_ids: Int[np.ndarray, " batch"], size: int
    ) -> UInt8[np.ndarray, "batch size size 1"]:
        """Resizes; see ``ImageStore``."""
        images = np.empty((len(case_ids), size, size, 1), np.uint8)
        for image, case_id in zip(images, case_ids.tolist(), strict=True):
            image[:] = to_square(Image.fromarray(self.images[case_id]), size)
        return images

    def check_size(self, size: int) -> None:
        """Any size will do."""

    def fault(self, case_id: int, *, whole: bool) -> str:
        """Finds none; see ``ImageStore``."""
        return ""
