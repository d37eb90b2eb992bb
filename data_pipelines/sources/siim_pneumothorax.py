"""Read the images of the SIIM-ACR Pneumothorax Segmentation challenge from their downloaded folder.

12,047 images of ChestX-ray14 with masks of pneumothorax in 2,669 of them. Their names in
ChestX-ray14 are not published.

Checked against the real table of masks.
"""

from pathlib import Path

import numpy as np

from data_pipelines.images.store import ImageFiles
from data_pipelines.sources.card import Card
from data_pipelines.sources.dicom_tags import read_tags
from data_pipelines.sources.published import find_files, need_table, read_rows
from data_pipelines.tables.case_table import CaseTable

CARD = Card(
    description=(
        "SIIM-ACR Pneumothorax Segmentation: images of ChestX-ray14, where radiologists outlined "
        "pneumothorax."
    ),
    license="The rules of the Kaggle competition; the images are the NIH Clinical Center's.",
    citation=(
        "Society for Imaging Informatics in Medicine and American College of Radiology, "
        "'SIIM-ACR Pneumothorax Segmentation', Kaggle, 2019."
    ),
    homepage="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
)
TABLES = ("*train-rle.csv", "stage_2_train.csv")
COLUMNS = ("ImageId", "EncodedPixels")
_WARNING = (
    "The images are those of ChestX-ray14 under other names: each counts as a patient of its own, "
    "and a network trained on ChestX-ray14 may have seen them."
)


def load(directory: Path, csv: str = "") -> CaseTable:
    """Read the table of masks and find the images.

    Args:
        directory: folder with ``train-rle.csv`` or ``stage_2_train.csv``, there or one folder
            below, and the images anywhere below.
        csv: table to read in place of these.

    Returns:
        Pneumothorax is present where an image has a mask. View, sex and age are those of the DICOM
        files.

    Raises:
        InputError: the table or a column is missing or wrong.
    """
    directory = Path(directory)
    path = need_table(directory, csv, TABLES, CARD.homepage)
    rows = read_rows(path, COLUMNS)
    masked = rows["EncodedPixels"].str.strip() != "-1"
    labels = masked.groupby(rows["ImageId"].str.strip()).any()  # an image has a row for each mask
    names = labels.index.tolist()
    images = np.array([f"{name}.dcm" for name in names])
    files = find_files(directory, names)
    views, sexes, ages = read_tags(files, len(names))
    return CaseTable(
        source="siim_pneumothorax",
        findings=("Pneumothorax",),
        images=images,
        patients=np.arange(len(names), dtype=np.int32),
        labels=labels.to_numpy(np.int8)[:, None],
        official_part=np.full(len(names), ""),
        official_known=False,
        views=views,
        sexes=sexes,
        ages=ages,
        store=ImageFiles(images, files),
        patients_known=False,
        warnings=(_WARNING,),
    )
