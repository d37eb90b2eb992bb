"""Collect what a report shows beside the metrics: images, predictions, bank and run."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Int8, UInt8

from charm_jax.config.settings import Settings
from charm_jax.inference.ensemble import Ensemble
from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics.localisation import LocalisationResult, Located, Truth
from charm_jax.report import curves
from charm_jax.runs import folder
from charm_jax.runs.cases import CaseMatch
from charm_jax.runs.data import Data
from charm_jax.runs.records import Environment
from data_pipelines.loading import loader

UNDEFINED = "\N{EN DASH}"
Json = Mapping[str, Any]
Read = Callable[[Int[np.ndarray, " m"]], UInt8[np.ndarray, "m side side"]]


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The n evaluated images and the outputs of the network.

    Attributes:
        findings: names of the F columns.
        images: names, ``[n]``.
        rows: row of each image in its source's table.
        labels: 1 present, 0 absent, -1 unknown.
        attention: maps, 0 ... 1; None without fusion.
        slots: slots of the bank that were read, best match first; None without a bank, as are
            ``similarities`` and ``valid``.
        valid: False for slots that were empty, or masked for the image.
        disagreement: between main and momentum branch, 0 ... 2; None without the latter.
    """

    findings: tuple[str, ...]
    images: np.ndarray
    rows: Int[np.ndarray, " n"]
    labels: Int8[np.ndarray, "n findings"]
    logits: Float[np.ndarray, "n findings"]
    attention: Float[np.ndarray, "n h w"] | None = None
    slots: Int[np.ndarray, "n k"] | None = None
    similarities: Float[np.ndarray, "n k"] | None = None
    valid: Bool[np.ndarray, "n k"] | None = None
    disagreement: Float[np.ndarray, " n"] | None = None

    def named(self, row: int) -> str:
        """Return the findings that an image is labelled with."""
        return labelled(self.findings, self.labels[row])


@dataclasses.dataclass(frozen=True)
class Bank:
    """The N slots of a memory bank.

    Attributes:
        features: stored features; zeros in empty slots.
        labels: 1 present, 0 absent, -1 unknown.
        filled: False for an empty slot.
        images: names of the stored cases, ``[N]``.
        patients: names, ``[N]``; empty where unknown.
        rows: row of each case in the evaluated table; -1 without usable pixels there.
    """

    features: Float[np.ndarray, "slots dim"]
    labels: Int8[np.ndarray, "slots findings"]
    filled: Bool[np.ndarray, " slots"]
    images: np.ndarray
    patients: np.ndarray
    rows: Int[np.ndarray, " slots"]


@dataclasses.dataclass(frozen=True)
class Localisation:
    """The maps of p pairs of an image and a finding, and how they compare with its boxes.

    Attributes:
        rows: row of each pair's image in its source's table.
        maps: by method, for methods with maps.
        located: by method.
    """

    result: LocalisationResult
    truth: Truth
    rows: Int[np.ndarray, " p"]
    maps: Mapping[str, Float[np.ndarray, "p h w"]]
    located: Mapping[str, Located]

    def empty(self, method: str) -> int:
        """Count the maps that are 0 everywhere, since nothing speaks for the finding."""
        return int((~self.maps[method].any(axis=(1, 2))).sum())


@dataclasses.dataclass(frozen=True)
class Contents:
    """All that a report shows beside ``metrics.json``.

    Attributes:
        evaluated: images and predictions.
        read: returns the pixels of some rows of the source's table.
        config: config of the run, or the one that the weights were evaluated with.
        environments: versions, commit and devices, by their use.
        summary: ``summary.json`` of the run; None for weights without one, or before its end.
        log: lines of the run's ``metrics.jsonl``.
        bank: None for a network without one.
        localisation: None where no boxes were asked for.
    """

    evaluated: Evaluated
    read: Read
    config: Json
    environments: Mapping[str, Json]
    summary: Json | None = None
    log: Sequence[Json] = ()
    bank: Bank | None = None
    localisation: Localisation | None = None


def collect(
    model: LoadedModel | Ensemble,
    config: Settings,
    data: Data,
    rows: Int[np.ndarray, " n"],
    outputs: Mapping[str, np.ndarray],
    match: CaseMatch,
    localisation: Localisation | None = None,
) -> Contents:
    """Collect the contents of a report.

    Args:
        model: evaluated model.
        config: config of the evaluation.
        data: data that hold the images.
        rows: evaluated rows of the table.
        outputs: outputs of the evaluation step for them.
        match: cases of the table as the model knows them.
        localisation: maps beside boxes, if any.
    """
    table, side = data.table, config.data.image_size

    def read(rows: np.ndarray) -> np.ndarray:
        batches = loader.evaluation_batches(table, rows, image_size=side, batch_size=len(rows))
        [batch] = batches
        return batch["image"][..., 0]

    fields = {field.name for field in dataclasses.fields(Evaluated)}
    environments = {"Evaluated": folder.environment()}
    log, summary = [], None
    if isinstance(model, Ensemble):
        for name, member in zip(model.names, model.members, strict=True):
            trained = folder.read_record(member.run / "environment.json", Environment)
            environments = {f"{name} was trained": trained, **environments}
    elif model.run is not None:
        trained = folder.read_record(model.run / "environment.json", Environment)
        environments = {"Trained": trained, **environments}
        logged, ended = model.run / "metrics.jsonl", model.run / "summary.json"
        log = curves.read_log(logged) if logged.exists() else []
        summary = folder.read_json(ended) if ended.exists() else None
    without_bank = isinstance(model, Ensemble) or model.state.memory is None
    return Contents(
        evaluated=Evaluated(
            findings=table.findings,
            images=table.images[rows],
            rows=rows,
            labels=table.labels[rows],
            **{name: values for name, values in outputs.items() if name in fields},
        ),
        read=read,
        config=config.raw,
        environments=environments,
        summary=summary,
        log=log,
        bank=None if without_bank else _bank(model, data, match, rows),
        localisation=localisation,
    )


def _bank(model: LoadedModel, data: Data, match: CaseMatch, rows: np.ndarray) -> Bank:
    """Name the cases of a bank, and their patients where these are known."""
    memory, table = model.state.memory, data.table
    ids = np.asarray(memory.case_ids)
    cases = model.bank_cases().reindex(ids).astype(object)
    unnamed = [f"slot {slot}" for slot in range(len(ids))]
    patients = cases["patient"].fillna("").to_numpy(str)
    if not model.describe_bank(match, rows)["patients_known"]:
        patients = np.full(len(ids), "")
    refused = np.isin(table.images, [name for name, _ in data.quarantined])
    usable = np.flatnonzero((match.case_ids >= 0) & table.present & ~refused)
    pixels = pd.Series(usable, index=match.case_ids[usable]).reindex(ids).fillna(-1).to_numpy(int)
    return Bank(
        features=np.asarray(memory.features),
        labels=np.asarray(memory.labels),
        filled=ids >= 0,
        images=np.where(cases["image"].isna(), unnamed, cases["image"].fillna("")).astype(str),
        patients=patients,
        rows=np.where(ids >= 0, pixels, -1),
    )


def labelled(findings: tuple[str, ...], labels: Int8[np.ndarray, " findings"]) -> str:
    """Return the findings whose label is 1, in words."""
    if (labels < 0).all():
        return "labels unknown"
    names = [shown(name) for name, label in zip(findings, labels, strict=True) if label == 1]
    return ", ".join(names) or "no finding"


def shown(finding: str) -> str:
    """Return a finding's name for a reader."""
    return finding.replace("_", " ")


def number(value: float | None, digits: int = 3) -> str:
    """Format a number; undefined is a dash, and a small one is below the last decimal."""
    if value is None:
        return UNDEFINED
    text = f"{value:.{digits}f}"
    return f"< {10**-digits:.{digits}f}" if value > 0 and float(text) == 0 else text
