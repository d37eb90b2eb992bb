"""Write the files of an evaluation, and read those of another run."""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics.result import EvaluationResult
from charm_jax.runs.data import Data
from charm_jax.runs.folder import read_json, write_json
from data_pipelines.atomic_files import whole_file
from data_pipelines.errors import InputError, listed
from data_pipelines.tables import splits
from data_pipelines.tables.case_table import CaseTable
from data_pipelines.tables.findings import columns_of

# Data settings that leave each image that is read as it is.
_NOT_READING = ("missing", "max_unreadable", "resident", "processes")


def find_folder(
    model: LoadedModel, data: Data, raw: Mapping[str, Any], rows: Int[np.ndarray, " n"], split: str
) -> Path:
    """Return the folder of an evaluation: ``eval/<split>`` for the run's own images alone.

    Other images, or the same ones with other labels or read otherwise, have a folder that is named
    after their source and a digest. A weight file has no images of its own.

    Args:
        model: evaluated model.
        data: data that hold the images.
        raw: settings that they were loaded with, ``config.raw["data"]``.
        rows: evaluated rows of the table.
        split: evaluated split.
    """
    table, folder = data.table, model.folder / "eval"
    sha256 = splits.part_summary(table, rows)["sha256"]
    if model.run is not None:
        stage = model.trained["stages"][model.settings.stage_names[-1]]
        known = (model.trained["source"], model.trained["simulated"], stage.get(split, {}))
        same = known[:2] == (table.source, table.simulated) and known[2].get("sha256") == sha256
        if same and _reading(raw) == _reading(model.settings.raw["data"]):
            return folder / split
    patients = [table.patient_name(number) for number in table.patients[rows]]
    content = [table.source, sha256, patients, table.labels[rows].tolist(), _reading(raw)]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return folder / f"{split}-{table.source}-{digest}"


def _reading(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that say which files are read, and how."""
    every = {
        key: value
        for key, value in raw.items()
        if key not in _NOT_READING and (not isinstance(value, Mapping) or key == raw["source"])
    }
    places = {key: str(Path(raw[key]).resolve()) if raw[key] else "" for key in ("dir", "csv")}
    return every | places


def describe_replaced(out: Path, result: EvaluationResult) -> str | None:
    """Return what an evaluation of another model or other images replaces; None for nothing."""
    if not (out / "metrics.json").exists():
        return None
    before, now = read_json(out / "metrics.json"), result.to_json()
    keys = ("checkpoint", "source", "split_sha256", "data")
    if all(before.get(key) == now[key] for key in keys):
        return None
    return (
        f"Replaced in {out}: the evaluation of checkpoint {before.get('checkpoint')} on "
        f"{before.get('n_images')} images of {before.get('source')}."
    )


def write(
    out: Path,
    result: EvaluationResult,
    table: CaseTable,
    rows: Int[np.ndarray, " images"],
    outputs: Mapping[str, np.ndarray],
    model: LoadedModel,
) -> None:
    """Write ``predictions.csv``, ``retrieval.csv`` for a model with a bank, and ``metrics.json``.

    The last is missing until all are whole: without it the others do not count. Files of an earlier
    model are deleted first.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.json", "report.html", "retrieval.csv"):
        (out / name).unlink(missing_ok=True)
    write_predictions(out / "predictions.csv", table, rows, outputs["logits"])
    if "slots" in outputs:
        write_retrieval(
            out / "retrieval.csv",
            table.images[rows],
            model.bank_cases(),
            np.asarray(model.state.memory.case_ids)[outputs["slots"]],
            outputs["similarities"],
            outputs["valid"],
        )
    write_json(out / "metrics.json", result.to_json())


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


def read_other(
    folder: Path, name: str, split: str, table: CaseTable, rows: Int[np.ndarray, " images"]
) -> tuple[EvaluationResult, Float[np.ndarray, "images findings"]]:
    """Read another run's result and logits of the same images.

    Args:
        folder: folder of that run.
        name: name of this evaluation's folder, where the other is sought first.
        split: evaluated split.
        table: table of the images.
        rows: evaluated rows of it.

    Raises:
        InputError: the run was not evaluated on that split, or on other images or findings.
    """
    again = f"charm-jax eval --run {folder} --split {split}"
    others = sorted(path.name for path in (folder / "eval").glob(f"{split}-*"))
    paths = [folder / "eval" / one / "metrics.json" for one in (name, split, *others)]
    results = {path: _read_result(path, again) for path in paths if path.is_file()}
    if not results:
        raise InputError(
            f"The run {folder} is not evaluated on the split {split!r}: evaluate it with {again} "
            "before you compare with it."
        )
    sha256 = splits.part_summary(table, rows)["sha256"]
    same = (path for path, result in results.items() if result.split_sha256 == sha256)
    path = next(same, next(iter(results)))
    result = results[path]
    theirs = list(result.findings)
    columns = columns_of(table.findings, theirs)
    lacking = [name for name, column in zip(table.findings, columns, strict=True) if column < 0]
    if lacking:
        raise InputError(
            f"The run {folder} was evaluated on the findings {listed(theirs)} and not on "
            f"{listed(lacking)}: compare with a run that knows these, too."
        )
    if result.split_sha256 != sha256:
        raise InputError(
            f"The run {folder} was evaluated on other images (its {path} has sha256 "
            f"{result.split_sha256[:12]}, here it is {sha256[:12]}): evaluate it again on the same "
            "data and split."
        )
    names = [theirs[column] for column in columns]
    return result, read_logits(path.parent / "predictions.csv", table.images[rows], names)


def _read_result(path: Path, again: str) -> EvaluationResult:
    try:
        return EvaluationResult.from_json(read_json(path))
    except ValueError as error:
        raise InputError(
            f"{path} is not readable by this version ({error}): evaluate it again with {again}."
        ) from None


def read_logits(
    path: Path, images: np.ndarray, findings: Sequence[str]
) -> Float[np.ndarray, "images findings"]:
    """Read the logits of ``predictions.csv``, in the order of the images.

    Raises:
        InputError: the file is missing, damaged or without logits, or has other images.
    """
    again = "evaluate that run again."
    columns = [f"{name}_logit" for name in findings]
    try:
        table = pd.read_csv(
            path, usecols=["image", *columns], dtype={"image": str}, keep_default_na=False
        )
    except FileNotFoundError:
        raise InputError(f"There is no {path}: {again}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} holds no readable logits ({error}): {again}") from None
    if sorted(table["image"]) != sorted(images):
        raise InputError(f"{path} holds other images than its metrics.json says: {again}")
    logits = table.set_index("image").loc[list(images), columns]
    try:
        values = logits.to_numpy(np.float32)
    except ValueError:
        values = np.full(logits.shape, np.nan, np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{path} holds a logit that is not a number: {again}")
    return values
