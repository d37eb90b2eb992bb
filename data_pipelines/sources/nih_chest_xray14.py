"""Read ChestX-ray14 of the NIH Clinical Center from its downloaded folder.

112,120 frontal chest X-rays (1024x1024 PNG) of 30,805 patients with 14 findings, mined from the
reports by text processing; 60,361 images carry no finding. The official lists assign 86,524 images
of 28,008 patients to training and validation, and 25,596 images of 2,797 other patients to test.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines.errors import InputError
from data_pipelines.images.search import file_key, walk
from data_pipelines.images.store import ImageFiles
from data_pipelines.sources.card import Card
from data_pipelines.sources.csv_tables import sex_letters, whole_years
from data_pipelines.sources.published import find_table, need_table, read_rows
from data_pipelines.tables.boxes import Boxes, locate
from data_pipelines.tables.case_table import SIMULATED_MARKER, CaseTable
from data_pipelines.tables.findings import NIH_FINDINGS, NO_FINDING, is_no_finding, plain

DOWNLOAD_PAGE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
CARD = Card(
    description=(
        "ChestX-ray14: 112,120 frontal chest X-rays of 30,805 patients with 14 findings, mined "
        "from the radiology reports by text processing."
    ),
    license=(
        "The NIH Clinical Center places no restriction on the use of the images, and asks to "
        "link to the download page, to acknowledge the NIH Clinical Center, and to cite the "
        "CVPR 2017 paper."
    ),
    citation=(
        "X. Wang, Y. Peng, L. Lu, Z. Lu, M. Bagheri, R. M. Summers, 'ChestX-ray8: "
        "Hospital-scale Chest X-ray Database and Benchmarks on Weakly-Supervised "
        "Classification and Localization of Common Thorax Diseases', CVPR 2017."
    ),
    homepage=DOWNLOAD_PAGE,
)
TABLES = ("Data_Entry_2017*.csv",)
COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
BOXES = "BBox_List_2017.csv"
LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
# Optional columns, for subgroups.
_OPTIONAL = ("View Position", "Patient Gender", "Patient Sex", "Patient Age")
# The original header: its last column "Bbox [x,y,w,h]" is unquoted.
_BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
_BOXED_SIDE = 1024  # pixels a side of the images that the boxes were drawn on
_INT32_MAX = int(np.iinfo(np.int32).max)


def load(directory: Path, csv: str = "") -> CaseTable:
    """Read the table and the official lists, and find the images.

    Args:
        directory: folder with ``Data_Entry_2017*.csv``, ``.gz`` or ``.zip`` (where there are
            several, the last by name), ``train_val_list.txt``, ``test_list.txt``, and PNG files
            anywhere below. A file ``SIMULATED.txt`` marks simulated images.
        csv: table to read in place of ``Data_Entry_2017*``: a path, also looked for in
            ``directory``.

    Returns:
        The full table, sorted by image name. ``official_part`` is empty where a list is absent:
        only the ``official`` split rule needs it.

    Raises:
        InputError: the folder, table, a column, a row or a listed name is missing or wrong.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(
            f"The data folder {directory} does not exist: download ChestX-ray14 from "
            f"{DOWNLOAD_PAGE} and name its folder with --config.data.dir or CHARM_DATA, or run "
            "`charm-jax train` without a config for the demo that needs no data."
        )
    path = need_table(directory, csv, TABLES, DOWNLOAD_PAGE)
    rows = _read_rows(path)
    images = rows["Image Index"].to_numpy(str)
    return CaseTable(
        source="nih_chest_xray14",
        findings=NIH_FINDINGS,
        images=images,
        patients=_patients(rows, path),
        labels=_labels(rows, path),
        official_part=_official_part(directory, images),
        official_files=tuple(LISTS.values()),
        views=rows["View Position"].to_numpy(str),
        sexes=sex_letters(rows["Patient Gender"] + rows["Patient Sex"]),  # one of them is empty
        ages=whole_years(rows["Patient Age"]),
        store=ImageFiles(images, _find_files(directory, images)),
        simulated=(directory / SIMULATED_MARKER).exists(),
    )


def read_boxes(directory: Path, csv: str, table: CaseTable) -> Boxes:
    """Read ``BBox_List_2017.csv``: 984 boxes by radiologists, of 8 findings in 880 images.

    Boxes are in pixels of the published images of 1024 x 1024, also beside copies of another size.
    The simulated set has them for each sign.

    Args:
        directory: folder with the file, unless that is beside the table.
        csv: see ``load``.
        table: what ``load`` returned.

    Raises:
        InputError: there is no such file, or a row of it is wrong; see ``boxes.locate``.
    """
    beside = need_table(directory, csv, TABLES, DOWNLOAD_PAGE).parent
    path = find_table(beside, (BOXES,)) or find_table(directory, (BOXES,))
    if path is None:
        remedy = f"download it from {DOWNLOAD_PAGE} into that folder"
        if table.simulated:
            remedy = (
                "this simulated set was drawn by an earlier version, so draw it again, with the "
                "same images, into another folder"
            )
        raise InputError(f"{directory} has no boxes, {BOXES}: {remedy}.")
    frame = read_rows(path, _BOX_COLUMNS)
    frame.columns = ["image", "finding", "x", "y", "width", "height"]
    size = {"image_width": _BOXED_SIDE, "image_height": _BOXED_SIDE}
    return locate(frame.assign(**size), table, path)


def _read_rows(path: Path) -> pd.DataFrame:
    """Read the columns as text, sorted by image, indexed by line."""
    # The original header holds "OriginalImage[Width,Height]" unquoted and ends in a comma, so only
    # the needed columns are read, by name.
    rows = read_rows(path, COLUMNS, _OPTIONAL)
    rows = rows.sort_values("Image Index", kind="stable")
    twice = rows["Image Index"].duplicated()
    if twice.any():
        line = rows.index[twice][0]
        raise InputError(
            f"The table {path} lists {rows.at[line, 'Image Index']} a second time on line {line}: "
            "remove one of the two rows."
        )
    return rows


def _patients(rows: pd.DataFrame, path: Path) -> np.ndarray:
    numbers = pd.to_numeric(rows["Patient ID"], errors="coerce")
    wrong = ~(numbers.between(0, _INT32_MAX) & (numbers % 1 == 0))
    if wrong.any():
        line = rows.index[wrong][0]
        raise InputError(
            f"The table {path}, line {line} ({rows.at[line, 'Image Index']}), gives 'Patient ID' "
            f"{rows.at[line, 'Patient ID']!r}: it must be a whole number from 0 to {_INT32_MAX}."
        )
    return numbers.to_numpy(np.int32)


def _labels(rows: pd.DataFrame, path: Path) -> np.ndarray:
    """Parse '|'-separated names, ``[n, 14]`` int8; each combination once."""
    codes, combinations = pd.factorize(rows["Finding Labels"])
    column = {plain(name): i for i, name in enumerate(NIH_FINDINGS)}
    labels = np.zeros((len(combinations), len(NIH_FINDINGS)), np.int8)
    for code, text in enumerate(combinations):
        for name in () if is_no_finding(text) else text.split("|"):
            if plain(name) not in column:
                line = rows.index[codes == code][0]
                raise InputError(
                    f"The table {path}, line {line} ({rows.at[line, 'Image Index']}), has the "
                    f"finding {name!r} in {text!r}: it must be {NO_FINDING!r} alone, or names "
                    f"joined by '|' out of {', '.join(NIH_FINDINGS)}."
                )
            labels[code, column[plain(name)]] = 1
    return labels[codes]


def _official_part(directory: Path, images: np.ndarray) -> np.ndarray:
    """Return ``train_val``, ``test`` or an empty string for each image."""
    row = {name: i for i, name in enumerate(images.tolist())}
    part = np.full(len(images), "", dtype="<U9")
    for value, file_name in LISTS.items():
        path = directory / file_name
        if not path.is_file():
            continue
        names = path.read_text(encoding="utf-8-sig", errors="replace").split()
        unknown = next((name for name in names if name not in row), None)
        if unknown is not None:
            raise InputError(
                f"The list {path} names {unknown!r}, which the table does not have: use the lists "
                "and the table of the same download, or move the list away and use "
                "--config.data.split=patient."
            )
        rows = np.fromiter((row[name] for name in names), np.int64, len(names))
        taken = rows[part[rows] != ""]
        if taken.size:
            raise InputError(
                f"The list {path} names {images[taken[0]]}, which {LISTS['train_val']} names too: "
                f"download both lists again from {DOWNLOAD_PAGE}."
            )
        part[rows] = value
    return part


def _find_files(directory: Path, images: np.ndarray) -> dict[int, Path]:
    """Find each image's file by row; another spelling counts last, and of equal names the first."""
    rows = {name: row for row, name in enumerate(images.tolist())}
    spelt = {file_key(name): row for name, row in rows.items()}
    found: dict[int, tuple[bool, Path]] = {}
    for path in walk(directory):
        row = rows.get(path.name)
        row = spelt.get(file_key(path.name)) if row is None else row
        if row is not None:
            rank = (path.name not in rows, path)
            found[row] = min(found.get(row, rank), rank)
    return {row: found[row][1] for row in sorted(found)}
