"""Conformal sets of each finding: present, absent, both or neither (NumPy; not jitted).

Split conformal prediction for each finding and each label by itself (Mondrian): of new patients
with an image of the label, at least the wanted share have it in the set of such an image, drawn
from theirs, if the patients are exchangeable with those of validation. Nothing else about the
network is assumed. Images of one patient are not independent, so each patient counts as one.

Source: Vovk et al., "Algorithmic Learning in a Random World", 2005, section 4.5; Sadinle et al.,
arXiv 1609.00451; for patients with several images Lee et al., arXiv 2306.06342.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from charm_jax.metrics import bootstrap, intervals
from charm_jax.metrics.intervals import EvalSet
from charm_jax.metrics.result import Conformal, Estimate, FindingSets

ABSENT, PRESENT = 0, 1  # columns of the sets, as labels


@dataclasses.dataclass(frozen=True)
class Limits:
    """Logits that decide which labels a set has.

    Attributes:
        coverage: wanted share, 0 to 1.
        present: "present" is in the set of a logit of at least so much; -inf where too few
            patients of validation have the finding, so that it is always in it.
        absent: "absent" is in the set of a logit of at most so much; inf where too few lack it.
    """

    coverage: float
    present: Float[np.ndarray, " findings"]
    absent: Float[np.ndarray, " findings"]


def fit(
    logits: Num[np.ndarray, "images findings"],
    labels: Int[np.ndarray, "images findings"],
    patients: Shaped[np.ndarray, " images"],
    coverage: float,
) -> Limits:
    """Fit the limits on validation.

    Args:
        logits: of images that the network did not learn from.
        labels: 1, 0 or -1 (unknown).
        patients: numbers or strings.
        coverage: wanted share of each label, above 0 and below 1.

    Raises:
        ValueError: If the shapes do not agree or the coverage is no such share.
    """
    if logits.shape != labels.shape or not 0 < coverage < 1:
        raise ValueError(f"logits {logits.shape}, labels {labels.shape}, coverage {coverage}")
    columns = list(zip(logits.T, labels.T, strict=True))
    present = [_lowest(z[y == PRESENT], patients[y == PRESENT], coverage) for z, y in columns]
    absent = [-_lowest(-z[y == ABSENT], patients[y == ABSENT], coverage) for z, y in columns]
    return Limits(coverage, np.array(present, np.float64), np.array(absent, np.float64))


def _lowest(
    logits: Num[np.ndarray, " n"], patients: Shaped[np.ndarray, " n"], coverage: float
) -> float:
    """Return the lowest logit that conforms: p > 1 - coverage; -inf where all do.

    p (K + 1) is 1, for the new patient, and the sum over the K others of their share of images with
    no higher logit. With one image each it is the count of these.
    """
    order = np.argsort(logits, kind="stable")
    names, patient, images = np.unique(patients[order], return_inverse=True, return_counts=True)
    sums = 1 + np.concatenate([[0.0], np.cumsum(1 / images[patient])])
    # Rounded, because 0.1 * 20 and sums of thirds may lie beside a whole number.
    conforms = np.round(sums - (1 - coverage) * (len(names) + 1), 9) > 0
    first = int(np.argmax(conforms))
    return float(logits[order[first - 1]]) if first else -math.inf


def sets(
    logits: Num[np.ndarray, "images findings"], limits: Limits
) -> Bool[np.ndarray, "images findings 2"]:
    """Return whether each set has "absent" and "present"."""
    return np.stack([logits <= limits.absent, logits >= limits.present], axis=2)


def evaluate(evaluated: EvalSet, limits: Limits) -> Conformal:
    """Count how often the sets of an evaluation have the label, and how many labels they have.

    Shares of images with a label are those of each patient, averaged over the patients.
    """
    found = sets(evaluated.logits, limits)
    has = evaluated.labels[..., None] == [ABSENT, PRESENT]
    names, patient = np.unique(evaluated.patients, return_inverse=True)
    images = np.zeros((len(names), *has.shape[1:]))
    np.add.at(images, patient, has)
    weight = has / np.maximum(images[patient], 1)
    n = len(evaluated.findings)
    values = np.concatenate(
        [part.reshape(len(has), -1) for part in (weight * found, weight)], axis=1
    )
    drawn = bootstrap.totals(values, evaluated.patients)
    every = np.concatenate([values.sum(axis=0, dtype=np.float64)[None], drawn])
    # First of all images, then of each resample: finding by label.
    shares = bootstrap.ratio(*np.split(every, 2, axis=1)).reshape(len(every), n, 2)
    size = found.sum(axis=2)
    findings = {
        name: FindingSets(
            absent=_estimate(shares[:, column, ABSENT]),
            present=_estimate(shares[:, column, PRESENT]),
            decided=float((size[:, column] == 1).mean()),
            both=float((size[:, column] == 2).mean()),
            neither=float((size[:, column] == 0).mean()),
        )
        for column, name in enumerate(evaluated.findings)
    }
    known = ~np.isnan(shares[0])
    labelled = known.any(axis=1)
    return Conformal(
        coverage=limits.coverage,
        absent=_estimate(bootstrap.macro(shares[:, known[:, ABSENT], ABSENT])),
        present=_estimate(bootstrap.macro(shares[:, known[:, PRESENT], PRESENT])),
        decided=float((size[:, labelled] == 1).mean()) if labelled.any() else None,
        findings=findings,
    )


def _estimate(values: Float[np.ndarray, " draws"]) -> Estimate:
    """Return a share, the first of the values, and the interval of the others."""
    if np.isnan(values[0]):
        return Estimate()
    return Estimate(value=float(values[0]), interval=intervals.spread(values[1:]))
