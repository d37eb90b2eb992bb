"""Read CheXpert from its downloaded folder, in either size.

224,316 chest X-rays of 65,240 patients of Stanford Hospital. The labels of ``train.csv`` come from
the reports by rules: 1 present, 0 absent, -1 uncertain, empty where a report does not say. The
images of ``valid.csv`` were labelled by three radiologists; those of the test set, whose labels are
published with CheXlocalize (``test_labels.csv``), by five.

Checked against the real ``train.csv``; ``valid.csv`` and the test labels against descriptions only.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines.errors import InputError
from data_pipelines.images.store import ImageFiles
from data_pipelines.sources.card import Card
from data_pipelines.sources.csv_tables import sex_letters, whole_years
from data_pipelines.sources.published import (
    choose_views,
    find_files,
    find_table,
    need_table,
    number_patients,
    read_labels,
    read_rows,
    sort_by_name,
)
from data_pipelines.tables.case_table import UNCERTAIN, CaseTable
from data_pipelines.tables.findings import NO_FINDING, canonical

CARD = Card(
    description=(
        "CheXpert: 224,316 chest X-rays of 65,240 patients with 13 findings, mined from the "
        "reports by rules; by default the frontal ones."
    ),
    license=(
        "Stanford University's research use agreement: for non-commercial research; the data may "
        "not be shared."
    ),
    citation=(
        "J. Irvin, P. Rajpurkar, M. Ko, Y. Yu et al., 'CheXpert: A Large Chest Radiograph Dataset "
        "with Uncertainty Labels and Expert Comparison', AAAI 2019."
    ),
    homepage="https://stanfordmlgroup.github.io/competitions/chexpert/",
)
TABLES = ("train.csv",)
COLUMNS = ("Path", "No Finding")
# The columns of CheXpert's labeler; MIMIC-CXR has them, too.
LABELS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
FINDINGS = tuple(map(canonical, LABELS))
# Label of each word; a report that does not mention a finding leaves it unknown.
WORDS = {"1.0": 1, "0.0": 0, "-1.0": UNCERTAIN, "": -1, "1": 1, "0": 0, "-1": UNCERTAIN}
_SPLITS = {"val": ("valid.csv",), "test": ("test.csv", "test_labels.csv")}
_OPTIONAL = ("Sex", "Age", "Frontal/Lateral", "AP/PA")
_PLACE = r"((?:train|valid|test)/(patient\d+)/\w+/view\d+_(\w+)\.\w+)$"


def load(directory: Path, csv: str = "", views: str = "frontal") -> CaseTable:
    """Read the tables and find the images.

    Args:
        directory: folder with ``train.csv``, ``valid.csv`` and ``test.csv`` or ``test_labels.csv``,
            plain or compressed, there or one folder below, and the images anywhere below.
        csv: table to read in place of ``train.csv``.
        views: one of ``VIEWS``; ``all`` reads lateral images, too.

    Returns:
        The images, named as in the tables without the name of the set. Labels are those of
        the tables, ``UNCERTAIN`` included; where they say that there is no finding, all findings
        but devices are absent. Without labels of the test set, the images of ``valid.csv`` test, as
        in most published results.

    Raises:
        InputError: a table, a column, a value or every frontal image is missing or wrong.
    """
    directory = Path(directory)
    paths = {"train": need_table(directory, csv, TABLES, CARD.homepage)}
    found = {part: find_table(directory, names) for part, names in _SPLITS.items()}
    paths |= {part: path for part, path in found.items() if path}
    rows = pd.concat([_read(path, part) for part, path in paths.items()])
    rows, left_out = choose_views(rows, paths["train"], views)
    rows = sort_by_name(rows, paths["train"])
    images = rows["image"].to_numpy(str)
    patients, names = number_patients(rows["patient"])
    parts, note = _parts(rows["part"], paths)
    return CaseTable(
        source="chexpert",
        findings=FINDINGS,
        images=images,
        patients=patients,
        labels=rows[list(LABELS)].to_numpy(np.int8),
        official_part=parts,
        official_files=_SPLITS["val"],
        views=rows["view"].to_numpy(str),
        sexes=sex_letters(rows["Sex"]),
        ages=whole_years(rows["Age"].where(rows["Age"] != "0", "")),  # 0 stands for unknown
        store=ImageFiles(images, find_files(directory, images.tolist(), depth=3)),
        patient_names=names,
        warnings=(*left_out, *note),
    )


def label_frame(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return the labels of ``LABELS`` in rows that also have a column for no finding."""
    labels = read_labels(rows[[NO_FINDING, *LABELS]], WORDS, path)
    healthy, labels = labels[:, 0] == 1, labels[:, 1:]
    labels[healthy, :-1] = 0  # the last column is that of devices, which are no disease
    return pd.DataFrame(labels, index=rows.index, columns=list(LABELS))


def _read(path: Path, part: str) -> pd.DataFrame:
    """Read a table: image, patient, view, sex, age, labels and part."""
    rows = read_rows(path, ("Path", NO_FINDING, *LABELS), _OPTIONAL)
    place = rows["Path"].str.extract(_PLACE)
    wrong = place[0].isna()
    if wrong.any():
        line = rows.index[wrong][0]
        raise InputError(
            f"The table {path}, row {line}, has the path {rows.at[line, 'Path']!r}: it must be one "
            "like train/patient00001/study1/view1_frontal.jpg."
        )
    described = rows.assign(
        image=place[0],
        patient=place[1],
        frontal=place[2] == "frontal",
        view=rows["AP/PA"].where(place[2] == "frontal", "lateral"),
        part=part,
    )
    kept = described[["image", "patient", "frontal", "view", "part", "Sex", "Age"]]
    return pd.concat([kept, label_frame(rows, path)], axis="columns")


def _parts(part: pd.Series, paths: dict[str, Path]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the official split, ``[n]`` strings, and a sentence where it is not complete."""
    if "test" in paths:
        return part.to_numpy(str), ()
    if "val" not in paths:
        return np.full(len(part), ""), ()
    note = (
        "There is no test.csv or test_labels.csv: under the rule official the images of valid.csv "
        "test."
    )
    return part.replace("val", "test").to_numpy(str), (note,)
