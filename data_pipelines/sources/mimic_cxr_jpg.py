"""Read MIMIC-CXR-JPG 2.0.0 or 2.1.0 from its downloaded folder.

377,110 chest X-rays of 65,379 patients of the Beth Israel Deaconess Medical Center, with labels
that CheXpert's or NegBio's labeler mined from the reports. Sex and age are in ``patients.csv.gz``
of MIMIC-IV, which is read where it lies beside the other tables.

Checked against descriptions of the tables only: they are not public.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines.errors import InputError
from data_pipelines.images.store import ImageFiles
from data_pipelines.sources import chexpert
from data_pipelines.sources.card import Card
from data_pipelines.sources.csv_tables import given_file, sex_letters, whole_years
from data_pipelines.sources.published import (
    choose_views,
    find_files,
    find_table,
    need_table,
    number_patients,
    read_rows,
    sort_by_name,
)
from data_pipelines.tables.case_table import CaseTable
from data_pipelines.tables.findings import NO_FINDING

CARD = Card(
    description=(
        "MIMIC-CXR-JPG: 377,110 chest X-rays of 65,379 patients with 13 findings, mined from the "
        "reports by rules; by default the frontal ones."
    ),
    license=(
        "PhysioNet Credentialed Health Data License: for credentialed users who have signed the "
        "data use agreement; the data may not be shared."
    ),
    citation=(
        "A. E. W. Johnson, T. J. Pollard, N. R. Greenbaum et al., 'MIMIC-CXR-JPG, a large publicly "
        "available database of labeled chest radiographs', arXiv:1901.07042, 2019."
    ),
    homepage="https://physionet.org/content/mimic-cxr-jpg/",
)
TABLES = ("mimic-cxr-2.*-metadata.csv",)
COLUMNS = ("dicom_id", "subject_id", "study_id", "ViewPosition")
_LABELS = ("mimic-cxr-2.*-chexpert.csv", "mimic-cxr-2.*-negbio.csv")
_SPLIT = "mimic-cxr-2.*-split.csv"
_PARTS = {"train": "train", "validate": "val", "test": "test"}
_FRONTAL = ("PA", "AP")


def load(directory: Path, csv: str = "", views: str = "frontal") -> CaseTable:
    """Read the tables and find the images.

    Args:
        directory: folder with the tables of metadata, split and labels, compressed or not, there or
            one folder below, and the images anywhere below.
        csv: table of labels to read, such as ``mimic-cxr-2.0.0-negbio.csv.gz``; by default that of
            CheXpert's labeler, else NegBio's.
        views: one of ``VIEWS``; ``all`` reads lateral images, too.

    Returns:
        The images, named as in the set's own list; those of a study without labels are
        unknown throughout. Labels are as ``chexpert.load`` returns them.

    Raises:
        InputError: a table, a column, a value or every frontal image is missing or wrong.
    """
    directory = Path(directory)
    path = need_table(directory, "", TABLES, CARD.homepage)
    rows = read_rows(path, COLUMNS, ("StudyDate",))
    rows = rows.assign(
        frontal=rows["ViewPosition"].isin(_FRONTAL), view=rows["ViewPosition"].replace("", "none")
    )
    rows, left_out = choose_views(rows, path, views)
    person, study = rows["subject_id"], rows["study_id"]
    place = "files/p" + person.str[:2] + "/p" + person + "/s" + study
    rows = sort_by_name(rows.assign(image=place + "/" + rows["dicom_id"] + ".jpg"), path)
    images = rows["image"].to_numpy(str)
    patients, names = number_patients(rows["subject_id"])
    labels, unlabelled = _labels(directory, csv, rows["study_id"])
    sexes, ages = _people(directory, rows)
    return CaseTable(
        source="mimic_cxr_jpg",
        findings=chexpert.FINDINGS,
        images=images,
        patients=patients,
        labels=labels,
        official_part=_parts(directory, rows["dicom_id"]),
        official_files=(_SPLIT.replace("*", "0.0"),),
        views=rows["view"].to_numpy(str),
        sexes=sexes,
        ages=ages,
        store=ImageFiles(images, find_files(directory, images.tolist())),
        patient_names=names,
        warnings=(*left_out, *unlabelled),
    )


def _labels(directory: Path, csv: str, studies: pd.Series) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the labels of the images' studies, ``[n, 13]`` int8, and a sentence on absent ones."""
    if csv:
        path = given_file(csv, directory, "table", f"name {_LABELS[1]} or leave the key empty")
    else:
        path = need_table(directory, "", _LABELS, CARD.homepage)
    rows = read_rows(path, ("study_id", NO_FINDING, *chexpert.LABELS))
    labels = chexpert.label_frame(rows, path).set_axis(_unique(rows["study_id"], path))
    absent = int((~studies.isin(labels.index)).sum())
    note = f"{absent:,} images are of studies that {path} has no labels of: all are unknown."
    return labels.reindex(studies, fill_value=-1).to_numpy(np.int8), (note,) if absent else ()


def _parts(directory: Path, images: pd.Series) -> np.ndarray:
    """Return the official split, ``[n]`` strings; empty without its table."""
    path = find_table(directory, (_SPLIT,))
    if path is None:
        return np.full(len(images), "")
    rows = read_rows(path, ("dicom_id", "split"))
    wrong = ~rows["split"].isin(list(_PARTS))
    if wrong.any():
        line = rows.index[wrong][0]
        raise InputError(
            f"The table {path}, row {line}, has {rows.at[line, 'split']!r} in the column 'split': "
            f"it must be one of {', '.join(_PARTS)}."
        )
    parts = rows["split"].map(_PARTS).set_axis(_unique(rows["dicom_id"], path))
    return parts.reindex(images, fill_value="").to_numpy(str)


def _people(directory: Path, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return sex and age at the study, from the patients of MIMIC-IV; unknown without them."""
    path = find_table(directory, ("patients.csv",))
    if path is None:
        return np.full(len(rows), ""), np.full(len(rows), -1, np.int16)
    people = read_rows(path, ("subject_id", "gender", "anchor_age", "anchor_year"))
    people = people.set_index(_unique(people["subject_id"], path))
    people = people.reindex(rows["subject_id"], fill_value="").set_axis(rows.index)
    age, year, study = (
        pd.to_numeric(text, errors="coerce")
        for text in (people["anchor_age"], people["anchor_year"], rows["StudyDate"].str[:4])
    )
    ages = (age + study - year).fillna(-1).astype(int)
    return sex_letters(people["gender"]), whole_years(ages)


def _unique(keys: pd.Series, path: Path) -> pd.Index:
    """Return an index of keys; none may occur twice."""
    twice = keys.duplicated()
    if twice.any():
        line = keys.index[twice][0]
        raise InputError(
            f"The table {path} lists {keys[line]} a second time in row {line}: download it again."
        )
    return pd.Index(keys)
