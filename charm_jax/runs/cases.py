"""Store the cases of a run, and match those of another table with them."""

import csv
import dataclasses
import hashlib
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int32

from charm_jax.runs.pseudonyms import Names, names_of
from data_pipelines.atomic_files import whole_file
from data_pipelines.errors import InputError
from data_pipelines.images.search import file_key, spelling_key
from data_pipelines.sources.csv_tables import patient_key
from data_pipelines.tables.case_table import CaseTable, rows_of

FILES = ("cases.csv", "patients.csv", "trained_on.txt")
# Spellings by which images of other tables are compared, by the column that holds their digests.
IMAGE_KEYS = {"spelling": spelling_key, "file": file_key}


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


def write_coded(
    directory: Path, cases: pd.DataFrame, seen: Collection[str], images: Names, patients: Names
) -> None:
    """Write the files of ``write_cases`` with digests in place of names, where they have a key.

    Args:
        cases: as ``read_cases`` returns them.
        seen: names of the images that training or validation saw.
    """
    frame = pd.DataFrame({"id": cases.index, "image": cases["image"].map(images).to_numpy()})
    frame["patient"] = cases["number"].to_numpy()
    if images.key:
        for column, key in IMAGE_KEYS.items():
            frame[column] = [images(name, key) for name in cases["image"]]
    frame.to_csv(directory / "cases.csv", index=False, lineterminator="\n")
    every = cases.drop_duplicates("number")
    named = pd.DataFrame({"patient": every["number"], "name": every["patient"].map(patients)})
    named["key"] = [patients(name, patient_key) for name in every["patient"]]
    named.to_csv(directory / "patients.csv", index=False, lineterminator="\n")
    listed = sorted(images(name) for name in seen)
    text = "".join(f"{name}\n" for name in listed)
    (directory / "trained_on.txt").write_text(text, encoding="utf-8")


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
    learned = cases[cases["image"].isin(trained_on(directory))]
    same_source = trained["source"] == table.source
    images, patients = names_of(trained)
    if not table.sets and table.source in trained.get("sets", {}).values():
        cases, same_source = _of_source(cases, trained["sets"], table.source), True
        images, patients = (dataclasses.replace(n, merged=False) for n in (images, patients))
    case_ids = _look_up(table, cases, images, same_source=same_source, copies=copies)
    patient_ids = np.where(case_ids >= 0, cases["number"].reindex(case_ids).fillna(-1), -1)
    patient_ids = patient_ids.astype(np.int32)
    if table.patients_known and trained["patients_known"]:
        known = cases if same_source else cases.iloc[:0]
        patient_ids = _by_patient(table, patient_ids, known, patients)
    seen = np.isin(patient_ids, learned["number"].to_numpy()) & (patient_ids >= 0)
    image_seen = np.isin(case_ids, learned.index.to_numpy())
    # A patient with a seen image was seen, even if only this table assigns the image to them.
    seen = np.isin(table.patients, table.patients[seen | image_seen])
    return CaseMatch(case_ids, patient_ids, seen, image_seen)


def trained_on(directory: Path) -> list[str]:
    """Read the names of the images that training or validation saw.

    Raises:
        InputError: the run lacks that list.
    """
    try:
        return (directory / "trained_on.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{directory} has no readable list of its cases ({error}).") from None


def read_cases(directory: Path) -> pd.DataFrame:
    """Read ``image``, patient ``number`` and ``patient`` (its name in the source) by case id.

    Of a portable model the names may be digests; then ``spelling``, ``file`` and ``patient_key``
    hold those of the names' other spellings.

    Raises:
        InputError: the run lacks its list of cases.
    """
    try:
        cases = pd.read_csv(
            directory / "cases.csv",
            dtype={"id": np.int32, "patient": np.int32}
            | dict.fromkeys(("image", "spelling", "file"), str),
            keep_default_na=False,
        )
        cases = cases.set_index("id").rename(columns={"patient": "number"})
        cases["patient"] = cases["number"].astype(str)
        named = directory / "patients.csv"
        if named.exists():
            names = pd.read_csv(named, dtype={"name": str, "key": str}, keep_default_na=False)
            names = names.set_index("patient").loc[cases["number"]]
            cases["patient"] = names["name"].to_numpy()
            if "key" in names:
                cases["patient_key"] = names["key"].to_numpy()
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
    columns = {"image", "patient", "spelling", "patient_key"} & {*cases.columns}
    names = {name: cases[name].str.partition("/")[2] for name in columns}
    return cases.assign(**names).drop_duplicates("image")


def _look_up(
    table: CaseTable, cases: pd.DataFrame, written: Names, *, same_source: bool, copies: bool
) -> np.ndarray:
    """Return the run's id of each image; -1 for none."""
    ids, images = pd.Series(cases.index, index=cases["image"]), pd.Index(table.images)
    found = ids.reindex(images.map(written)).fillna(-1).to_numpy(np.int32)
    keys = {"spelling": spelling_key} if same_source else IMAGE_KEYS
    for column, key in keys.items() if (found < 0).any() else []:
        # It must be unique in the run and, unless copies match, in the table.
        spelled = cases[column] if written.key else cases["image"].map(key)
        known = pd.Series(cases.index, index=spelled)
        known = known[~known.index.duplicated(keep=False)]
        names = images.map(partial(written, spelled=key))
        matched = known.reindex(names).fillna(-1).to_numpy(np.int32)
        certain = copies | ~names.duplicated(keep=False)
        found = np.where((found < 0) & certain, matched, found)
    return found


def _by_patient(
    table: CaseTable, patient_ids: np.ndarray, cases: pd.DataFrame, written: Names
) -> np.ndarray:
    """Return the run's patient numbers, including those of images without a match."""
    frame = pd.DataFrame({"theirs": table.patients, "ours": patient_ids})
    siblings = frame[frame["ours"] >= 0].groupby("theirs")["ours"].first()
    every = cases.drop_duplicates("number").drop_duplicates("patient")
    named = every.set_index("patient")["number"]
    strangers = np.unique(table.patients[patient_ids < 0])
    names = pd.Series([table.patient_name(number) for number in strangers], index=strangers)
    ours = siblings.reindex(strangers).fillna(names.map(written).map(named))
    if ours.isna().any():  # another spelling, such as 007 for 7
        keys = every["patient_key"] if written.key else every["patient"].map(patient_key)
        keys = pd.Series(every["number"].to_numpy(), index=keys)
        keys = keys[~keys.index.duplicated(keep=False)]
        ours = ours.fillna(names.map(partial(written, spelled=patient_key)).map(keys))
    ours = ours.fillna(-1)
    found = ours.reindex(table.patients).fillna(-1).to_numpy(np.int32)
    return np.where(patient_ids < 0, found, patient_ids)
