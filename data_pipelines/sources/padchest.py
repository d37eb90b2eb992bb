"""Read PadChest from its downloaded folder.

160,861 chest X-rays of 67,625 patients of the Hospital San Juan in Alicante. Labels are lists of
terms of a hierarchy, set by physicians for 39,053 images and by a network that read the reports for
the others.

Checked against the real table.
"""

import re
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
    need_table,
    number_patients,
    read_rows,
    sort_by_name,
)
from data_pipelines.tables.case_table import CaseTable

CARD = Card(
    description=(
        "PadChest: 160,861 chest X-rays of 67,625 patients, whose reports are labelled with terms "
        "of a hierarchy, a quarter by physicians; by default the frontal ones and 29 findings."
    ),
    license=(
        "PadChest Dataset Research Use Agreement: for research; the data may not be shared, and "
        "nobody may be re-identified."
    ),
    citation=(
        "A. Bustos, A. Pertusa, J.-M. Salinas, M. de la Iglesia-Vaya, 'PadChest: A large chest "
        "x-ray image dataset with multi-label annotated reports', Medical Image Analysis 66, 2020."
    ),
    homepage="https://bimcv.cipf.es/bimcv-projects/padchest/",
)
TABLES = ("PADCHEST_chest_x_ray_images_labels_160K*.csv",)
COLUMNS = ("ImageID", "PatientID", "Projection", "Labels")
_OPTIONAL = ("StudyDate_DICOM", "PatientBirth", "PatientSex_DICOM", "MethodLabel")
_VIEWS = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP Supine"}
# Terms of each finding: its own, and those below it in the hierarchy that mean it, too.
TERMS = {
    "Air Trapping": ("air trapping",),
    "Aortic Atheromatosis": ("aortic atheromatosis",),
    "Aortic Elongation": (
        "aortic elongation",
        "ascendent aortic elongation",
        "descendent aortic elongation",
        "supra aortic elongation",
    ),
    "Atelectasis": (
        "atelectasis",
        "atelectasis basal",
        "laminar atelectasis",
        "lobar atelectasis",
        "round atelectasis",
        "segmental atelectasis",
        "total atelectasis",
    ),
    "Bronchiectasis": ("bronchiectasis",),
    "COPD": ("COPD signs",),
    "Cardiomegaly": ("cardiomegaly",),
    "Consolidation": ("consolidation", "air bronchogram"),
    "Costophrenic Angle Blunting": ("costophrenic angle blunting",),
    "Edema": ("pulmonary edema",),
    "Effusion": (
        "pleural effusion",
        "empyema",
        "hydropneumothorax",
        "loculated fissural effusion",
        "loculated pleural effusion",
    ),
    "Emphysema": ("emphysema",),
    "Fibrosis": ("pulmonary fibrosis",),
    "Flattened Diaphragm": ("flattened diaphragm",),
    "Fracture": (
        "fracture",
        "callus rib fracture",
        "clavicle fracture",
        "humeral fracture",
        "rib fracture",
        "vertebral fracture",
    ),
    "Granuloma": ("granuloma", "calcified granuloma"),
    "Hemidiaphragm Elevation": ("hemidiaphragm elevation",),
    "Hernia": ("hiatal hernia",),
    "Hilar Enlargement": (
        "hilar enlargement",
        "adenopathy",
        "pulmonary artery enlargement",
        "vascular hilar enlargement",
    ),
    "Infiltration": (
        "infiltrates",
        "air bronchogram",
        "alveolar pattern",
        "consolidation",
        "ground glass pattern",
        "interstitial pattern",
        "miliary opacities",
        "reticular interstitial pattern",
        "reticulonodular interstitial pattern",
    ),
    "Mass": ("mass", "pulmonary mass"),
    "Nodule": ("nodule", "multiple nodules"),
    "Pleural_Thickening": (
        "pleural thickening",
        "apical pleural thickening",
        "calcified pleural thickening",
    ),
    "Pneumonia": ("pneumonia", "atypical pneumonia"),
    "Pneumothorax": ("pneumothorax", "hydropneumothorax"),
    "Scoliosis": ("scoliosis",),
    # Devices as CheXpert's labeler counts them: lines, tubes, pacemakers, valves and hardware.
    "Support Devices": (
        "NSG tube",
        "artificial aortic heart valve",
        "artificial heart valve",
        "artificial mitral heart valve",
        "catheter",
        "central venous catheter",
        "central venous catheter via jugular vein",
        "central venous catheter via subclavian vein",
        "central venous catheter via umbilical vein",
        "chest drain tube",
        "dual chamber device",
        "electrical device",
        "endotracheal tube",
        "gastrostomy tube",
        "nephrostomy tube",
        "osteosynthesis material",
        "pacemaker",
        "reservoir central venous catheter",
        "single chamber device",
        "tracheostomy tube",
        "ventriculoperitoneal drain tube",
    ),
    "Tuberculosis": ("tuberculosis",),
    "Volume Loss": ("volume loss",),
}
# Reports with these do not list what is absent: the image was set aside, or compared with an
# earlier one.
_OPEN = {"exclude", "unchanged"}
_NOTHING = {"", "suboptimal study"}  # say nothing about findings


def load(directory: Path, csv: str = "", views: str = "frontal") -> CaseTable:
    """Read the table and find the images.

    Args:
        directory: folder with ``PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv``, compressed
            or not, there or one folder below, and the images anywhere below.
        csv: table to read in place of it.
        views: one of ``VIEWS``; ``all`` reads lateral images, too.

    Returns:
        A finding is present where a term of ``TERMS`` is listed, and absent where others are; it is
        unknown without labels and where a report says that something is unchanged. Ages are
        differences of years.

    Raises:
        InputError: the table, a column, a value or every frontal image is missing or wrong.
    """
    directory = Path(directory)
    path = need_table(directory, csv, TABLES, CARD.homepage)
    rows = read_rows(path, COLUMNS, _OPTIONAL)
    known = rows["Projection"].map(_VIEWS)
    rows = rows.assign(
        image=rows["ImageID"], frontal=known.notna(), view=known.fillna(rows["Projection"])
    )
    rows, left_out = choose_views(rows, path, views)
    rows = sort_by_name(rows, path)
    images = rows["image"].to_numpy(str)
    patients, names = number_patients(rows["PatientID"])
    birth = pd.to_numeric(rows["PatientBirth"], errors="coerce")
    ages = pd.to_numeric(rows["StudyDate_DICOM"].str[:4], errors="coerce") - birth
    return CaseTable(
        source="padchest",
        findings=tuple(TERMS),
        images=images,
        patients=patients,
        labels=_labels(rows["Labels"], path),
        official_part=np.full(len(rows), ""),
        official_known=False,
        views=rows["view"].to_numpy(str),
        sexes=sex_letters(rows["PatientSex_DICOM"]),
        ages=whole_years(ages.fillna(-1).astype(int)),
        store=ImageFiles(images, find_files(directory, images.tolist())),
        patient_names=names,
        warnings=(*left_out, *_by_network(rows["MethodLabel"])),
    )


def _labels(texts: pd.Series, path: Path) -> np.ndarray:
    """Return the labels of lists of terms, ``[n, F]`` int8; each list is parsed once."""
    codes, distinct = pd.factorize(texts)
    labels = np.empty((len(distinct), len(TERMS)), np.int8)
    for row, text in enumerate(distinct):
        if not re.fullmatch(r"\[.*\]|nan|", text):
            line = texts.index[codes == row].min()
            raise InputError(
                f"The table {path}, row {line}, has {text!r} in the column 'Labels': it must be a "
                "list such as ['pneumonia', 'pleural effusion']."
            )
        terms = {term.strip() for term in re.findall(r"'([^']*)'", text)}
        closed = terms - _NOTHING and not terms & _OPEN
        labels[row] = [
            1 if terms.intersection(wanted) else (0 if closed else -1) for wanted in TERMS.values()
        ]
    return labels[codes]


def _by_network(methods: pd.Series) -> tuple[str, ...]:
    n = int((methods == "RNN_model").sum())
    if not n:
        return ()
    return (f"The labels of {n:,} of {len(methods):,} images were set by a network, not a person.",)
