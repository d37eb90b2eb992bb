"""Confidence intervals of metrics, alone and of paired differences (NumPy)."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, Shaped

from charm_jax.metrics import bootstrap, classification, delong
from charm_jax.metrics.result import UNDEFINED, Difference, Interval

METHODS = ("bootstrap", "delong")
RANKED = tuple(name for name, metric in classification.METRICS.items() if metric.has_interval)


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """The predictions of a network beside the labels.

    Attributes:
        labels: 1, 0 or -1 (unknown).
        patients: numbers or strings.
        findings: names of the columns.
    """

    logits: Float[np.ndarray, "images findings"]
    labels: Int[np.ndarray, "images findings"]
    patients: Shaped[np.ndarray, " images"]
    findings: tuple[str, ...]


class ConfidenceIntervals:
    """95 % intervals of each finding's AUROC and average precision, and of their means."""

    def __init__(self, evaluated: EvalSet, method: str = "bootstrap"):
        """Draw the resamples.

        Args:
            evaluated: predictions and labels.
            method: one of ``METHODS``. ``delong`` is for AUROC alone and assumes independent
                images; average precision keeps the patient bootstrap.
        """
        drawn = bootstrap.resampled(evaluated.logits, evaluated.labels, evaluated.patients)
        self.drawn = {metric: getattr(drawn, metric) for metric in RANKED}
        self.shares = None
        if method == "delong":
            self.shares = delong.influence(evaluated.logits, evaluated.labels)

    def of_finding(self, metric: str, column: int, value: float | None) -> Interval:
        """Return the interval around the value of a finding."""
        if metric == "auroc" and self.shares is not None:
            return delong.interval(value, self.shares[:, column])
        return bootstrap.interval(self.drawn[metric][:, column])

    def of_mean(
        self, metric: str, value: float | None, columns: list[int] | None = None
    ) -> Interval:
        """Return the interval around the mean over some findings, by default all."""
        chosen = slice(None) if columns is None else columns
        if value is None:
            return UNDEFINED
        if metric == "auroc" and self.shares is not None:
            return delong.interval(value, delong.macro(self.shares[:, chosen]))
        return bootstrap.interval(bootstrap.macro(self.drawn[metric][:, chosen]))


def of_rates(
    evaluated: EvalSet,
    probabilities: Float[np.ndarray, "images findings"],
    thresholds: Float[np.ndarray, " findings"],
) -> dict[str, list[Interval]]:
    """Return the intervals of prevalence, calibration error and decisions over resampled patients.

    The bins of the calibration error stay those of all images. It is a sum of absolute values, so
    chance raises it: the interval of a good calibration may lie above it.

    Args:
        evaluated: predictions and labels.
        probabilities: calibrated, 0 ... 1; NaN throughout for a finding without.
        thresholds: on these; NaN for none.

    Returns:
        ``prevalence``, ``sensitivity``, ``specificity`` and ``ece_equal_mass``, each with an
        interval for each finding; undefined where every resample gives the same value, as for a
        sensitivity of 1.
    """
    labels, columns = evaluated.labels, range(len(evaluated.findings))
    called = probabilities >= thresholds
    counts = [
        labels >= 0,
        labels == 1,
        labels == 0,
        (labels == 1) & called,
        (labels == 0) & ~called,
    ]
    gaps = np.zeros((*labels.shape, classification.ECE_BINS))
    for column in columns:
        known = np.flatnonzero(labels[:, column] >= 0)
        probability = probabilities[known, column]
        if len(known) and not np.isnan(probability).any():
            bins = classification.equal_mass_bins(probability)
            gaps[known, column, bins] = labels[known, column] - probability
    values = np.concatenate([*counts, gaps.reshape(len(labels), -1)], axis=1)
    drawn = bootstrap.totals(values, evaluated.patients)
    *sums, rest = np.split(drawn, np.arange(1, 6) * len(columns), axis=1)
    known, positive, negative, tp, tn = sums
    wrong = np.abs(rest.reshape(len(drawn), len(columns), -1)).sum(axis=2)
    undecided, uncalibrated = np.isnan(thresholds), np.isnan(probabilities).any(axis=0)
    rates = {
        "prevalence": bootstrap.ratio(positive, known),
        "sensitivity": np.where(undecided, np.nan, bootstrap.ratio(tp, positive)),
        "specificity": np.where(undecided, np.nan, bootstrap.ratio(tn, negative)),
        "ece_equal_mass": np.where(uncalibrated, np.nan, bootstrap.ratio(wrong, known)),
    }
    return {name: [spread(rate[:, c]) for c in columns] for name, rate in rates.items()}


def spread(drawn: Float[np.ndarray, " resamples"]) -> Interval:
    """Return the interval of a rate; undefined where every resample gives the same value."""
    low, high = bootstrap.interval(drawn)
    return UNDEFINED if low == high else (low, high)


def compare(
    ours: EvalSet,
    theirs: Float[np.ndarray, "images findings"],
    method: str = "bootstrap",
    drawn: ConfidenceIntervals | None = None,
) -> tuple[dict[str, Difference], dict[str, dict[str, Difference]]]:
    """Compute the differences between the metrics of two networks on the same images.

    Args:
        ours: predictions of one network, and the labels.
        theirs: logits of the other.
        method: one of ``METHODS``. ``bootstrap`` draws the same patients for both.
        drawn: intervals of ``ours`` by that method, where several others are compared with it.

    Returns:
        metric → difference of the means; finding → metric → difference.
    """
    other = dataclasses.replace(ours, logits=theirs)
    intervals = [drawn or ConfidenceIntervals(ours, method), ConfidenceIntervals(other, method)]
    values = [classification.auroc_and_ap(s.logits, s.labels, s.findings) for s in (ours, other)]
    macro, findings = {}, {name: {} for name in ours.findings}
    for metric in RANKED:
        entries = [[entry[metric] for entry in value.values()] for value in values]
        gained = intervals[0].drawn[metric] - intervals[1].drawn[metric]
        shares = None
        if metric == "auroc" and method == "delong":
            shares = intervals[0].shares - intervals[1].shares
        for column, name in enumerate(ours.findings):
            pair = [value[column] for value in entries]
            share = None if shares is None else shares[:, column]
            findings[name][metric] = _difference(*pair, gained[:, column], share)
        means = [classification.mean(value) for value in entries]
        share = None if shares is None else delong.macro(shares)
        macro[metric] = _difference(*means, bootstrap.macro(gained), share)
    return macro, findings


def _difference(
    value: float | None, other: float | None, drawn: np.ndarray, shares: np.ndarray | None
) -> Difference:
    if value is None or other is None:
        return Difference(value=value, other=other)
    difference = value - other
    if shares is None:
        interval = bootstrap.interval(drawn)
    else:
        interval = delong.interval(difference, shares, bounds=(-1.0, 1.0))
    return Difference(value=value, other=other, difference=difference, interval=interval)
