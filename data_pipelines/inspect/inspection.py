"""Describe a data set before training: counts, pictures, leakage and duplicates."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int

from data_pipelines.atomic_files import whole_file
from data_pipelines.errors import InputError
from data_pipelines.inspect import pictures
from data_pipelines.inspect.image_statistics import (
    LEAST_SIZE,
    ImageStatistics,
    duplicates,
    measure_images,
    read_each,
)
from data_pipelines.inspect.table_statistics import (
    co_occurrence,
    images_per_patient,
    named_parts,
    part_statistics,
    parts_of_images,
)
from data_pipelines.sources import SOURCES
from data_pipelines.tables import splits
from data_pipelines.tables.case_table import CaseTable, rows_of
from data_pipelines.tables.findings import NO_FINDING
from data_pipelines.tables.quarantine import Entry, FileChecks, verify_files, write_quarantine

# The stages of the published recipe and of every packaged config.
STAGES = {"bce": "abnormal", "focal": "all"}
SEED = 0  # for the split, the sample and the contact sheet
EXAMPLES = 8  # for each finding on the contact sheet


@dataclasses.dataclass(frozen=True)
class Inspection:
    """Hold the table and the images under inspection.

    Attributes:
        table: the source's table.
        whole: the split of the full table.
        used: the split of the usable images.
        rows: ``[m]`` case ids of the usable images: present and not refused.
        refused: image and reason of the present but damaged ones.
        checks: what else was found out about the files.
    """

    table: CaseTable
    whole: splits.Split
    used: splits.Split
    rows: np.ndarray
    refused: list[Entry]
    checks: FileChecks


def inspect(table: CaseTable, rule: str, *, size: int, sample: int, out: Path) -> dict:
    """Describe a table and its images in files.

    Args:
        table: the source's table.
        rule: split rule, a key of ``splits.RULES``.
        size: side of the squares to read, in pixels, at least 16.
        sample: maximum number of images to measure, chosen at random; 0 for all.
        out: folder for ``summary.json``, ``duplicates.csv``, ``quarantine.csv`` and the pictures;
            created if absent.

    Returns:
        The content of ``summary.json``.

    Raises:
        InputError: a number out of range, a table that the rule cannot split, no readable image, or
            a folder without write permission.
    """
    for name, value, least in (("size", size, LEAST_SIZE), ("sample", sample, 0)):
        if value < least:
            raise InputError(f"--{name} is {value}: give {least} or more.")
    found = _usable(table, rule, sample)
    statistics = measure_images(table, _sample(found.rows, sample), size)
    found = dataclasses.replace(found, refused=_merged(found.refused, statistics.refused))
    doubles = duplicates(table, statistics, parts_of_images(table, found.used))
    summary = _summary(found, statistics) | {"duplicates": _doubles_summary(doubles)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        _draw(found, statistics, out)
        write_quarantine(out / "quarantine.csv", found.refused)
        with whole_file(out / "duplicates.csv") as file:
            doubles.to_csv(file, index=False, lineterminator="\n")
        with whole_file(out / "summary.json") as file:
            json.dump(summary, file, indent=1)
    except OSError as error:
        raise InputError(
            f"The inspection cannot be written to {out} ({error.strerror}): name a folder that can "
            "be written to with --out."
        ) from error
    return summary


def _usable(table: CaseTable, rule: str, sample: int) -> Inspection:
    whole = splits.make_split(table, rule, STAGES, SEED)
    present = np.flatnonzero(table.present)
    if not present.size:
        raise InputError(
            f"None of the {len(table.images)} images of the table is in the data folder: name "
            "the folder that holds them."
        )
    checks = verify_files(table, present, sample or len(present))
    refused = checks.bad
    usable = table.present & ~np.isin(table.images, [name for name, _ in refused])
    if not usable.any():
        name, reason = refused[0]
        raise InputError(
            f"None of the {len(refused)} present images can be read ({name}: "
            f"{reason}): fetch them again."
        )
    used = splits.keep_rows(table, whole, usable)
    return Inspection(table, whole, used, np.flatnonzero(usable), refused, checks)


def _sample(rows: np.ndarray, most: int) -> np.ndarray:
    if not most or most >= len(rows):
        return rows
    generator = np.random.Generator(np.random.PCG64(SEED))
    return np.sort(generator.choice(rows, most, replace=False))


def _merged(*refused: list[Entry]) -> list[Entry]:
    return sorted(dict(entry for entries in refused for entry in entries).items())


def _summary(found: Inspection, statistics: ImageStatistics) -> dict:
    table, images = found.table, statistics.images
    present = int(table.present.sum())
    listed = named_parts(found.whole)
    parts = {
        # Two stages may differ in the full table only, so its names are used.
        name: {"listed": len(rows), **part_statistics(table, rows[np.isin(rows, found.rows)])}
        for name, rows in listed.items()
    }
    return {
        "source": table.source,
        "simulated": table.simulated,
        "card": dataclasses.asdict(SOURCES[table.source].card),
        "rule": found.whole.rule,
        "split_seed": SEED,
        "images": {
            "table": len(table.images),
            "present": present,
            "missing": len(table.images) - present,
            "refused": len(found.refused),
        },
        "oddities": {
            "warnings": found.checks.warnings,
            "range_measured": found.checks.measured,
            "range_used": {name: sliver.used for name, sliver in found.checks.slivers.items()},
            "repaired": {name: list(texts) for name, texts in found.checks.remarks.items()},
        },
        "patients": images_per_patient(table, found.rows),
        "parts": parts,
        "sets": {
            name: {
                "source": own.source,
                "card": dataclasses.asdict(SOURCES[own.source].card),
                **part_statistics(table, rows_of(table, name)),
            }
            for name, own in table.sets.items()
        },
        "leak": {
            name: {"images": split.leak_images, "of": split.leak_of}
            for name, split in (("table", found.whole), ("used", found.used))
        },
        "pixels": {
            "size": statistics.size,
            "read": len(images),
            "of": len(found.rows),
            "mean": statistics.mean,
            "sd": statistics.sd,
            "black": float(images.black.mean()),
            "saturated": float(images.saturated.mean()),
            "outliers": {
                kind: table.images[rows].tolist() for kind, rows in statistics.outliers.items()
            },
        },
    }


def _doubles_summary(doubles: pd.DataFrame) -> dict[str, int]:
    groups = doubles.drop_duplicates("group")
    flags = ("across_parts", "across_patients", "findings_differ")
    return {
        "images": len(doubles),
        "groups": len(groups),
        **{flag: int(groups[flag].sum()) for flag in flags},
    }


def _draw(found: Inspection, statistics: ImageStatistics, out: Path) -> None:
    table, simulated = found.table, found.table.simulated
    stages = {
        f"stage {stage}: {STAGES[stage]} images": {
            part: part_statistics(table, rows) for part, rows in parts.items()
        }
        for stage, parts in found.used.stages.items()
    }
    pictures.draw_prevalence(out / "prevalence.png", stages, simulated=simulated)
    shares, alone, counts = co_occurrence(table, found.rows)
    pictures.draw_co_occurrence(
        out / "co_occurrence.png", table.findings, shares, alone, counts, simulated=simulated
    )
    groups = {}
    for title, rows in choose_examples(table, found.rows, EXAMPLES).items():
        ids, images, _ = read_each(table, rows, statistics.size)
        groups[title] = list(zip(table.images[ids].tolist(), images, strict=True))
    pictures.draw_contact_sheet(out / "contact_sheet.png", groups, simulated=simulated)
    pictures.draw_image_statistics(out / "image_statistics.png", statistics, simulated=simulated)


def choose_examples(
    table: CaseTable, rows: Int[np.ndarray, " m"], most: int
) -> dict[str, np.ndarray]:
    """Choose images of each finding, and of none, by a fixed seed.

    Args:
        table: the source's table.
        rows: case ids to choose from.
        most: maximum number of images in a group.

    Returns:
        Case ids by finding and for ``No Finding`` (every label known and absent), each from another
        patient; fewer where there are no more.
    """
    order = np.random.Generator(np.random.PCG64(SEED)).permutation(rows)
    with_finding = [order[table.labels[order, f] == 1] for f in range(len(table.findings))]
    without = order[(table.labels[order] == 0).all(axis=1)]
    groups = zip((*table.findings, NO_FINDING), (*with_finding, without), strict=True)
    return {title: _one_a_patient(table, members)[:most] for title, members in groups}


def _one_a_patient(table: CaseTable, rows: np.ndarray) -> np.ndarray:
    first = np.unique(table.patients[rows], return_index=True)[1]
    return rows[np.sort(first)]
