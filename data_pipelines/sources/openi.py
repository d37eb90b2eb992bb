"""Read the Indiana University collection of OpenI, as the NLM or as Kaggle distributes it.

7,470 chest X-rays of 3,955 reports, whose findings people coded with terms such as
``Opacity/lung/base/left``. The NLM's reports are XML files and do not tell views; these are in
Kaggle's table, and in TorchXRayVision's table of DICOM headers, ``nlmcxr_dicom_metadata.csv``.

The NLM's reports are checked against the real ones, Kaggle's tables against descriptions only.
"""

import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines.errors import InputError
from data_pipelines.images.store import ImageFiles
from data_pipelines.sources.card import Card
from data_pipelines.sources.csv_tables import given_file
from data_pipelines.sources.published import (
    check_folder,
    choose_views,
    find_files,
    find_table,
    need_table,
    number_patients,
    read_rows,
    sort_by_name,
)
from data_pipelines.tables.case_table import CaseTable

CARD = Card(
    description=(
        "OpenI, the Indiana University collection: 7,470 chest X-rays of 3,955 reports, coded by "
        "people; by default the frontal ones and 21 findings."
    ),
    license="CC BY-NC-ND 4.0.",
    citation=(
        "D. Demner-Fushman, M. D. Kohli, M. B. Rosenman et al., 'Preparing a collection of "
        "radiology examinations for distribution and retrieval', Journal of the American Medical "
        "Informatics Association 23(2), 2016."
    ),
    homepage="https://openi.nlm.nih.gov/faq",
)
TABLES = ("indiana_projections.csv",)
COLUMNS = ("uid", "filename", "projection")
_REPORTS = "indiana_reports.csv"
_ARCHIVE = "NLMCXR_reports.tgz"
_VIEWS = "nlmcxr_dicom_metadata.csv"
# Terms of each finding; a term also stands for those below it, as Opacity/lung below Opacity.
TERMS = {
    "Atelectasis": ("Pulmonary Atelectasis",),
    "COPD": ("Pulmonary Disease, Chronic Obstructive",),
    "Cardiomegaly": ("Cardiomegaly",),
    "Consolidation": ("Consolidation",),
    "Edema": ("Pulmonary Edema",),
    "Effusion": ("Pleural Effusion", "Hemopneumothorax", "Hemothorax", "Hydropneumothorax"),
    "Emphysema": ("Emphysema", "Bullous Emphysema", "Pulmonary Emphysema"),
    "Fibrosis": ("Pulmonary Fibrosis",),
    "Fracture": ("Fractures, Bone",),
    "Granuloma": ("Granuloma", "Calcified Granuloma"),
    "Hernia": ("Hernia, Diaphragmatic", "Hernia, Hiatal"),
    "ILD": ("Lung Diseases, Interstitial",),
    "Infiltration": ("Infiltrate",),
    "Lung Opacity": ("Opacity",),
    "Mass": ("Mass",),
    "Nodule": ("Nodule",),
    "Pleural_Thickening": ("Thickening/pleura",),
    "Pneumonia": ("Pneumonia",),
    "Pneumothorax": ("Pneumothorax", "Hemopneumothorax", "Hydropneumothorax"),
    "Scoliosis": ("Scoliosis",),
    "Support Devices": (
        "Catheters, Indwelling",
        "Implanted Medical Device",
        "Medical Device",
        "Tube, Inserted",
    ),
}
_NOTHING = {"No Indexing", "Technical Quality of Image Unsatisfactory"}  # tell no absence
_NO_VIEWS = (
    f"The reports do not tell views, so lateral images count, too: put {_VIEWS} of TorchXRayVision "
    "into the data folder to leave them out."
)


def load(directory: Path, csv: str = "", views: str = "frontal") -> CaseTable:
    """Read the reports and find the images.

    Args:
        directory: folder with Kaggle's ``indiana_projections.csv`` and ``indiana_reports.csv``, or
            with the NLM's ``NLMCXR_reports.tgz`` or the XML files in it, and the images anywhere
            below.
        csv: archive of reports to read in place of ``NLMCXR_reports.tgz``.
        views: one of ``VIEWS``; ``all`` reads lateral images, too.

    Returns:
        The images, named as the NLM does. A finding is present where a report is coded with
        a term of it, absent where it is coded with others, and unknown where it is not coded. Each
        report counts as a patient.

    Raises:
        InputError: the reports, a column, a value or every frontal image is missing or wrong.
    """
    directory = Path(directory)
    check_folder(directory, CARD.homepage)
    kaggle = None if csv else find_table(directory, TABLES)
    path, rows = _kaggle(directory, kaggle) if kaggle else _nlm(directory, csv)
    told = (rows["view"] != "").any()
    rows, left_out = choose_views(rows, path, views)
    rows = sort_by_name(rows, path)
    images = rows["image"].to_numpy(str)
    patients, names = number_patients(rows["uid"])
    return CaseTable(
        source="openi",
        findings=tuple(TERMS),
        images=images,
        patients=patients,
        labels=_labels(rows["terms"]),
        official_part=np.full(len(rows), ""),
        official_known=False,
        views=rows["view"].to_numpy(str),
        sexes=np.full(len(rows), ""),
        ages=np.full(len(rows), -1, np.int16),
        store=ImageFiles(images, find_files(directory, rows["file"].tolist())),
        patient_names=names,
        warnings=left_out if told else (_NO_VIEWS,),
    )


def _kaggle(directory: Path, path: Path) -> tuple[Path, pd.DataFrame]:
    """Read Kaggle's tables: image, file, uid, terms, view and whether it is frontal."""
    rows = read_rows(path, COLUMNS)
    reports = read_rows(need_table(directory, "", (_REPORTS,), CARD.homepage), ("uid", "MeSH"))
    terms = reports.drop_duplicates("uid").set_index("uid")["MeSH"].str.replace(";", "|")
    name = rows["filename"].str.replace(r"\.dcm\.png$", "", regex=True)
    return path, rows.assign(
        image="CXR" + name + ".png",
        file=rows["filename"],
        terms=rows["uid"].map(terms).fillna(""),
        frontal=rows["projection"] == "Frontal",
        view=rows["projection"],
    )


def _nlm(directory: Path, csv: str) -> tuple[Path, pd.DataFrame]:
    """Read the NLM's reports: image, file, uid, terms, view and whether it is frontal."""
    if csv:
        path = given_file(csv, directory, "archive of reports", f"name {_ARCHIVE}")
    else:
        path = next((p for p in (directory / _ARCHIVE, *directory.glob(f"*/{_ARCHIVE}"))), None)
        path = path if path and path.is_file() else directory
    try:
        read = [(name, ET.fromstring(text)) for name, text in _reports(path)]
        rows = [
            (image.attrib["id"], root.find("uId").attrib["id"], "|".join(_major(root)))
            for _, root in read
            for image in root.iter("parentImage")
        ]
    except (OSError, EOFError, tarfile.TarError, ET.ParseError, KeyError, AttributeError) as error:
        raise InputError(
            f"The reports of {path} cannot be read ({error}): download {_ARCHIVE} again from "
            f"{CARD.homepage}."
        ) from error
    if not rows:
        raise InputError(
            f"The data folder {directory} has no {TABLES[0]}, no {_ARCHIVE} and no reports as XML "
            f"files with images: download them from {CARD.homepage}."
        )
    table = pd.DataFrame(rows, columns=["file", "uid", "terms"])
    table = table.assign(image=table["file"] + ".png", view=_views(directory, table["file"]))
    told = (table["view"] != "").any()
    return path, table.assign(frontal=table["view"].isin(("PA", "AP")) if told else True)


def _reports(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each XML file of an archive or below a folder."""
    if path.is_dir():
        files = filter(Path.is_file, sorted(path.rglob("*.xml")))  # a pipe may wait forever
        yield from ((file.name, file.read_bytes()) for file in files)
        return
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".xml"):
                yield member.name, archive.extractfile(member).read()


def _major(root: ET.Element) -> list[str]:
    return [(node.text or "").strip() for node in root.iterfind(".//MeSH/major")]


def _views(directory: Path, images: pd.Series) -> pd.Series:
    """Return the view of each image in the table of DICOM headers; empty without it."""
    path = find_table(directory, (_VIEWS,))
    if path is None:
        return pd.Series("", index=images.index)
    rows = read_rows(path, ("imageid", "View Position"))
    views = rows.drop_duplicates("imageid").set_index("imageid")["View Position"]
    return images.map(views).fillna("")


def _labels(texts: pd.Series) -> np.ndarray:
    """Return the labels of lists of terms, ``[n, F]`` int8; each list is parsed once."""
    codes, distinct = pd.factorize(texts)
    labels = np.empty((len(distinct), len(TERMS)), np.int8)
    for row, text in enumerate(distinct):
        terms = {f"{term}/" for term in text.split("|") if term} - {f"{t}/" for t in _NOTHING}
        labels[row] = [
            int(any(term.startswith(f"{wanted}/") for term in terms for wanted in names))
            if terms
            else -1
            for names in TERMS.values()
        ]
    return labels[codes]
