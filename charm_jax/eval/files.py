"""Write the files of an evaluation, and read those of another run."""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from charm_jax.config.settings import DataSettings
from charm_jax.inference.ensemble import Ensemble
from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics.result import EvaluationResult
from charm_jax.runs import portable
from charm_jax.runs.data import Data
from charm_jax.runs.folder import read_json, write_json
from data_pipelines.atomic_files import whole_file
from data_pipelines.errors import InputError, listed
from data_pipelines.tables import splits
from data_pipelines.tables.case_table import CaseTable
from data_pipelines.tables.findings import columns_of

_AGAIN = "evaluate that run again."
MEMBERS = "members"  # folder of the predictions of an ensemble's members
# Settings of the data that leave each image that is read as it is.
_FREE = ("missing", "max_unreadable", "resident", "processes")


def find_folder(
    model: LoadedModel | Ensemble, data: Data, rows: Int[np.ndarray, " n"], split: str
) -> Path:
    """Return the folder of an evaluation: ``eval/<split>`` for the run's own images alone.

    Other images, or the same ones with other labels or read otherwise, have a folder that is named
    after their source and a digest. A weight file has no images of its own, and an ensemble those
    that all its members have.

    Args:
        model: evaluated model.
        data: data that hold the images.
        rows: evaluated rows of the table.
        split: evaluated split.
    """
    if isinstance(model, Ensemble):
        pairs = zip(model.members, model.data_of(data), strict=True)
        names = [find_folder(member, own, rows, split).name for member, own in pairs]
        return model.folder / "eval" / next((name for name in names if name != split), split)
    table, folder = data.table, model.folder / "eval"
    cases = splits.part_summary(table, rows)["cases_sha256"]
    content = [table.source, table.simulated, cases, _read_as(model, data.settings)]
    if model.run is not None:
        then, stage = model.trained, model.settings.stage_names[-1]
        cases = then["stages"][stage].get(split, {}).get("cases_sha256")
        own = _read_as(model, model.settings.data)
        if portable.is_portable(model.run):  # it does not tell where its images were
            own |= {key: content[-1][key] for key in ("dir", "csv")}
        if content == [then["source"], then["simulated"], cases, own]:
            return folder / split
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return folder / f"{split}-{table.source}-{digest}"


def _read_as(model: LoadedModel, data: DataSettings) -> dict[str, Any]:
    """Return which files are read, and how they are read and scored."""
    return {
        "dir": str(Path(data.dir).resolve()),
        "csv": str(Path(data.csv).resolve()) if data.csv else "",
        "split": data.split,
        "split_seed": data.split_seed,
        "options": dict(data.options),
        **model.reading(data),
    }


def describe_replaced(out: Path, result: EvaluationResult) -> str | None:
    """Return what an evaluation of another model or other images replaces; None for nothing."""
    if not (out / "metrics.json").exists():
        return None
    try:
        before, now = read_json(out / "metrics.json"), result.to_json()
    except InputError:
        return f"Replaced in {out}: an evaluation that cannot be read."
    for content in (before, now):
        data = content.get("data")
        data = data if isinstance(data, dict) else {}
        content["data"] = {k: v for k, v in data.items() if k not in _FREE}
    model, images = ("checkpoint", "network_sha256"), ("source", "split_sha256", "cases_sha256")
    keys = (*model, *images, "data", "reading")
    other = [key.removesuffix("_sha256") for key in keys if before.get(key) != now[key]]
    if not other:
        return None
    return (
        f"Replaced in {out}: the evaluation of checkpoint {before.get('checkpoint')} on "
        f"{before.get('n_images')} images of {before.get('source')}; it had another "
        f"{', '.join(other)}."
    )


def write(
    out: Path,
    result: EvaluationResult,
    table: CaseTable,
    rows: Int[np.ndarray, " images"],
    outputs: Mapping[str, np.ndarray],
    model: LoadedModel | Ensemble,
    each: Sequence[Mapping[str, np.ndarray]],
) -> None:
    """Write ``predictions.csv``, ``retrieval.csv`` for a model with a bank, and ``metrics.json``.

    The last is missing until all are whole: without it the others do not count. Files of an earlier
    model are deleted first. Of an ensemble the first two are also written of each member, in
    ``members/<name>``.

    Args:
        outputs: of the model.
        each: of each member of an ensemble.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.json", "report.html", "retrieval.csv", "localisation.json"):
        (out / name).unlink(missing_ok=True)
    for name in ("predictions.csv", "retrieval.csv"):
        for path in out.glob(f"{MEMBERS}/*/{name}"):
            path.unlink()
    if isinstance(model, Ensemble):
        write_predictions(out / "predictions.csv", table, rows, outputs["logits"])
        for name, member, own in zip(model.names, model.members, each, strict=True):
            (out / MEMBERS / name).mkdir(parents=True, exist_ok=True)
            _write_outputs(out / MEMBERS / name, table, rows, own, member)
    else:
        _write_outputs(out, table, rows, outputs, model)
    write_json(out / "metrics.json", result.to_json())


def _write_outputs(
    folder: Path,
    table: CaseTable,
    rows: Int[np.ndarray, " images"],
    outputs: Mapping[str, np.ndarray],
    model: LoadedModel,
) -> None:
    write_predictions(folder / "predictions.csv", table, rows, outputs["logits"])
    if "slots" in outputs:
        write_retrieval(
            folder / "retrieval.csv",
            table.images[rows],
            model.bank_cases(),
            np.asarray(model.state.memory.case_ids)[outputs["slots"]],
            outputs["similarities"],
            outputs["valid"],
        )


def write_predictions(
    path: Path,
    table: CaseTable,
    rows: Int[np.ndarray, " images"],
    logits: Float[np.ndarray, "images findings"],
) -> None:
    """Write a line for each image: name, patient, scores, labels and logits.

    A score is the sigmoid of the logit, not a probability. Nine digits hold a float32.
    """
    names = table.findings
    header = [
        *("image", "patient", *names),
        *(f"{name}_label" for name in names),
        *(f"{name}_logit" for name in names),
    ]
    scores = expit(logits)
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row, score, logit in zip(rows, scores, logits, strict=True):
            labels = ["" if label < 0 else int(label) for label in table.labels[row]]
            known = [table.images[row], table.patient_name(table.patients[row])]
            scored, raw = ([f"{x:.9g}" for x in values.tolist()] for values in (score, logit))
            writer.writerow([*known, *scored, *labels, *raw])


def write_retrieval(
    path: Path,
    images: np.ndarray,
    cases: pd.DataFrame,
    case_ids: Int[np.ndarray, "images k"],
    similarities: Float[np.ndarray, "images k"],
    valid: Bool[np.ndarray, "images k"],
) -> None:
    """Write a line for each stored case that a prediction read, best match first.

    Args:
        path: new file.
        images: names, ``[images]``.
        cases: ``image`` and ``patient`` by case id, of the run that filled the bank; a case that it
            lacks, as those of a weight file, stays without a name.
        case_ids: cases that were read; -1 for one without an id.
        similarities: cosines, -1 ... 1.
        valid: False where nothing was read.
    """
    row, rank = np.nonzero(valid)
    known = cases.reindex(case_ids[row, rank])
    frame = pd.DataFrame(
        {
            "image": images[row],
            "rank": rank + 1,
            "case": known["image"].to_numpy(),
            "patient": known["patient"].to_numpy(),
            "similarity": similarities[row, rank],
        }
    )
    with whole_file(path) as file:
        frame.to_csv(file, index=False, float_format="%.9g", lineterminator="\r\n")


@dataclasses.dataclass(frozen=True)
class OtherRun:
    """Another run's evaluation of the same images, for the findings that it shares.

    Attributes:
        logits: ``[images, findings]``.
        columns: columns of these findings in the table.
    """

    result: EvaluationResult
    logits: Float[np.ndarray, "images findings"]
    columns: list[int]


def read_other(
    folder: Path, name: str, split: str, table: CaseTable, rows: Int[np.ndarray, " images"]
) -> OtherRun:
    """Read another run's latest result and logits of the same images.

    Args:
        folder: folder of that run.
        name: name of this evaluation's folder, where the other is sought first.
        split: evaluated split.
        table: table of the images.
        rows: evaluated rows of it.

    Raises:
        InputError: the run was not evaluated on that split, or on other images, labels or findings.
    """
    again = f"charm-jax eval --run {folder} --split {split}"
    every = [path for path in folder.glob(f"eval/{split}*/metrics.json") if path.is_file()]
    every.sort(key=lambda path: (path.parent.name not in (name, split), -path.stat().st_mtime))
    if not every:
        raise InputError(
            f"The run {folder} is not evaluated on the split {split!r}: evaluate it with {again} "
            "before you compare with it."
        )
    results = {path: _read_result(path, again) for path in every}
    sha256 = splits.part_summary(table, rows)["sha256"]
    same = [path for path in every if results[path].split_sha256 == sha256]
    if not same:
        raise InputError(
            f"The run {folder} was evaluated on other images (its {every[0]} has sha256 "
            f"{results[every[0]].split_sha256[:12]}, here it is {sha256[:12]}): evaluate it again "
            "on the same data and split."
        )
    contradictions = []
    for path in same:
        result, names = results[path], list(results[path].findings)
        theirs = columns_of(table.findings, names)
        columns = np.flatnonzero(theirs >= 0).tolist()
        if not columns:
            raise InputError(
                f"The run {folder} was evaluated on the findings {listed(names)} and on none "
                "that is scored here: compare with a run that shares some."
            )
        shared = [names[theirs[column]] for column in columns]
        predictions = path.parent / "predictions.csv"
        frame = _read_predictions(predictions, table.images[rows], shared)
        patients = table.patients_known and result.patients_known
        found = _contradiction(frame, shared, table, rows, columns, patients=patients)
        if found is None:
            return OtherRun(result, _logits(predictions, frame, shared), columns)
        contradictions.append(f"{predictions} has another {found}")
    raise InputError(
        f"The run {folder} was evaluated on images of the same names with other labels or patients "
        f"({contradictions[0]}): evaluate it again on the same data."
    )


def _contradiction(
    frame: pd.DataFrame,
    theirs: Sequence[str],
    table: CaseTable,
    rows: Int[np.ndarray, " images"],
    columns: Sequence[int],
    *,
    patients: bool,
) -> str | None:
    """Return the first patient or known label of a prediction that differs from the table's."""
    names = np.array([table.patient_name(number) for number in table.patients[rows]])
    pairs = [("patient", frame["patient"] != names)] if patients else []
    for name, column in zip(theirs, columns, strict=True):
        ours, other = table.labels[rows, column], frame[f"{name}_label"]
        known = (ours >= 0) & (other != "")
        pairs.append((f"label of {table.findings[column]}", known & (other != ours.astype(str))))
    for what, differs in pairs:
        if differs.any():
            return f"{what} for {frame.index[differs][0]}"
    return None


def _read_result(path: Path, again: str) -> EvaluationResult:
    try:
        return EvaluationResult.from_json(read_json(path))
    except ValueError as error:
        raise InputError(
            f"{path} is not readable by this version ({error}): evaluate it again with {again}."
        ) from None


def _read_predictions(path: Path, images: np.ndarray, findings: Sequence[str]) -> pd.DataFrame:
    """Read patients, labels and logits of ``predictions.csv`` as text, in the order of the images.

    Raises:
        InputError: the file is missing, damaged or without logits, or has other images.
    """
    columns = ["patient", *(f"{name}_{kind}" for kind in ("label", "logit") for name in findings)]
    try:
        table = pd.read_csv(path, usecols=["image", *columns], dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise InputError(f"There is no {path}: {_AGAIN}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} holds no readable logits ({error}): {_AGAIN}") from None
    if sorted(table["image"]) != sorted(images):
        raise InputError(f"{path} holds other images than its metrics.json says: {_AGAIN}")
    return table.set_index("image").loc[list(images), columns]


def _logits(
    path: Path, frame: pd.DataFrame, findings: Sequence[str]
) -> Float[np.ndarray, "images findings"]:
    try:
        values = frame[[f"{name}_logit" for name in findings]].to_numpy(np.float32)
    except ValueError:
        values = np.full(1, np.nan)
    if not np.isfinite(values).all():
        raise InputError(f"{path} holds a logit that is not a number: {_AGAIN}")
    return values
