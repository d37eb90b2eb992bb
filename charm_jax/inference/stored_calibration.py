"""A run's ``calibration.json``: read, or fitted on its validation part by the same checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from ml_collections import ConfigDict

from charm_jax.config.cli import say
from charm_jax.inference.loaded import Subject
from charm_jax.metrics import calibration
from charm_jax.runs import cases, folder
from charm_jax.runs import data as run_data
from charm_jax.runs.digests import network_sha256
from data_pipelines.errors import InputError
from data_pipelines.tables import splits
from data_pipelines.tables.case_table import CaseTable

# The network on the given rows of the data that a config names.
Logits = Callable[[ConfigDict, run_data.Data, np.ndarray], np.ndarray]


def load_or_fit(
    subject: Subject, own: ConfigDict, given: run_data.Data, logits: Logits
) -> dict[str, Any] | None:
    """The thresholds and temperatures of what is evaluated.

    They are fitted where they are missing or of another network or part, on the validation part of
    the run's own data. Where these are not there any more or cannot be read, nothing can be fitted,
    which is said.

    Args:
        subject: what is evaluated.
        own: the run's config without what the evaluation changes in it, or that of the weights.
        given: the data that are evaluated, in use where their validation part is the run's.
        logits: the network.

    Returns:
        The content of ``calibration.json``, or None.
    """
    path = subject.folder / "calibration.json"
    of_this = identity(subject, own, given)
    stored = read_stored(path, of_this)
    if stored is not None and "images" in stored:
        return stored
    try:
        data, rows = validation_part(subject, own, given)
        z = logits(own, data, rows)
    except InputError as error:
        say(
            "warning: there are no thresholds and temperatures, since the validation part cannot "
            f"be evaluated: {error}"
        )
        return None
    fitted = of_this | calibration.fit(z, data.table.labels[rows], data.table.findings)
    fitted["images"] = data.table.images[rows].tolist()
    path.parent.mkdir(parents=True, exist_ok=True)
    folder.write_json(path, fitted)
    say(f"Thresholds and temperatures are fitted on {len(rows):,} validation images: {path}.")
    return fitted


def identity(
    subject: Subject, own: ConfigDict, given: run_data.Data | None = None
) -> dict[str, str]:
    """What a file that is fitted on validation is of: the network and the part.

    Args:
        subject: the network.
        own: the run's config, or that of the weights.
        given: data whose validation part counts for weights without a run.
    """
    last = run_data.stage_names(own)[-1]
    if subject.trained is None:
        sha256 = splits.part_summary(given.table, given.split.stages[last]["val"])["sha256"]
    else:
        sha256 = subject.trained["stages"][last]["val"]["sha256"]
    return {
        "checkpoint": subject.checkpoint,
        "network_sha256": network_sha256(subject.state),
        "split_sha256": sha256,
    }


def read_stored(path: Path, of_this: dict[str, str]) -> dict[str, Any] | None:
    """What an earlier command left of an identity; a damaged file counts as none."""
    if not path.exists():
        return None
    try:
        stored = folder.read_json(path)
    except InputError:
        return None
    return stored if of_this.items() <= stored.items() else None


def validation_part(
    subject: Subject, own: ConfigDict, given: run_data.Data | None = None
) -> tuple[run_data.Data, np.ndarray]:
    """The images that the run was validated on: of the given data, else of those of its config.

    Args:
        subject: the network.
        own: the run's config, or that of the weights.
        given: data that may have that part; weights without a run have no other.

    Raises:
        InputError: the data are not there any more, or have another validation part than the run
            recorded, which may hold images that it is tested on.
    """
    last = run_data.stage_names(own)[-1]
    if subject.trained is None:
        return given, given.split.rows(last, "val")
    if given is None or not _has_part(subject, given, last):
        given = run_data.load_data(own)
        folder.check_findings(subject.run, subject.trained["findings"], given.table)
    rows = given.split.rows(last, "val")
    if not _has_part(subject, given, last):
        raise InputError(
            f"The validation part of {own.data.source} in {own.data.dir} ({len(rows):,} images) is "
            f"not the one in {subject.run / 'split.json'}: give the data and split that the run "
            "was trained with by --config.data.dir and --config.data.csv."
        )
    return given, rows


def _has_part(subject: Subject, data: run_data.Data, stage: str) -> bool:
    """Whether the data have the run's validation part; drawn images may be named as others are."""
    sha256 = splits.part_summary(data.table, data.split.stages[stage]["val"])["sha256"]
    return (
        sha256 == subject.trained["stages"][stage]["val"]["sha256"]
        and data.table.simulated == subject.trained["simulated"]
    )


def fitted_on(
    subject: Subject, fitted: dict[str, Any], table: CaseTable
) -> Bool[np.ndarray, " images"]:
    """Which images of a table the thresholds are fitted on, by the names that the run knows."""
    names = pd.Series(table.images)
    if subject.run is not None:
        known = cases.known_cases(subject.run, table, subject.trained)
        names = cases.read_cases(subject.run)["image"].reindex(known.case_ids)
    return names.isin(fitted["images"]).to_numpy()
