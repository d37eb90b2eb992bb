"""Read the two chest X-ray sets of MedMNIST from their .npz files.

``chestmnist``: 112,120 frontal chest X-rays of ChestX-ray14 with its 14 findings, in splits
of 78,468, 11,219 and 22,433 images. They are not the official lists of ChestX-ray14, whose test
list alone has 25,596 images, and there are no patient numbers: patients may be in several splits,
and a model trained on ChestX-ray14 has seen test images of ChestMNIST.

``pneumoniamnist``: 5,856 chest X-rays of children, pneumonia or normal, in splits of 4,708, 524 and
624 images (train, val, test), without patient numbers.

Each comes at 28 (``chestmnist.npz``), 64 (``chestmnist_64.npz``), 128 and 224 pixels; an image's
name is its split and its number there, so all sizes share the names.

The images of PneumoniaMNIST are from D. S. Kermany et al., "Identifying Medical Diagnoses and
Treatable Diseases by Image-Based Deep Learning", Cell 172, 2018.
"""

import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.images.store import ImageArray
from data_pipelines.progress import progress
from data_pipelines.sources.card import Card
from data_pipelines.sources.csv_tables import given_file
from data_pipelines.tables.case_table import CaseTable
from data_pipelines.tables.findings import NIH_FINDINGS

DOWNLOAD_PAGE = "https://medmnist.com"
_CITATION = (
    "J. Yang, R. Shi, D. Wei, Z. Liu, L. Zhao, B. Ke, H. Pfister, B. Ni, 'MedMNIST v2 - A "
    "large-scale lightweight benchmark for 2D and 3D biomedical image classification', Scientific "
    "Data 10:41, 2023."
)
CHEST_CARD = Card(
    description="ChestMNIST: ChestX-ray14 as MedMNIST resized and divided it.",
    license="CC BY 4.0.",
    citation=_CITATION,
    homepage=DOWNLOAD_PAGE,
)
PNEUMONIA_CARD = Card(
    description="PneumoniaMNIST: X-rays of children as MedMNIST resized and divided them.",
    license="CC BY 4.0.",
    citation=_CITATION,
    homepage=DOWNLOAD_PAGE,
)
# MedMNIST's order of columns.
CHEST_COLUMNS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
_CHEST_WARNING = (
    "ChestMNIST splits the images of ChestX-ray14 in its own way, not by the official lists, and "
    "has no patient numbers: patients may be in several splits, and a model trained on "
    "ChestX-ray14 has seen test images of it."
)
_PNEUMONIA_WARNING = (
    "PneumoniaMNIST gives no patient numbers: each image counts as a patient of its own, so "
    "patients may be in several splits."
)
# Errors of zip, npy and deflate have no common base class; npy headers are parsed as Python.
_READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    SyntaxError,
    NotImplementedError,
    RuntimeError,
    Warning,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
)
# Images never shrink a hundredfold when packed; files below this size are harmless.
_MOST_DEFLATED, _SMALL = 100, 2**28
_PARTS = ("test", "train", "val")  # sorted, so that names in this order are


def load_chestmnist(directory: Path, csv: str = "") -> CaseTable:
    """Read ChestMNIST, with its findings in the order of ``NIH_FINDINGS``.

    Args:
        directory: folder with one ``chestmnist*.npz``.
        csv: file to read where there are several sizes: a path, also looked for in ``directory``.

    Raises:
        InputError: there is no such file or more than one, or its content is wrong.
    """
    order = [CHEST_COLUMNS.index(name) for name in NIH_FINDINGS]
    return _load(directory, csv, "chestmnist", NIH_FINDINGS, order, _CHEST_WARNING)


def load_pneumoniamnist(directory: Path, csv: str = "") -> CaseTable:
    """Read PneumoniaMNIST, which has one finding; see ``load_chestmnist``."""
    return _load(directory, csv, "pneumoniamnist", ("Pneumonia",), [0], _PNEUMONIA_WARNING)


def _load(
    directory: Path,
    csv: str,
    source: str,
    findings: tuple[str, ...],
    order: list[int],
    warning: str,
) -> CaseTable:
    path = _find(Path(directory), csv, source)
    images, labels = _read(path, len(findings))
    names = [f"{part}_{number:05d}" for part in _PARTS for number in range(len(labels[part]))]
    n = len(names)
    return CaseTable(
        source=source,
        findings=findings,
        images=np.array(names),
        patients=np.arange(n, dtype=np.int32),
        labels=np.concatenate([labels[part] for part in _PARTS])[:, order].astype(np.int8),
        official_part=np.repeat(_PARTS, [len(labels[part]) for part in _PARTS]),
        views=np.full(n, ""),
        sexes=np.full(n, ""),
        ages=np.full(n, -1, np.int16),
        store=ImageArray(images),
        patients_known=False,
        warnings=(warning,),
    )


def _find(directory: Path, csv: str, source: str) -> Path:
    if csv:
        return given_file(csv, directory, "file", "correct the path")
    matches = *directory.glob(f"{source}.npz"), *directory.glob(f"{source}_*.npz")
    found = sorted(path for path in matches if path.is_file())  # a pipe may wait forever
    if not found:
        raise InputError(
            f"The data folder {directory} has no {source}.npz or {source}_*.npz: download one from "
            f"{DOWNLOAD_PAGE} and name its folder with --config.data.dir."
        )
    if len(found) > 1:
        raise InputError(
            f"The data folder {directory} has {', '.join(path.name for path in found)}: name one "
            f"with --config.data.csv={found[0].name}."
        )
    return found[0]


def _read(path: Path, n_findings: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Read the images, ``[n, S, S]`` uint8, and labels of each split."""
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with arrays:
            _check_claims(path, arrays.zip)
            labels = {part: arrays[f"{part}_labels"] for part in _PARTS}
            _check_labels(path, labels, n_findings)
            return _gather(path, arrays, labels), labels
    except KeyError as error:
        raise InputError(
            f"The file {path} has no array {error.args[0].split()[0]!r}: a file of MedMNIST has "
            f"images and labels of train, val and test; download it again from {DOWNLOAD_PAGE}."
        ) from error
    except _READ_ERRORS as error:
        raise InputError(
            f"The file {path} cannot be read as an .npz file ({error}): download it again from "
            f"{DOWNLOAD_PAGE}."
        ) from error


def _check_claims(path: Path, archive: zipfile.ZipFile) -> None:
    """Check the claimed size of the arrays before allocating memory.

    Raises:
        ValueError: the file holds less.
    """
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(_SMALL, _MOST_DEFLATED * path.stat().st_size):
        raise ValueError(f"it claims to unpack to {unpacked / 1e9:.1f} GB")
    for member in archive.infolist():
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"{member.filename} is of format {version}")
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # NumPy warns about headers that it guesses
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename} claims the shape {shape} and holds less")


def _check_labels(path: Path, labels: dict[str, np.ndarray], n_findings: int) -> None:
    for part, values in labels.items():
        if values.ndim != 2 or values.shape[1] != n_findings or not len(values):
            raise InputError(
                f"The file {path} has {part}_labels of shape {values.shape} and not "
                f"(images, {n_findings}): name the file of this source."
            )
        if values.dtype.kind not in "iub" or not np.isin(values, (0, 1)).all():
            raise InputError(
                f"The file {path} has {part}_labels other than 0 and 1: download it again from "
                f"{DOWNLOAD_PAGE}."
            )


def _gather(path: Path, arrays: np.lib.npyio.NpzFile, labels: dict[str, np.ndarray]) -> np.ndarray:
    """Gather the images of all splits, holding one split at a time."""
    images, done = None, 0
    for part in progress(_PARTS, desc=f"reading {path.name}", unit="parts"):
        values, n = arrays[f"{part}_images"], len(labels[part])
        if values.dtype != np.uint8 or values.ndim != 3 or not values.size:
            raise InputError(
                f"The file {path} has {part}_images of shape {values.shape} and type "
                f"{values.dtype}, not uint8 (images, size, size): name a file of grey images."
            )
        if images is None:
            images = np.empty((sum(map(len, labels.values())), *values.shape[1:]), np.uint8)
        if values.shape != (n, *images.shape[1:]):
            raise InputError(
                f"The file {path} has {part}_images of shape {values.shape} and not "
                f"{(n, *images.shape[1:])} as its labels and the other parts: download it again "
                f"from {DOWNLOAD_PAGE}."
            )
        images[done : done + n] = values
        done += n
    return images
