"""Find images that a run has seen under other names, by their pixels."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int, UInt8

from charm_jax.inference.loaded import LoadedModel
from charm_jax.runs import data as run_data
from charm_jax.runs.cases import CaseMatch, read_cases
from charm_jax.runs.data import Data
from data_pipelines.atomic_files import whole_file, whole_path
from data_pipelines.errors import InputError
from data_pipelines.images import fingerprint
from data_pipelines.loading.loader import evaluation_batches
from data_pipelines.progress import progress
from data_pipelines.sources.published import OF_NIH
from data_pipelines.tables.case_table import CaseTable

KEPT = "fingerprints.npz"  # of the images that a run trained or validated on
_BATCH = 256
_LOG = logging.getLogger(__name__)


def by_pixels(
    model: LoadedModel, data: Data, rows: Int[np.ndarray, " n"], match: CaseMatch
) -> CaseMatch:
    """Match images by pixels where names cannot: between two sets that share NIH's images.

    RSNA, SIIM and ChestMNIST gave images of ChestX-ray14 other names. Those that the run has seen
    are listed in ``eval/overlap-SOURCE.csv`` of the run.

    Args:
        data: data to evaluate.
        rows: rows of their table to match.
        match: match by name.

    Returns:
        The match, with these images and their patients as seen. Unchanged between other sets, and,
        with a warning, where the run's own images are gone.
    """
    if model.run is None or data.table.simulated or not _share(model.trained, data.table.origin):
        return match
    strangers = rows[match.case_ids[rows] < 0]
    if not strangers.size:
        return match
    try:
        own, known = _learned(model)
    except InputError as error:
        _LOG.warning(
            f"the images of {data.table.source} are images of ChestX-ray14 under other names, and "
            f"which of them the run has seen cannot be told: {error}"
        )
        return match
    found, correlation = fingerprint.nearest(
        _thumbnails(data.table, strangers, data.settings.image_size), known
    )
    same = correlation >= fingerprint.SAME
    if not same.any():
        return match
    strangers, ids = strangers[same], own.index.to_numpy(np.int32)[found[same]]
    path = model.run / "eval" / f"overlap-{data.table.source}.csv"
    path.parent.mkdir(exist_ok=True)
    listed = {"image": data.table.images[strangers], "seen_as": own["image"].loc[ids].to_numpy()}
    with whole_file(path) as file:
        pd.DataFrame(listed).to_csv(file, index=False, lineterminator="\n")
    _LOG.warning(
        f"{len(strangers):,} of the {len(rows):,} images are ones that the run has trained or "
        f"validated on, by their pixels: {path} lists them."
    )
    case_ids, patient_ids = match.case_ids.copy(), match.patient_ids.copy()
    case_ids[strangers], patient_ids[strangers] = ids, own["number"].loc[ids]
    image_seen = match.image_seen.copy()
    image_seen[strangers] = True
    patients = data.table.patients
    patient_seen = match.patient_seen | np.isin(patients, patients[strangers])
    return CaseMatch(case_ids, patient_ids, patient_seen, image_seen)


def _share(trained: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two tables hold NIH's images under names of different sources."""
    ours, theirs = (
        {source for source in origin.get("sets", {"": origin["source"]}).values()} & set(OF_NIH)
        for origin in (trained, other)
    )
    return bool(ours and theirs and ours != theirs)


def _learned(model: LoadedModel) -> tuple[pd.DataFrame, UInt8[np.ndarray, "m 256"]]:
    """Return the images that a run has seen, by case id, and their thumbnails.

    These are kept in the run's folder.

    Raises:
        InputError: the run's own images are gone.
    """
    if "names_key" in model.trained:
        raise InputError(f"{model.run} is a portable model, which does not name its images.")
    cases = read_cases(model.run)
    names = (model.run / "trained_on.txt").read_text(encoding="utf-8").splitlines()
    cases = cases[cases["image"].isin(names)]
    path = model.run / KEPT
    kept = _kept(path)
    if kept is not None and kept[0].tolist() == cases["image"].tolist():
        return cases, kept[1]
    data = run_data.load_data(model.settings)
    rows = pd.Index(data.table.images).get_indexer(cases["image"])
    cases, rows = cases[rows >= 0], rows[rows >= 0]
    thumbnails = _thumbnails(data.table, rows, data.settings.image_size)
    try:
        with whole_path(path) as draft, draft.open("wb") as file:
            np.savez(file, images=cases["image"].to_numpy(str), thumbnails=thumbnails)
    except OSError as error:
        _LOG.warning(f"{path} cannot be kept ({error.strerror}): it is made again each time.")
    return cases, thumbnails


def _kept(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return names and thumbnails that were kept; None if they are missing or damaged."""
    try:
        with np.load(path) as file:
            return file["images"], file["thumbnails"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def _thumbnails(
    table: CaseTable, rows: Int[np.ndarray, " n"], size: int
) -> UInt8[np.ndarray, "n 256"]:
    batches = evaluation_batches(table, rows, image_size=size, batch_size=_BATCH)
    with progress(total=len(rows), desc="comparing pixels", unit="images") as bar:
        found = []
        for batch in batches:
            found.append(fingerprint.thumbnails(batch["image"][batch["mask"]]))
            bar.update(len(found[-1]))
    return np.concatenate(found)
