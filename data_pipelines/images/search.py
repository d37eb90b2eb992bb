"""Find image files in folders."""

import dataclasses
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from data_pipelines.images import dicom

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", ".ima")
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
_HEAD = 1024  # bytes that tell what a file is
_DICOMDIR = b"1.2.840.10008.1.3.10"  # class of a list of DICOM files, which holds no image


@dataclasses.dataclass(frozen=True)
class Found:
    """Hold what a folder and those below it contain.

    Attributes:
        images: sorted: files with the ending of an image or the content of one, and everything
            that cannot be looked into, such as a dangling link or a folder without permission.
        others: number of other files.
    """

    images: tuple[Path, ...]
    others: int


def find_images(folder: Path) -> Found:
    """Find the images in a folder and below it; hidden files do not count."""
    images, others = [], 0
    for path in walk(folder):
        if path.name.startswith("."):
            continue
        if _may_be_image(path):
            images.append(path)
        else:
            others += 1
    return Found(tuple(sorted(images)), others)


def walk(folder: Path) -> Iterator[Path]:
    """List everything but folders below a folder.

    A folder that cannot be read is listed itself.
    """
    unreadable: list[Path] = []

    def report(error: OSError) -> None:
        unreadable.append(Path(error.filename))

    for directory, names in walk_folders(folder, report):
        yield from (Path(directory, name) for name in names)
    yield from unreadable


def walk_folders(
    top: Path, on_error: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder below a folder once, with the names of its files.

    Links to folders are followed, since image folders often lie on another disk; a link back up
    does not loop.

    Args:
        on_error: called for each folder that cannot be read; by default these are skipped.
    """
    visited: set[tuple[int, int]] = set()
    for directory, subfolders, names in os.walk(top, onerror=on_error, followlinks=True):
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders.sort()
        yield directory, names


def _may_be_image(path: Path) -> bool:
    """Whether a file has the ending or the content of an image, or cannot be looked into."""
    if path.name.split(".")[0].upper() == "DICOMDIR":
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe may wait forever
            return True
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return True
    if head.startswith(_SIGNATURES):
        return True
    return dicom.is_dicom(head[: dicom.MAGIC_AT + len(dicom.MAGIC)]) and _DICOMDIR not in head
