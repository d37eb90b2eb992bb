"""Count images, findings and patients of a table and its splits."""

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.tables.case_table import CaseTable
from data_pipelines.tables.splits import Split

Statistics = dict[str, object]


def named_parts(split: Split) -> dict[str, np.ndarray]:
    """Name the splits of all stages, those that all stages share once.

    Returns:
        ``[m]`` case ids by name: ``test`` where every stage has the same test images, else
        ``bce train`` and ``focal train``.
    """
    named = {}
    for stage, parts in split.stages.items():
        for part, rows in parts.items():
            others = [other.get(part) for other in split.stages.values()]
            shared = all(other is not None and np.array_equal(other, rows) for other in others)
            named[part if shared else f"{stage} {part}"] = rows
    return named


def images_per_patient(table: CaseTable, rows: Int[np.ndarray, " m"]) -> Statistics:
    """Count patients, and the min, median, mean and max images of one."""
    counts = np.unique(table.patients[rows], return_counts=True)[1]
    return {"patients": len(counts), **_summary(counts)}


def part_statistics(table: CaseTable, rows: Int[np.ndarray, " m"]) -> Statistics:
    """Count the images of one split.

    Args:
        table: the source's table.
        rows: case ids of the split.

    Returns:
        ``images``, ``patients``, ``abnormal``; ``findings``: for each the ``positive``,
        ``negative`` and ``unknown`` images and the ``prevalence`` among the known ones, None
        without any; ``views`` and ``sexes``: images by value, ``unknown`` for the empty one;
        ``ages``: min, median, mean and max in years, and the number of ``unknown`` ones.
    """
    labels, ages = table.labels[rows], table.ages[rows]
    return {
        "images": len(rows),
        "patients": len(np.unique(table.patients[rows])),
        "abnormal": int(table.abnormal[rows].sum()),
        "findings": {
            name: _label_counts(labels[:, column]) for column, name in enumerate(table.findings)
        },
        "views": _value_counts(table.views[rows]),
        "sexes": _value_counts(table.sexes[rows]),
        "ages": {"unknown": int((ages < 0).sum()), **_summary(ages[ages >= 0])},
    }


def co_occurrence(
    table: CaseTable, rows: Int[np.ndarray, " m"]
) -> tuple[Float[np.ndarray, "f f"], Float[np.ndarray, " f"], Int[np.ndarray, " f"]]:
    """Compute how often findings occur together.

    Args:
        table: the source's table.
        rows: case ids to count.

    Returns:
        P(column | row): among the images with the row's finding and a known label of the column's,
        the share with the column's, 0 to 1; the share of the images with a finding that have no
        other; the number of images with each finding. A share of no images is NaN.
    """
    present = (table.labels[rows] == 1).astype(np.float64)
    known = (table.labels[rows] >= 0).astype(np.float64)
    counts = present.sum(axis=0)
    alone = present[present.sum(axis=1) == 1].sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN on purpose
        return present.T @ present / (present.T @ known), alone / counts, counts.astype(np.int64)


def parts_of_images(table: CaseTable, split: Split) -> dict[str, np.ndarray]:
    """Return the splits of each image by stage, joined by ``+``."""
    stages = {}
    for stage, parts in split.stages.items():
        held = np.full(len(table.images), "", object)
        for part, rows in parts.items():
            held[rows] = [f"{before}+{part}" if before else part for before in held[rows]]
        stages[stage] = held
    return stages


def _label_counts(labels: np.ndarray) -> Statistics:
    positive, negative = int((labels == 1).sum()), int((labels == 0).sum())
    return {
        "positive": positive,
        "negative": negative,
        "unknown": len(labels) - positive - negative,
        "prevalence": positive / (positive + negative) if positive + negative else None,
    }


def _value_counts(values: np.ndarray) -> dict[str, int]:
    names, counts = np.unique(values.astype(str), return_counts=True)
    return {name or "unknown": int(n) for name, n in zip(names.tolist(), counts, strict=True)}


def _summary(values: np.ndarray) -> Statistics:
    names = ("min", "median", "mean", "max")
    if not values.size:
        return dict.fromkeys(names)
    numbers = (values.min(), np.median(values), values.mean(), values.max())
    return dict(zip(names, map(float, numbers), strict=True))
