"""Load the data of a run, split and check them."""

import dataclasses
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from charm_jax.config.settings import DataSettings, Settings
from charm_jax.distributed import mesh, processes
from charm_jax.models import imbalance
from charm_jax.runs.cases import cases_sha256
from data_pipelines import sources
from data_pipelines.errors import InputError, listed
from data_pipelines.loading import loader, resident
from data_pipelines.loading.resident import ResidentCases
from data_pipelines.phantom.draw import holds_phantoms, write_phantoms
from data_pipelines.prepared.dataset import is_prepared
from data_pipelines.tables import quarantine, splits
from data_pipelines.tables.case_table import CaseTable
from data_pipelines.tables.findings import columns_of, near_misses

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set with its splits.

    Attributes:
        split: rows of each split, without unusable images.
        quarantined: (image, reason) of the unusable images.
        refusals: those of them that count as errors: all but absent files under
            ``config.data.missing=skip``.
        prevalence: share of positives of each finding among its known labels in the training split
            of all images; None where none is known.
        notes: lines for the user.
        settings: settings that they were loaded with.
    """

    table: CaseTable
    split: splits.Split
    quarantined: list[tuple[str, str]]
    refusals: list[tuple[str, str]]
    prevalence: tuple[float | None, ...]
    notes: tuple[str, ...]
    settings: DataSettings

    @property
    def refused(self) -> int:
        """Number of ``refusals``."""
        return len(self.refusals)

    @property
    def seen(self) -> np.ndarray:
        """Ids of the images that training or validation sees."""
        stages = self.split.stages.values()
        return np.unique(np.concatenate([s[name] for s in stages for name in ("train", "val")]))


def load_data(config: Settings) -> Data:
    """Read the source's table, split it and check the image files.

    Raises:
        InputError: the first fault of the data.
    """
    data = config.data
    table = sources.load(
        data.source,
        Path(data.dir),
        data.csv,
        data.value_range,
        data.uncertain,
        data.views,
        **data.options,
    )
    table.store.check_size(data.image_size)
    images, note = _stage_images(config, table)
    split = splits.make_split(table, data.split, images, data.split_seed)
    split, checks = quarantine.apply_policy(table, split, data.missing, data.max_unreadable)
    skipped = quarantine.ABSENT if data.missing == "skip" else None
    return Data(
        table=table,
        split=split,
        quarantined=checks.bad,
        refusals=[entry for entry in checks.bad if entry[1] != skipped],
        prevalence=_prevalence(table, data, checks.bad),
        settings=data,
        notes=(*(f"warning: {text}" for text in (*table.warnings, *checks.warnings)), *note),
    )


def load_or_draw(config: Settings, scratch: Path | None = None) -> Data:
    """Load data; draw a simulated set if the config asks for one and its folder is absent or empty.

    Args:
        config: of the run.
        scratch: folder to draw the images in, rather than in the config's.

    Raises:
        InputError: the first fault of the data, or a folder with other content.
    """
    data, folder = config.data, Path(config.data.dir)
    if data.source != "phantom" or is_prepared(folder):
        return load_data(config)
    if scratch is not None and not holds_phantoms(folder, **data.options):
        folder = scratch / "phantom"
    write_phantoms(folder, **data.options)
    data = dataclasses.replace(data, dir=str(folder))
    return load_data(dataclasses.replace(config, data=data))


def _stage_images(config: Settings, table: CaseTable) -> tuple[dict[str, str], list[str]]:
    """Return the kind of images of each stage, and a note if it differs from the config."""
    images = {name: config.stages[name].images for name in config.stage_names}
    abnormal = [name for name, kind in images.items() if kind == "abnormal"]
    # With a single finding all abnormal images are positive: there would be nothing to learn.
    if len(table.findings) > 1 or not abnormal:
        return images, []
    note = (
        f"The only finding is {table.findings[0]}, which every abnormal image has: stage "
        f"{abnormal[0]} uses all images."
    )
    return dict.fromkeys(images, "all"), [note]


def _prevalence(
    table: CaseTable, data: DataSettings, quarantined: list[tuple[str, str]]
) -> tuple[float | None, ...]:
    whole = splits.make_split(table, data.split, {"all": "all"}, data.split_seed)
    rows = whole.stages["all"]["train"]
    rows = rows[~np.isin(table.images[rows], [name for name, _ in quarantined])]
    columns = (column[column >= 0] for column in table.labels[rows].T)
    return tuple(float((known == 1).mean()) if known.size else None for known in columns)


def for_findings(data: Data, findings: Sequence[str], knower: object) -> Data:
    """Return data with the label columns of some findings, by name; unknown where they have none.

    Args:
        data: with any findings.
        findings: names of a network's outputs.
        knower: what knows them, for the error.

    Raises:
        InputError: the data have none of them.
    """
    table, columns = data.table, columns_of(findings, data.table.findings)
    if tuple(findings) == table.findings:
        return data
    if (columns < 0).all():
        raise InputError(
            f"{knower} knows the findings {listed(findings)} but {table.source} has only "
            f"{listed(table.findings)}: give data with at least one finding in common."
        )
    labels = np.where(columns >= 0, table.labels[:, columns], -1).astype(np.int8)
    return dataclasses.replace(
        data,
        table=dataclasses.replace(table, findings=tuple(findings), labels=labels),
        prevalence=tuple(data.prevalence[column] if column >= 0 else None for column in columns),
    )


def describe_findings(data: Data, named: Data) -> str:
    """Return a sentence on what ``for_findings`` took of some data."""
    ours, theirs = named.table.findings, data.table.findings
    shared = columns_of(ours, theirs) >= 0
    if shared.all() and len(ours) == len(theirs):
        return f"The findings of {data.table.source} are matched by name."
    lacking = listed(name for name, known in zip(ours, shared, strict=True) if not known)
    extra = listed(
        name for name, known in zip(theirs, columns_of(theirs, ours) >= 0, strict=True) if not known
    )
    return (
        f"warning: {int(shared.sum())} findings are shared with {data.table.source} and scored"
        + (f"; unknown there: {lacking}" if lacking else "")
        + (f"; unknown to the model: {extra}" if extra else "")
        + "".join(f"; {text}" for text in near_misses(ours, theirs))
        + "."
    )


def check_batches(config: Settings, data: Data) -> None:
    """Check whether each stage can fill a batch and be validated by the score that it monitors.

    Raises:
        InputError: with the key or split.
    """
    for name in config.stage_names:
        n, batch = len(data.split.rows(name, "train")), config.stages[name].batch_size
        labels = data.table.labels[data.split.rows(name, "val")]
        monitor = config.stages[name].monitor
        if monitor != "loss" and not ((labels == 1).any(axis=0) & (labels == 0).any(axis=0)).any():
            raise InputError(
                f"config.stages.{name}.monitor is '{monitor}', but no finding is both present and "
                "absent in the validation split: set it to loss."
            )
        processes.check_batch(batch, f"config.stages.{name}.batch_size")
        if batch > n:
            raise InputError(
                f"config.stages.{name}.batch_size is {batch} but the training split has {n} "
                f"images: set it to at most {n}."
            )


def training_notes(data: Data) -> list[str]:
    """Return lines for a user who is about to train on these data."""
    notes, table, split = [], data.table, data.split
    if split.rule == "official" and splits.draws_validation(table):
        notes.append("The table has no val split: an eighth of its training patients validate.")
    lacking: dict[str, list[str]] = {}
    for stage, parts in split.stages.items():
        labels = table.labels[parts["train"]]
        for word, value in (("positive", 1), ("negative", 0)):
            some = (labels == value).any(axis=0)
            names = [name for name, any_ in zip(table.findings, some, strict=True) if not any_]
            if len(labels) and names:
                text = f"no {word} training image of {', '.join(names)}"
                lacking.setdefault(text, []).append(stage)
    notes += [
        f"warning: there is {text} in stage {' and '.join(stages)}: nothing can be learned of it; "
        "choose another split, or leave its column out."
        for text, stages in lacking.items()
    ]
    return notes


def describe_split(config: Settings, data: Data, parameters: int) -> dict[str, Any]:
    """Return the content of ``split.json``."""
    stages = {
        stage: {split: splits.part_summary(data.table, rows) for split, rows in rows_of.items()}
        for stage, rows_of in data.split.stages.items()
    }
    for stage, summary in stages.items():
        batch = config.stages[stage].batch_size
        summary["steps_per_epoch"] = loader.steps_per_epoch(summary["train"]["images"], batch)
        keys, rows = config.stages[stage], data.split.rows(stage, "train")
        if keys.sampling != "uniform":
            classes = loader.rows_by_finding(data.table.labels, rows)
            summary["class_images"] = [len(own) for own in classes]
        if imbalance.needs_counts(keys.loss, keys.class_weights):
            labels = data.table.labels[rows]
            counts = imbalance.class_counts(labels)
            summary["loss"] = imbalance.describe(keys.loss, keys.class_weights, counts)
    present = int(data.table.present.sum())
    return {
        **data.table.origin,
        "findings": list(data.table.findings),
        "prevalence": dict(zip(data.table.findings, data.prevalence, strict=True)),
        "rule": data.split.rule,
        "split_seed": data.split.split_seed,
        "leak_images": data.split.leak_images,
        "leak_of": data.split.leak_of,
        "images_present": present,
        "images_missing": len(data.table.images) - present,
        "refused": data.refused,
        "parameters": parameters,
        "stages": stages,
    }


def split_identity(data: Data, description: dict[str, Any]) -> dict[str, Any]:
    """Return what checkpoints record of the images that they were trained on.

    Args:
        data: of the run.
        description: content of ``split.json``.
    """
    return {
        "rule": data.split.rule,
        "findings": list(data.table.findings),
        "sha256": {
            f"{stage}/{split}": splits[split]["sha256"]
            for stage, splits in description["stages"].items()
            for split in data.split.stages[stage]
        },
        "labels": {
            f"{stage}/{split}": splits[split]["cases_sha256"]
            for stage, splits in description["stages"].items()
            for split in ("train", "val")
        },
        "cases": cases_sha256(data.table, data.seen),
    }


def describe_leak(data: Data) -> str:
    """Return a sentence on the patients that splits share."""
    split = data.split
    if not data.table.patients_known:
        return "The source does not identify patients: splits may share some."
    if splits.is_disjoint(split.rule):
        return "No patient is in two splits."
    return (
        f"LEAK: {split.leak_images:,} of the {split.leak_of:,} abnormal test images of the last "
        "stage belong to patients that a stage trained or validated on "
        f"(rule '{split.rule}'); validation images share patients with training, too."
    )


def resident_cases(config: Settings, data: Data) -> ResidentCases | None:
    """Load the images of training and validation onto the device if they are resident."""
    if not config.data.resident:
        return None
    _LOG.info(f"loading images onto the device: {len(data.seen):,}")
    place = partial(mesh.replicated, over=mesh.mesh())
    return resident.load(data.table, data.seen, config.data.image_size, place)
