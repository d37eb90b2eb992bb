"""The report of an evaluation, from what an evaluation has at hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from charm_jax.config.settings import Settings
from charm_jax.inference.loaded import LoadedModel
from charm_jax.models.memory_bank import MemoryBank
from charm_jax.report import curves, page
from charm_jax.report.contents import Bank, Evaluated
from charm_jax.runs import folder
from charm_jax.runs.cases import CaseMatch
from charm_jax.runs.data import Data
from data_pipelines.loading import loader


def write(
    path: Path,
    metrics: Mapping[str, Any],
    config: Settings,
    data: Data,
    rows: np.ndarray,
    outputs: Mapping[str, np.ndarray],
    model: LoadedModel,
    match: CaseMatch,
) -> None:
    """Write ``report.html``.

    Args:
        path: of the file.
        metrics: the content of ``metrics.json``.
        config: that the part was evaluated with.
        data: that hold the part.
        rows: of the part.
        outputs: of ``experiment.evaluated``.
        model: what was evaluated.
        match: the cases of the data as it knows them.

    Raises:
        InputError: an image that is to be shown cannot be read any more.
    """
    table, side = data.table, config.data.image_size

    def read(rows: np.ndarray) -> np.ndarray:
        batches = loader.evaluation_batches(table, rows, image_size=side, batch_size=len(rows))
        [batch] = batches
        return batch["image"][..., 0]

    evaluated = Evaluated(
        findings=table.findings,
        images=table.images[rows],
        rows=rows,
        labels=table.labels[rows],
        **outputs,
    )
    environments = {"Evaluated": folder.environment()}
    log, summary = [], None
    if model.run is not None:
        environments = {
            "Trained": folder.read_json(model.run / "environment.json"),
            **environments,
        }
        log = _optional(model.run / "metrics.jsonl", curves.read_log) or []
        summary = _optional(model.run / "summary.json", folder.read_json)
    memory = model.state.memory
    page.write(
        path,
        metrics=metrics,
        evaluated=evaluated,
        read=read,
        config=config.raw,
        environments=environments,
        summary=summary,
        log=log,
        bank=None
        if memory is None
        else _bank(memory, data, model, match, named=bool(metrics["bank"]["patients_known"])),
    )


def _optional(path: Path, read: Any) -> Any:
    return read(path) if path.exists() else None


def _bank(
    memory: MemoryBank, data: Data, model: LoadedModel, match: CaseMatch, *, named: bool
) -> Bank:
    """Name the cases of a bank, and their patients where these are known."""
    ids = np.asarray(memory.case_ids)
    filled = ids >= 0
    cases = model.bank_cases().reindex(ids).astype(object)
    unnamed = [f"slot {slot}" for slot in range(len(ids))]
    return Bank(
        features=np.asarray(memory.features),
        labels=np.asarray(memory.labels),
        filled=filled,
        images=np.where(cases["image"].isna(), unnamed, cases["image"].fillna("")).astype(str),
        patients=cases["patient"].fillna("").to_numpy(str) if named else np.full(len(ids), ""),
        rows=np.where(filled, _rows(ids, data, match.case_ids), -1),
    )


def _rows(ids: np.ndarray, data: Data, known: np.ndarray) -> np.ndarray:
    """Find the table's rows of a run's cases; -1 for those without usable pixels."""
    table = data.table
    refused = np.isin(table.images, [name for name, _ in data.quarantined])
    usable = np.flatnonzero((known >= 0) & table.present & ~refused)
    rows = pd.Series(usable, index=known[usable])
    return rows.reindex(ids).fillna(-1).to_numpy(int)
