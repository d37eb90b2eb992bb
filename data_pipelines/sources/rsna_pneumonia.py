"""Read the images of the RSNA Pneumonia Detection Challenge from their downloaded folder.

26,684 labelled images of ChestX-ray14, where radiologists marked opacities that suggest pneumonia:
6,012 have one, 8,851 are normal, 11,821 are neither. The published mapping
``pneumonia-challenge-dataset-mappings_2018.json`` names the image of ChestX-ray14 that each is.

Labels are checked against the real table, classes and mapping against descriptions only.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines.errors import InputError
from data_pipelines.images.store import ImageFiles
from data_pipelines.sources.card import Card
from data_pipelines.sources.dicom_tags import read_tags
from data_pipelines.sources.published import (
    find_files,
    find_table,
    need_table,
    number_patients,
    read_labels,
    read_rows,
    sort_by_name,
)
from data_pipelines.tables.boxes import Boxes, locate
from data_pipelines.tables.case_table import CaseTable

CARD = Card(
    description=(
        "RSNA Pneumonia Detection Challenge: 26,684 images of ChestX-ray14, where radiologists "
        "marked opacities that suggest pneumonia."
    ),
    license=(
        "RSNA allows academic, educational, commercial and other use that meets its requirements "
        "of attribution; the images are the NIH Clinical Center's."
    ),
    citation=(
        "G. Shih, C. C. Wu, S. S. Halabi et al., 'Augmenting the National Institutes of Health "
        "Chest Radiograph Dataset with Expert Annotations of Possible Pneumonia', Radiology: "
        "Artificial Intelligence 1(1), 2019."
    ),
    homepage=(
        "https://www.rsna.org/education/ai-resources-and-training/ai-image-challenge/"
        "rsna-pneumonia-detection-challenge-2018"
    ),
)
TABLES = ("stage_2_train_labels.csv",)
COLUMNS = ("patientId", "Target")
FINDINGS = ("Lung Opacity", "Pneumonia")
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
_BOX_COLUMNS = ("x", "y", "width", "height")
_SIDE = 1024  # pixels of every image
_CLASSES = "stage_2_detailed_class_info.csv"
_OPACITY, _NORMAL = "Lung Opacity", "Normal"
_NEITHER = "No Lung Opacity / Not Normal"
_NO_MAPPING = (
    f"Each image counts as a patient of its own, and as none of ChestX-ray14: put {MAPPING} into "
    "the data folder to know the patients, and images that a network has already seen there."
)


def load(directory: Path, csv: str = "") -> CaseTable:
    """Read the tables and find the images.

    Args:
        directory: folder with ``stage_2_train_labels.csv``, if there are any the classes and the
            mapping, there or one folder below, and the images anywhere below.
        csv: table to read in place of ``stage_2_train_labels.csv``.

    Returns:
        Pneumonia is what the radiologists marked; Lung Opacity is present there, absent in normal
        images, and unknown elsewhere, where opacities of other causes were not marked. With the
        mapping, images have the names and patients of ChestX-ray14, so that a run knows those that
        it has seen there. View, sex and age are those of the DICOM files.

    Raises:
        InputError: a table, a column or a value is missing or wrong.
    """
    directory = Path(directory)
    path = need_table(directory, csv, TABLES, CARD.homepage)
    rows = read_rows(path, COLUMNS)
    rows = rows.assign(target=read_labels(rows[["Target"]], {"1": 1, "0": 0}, path)[:, 0])
    rows = rows.drop_duplicates(["patientId", "target"])  # an image has a row for each box
    normal = _normal(directory)
    rows["opacity"] = np.where(rows["patientId"].isin(normal), 0, -1)
    rows["opacity"] = rows["opacity"].where(rows["target"] == 0, 1)
    names = _mapping(directory)
    rows["image"] = _image_names(rows["patientId"], names)
    rows = sort_by_name(rows, path)
    images = rows["image"].to_numpy(str)
    files = find_files(directory, rows["patientId"].tolist())
    views, sexes, ages = read_tags(files, len(rows))
    # ChestX-ray14 names an image by its patient, with leading zeros, and a number.
    person = rows["image"].str.replace(r"^0*(\d+)_\d+\.png$", r"\1", regex=True)
    patients, patient_names = number_patients(person)
    return CaseTable(
        source="rsna_pneumonia",
        findings=FINDINGS,
        images=images,
        patients=patients,
        labels=rows[["opacity", "target"]].to_numpy(np.int8),
        official_part=np.full(len(rows), ""),
        official_known=False,
        views=views,
        sexes=sexes,
        ages=ages,
        store=ImageFiles(images, files),
        patients_known=names is not None,
        patient_names=patient_names if names is not None else (),
        warnings=() if names is not None else (_NO_MAPPING,),
    )


def read_boxes(directory: Path, csv: str, table: CaseTable) -> Boxes:
    """Read the boxes, which are around a lung opacity and around pneumonia alike.

    Args:
        directory: see ``load``.
        csv: see ``load``.
        table: what ``load`` returned.

    Raises:
        InputError: a row is wrong; see ``boxes.locate``.
    """
    path = need_table(directory, csv, TABLES, CARD.homepage)
    rows = read_rows(path, (*COLUMNS, *_BOX_COLUMNS))
    rows = rows[rows["Target"] == "1"].assign(image_width=_SIDE, image_height=_SIDE)
    rows = rows.assign(image=_image_names(rows["patientId"], _mapping(directory)))
    frame = pd.concat([rows.assign(finding=finding) for finding in FINDINGS])
    return locate(frame, table, path)


def _image_names(ids: pd.Series, names: pd.Series | None) -> pd.Series:
    """Return the name of each id's image: that in ChestX-ray14 where the mapping knows it."""
    own = ids + ".dcm"
    return own if names is None else ids.map(names).fillna(own)


def _normal(directory: Path) -> set[str]:
    """Return the ids of normal images; none without the table of classes."""
    path = find_table(directory, (_CLASSES,))
    if path is None:
        return set()
    rows = read_rows(path, ("patientId", "class"))
    words = {_OPACITY: 1, _NORMAL: 0, _NEITHER: -1}
    classes = read_labels(rows[["class"]], words, path)[:, 0]
    return set(rows["patientId"][classes == 0])


def _mapping(directory: Path) -> pd.Series | None:
    """Return the name in ChestX-ray14 of each id; None without the mapping."""
    path = find_table(directory, (MAPPING,))
    if path is None:
        return None
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        pairs = {entry["subset_img_id"]: entry["img_id"] for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"The mapping {path} is not a list of entries with 'subset_img_id' and 'img_id' "
            f"({error!r}): download it again from {CARD.homepage}."
        ) from error
    return pd.Series(pairs, dtype=str)
