"""Store the cases of a run, and match those of another table with them."""

import csv
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int32

from data_pipelines.atomic_files import whole_file
from data_pipelines.errors import InputError
from data_pipelines.images.search import file_key, spelling_key
from data_pipelines.sources.csv_tables import patient_key
from data_pipelines.tables.case_table import CaseTable, rows_of

FILES = ("cases.csv", "patients.csv", "trained_on.txt")


def write_cases(directory: Path, table: CaseTable, seen: np.ndarray) -> None:
    """Write the cases behind the bank's ids, and the images that the run learns from.

    ``cases.csv`` holds ``id,image,patient`` of the full table, ``patients.csv`` the names of the
    patients if the source has names and not numbers, ``trained_on.txt`` the names of the images
    that training or validation sees.

    Args:
        seen: ids of those images.
    """
    with whole_file(directory / "cases.csv") as file:
        rows = zip(range(len(table.images)), table.images, table.patients, strict=True)
        csv.writer(file).writerows([("id", "image", "patient"), *rows])
    if table.patient_names:
        with whole_file(directory / "patients.csv") as file:
            csv.writer(file).writerows([("patient", "name"), *enumerate(table.patient_names)])
    with whole_file(directory / "trained_on.txt") as file:
        file.writelines(f"{name}\n" for name in table.images[seen])


def cases_sha256(table: CaseTable, ids: np.ndarray) -> str:
    """Return a digest of some cases' ids, image names and patient numbers.

    A bank knows its cases by these numbers alone, which shift where a table gains or loses rows.
    """
    rows = zip(ids.tolist(), table.images[ids], table.patients[ids].tolist(), strict=True)
    text = "\n".join(f"{case},{patient},{image}" for case, image, patient in rows)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class CaseMatch:
    """The images of a table matched with the cases of a run.

    Attributes:
        case_ids: the run's id of each image, -1 for none.
        patient_ids: the run's number of its patient, -1 for none.
        patient_seen: whether training or validation saw an image of that patient.
        image_seen: whether training or validation saw the image itself.
    """

    case_ids: Int32[np.ndarray, " n"]
    patient_ids: Int32[np.ndarray, " n"]
    patient_seen: Bool[np.ndarray, " n"]
    image_seen: Bool[np.ndarray, " n"]


def unknown_cases(table: CaseTable) -> CaseMatch:
    """Return a match of no case, for weights without a run."""
    n = len(table.images)
    nothing = np.full((2, n), -1, np.int32)
    return CaseMatch(nothing[0], nothing[1], np.zeros(n, bool), np.zeros(n, bool))


def known_cases(
    directory: Path, table: CaseTable, trained: dict[str, Any], *, copies: bool = False
) -> CaseMatch:
    """Match the images of a table with those of a run, by name.

    An image matches by its name; between different sources the name of the file is enough, since
    its folder may differ. A patient matches by an image, or by name within one source. Where no
    name is the same, one counts that differs in spelling only. Simulated and real images never
    match. Sets of a merged table match as they would alone.

    Args:
        trained: the run's ``split.json``.
        copies: whether several files of the same name may all match one image of the run;
            otherwise none of them does. True is for predictions, where a match only excludes cases
            from the evidence.

    Raises:
        InputError: the run lacks its list of cases.
    """
    if table.sets and "sets" not in trained:
        return _known_by_set(directory, table, trained, copies=copies)
    if trained["simulated"] != table.simulated:
        return unknown_cases(table)
    cases = read_cases(directory)
    try:
        text = (directory / "trained_on.txt").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{directory} has no readable list of its cases ({error}).") from None
    learned = cases[cases["image"].isin(text.splitlines())]
    same_source = trained["source"] == table.source
    if not table.sets and table.source in trained.get("sets", {}).values():
        cases, same_source = _of_source(cases, trained["sets"], table.source), True
    case_ids = _look_up(table, cases, same_source=same_source, copies=copies)
    patient_ids = np.where(case_ids >= 0, cases["number"].reindex(case_ids).fillna(-1), -1)
    patient_ids = patient_ids.astype(np.int32)
    if table.patients_known and trained["patients_known"]:
        patient_ids = _by_patient(table, patient_ids, cases if same_source else cases.iloc[:0])
    seen = np.isin(patient_ids, learned["number"].to_numpy()) & (patient_ids >= 0)
    trained_on = np.isin(case_ids, learned.index.to_numpy())
    # A patient with a seen image was seen, even if only this table assigns the image to them.
    seen = np.isin(table.patients, table.patients[seen | trained_on])
    return CaseMatch(case_ids, patient_ids, seen, trained_on)


def read_cases(directory: Path) -> pd.DataFrame:
    """Read ``image``, patient ``number`` and ``patient`` (its name in the source) by case id.

    Raises:
        InputError: the run lacks its list of cases.
    """
    try:
        cases = pd.read_csv(
            directory / "cases.csv",
            dtype={"id": np.int32, "image": str, "patient": np.int32},
            keep_default_na=False,
        )
        cases = cases.set_index("id").rename(columns={"patient": "number"})
        cases["patient"] = cases["number"].astype(str)
        named = directory / "patients.csv"
        if named.exists():
            names = pd.read_csv(named, dtype={"name": str}, keep_default_na=False)
            cases["patient"] = names.set_index("patient")["name"].loc[cases["number"]].to_numpy()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{directory} has no readable list of its cases ({error}).") from None
    return cases


def _known_by_set(
    directory: Path, table: CaseTable, trained: dict[str, Any], *, copies: bool
) -> CaseMatch:
    """Match each set of a merged table with the cases of a run that was trained on one set."""
    match = unknown_cases(table)
    for name, own in table.sets.items():
        found, rows = known_cases(directory, own, trained, copies=copies), rows_of(table, name)
        for field in dataclasses.fields(CaseMatch):
            getattr(match, field.name)[rows] = getattr(found, field.name)
    return match


def _of_source(cases: pd.DataFrame, sets: dict[str, str], source: str) -> pd.DataFrame:
    """Return the cases of a merged run's sets of a source, by the names that they have there."""
    cases = cases[cases["image"].str.partition("/")[0].map(sets) == source]
    names = {name: cases[name].str.partition("/")[2] for name in ("image", "patient")}
    return cases.assign(**names).drop_duplicates("image")


def _look_up(
    table: CaseTable, cases: pd.DataFrame, *, same_source: bool, copies: bool
) -> np.ndarray:
    """Return the run's id of each image; -1 for none."""
    ids = pd.Series(cases.index, index=cases["image"])
    found = ids.reindex(table.images).fillna(-1).to_numpy(np.int32)
    keys = [spelling_key] if same_source else [spelling_key, file_key]
    for key in keys if (found < 0).any() else []:
        # It must be unique in the run and, unless copies match, in the table.
        known = pd.Series(cases.index, index=cases["image"].map(key))
        known = known[~known.index.duplicated(keep=False)]
        names = pd.Index(table.images).map(key)
        matched = known.reindex(names).fillna(-1).to_numpy(np.int32)
        certain = copies | ~names.duplicated(keep=False)
        found = np.where((found < 0) & certain, matched, found)
    return found


def _by_patient(table: CaseTable, patient_ids: np.ndarray, cases: pd.DataFrame) -> np.ndarray:
    """Return the run's patient numbers, including those of images without a match."""
    frame = pd.DataFrame({"theirs": table.patients, "ours": patient_ids})
    siblings = frame[frame["ours"] >= 0].groupby("theirs")["ours"].first()
    named = cases.drop_duplicates("number").drop_duplicates("patient")
    named = named.set_index("patient")["number"]
    strangers = np.unique(table.patients[patient_ids < 0])
    names = pd.Series([table.patient_name(number) for number in strangers], index=strangers)
    ours = siblings.reindex(strangers).fillna(names.map(named))
    if ours.isna().any():  # another spelling, such as 007 for 7
        keys = named.rename(patient_key)
        keys = keys[~keys.index.duplicated(keep=False)]
        ours = ours.fillna(names.map(patient_key).map(keys))
    ours = ours.fillna(-1)
    found = ours.reindex(table.patients).fillna(-1).to_numpy(np.int32)
    return np.where(patient_ids < 0, found, patient_ids)
