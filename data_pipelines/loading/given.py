"""Find and read image files that a user names."""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.images import dicom
from data_pipelines.images.decode import read_image, unreadable_reason
from data_pipelines.images.store import ImageFiles
from data_pipelines.tables.case_table import SIMULATED_MARKER, CaseTable

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", ".ima")
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class GivenImages:
    """Hold the image files that were found.

    Attributes:
        names: unique image names: paths below the given folder, or full paths where two would be
            the same.
        paths: files of the images.
        others: number of files in the folders that do not look like images.
    """

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    others: int


def find(given: Sequence[str]) -> GivenImages:
    """Find image files, searching folders recursively in the order of names.

    A file that is named itself counts as an image. In a folder, files with the suffix of an image
    count, and DICOM files without a suffix, which hospital archives write; hidden files do not.

    Raises:
        InputError: a path does not exist, a folder has no image, or nothing is given.
    """
    if not given:
        raise InputError("No image is given: name files (PNG, JPEG, TIFF, DICOM) or folders.")
    found: dict[Path, tuple[str, str]] = {}
    others = 0
    for text in given:
        path = Path(text)
        if path.is_dir():
            images, rest = _in_folder(path)
            if not images:
                raise InputError(
                    f"The folder {text} has no image, here or below: name one with files that end "
                    f"in {', '.join(SUFFIXES)}."
                )
            others += rest
            found |= {image: (image.relative_to(path).as_posix(), text) for image in images}
        elif path.exists():
            found[path] = (path.name, text)
        else:
            raise InputError(f"There is no file or folder {text}: correct the path.")
    names = [name for name, _ in found.values()]
    if len(set(names)) < len(names):
        names = [path.as_posix() for path in found]
    return GivenImages(tuple(names), tuple(found), others)


def _in_folder(folder: Path) -> tuple[list[Path], int]:
    visible = (
        Path(directory) / name
        for directory, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".")
    )
    files = sorted(visible)
    images = [path for path in files if _looks_like_image(path)]
    return images, len(files) - len(images)


def _looks_like_image(path: Path) -> bool:
    if path.suffix:
        return path.suffix.lower() in SUFFIXES
    with path.open("rb") as file:
        head = file.read(dicom.MAGIC_AT + len(dicom.MAGIC))
    return head[dicom.MAGIC_AT :] == dicom.MAGIC


def table_of(images: GivenImages, findings: Sequence[str], *, simulated: bool) -> CaseTable:
    """Make a table of images without labels or patients, sorted by name.

    Args:
        images: result of ``find``.
        findings: names of the run's findings.
        simulated: whether the images count as simulated.
    """
    names = np.array(sorted(images.names))
    n = len(names)
    nothing = np.full(n, "")
    return CaseTable(
        source="given images",
        findings=tuple(findings),
        images=names,
        patients=np.arange(n, dtype=np.int32),
        labels=np.full((n, len(findings)), -1, np.int8),
        official_part=nothing,
        views=nothing,
        sexes=nothing,
        ages=np.full(n, -1, np.int16),
        store=ImageFiles(names, {}),
        simulated=simulated,
        official_known=False,
        patients_known=False,
    )


def is_simulated(path: Path) -> bool:
    """Whether the folder of a file or its parent is marked simulated."""
    folders = itertools.islice(path.resolve().parents, 2)
    return any((folder / SIMULATED_MARKER).exists() for folder in folders)


def batches(
    paths: Iterable[Path], *, image_size: int, batch_size: int
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Read all files once, in order, in batches of equal size.

    Args:
        paths: image files; a bad one does not stop the others.
        image_size: side S of the squares in pixels.
        batch_size: number of images B.

    Yields:
        ``[B, S, S, 1]`` uint8, zeros where there is no image, and for each file of the batch the
        reason why it is unreadable, or an empty string.
    """
    import grain

    paths = list(paths)
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=batch_size)
    stream = iter(grain.MapDataset.source(paths).map(_Read(image_size)).to_iter_dataset(options))
    for start in range(0, len(paths), batch_size):
        read = [next(stream) for _ in paths[start : start + batch_size]]
        images = np.zeros((batch_size, image_size, image_size, 1), np.uint8)
        for row, (image, _) in enumerate(read):
            images[row] = image
        yield images, [fault for _, fault in read]


@dataclasses.dataclass(frozen=True)
class _Read:
    size: int

    def __call__(self, path: Path) -> tuple[np.ndarray, str]:
        try:
            return read_image(path, self.size), ""
        except InputError as error:
            reason = unreadable_reason(error.__cause__) if error.__cause__ else str(error)
            return np.zeros((self.size, self.size, 1), np.uint8), reason
