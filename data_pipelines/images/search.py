"""Find image files in folders."""

import dataclasses
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from data_pipelines.images import dicom

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", ".ima")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", *_TIFF)
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
    """Find the images in a folder and below it; hidden files and folders do not count."""
    images, others = [], 0
    for path in walk(folder):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if _may_be_image(path):
            images.append(path)
        else:
            others += 1
    return Found(tuple(sorted(images)), others)


def walk(folder: Path) -> Iterator[Path]:
    """List everything but folders below a folder, each folder once.

    Links to folders are followed, since image folders often lie on another disk; a link back up
    does not loop. A folder that cannot be read is listed itself.
    """
    visited: set[tuple[int, int]] = set()
    unreadable: list[Path] = []

    def report(error: OSError) -> None:
        unreadable.append(Path(error.filename))

    for directory, subfolders, names in os.walk(folder, onerror=report, followlinks=True):
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders.sort()
        yield from (Path(directory, name) for name in names)
    yield from unreadable


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


def match_names(folder: Path, names: Iterable[str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Find the files of names below a folder, whose spelling may differ from theirs.

    Where no file has exactly the name, the one counts whose path differs only in backslashes for
    slashes or in its Unicode form, else only in case, else by an ending of an image that the name
    leaves out. No file gets two names.

    Args:
        folder: folder that the names are relative to.
        names: paths of files, with slashes.

    Returns:
        The files by name, and those of them that are spelt otherwise.
    """
    names = list(names)
    files = {name: path for name in names if os.path.exists(path := folder / name)}
    absent = [name for name in names if name not in files]
    if not absent or not folder.is_dir():
        return files, {}
    taken = {os.path.abspath(path) for path in files.values()}
    free = [path for path in walk(folder) if os.path.abspath(path) not in taken]
    twins: dict[str, Path] = {}
    for key, key_of_file in (
        (_same_text, _same_text),
        (_same_but_case, _same_but_case),
        (_same_but_case, spelling_key),
    ):
        places: dict[str, list[Path]] = {}
        for path in free:
            places.setdefault(key_of_file(path.relative_to(folder).as_posix()), []).append(path)
        wanted: dict[str, list[str]] = {}
        for name in absent:
            wanted.setdefault(key(name), []).append(name)
        found = {
            same[0]: places[text][0]
            for text, same in wanted.items()
            if len(same) == 1 and len(places.get(text, ())) == 1
        }
        twins |= found
        absent = [name for name in absent if name not in found]
        free = [path for path in free if path not in set(found.values())]
    return files | twins, twins


def _same_text(name: str) -> str:
    name = unicodedata.normalize("NFC", name).replace("\\", "/")
    # A path object takes ten times as long, which a table of 377,000 images feels.
    return PurePosixPath(name).as_posix() if {"", "."} & set(name.split("/")) else name


def _same_but_case(name: str) -> str:
    return _same_text(name).casefold()


def spelling_key(name: str) -> str:
    """Return a path as names of images are compared between tables.

    It has one Unicode form and slashes, and neither case nor the ending of an image.
    """
    name = _same_but_case(name)
    stem, dot, end = name.rpartition(".")
    return stem if dot + end in SUFFIXES else name


def file_key(name: str) -> str:
    """Return the last part of a path as ``spelling_key`` writes it."""
    return spelling_key(name).rpartition("/")[2]
