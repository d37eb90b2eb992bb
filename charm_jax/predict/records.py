"""From a network's outputs to what is said of each image (NumPy; not jitted)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int8
from scipy.special import expit

from charm_jax.metrics import calibration
from charm_jax.metrics import ood as familiarity

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Scale:
    """What turns logits into findings.

    Attributes:
        findings: their names.
        calibration: content of ``calibration.json``; None where nothing was fitted.
        familiarity: content of ``novelty.json``; None likewise.
    """

    findings: tuple[str, ...]
    calibration: Mapping[str, Any] | None
    familiarity: Mapping[str, Any] | None

    def scores(self, logits: Float[np.ndarray, "n findings"]) -> Float[np.ndarray, "n findings"]:
        """Calibrated probabilities, 0 ... 1; where a finding has no temperature, sigmoids."""
        plain = expit(logits.astype(np.float64))
        if self.calibration is None:
            return plain
        fitted = calibration.calibrated(logits, self.calibration)
        return np.where(np.isnan(fitted), plain, fitted)

    def thresholds(self) -> Float[np.ndarray, " findings"]:
        """On those; NaN where there is none, and the finding is never reported."""
        if self.calibration is None:
            return np.full(len(self.findings), np.nan)
        return calibration.thresholds(self.calibration)

    def uncalibrated(self) -> list[str]:
        """Findings whose scores are bare sigmoids."""
        if self.calibration is None:
            return list(self.findings)
        entries = self.calibration["findings"].items()
        return [name for name, entry in entries if entry["temperature"] is None]


@dataclasses.dataclass(frozen=True)
class Remembered:
    """What is known of the cases of a bank.

    Attributes:
        cases: ``image`` and ``patient`` by case id.
        labels: of a case id.
    """

    cases: pd.DataFrame
    labels: Mapping[int, Int8[np.ndarray, " findings"]]


def remembered(memory: Any, cases: pd.DataFrame) -> Remembered:
    """The cases of a bank.

    Args:
        memory: the bank.
        cases: of the table that its ids are of.
    """
    ids, labels = np.asarray(memory.case_ids), np.asarray(memory.labels)
    return Remembered(cases, {int(i): labels[slot] for slot, i in enumerate(ids) if i >= 0})


def records(
    outputs: Mapping[str, np.ndarray], scale: Scale, bank: Remembered | None
) -> list[Record]:
    """What is said of each image of a batch.

    An image that is unfamiliar keeps its scores, but no finding is reported of it.

    Args:
        outputs: of ``explain_step``, on the host, without padding.
        scale: of the run.
        bank: None for a plain network.

    Returns:
        A record an image, ready for JSON.
    """
    scores, thresholds = scale.scores(outputs["logits"]), scale.thresholds()
    without = scale.scores(outputs["without_memory"]) if "without_memory" in outputs else None
    familiar = _familiar(outputs, scale)
    made = []
    for row, score in enumerate(scores):
        above = np.flatnonzero(score >= thresholds)  # never so for NaN
        reported = [] if familiar[row]["unfamiliar"] else above.tolist()
        record = {
            "findings": [scale.findings[i] for i in reported],
            **familiar[row],
            "scores": _named(scale.findings, score),
            "logits": _named(scale.findings, outputs["logits"][row]),
        }
        if without is not None:
            record["without_memory"] = _named(scale.findings, without[row])
            record["evidence"] = _evidence(outputs, row, scale.findings, bank)
        made.append(record)
    return made


def _familiar(outputs: Mapping[str, np.ndarray], scale: Scale) -> list[Record]:
    """Novelty and disagreement with their percentiles, and what follows from them."""
    values, thumbnails = familiarity.measures(outputs), outputs["thumbnail"]
    sd = thumbnails.std(axis=(1, 2))
    percentiles = {}
    if scale.familiarity is not None:
        percentiles = familiarity.judge(scale.familiarity, values, thumbnails)
    judged = []
    for row in range(len(thumbnails)):
        mine = {name: float(value[row]) for name, value in percentiles.items()}
        reasons = familiarity.unfamiliar(mine, float(sd[row]))
        entry: Record = {"unfamiliar": bool(reasons), "unfamiliar_in": reasons}
        for name in ("novelty", "disagreement", "appearance"):
            if name in values:
                entry[name] = round(float(values[name][row]), 6)
            if name in mine:
                entry[f"{name}_percentile"] = round(mine[name], 2)
        judged.append(entry)
    return judged


def _evidence(
    outputs: Mapping[str, np.ndarray], row: int, findings: Sequence[str], bank: Remembered
) -> list[Record]:
    """An entry for each case that was read, the most similar first."""
    entries: dict[int, Record] = {}
    for rank, case in enumerate(outputs["cases"][row].tolist()):
        if case < 0:
            continue
        if case in entries:
            entries[case]["times"] += 1
            continue
        labels = bank.labels[case]
        entries[case] = {
            "case": str(bank.cases["image"].get(case, case)),
            "patient": str(bank.cases["patient"].get(case, "")),
            "labels": [name for name, label in zip(findings, labels, strict=True) if label == 1],
            "cosine": round(float(outputs["similarities"][row, rank]), 6),
            "times": 1,
            "contributions": _named(findings, outputs["contributions"][row, rank]),
        }
    return list(entries.values())


def _named(findings: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: round(float(v), 6) for name, v in zip(findings, values, strict=True)}
