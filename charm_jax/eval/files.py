"""The tables that an evaluation leaves beside ``metrics.json``, and reading them again."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from charm_jax.runs.folder import read_json
from data_pipelines.atomic_files import whole_file
from data_pipelines.errors import InputError
from data_pipelines.tables.case_table import CaseTable


def write_predictions(
    path: Path,
    table: CaseTable,
    rows: Int[np.ndarray, " images"],
    logits: Float[np.ndarray, "images findings"],
) -> None:
    """Write a line for each image: name, patient, scores, labels and logits.

    A score is the sigmoid of the logit, which is no probability. Nine digits hold a float32.
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
        path: of the file.
        images: names, ``[images]``.
        cases: ``image`` and ``patient`` of the run that filled the bank, by case id; a case that
            it lacks, as one of a bank from a weight file, stays without a name.
        case_ids: what was read, -1 for a case without an id.
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
    folder: Path, part: str, images: np.ndarray, findings: Sequence[str], sha256: str
) -> tuple[dict[str, Any], Float[np.ndarray, "images findings"]]:
    """Read another run's ``metrics.json`` and logits of the same images.

    Args:
        folder: of that run.
        part: that is evaluated.
        images: names of the part's images, ``[images]``.
        findings: of both.
        sha256: of the names.

    Raises:
        InputError: it was not evaluated on that part, or on other images or findings.
    """
    out = folder / "eval" / part
    if not (out / "metrics.json").is_file():
        raise InputError(
            f"The run {folder} is not evaluated on the part {part!r}: evaluate it with python -m "
            f"charm_jax.eval --run {folder} --split {part} before you compare with it."
        )
    metrics = read_json(out / "metrics.json")
    theirs = list(metrics.get("findings", {}))
    if theirs != list(findings):
        raise InputError(
            f"The run {folder} was evaluated on the findings {', '.join(theirs)} and not on "
            f"{', '.join(findings)}: only runs with the same findings in the same order compare."
        )
    if metrics.get("split_sha256") != sha256:
        raise InputError(
            f"The run {folder} was evaluated on other images (its {out / 'metrics.json'} has "
            f"sha256 {str(metrics.get('split_sha256'))[:12]}, here it is {sha256[:12]}): evaluate "
            "it again on the same data and split."
        )
    return metrics, read_logits(out / "predictions.csv", images, findings)


def read_logits(
    path: Path, images: np.ndarray, findings: Sequence[str]
) -> Float[np.ndarray, "images findings"]:
    """Read the logits of ``predictions.csv``, in the order of the images.

    Raises:
        InputError: the file is missing, damaged, of before logits were kept, or of other images.
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
        raise InputError(f"{path} holds a logit that is no number: {again}")
    return values
