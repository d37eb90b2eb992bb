"""Fit calibration and out-of-distribution reference on the validation split of a model."""

import dataclasses
import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Int8
from scipy.special import expit

from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics import calibration, conformal, ood
from charm_jax.metrics.conformal import Limits
from charm_jax.runs import cases, folder, portable
from charm_jax.runs import data as run_data
from charm_jax.runs.data import Data
from data_pipelines.atomic_files import whole_file, whole_path
from data_pipelines.errors import InputError, listed
from data_pipelines.tables import splits
from data_pipelines.tables.case_table import CaseTable

CALIBRATION, REFERENCE = "calibration.json", "novelty.json"
VALIDATION = "validation.npz"
_RECORDS = {CALIBRATION: calibration.Calibration, REFERENCE: ood.Reference}
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """Turn logits into probabilities and findings, and detect out-of-distribution images.

    Attributes:
        findings: names of the columns.
        calibration: content of ``calibration.json``; None where nothing was fitted.
        reference: content of ``novelty.json``; None where nothing was fitted.
        limits: of conformal sets; None where none are asked for.
    """

    findings: tuple[str, ...]
    calibration: Mapping[str, Any] | None
    reference: Mapping[str, Any] | None
    limits: Limits | None = None

    def scores(self, logits: Float[np.ndarray, "n findings"]) -> Float[np.ndarray, "n findings"]:
        """Return calibrated probabilities; sigmoids where a finding has no temperature."""
        plain = expit(logits.astype(np.float64))
        if self.calibration is None:
            return plain
        fitted = calibration.calibrated(logits, self.calibration)
        return np.where(np.isnan(fitted), plain, fitted)

    def thresholds(self) -> Float[np.ndarray, " findings"]:
        """Return thresholds on these; NaN where there is none, so the finding is not reported."""
        if self.calibration is None:
            return np.full(len(self.findings), np.nan)
        return calibration.thresholds(self.calibration)

    def undecided(self) -> list[str]:
        """Return the findings without a threshold, which are never reported."""
        return [n for n, t in zip(self.findings, self.thresholds(), strict=True) if np.isnan(t)]

    def uncalibrated(self) -> list[str]:
        """Return the findings whose scores are bare sigmoids."""
        if self.calibration is None:
            return list(self.findings)
        entries = self.calibration["findings"].items()
        return [name for name, entry in entries if entry["temperature"] is None]


class Validation(NamedTuple):
    """Logits and labels of a validation split, and numbers of the patients."""

    logits: Float[np.ndarray, "n findings"]
    labels: Int8[np.ndarray, "n findings"]
    patients: Int[np.ndarray, " n"]


def load_validation(model: LoadedModel, given: Data | None = None) -> Validation:
    """Load logits and labels of a model's validation split, predicting them if none are kept.

    Args:
        given: as in ``load_calibration``.

    Raises:
        InputError: none are kept and the validation images are gone or unreadable.
    """
    own = json.dumps(identity(model, given), sort_keys=True)
    try:
        with np.load(model.folder / VALIDATION) as file:
            if str(file["identity"]) == own:
                return Validation(*(file[name] for name in Validation._fields))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        pass
    data, rows = validation_rows(model, given)
    logits = model.predict_rows(data, rows, "reading validation")["logits"]
    found = _validation(model, data, rows, logits)
    _keep(model.folder, {VALIDATION: found})
    return Validation(*(found[name] for name in Validation._fields))


def _validation(
    model: LoadedModel, data: Data, rows: np.ndarray, logits: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the content of ``validation.npz``, in the order of the images' names.

    Rows of a table may be in another order where another run reads the same images.
    """
    order = np.argsort(data.table.images[rows], kind="stable")
    return {
        "identity": np.array(json.dumps(identity(model, data), sort_keys=True)),
        "logits": logits[order].astype(np.float32),
        "labels": data.table.labels[rows[order]].astype(np.int8),
        "patients": data.table.patients[rows[order]],
    }


def load_calibration(model: LoadedModel, given: Data | None) -> dict[str, Any] | None:
    """Load ``calibration.json`` of a model, fitting it if it is missing or stale.

    It is fitted on the validation split of the model's own data; None and a warning if these are
    gone or unreadable.

    Args:
        given: loaded data, used if their validation split is the model's own.
    """
    stored = read_stored(model.folder / CALIBRATION, identity(model, given))
    if stored is not None and _is_whole(stored):
        return stored
    try:
        data, rows = validation_rows(model, given)
        logits = model.predict_rows(data, rows, "calibrating on val")["logits"]
    except InputError as error:
        _LOG.warning(
            "there are no thresholds and temperatures, since the validation split cannot be "
            f"evaluated: {error}"
        )
        return None
    fitted = _fit_calibration(model, data, rows, logits)
    read = _validation(model, data, rows, logits)
    _keep(model.folder, {CALIBRATION: fitted, VALIDATION: read})
    return fitted


def load_calibrator(
    model: LoadedModel, given: Data | None = None, coverage: float | None = None
) -> Calibrator:
    """Load calibration and out-of-distribution reference, fitting both in one pass if needed.

    A warning is logged if the validation images are gone or unreadable. A weight file has none.

    Args:
        given: as in ``load_calibration``.
        coverage: of conformal sets, if any.

    Raises:
        InputError: there are no validation images to fit conformal sets on.
    """
    if model.run is None:
        if coverage is not None:
            raise InputError(
                f"{model.description} has no validation images to fit conformal sets on: leave out "
                "the coverage."
            )
        return Calibrator(model.pathologies, None, None)
    own = identity(model)
    fitted, reference = (read_stored(model.folder / name, own) for name in (CALIBRATION, REFERENCE))
    if fitted is None or reference is None:
        try:
            data, rows = validation_rows(model, given)
            outputs = model.predict_rows(data, rows, "reading validation", large=("thumbnail",))
        except InputError as error:
            _LOG.warning(
                "without the validation split scores are not calibrated or no image can be judged "
                f"out-of-distribution: {error}"
            )
        else:
            reference = own | ood.fit(ood.measures(outputs), outputs["thumbnail"])
            made = {REFERENCE: reference}
            if fitted is None or not _is_whole(fitted):
                fitted = made[CALIBRATION] = _fit_calibration(model, data, rows, outputs["logits"])
            made[VALIDATION] = _validation(model, data, rows, outputs["logits"])
            _keep(model.folder, made)
    limits = None
    if coverage is not None:
        limits = conformal.fit(*load_validation(model, given), coverage)
    return Calibrator(model.pathologies, fitted, reference, limits)


def _fit_calibration(
    model: LoadedModel, data: Data, rows: np.ndarray, logits: np.ndarray
) -> dict[str, Any]:
    own = identity(model, data)
    before = _read(model.folder / CALIBRATION) or own
    fitted = own | calibration.fit(logits, data.table.labels[rows], data.table.findings)
    fitted["images"] = data.table.images[rows].tolist()
    other = [key.removesuffix("_sha256") for key in own if before.get(key) != own[key]]
    replaced = f" They replace those of another {', '.join(other)}." if other else ""
    _LOG.info(
        f"Thresholds and temperatures are fitted on {len(rows):,} validation images.{replaced}"
    )
    return fitted


def _keep(directory: Path, made: Mapping[str, Mapping[str, Any]]) -> None:
    """Store fitted files; a folder that refuses them leaves them to this command alone."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in made.items():
            if name == VALIDATION:
                with whole_path(directory / name) as draft, draft.open("wb") as arrays:
                    np.savez(arrays, **content)
                continue
            with whole_file(directory / name) as file:
                # The reference has some ten thousand numbers.
                indent = None if name == REFERENCE else 2
                file.write(json.dumps(content, indent=indent, allow_nan=False) + "\n")
    except OSError as error:
        _LOG.warning(
            f"{listed(made)} cannot be kept in {directory} ({error.strerror}): each command fits "
            "them again until that folder can be written."
        )


def identity(model: LoadedModel, given: Data | None = None) -> dict[str, Any]:
    """Return the network, the cases and the reading of images that a fitted file belongs to.

    Args:
        given: data with the validation split of a model without a run.
    """
    last = model.settings.stage_names[-1]
    if model.trained is None:
        val = splits.part_summary(given.table, given.split.stages[last]["val"])
        data = given.settings
    else:
        val, data = model.trained["stages"][last]["val"], model.settings.data
    return {
        "checkpoint": model.checkpoint,
        "network_sha256": model.network_sha256,
        "split_sha256": val["sha256"],
        "cases_sha256": val.get("cases_sha256"),
        **model.reading(data),
    }


def read_stored(path: Path, own: dict[str, Any]) -> dict[str, Any] | None:
    """Read a fitted file of this identity; None if it is missing, damaged or another one."""
    stored = _read(path)
    return stored if own.items() <= stored.items() else None


def _read(path: Path) -> dict[str, Any]:
    """Read a fitted file; empty if it is missing, or damaged in a run, which can fit it again."""
    try:
        return folder.read_record(path, _RECORDS[path.name])
    except InputError:
        if path.exists() and portable.is_portable(path.parent):
            raise
        return {}


def _is_whole(stored: Mapping[str, Any]) -> bool:
    """Whether a ``calibration.json`` has what earlier versions did not write."""
    keys = {*calibration.OPERATING_POINTS, "prior"}
    return "images" in stored and all(keys <= e.keys() for e in stored["findings"].values())


def validation_rows(model: LoadedModel, given: Data | None = None) -> tuple[Data, np.ndarray]:
    """Find the images that a model was validated on, in the given data or in its own.

    Args:
        given: data that may have that split; a model without a run has no other.

    Raises:
        InputError: the data are gone, or their validation split differs from the recorded one: it
            may hold test images, or images of another hospital with the same names.
    """
    last = model.settings.stage_names[-1]
    if model.trained is None:
        return given, given.split.rows(last, "val")
    if given is None or _difference(model, given, last):
        given = run_data.load_data(model.settings)
        given = run_data.for_findings(given, model.pathologies, f"The run {model.run}")
    rows = given.split.rows(last, "val")
    if difference := _difference(model, given, last):
        data = model.settings.data
        raise InputError(
            f"The validation split of {data.source} in {data.dir} ({len(rows):,} images) "
            f"{difference} in {model.run / 'split.json'}: give the data and split that the run "
            "was trained with by --config.data.dir and --config.data.csv."
        )
    return given, rows


def _difference(model: LoadedModel, data: Data, stage: str) -> str:
    """Return how data differ from the model's validation split; simulated names prove nothing."""
    then = model.trained["stages"][stage]["val"]
    now = splits.part_summary(data.table, data.split.stages[stage]["val"])
    if (now["sha256"], data.table.simulated) != (then["sha256"], model.trained["simulated"]):
        return "is not the one"
    if now["cases_sha256"] != then.get("cases_sha256"):
        return "has the images but not the labels or patients of the one"
    if model.reading(data.settings) != model.reading(model.settings.data):
        return "is read otherwise than the one"
    return ""


def fitted_on(
    model: LoadedModel, fitted: Mapping[str, Any], table: CaseTable
) -> Bool[np.ndarray, " images"]:
    """Whether each image of a table was used to fit the thresholds."""
    names = pd.Series(table.images)
    if model.run is not None:
        match = cases.known_cases(model.run, table, model.trained)
        names = cases.read_cases(model.run)["image"].reindex(match.case_ids)
    return names.isin(fitted["images"]).to_numpy()
