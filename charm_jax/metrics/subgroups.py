"""AUROC within view positions, sexes and bands of age (NumPy; not jitted)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Num, Shaped

from charm_jax.metrics import bootstrap
from charm_jax.metrics.classification import summarise

UNKNOWN = "unknown"
# The youngest of each; the first are the children.
AGE_BANDS = {0: "0-17", 18: "18-39", 40: "40-59", 60: "60-79", 80: "80+"}
_OLDEST = 120  # beyond it a number of years is a mistake of the table


def age_bands(ages: Int[np.ndarray, " images"]) -> Shaped[np.ndarray, " images"]:
    """Names of the bands of age; "unknown" below 0 and above 120 years."""
    bands = np.array([UNKNOWN, *AGE_BANDS.values()])
    known = np.where(ages > _OLDEST, -1, ages)
    return bands[np.searchsorted(list(AGE_BANDS), known, side="right")]


def attributes(
    views: Shaped[np.ndarray, " images"],
    sexes: Shaped[np.ndarray, " images"],
    ages: Int[np.ndarray, " images"],
) -> dict[str, np.ndarray]:
    """Return each image's "view", "sex" and "age", without those known of no image."""
    every = {
        "view": np.where(views == "", UNKNOWN, views),
        "sex": np.where(sexes == "", UNKNOWN, sexes),
        "age": age_bands(ages),
    }
    return {name: values for name, values in every.items() if np.any(values != UNKNOWN)}


def subgroups(
    scores: Num[np.ndarray, "images findings"],
    labels: Int[np.ndarray, "images findings"],
    patients: Shaped[np.ndarray, " images"],
    findings: Sequence[str],
    values: Mapping[str, np.ndarray],
    *,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Compute the AUROCs of each subgroup's images among themselves.

    Args:
        scores: Logits or probabilities; only their order matters.
        labels: 1, 0 or -1 (unknown).
        patients: Patient of each image.
        findings: Names of the columns.
        values: Of `attributes`.
        resamples: Draws of the subgroup's patients for the interval of its macro AUROC.
        seed: Seed of the draws.

    Returns:
        attribute → value → {"n_images", "n_patients", "macro_auroc", "macro_auroc_interval",
        "findings": {name: AUROC or None}, "undefined": names without one}.
    """
    result = {}
    for attribute, of_image in values.items():
        result[attribute] = {}
        for value in np.unique(of_image):
            rows = np.flatnonzero(of_image == value)
            z, truth, who = scores[rows], labels[rows], patients[rows]
            summary = summarise(z, truth, findings)
            drawn = bootstrap.resampled(z, truth, who, resamples=resamples, seed=seed)
            result[attribute][str(value)] = {
                "n_images": len(rows),
                "n_patients": len(np.unique(who)),
                "macro_auroc": summary["macro_auroc"],
                "macro_auroc_interval": list(bootstrap.interval(bootstrap.macro(drawn.auroc))),
                "findings": {n: entry["auroc"] for n, entry in summary["findings"].items()},
                "undefined": summary["undefined"],
            }
    return result
