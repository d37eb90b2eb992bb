"""All that ``metrics.json`` says of scores: point values, intervals, groups and subgroups."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from charm_jax.metrics import bootstrap, calibration, classification, delong
from charm_jax.metrics.subgroups import subgroups

INTERVALS = ("bootstrap", "delong")
RANKING = ("auroc", "average_precision")  # the metrics that have intervals


@dataclasses.dataclass(frozen=True)
class Scored:
    """A part with the logits of a network.

    Attributes:
        logits: float32.
        labels: 1, 0 or -1 (unknown).
        patients: of each image, numbers or strings.
        findings: names of the columns.
    """

    logits: Float[np.ndarray, "images findings"]
    labels: Int[np.ndarray, "images findings"]
    patients: Shaped[np.ndarray, " images"]
    findings: tuple[str, ...]


class Spread:
    """The uncertainty of a part's AUROCs and average precisions."""

    def __init__(self, scored: Scored, method: str = "bootstrap"):
        """Draws the resamples.

        Args:
            scored: the part.
            method: of ``INTERVALS``. ``delong`` is for AUROC alone and takes images for
                independent; average precision keeps the patient bootstrap.
        """
        drawn = bootstrap.resampled(scored.logits, scored.labels, scored.patients)
        self.drawn = {"auroc": drawn.auroc, "average_precision": drawn.average_precision}
        self.shares = delong.influence(scored.logits, scored.labels) if method == "delong" else None

    def of_finding(self, metric: str, column: int, value: float | None) -> list[float | None]:
        """[low, high] around a finding's value; [None, None] if undefined."""
        if metric == "auroc" and self.shares is not None:
            return list(delong.interval(value, self.shares[:, column]))
        return list(bootstrap.interval(self.drawn[metric][:, column]))

    def of_mean(
        self, metric: str, value: float | None, columns: list[int] | None = None
    ) -> list[float | None]:
        """[low, high] around the mean over some findings, by default all."""
        chosen = slice(None) if columns is None else columns
        if value is None:
            return [None, None]
        if metric == "auroc" and self.shares is not None:
            return list(delong.interval(value, delong.macro(self.shares[:, chosen])))
        return list(bootstrap.interval(bootstrap.macro(self.drawn[metric][:, chosen])))


def score(
    scored: Scored,
    *,
    fitted: dict[str, Any],
    prevalence: Mapping[str, float],
    attributes: Mapping[str, np.ndarray],
    method: str = "bootstrap",
) -> dict[str, Any]:
    """Compute the part of ``metrics.json`` that depends on scores.

    Args:
        scored: the part.
        fitted: of ``calibration.fit`` on the validation part, or ``calibration.nothing``.
        prevalence: of each finding in the training part.
        attributes: of ``subgroups.attributes``.
        method: of ``INTERVALS``.

    Returns:
        "macro_auroc", "macro_auroc_interval", "interval_method", "findings", "undefined" (names
        without an AUROC), "macro", "groups" and "subgroups", ready for JSON.
    """
    probabilities = calibration.calibrated(scored.logits, fitted)
    by_finding = classification.point_values(
        scored.logits,
        scored.labels,
        scored.findings,
        probabilities,
        calibration.thresholds(fitted),
    )
    spread = Spread(scored, method)
    for column, (name, entry) in enumerate(by_finding.items()):
        entry["threshold"] = fitted["findings"][name]["threshold"]
        entry["temperature"] = fitted["findings"][name]["temperature"]
        for metric in RANKING:
            entry[f"{metric}_interval"] = spread.of_finding(metric, column, entry[metric])
    macro = classification.macro(by_finding)
    for metric in RANKING:
        macro[metric]["interval"] = spread.of_mean(metric, macro[metric]["value"])
    groups = classification.groups(by_finding, prevalence)
    for group in groups.values():
        columns = [scored.findings.index(name) for name in group["findings"]]
        for metric in RANKING:
            group[f"{metric}_interval"] = spread.of_mean(metric, group[metric], columns)
    return {
        "macro_auroc": macro["auroc"]["value"],
        "macro_auroc_interval": macro["auroc"]["interval"],
        "interval_method": {"auroc": method, "average_precision": "bootstrap"},
        "findings": by_finding,
        "undefined": macro["auroc"]["undefined"],
        "macro": macro,
        "groups": groups,
        "subgroups": subgroups(
            scored.logits, scored.labels, scored.patients, scored.findings, attributes
        ),
    }
