"""Find and read image files that a user names."""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.images.decode import CONTAINER, Check, examine
from data_pipelines.images.search import find_images
from data_pipelines.images.store import ImageFiles
from data_pipelines.tables.case_table import SIMULATED_MARKER, CaseTable

_THREADS = 4


@dataclasses.dataclass(frozen=True)
class GivenImages:
    """Hold the image files that were found.

    Attributes:
        names: unique image names: paths below the given folder, or full paths where two would be
            the same.
        paths: files of the images.
        others: number of files in the folders that have neither ending nor content of an image.
    """

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    others: int


def find(given: Sequence[str]) -> GivenImages:
    """Find image files, searching folders recursively in the order of names.

    Whatever is named itself counts as an image, so that each bad one is reported by itself. In a
    folder, files with the ending or the content of an image count; hidden files do not.

    Raises:
        InputError: a path does not exist, a folder has no image, or nothing is given.
    """
    if not given:
        raise InputError("No image is given: name files (PNG, JPEG, TIFF, DICOM) or folders.")
    found: dict[Path, str] = {}
    others = 0
    for text in given:
        path = Path(text)
        if os.path.isdir(path):
            below = find_images(path)
            if not below.images:
                raise InputError(
                    f"The folder {text} has no image, here or below: name one with PNG, JPEG, "
                    "TIFF or DICOM files."
                )
            others += below.others
            found |= {image: _name_below(path, image) for image in below.images}
        elif not _is_absent(path):
            found[path] = path.name
        else:
            raise InputError(f"There is no file or folder {text}: correct the path.")
    names = list(found.values())
    if len(set(names)) < len(names):
        names = [path.as_posix() for path in found]
    return GivenImages(tuple(names), tuple(found), others)


def _name_below(folder: Path, image: Path) -> str:
    return image.name if image == folder else image.relative_to(folder).as_posix()


def _is_absent(path: Path) -> bool:
    """Whether a path does not exist, rather than being out of reach."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


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
    # Unlike those of Path, these functions raise no error for a loop of links.
    folders = itertools.islice(Path(os.path.realpath(path)).parents, 2)
    return any(os.path.exists(folder / SIMULATED_MARKER) for folder in folders)


def batches(
    paths: Iterable[Path], *, image_size: int, batch_size: int, value_range: str = CONTAINER
) -> Iterator[tuple[np.ndarray, list[Check]]]:
    """Read all files once, in order, in batches of equal size.

    Args:
        paths: image files; a bad one does not stop the others.
        image_size: side S of the squares in pixels.
        batch_size: number of images B.
        value_range: see ``decode.decode``.

    Yields:
        ``[B, S, S, 1]`` uint8, zeros where there is no image, and for each file of the batch what
        was found out about it.
    """
    import grain

    paths = list(paths)
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=batch_size)
    source = grain.MapDataset.source(paths).map(_Read(image_size, value_range))
    stream = iter(source.to_iter_dataset(options))
    for start in range(0, len(paths), batch_size):
        read = [next(stream) for _ in paths[start : start + batch_size]]
        images = np.zeros((batch_size, image_size, image_size, 1), np.uint8)
        for row, (image, _) in enumerate(read):
            images[row] = image
        yield images, [check for _, check in read]


@dataclasses.dataclass(frozen=True)
class _Read:
    size: int
    value_range: str

    def __call__(self, path: Path) -> tuple[np.ndarray, Check]:
        try:
            return examine(path, self.size, self.value_range)
        except InputError as error:  # the packages for the format are not installed
            return np.zeros((self.size, self.size, 1), np.uint8), Check(str(error))
