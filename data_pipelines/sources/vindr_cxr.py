"""Read VinDr-CXR from the folder of PhysioNet, or of the VinBigData challenge on Kaggle.

18,000 postero-anterior chest X-rays of two hospitals in Hanoi: 15,000 to train, each read by three
radiologists on their own, and 3,000 to test with the consensus of five. PhysioNet's tables have 27
findings and diagnoses, Kaggle's table has 14 and the training images alone.

Kaggle's table is checked against the real one, PhysioNet's against descriptions only.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines.errors import InputError, listed
from data_pipelines.images.store import ImageFiles
from data_pipelines.sources.card import Card
from data_pipelines.sources.dicom_tags import read_sizes, read_tags
from data_pipelines.sources.published import (
    find_files,
    find_table,
    header,
    need_table,
    read_labels,
    read_rows,
    sort_by_name,
)
from data_pipelines.tables.boxes import Boxes, concatenated, locate
from data_pipelines.tables.case_table import UNCERTAIN, CaseTable
from data_pipelines.tables.findings import canonical, is_no_finding, plain

CARD = Card(
    description=(
        "VinDr-CXR: 18,000 chest X-rays of two hospitals in Hanoi, labelled by three radiologists "
        "each, and in the test set by the consensus of five."
    ),
    license=(
        "PhysioNet Credentialed Health Data License: for credentialed users who have signed the "
        "data use agreement; the data may not be shared. Kaggle's copy: the competition's rules."
    ),
    citation=(
        "H. Q. Nguyen, K. Lam, L. T. Le et al., 'VinDr-CXR: An open dataset of chest X-rays with "
        "radiologist's annotations', Scientific Data 9:429, 2022."
    ),
    homepage="https://physionet.org/content/vindr-cxr/",
)
TABLES = ("image_labels_train.csv", "train.csv")
COLUMNS = ("image_id", "rad_id")
_TEST = "image_labels_test.csv"
_CLASS = "class_name"
_ANNOTATIONS = ("annotations_train.csv", "annotations_test.csv")
_CORNERS = ("x_min", "y_min", "x_max", "y_max")
# The classes of Kaggle's table, then those that PhysioNet's have beside them.
CHALLENGE = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Nodule/Mass",
    "Other lesion",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
)
ALL = (
    *CHALLENGE,
    "COPD",
    "Clavicle fracture",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "Lung cavity",
    "Lung cyst",
    "Lung tumor",
    "Mediastinal shift",
    "Other diseases",
    "Pneumonia",
    "Rib fracture",
    "Tuberculosis",
)
_OTHERS = "Other diseases"
_WORDS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "": 0}


def load(directory: Path, csv: str = "") -> CaseTable:
    """Read the tables and find the images.

    Args:
        directory: folder with ``image_labels_train.csv`` and ``image_labels_test.csv``, or with the
            challenge's ``train.csv``, compressed or not, there or one folder below, and the images
            anywhere below.
        csv: table to read in place of that of the training images.

    Returns:
        A finding is present where most radiologists saw it, absent where none did, and
        ``UNCERTAIN`` where fewer did: the policy ``zeros`` is their majority, ``ones`` any of them.
        Sex and age are those of the DICOM files. There are no patients.

    Raises:
        InputError: a table, a column, a value or a class is missing or wrong.
    """
    directory = Path(directory)
    path = need_table(directory, csv, TABLES, CARD.homepage)
    challenge = plain(_CLASS) in header(path)
    votes = _votes_of_rows(path) if challenge else _votes(path)
    test = None if challenge else find_table(directory, (_TEST,))
    parts = np.full(len(votes), "train" if test else "")
    if test:
        consensus = _votes(test)
        votes = pd.concat([votes, consensus])
        parts = np.concatenate([parts, np.full(len(consensus), "test")])
    rows = sort_by_name(votes.assign(part=parts, image=votes.index + ".dicom"), path)
    images = rows["image"].to_numpy(str)
    files = find_files(directory, images.tolist())
    _, sexes, ages = read_tags(files, len(rows))
    findings = CHALLENGE if challenge else ALL
    return CaseTable(
        source="vindr_cxr",
        findings=tuple(map(canonical, findings)),
        images=images,
        patients=np.arange(len(rows), dtype=np.int32),
        labels=rows[list(findings)].to_numpy(np.int8),
        official_part=rows["part"].to_numpy(str),
        official_known=not challenge,
        official_files=(_TEST,),
        views=np.full(len(rows), "PA"),
        sexes=sexes,
        ages=ages,
        store=ImageFiles(images, files),
        patients_known=False,
        warnings=(f"The table {path} names no patients: each image counts as one.",),
    )


def read_boxes(directory: Path, csv: str, table: CaseTable) -> Boxes:
    """Read the boxes of all readers, from ``annotations_*.csv`` or the challenge's ``train.csv``.

    Their images' sizes are those of the DICOM files, so only images that are present have boxes.

    Args:
        directory: see ``load``.
        csv: see ``load``.
        table: what ``load`` returned.

    Raises:
        InputError: there is no table with boxes, no file of a boxed image, or a row is wrong; see
            ``boxes.locate``.
    """
    path = need_table(directory, csv, TABLES, CARD.homepage)
    paths = [path]
    if plain(_CLASS) not in header(path):
        paths = [found for name in _ANNOTATIONS if (found := find_table(directory, (name,)))]
    if not paths:
        raise InputError(
            f"{directory} has no boxes, {' or '.join(_ANNOTATIONS)}: download them from "
            f"{CARD.homepage} into that folder."
        )
    files = find_files(directory, table.images.tolist())
    sizes = pd.DataFrame(read_sizes(files), index=["width", "height"]).T
    sizes.index = table.images[sizes.index.to_numpy(int)]
    located = []
    for path in paths:
        rows = read_rows(path, ("image_id", _CLASS, *_CORNERS))
        rows = rows.assign(image=rows["image_id"] + ".dicom")
        rows = rows[~rows[_CLASS].map(is_no_finding) & rows["image"].isin(sizes.index)]
        if rows.empty:
            continue
        corners = rows[list(_CORNERS)].apply(pd.to_numeric, errors="coerce")
        frame = pd.DataFrame(
            {
                "image": rows["image"],
                "finding": rows[_CLASS],
                "x": corners["x_min"],
                "y": corners["y_min"],
                "width": corners["x_max"] - corners["x_min"],
                "height": corners["y_max"] - corners["y_min"],
                "image_width": rows["image"].map(sizes["width"]),
                "image_height": rows["image"].map(sizes["height"]),
            }
        )
        located.append(locate(frame, table, path))
    if not located:
        raise InputError(
            f"No image with a box in {listed(paths)} has a DICOM file in {directory}: put the "
            "files there, since they tell the size in which the boxes are given."
        )
    return concatenated(located)


def _votes(path: Path) -> pd.DataFrame:
    """Read a table with a column for each class and a row for each reader of an image."""
    names = {name: name for name in ALL}
    if plain(_OTHERS) not in header(path):
        names[_OTHERS] = "Other disease"  # as the table of the test set has it
    rows = read_rows(path, ("image_id", *names.values()))
    labels = read_labels(rows[list(names.values())], _WORDS, path)
    seen = pd.DataFrame(labels, columns=list(names))
    return _agreed(seen.groupby(rows["image_id"].to_numpy(str)))


def _votes_of_rows(path: Path) -> pd.DataFrame:
    """Read a table with a row for each box that a reader drew, or for no finding."""
    rows = read_rows(path, (*COLUMNS, _CLASS))
    known = {plain(name): name for name in CHALLENGE}
    classes = rows[_CLASS].map(plain).map(known)
    wrong = classes.isna() & ~rows[_CLASS].map(is_no_finding)
    if wrong.any():
        line = rows.index[wrong][0]
        raise InputError(
            f"The table {path}, row {line}, has the class {rows.at[line, _CLASS]!r}: it must be "
            f"'No finding' or one of {', '.join(CHALLENGE)}; {TABLES[0]} has the others."
        )
    seen = pd.get_dummies(classes, dtype=np.int8).reindex(columns=list(CHALLENGE), fill_value=0)
    by_reader = seen.groupby([rows["image_id"].to_numpy(str), rows["rad_id"].to_numpy(str)]).max()
    return _agreed(by_reader.groupby(level=0))


def _agreed(readers: "pd.api.typing.DataFrameGroupBy") -> pd.DataFrame:
    """Return 1 where most readers of an image saw a finding, 0 where none did, else uncertain."""
    share = readers.mean()
    labels = np.select([share > 0.5, share == 0], [1, 0], UNCERTAIN).astype(np.int8)
    return pd.DataFrame(labels, index=share.index.astype(str), columns=share.columns)
