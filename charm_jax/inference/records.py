"""Turn a network's outputs into a record for each image (NumPy; not jitted)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int8

from charm_jax.inference.fitted import Calibrator
from charm_jax.metrics import ood
from data_pipelines.images.decode import Check

Record = dict[str, Any]
_VOTES = 10  # cases of a vote that are listed


@dataclasses.dataclass(frozen=True)
class StoredCases:
    """The cases of a bank.

    Attributes:
        cases: ``image`` and ``patient`` by case id.
        labels: labels by case id.
    """

    cases: pd.DataFrame
    labels: Mapping[int, Int8[np.ndarray, " findings"]]


def stored_cases(memory: Any, cases: pd.DataFrame) -> StoredCases:
    """Return the cases of a bank, given the table that its ids belong to."""
    ids, labels = np.asarray(memory.case_ids), np.asarray(memory.labels)
    return StoredCases(cases, {int(i): labels[slot] for slot, i in enumerate(ids) if i >= 0})


def records(
    outputs: Mapping[str, np.ndarray],
    calibrator: Calibrator,
    bank: StoredCases | None,
    checks: Sequence[Check],
) -> list[Record]:
    """Turn the outputs of a batch into a record for each image.

    An out-of-distribution image keeps its scores, but no finding is reported. ``findings`` is None
    where no finding has a threshold, and ``unfamiliar`` where nothing can be judged.

    Args:
        outputs: of ``explain_step``, on the host, without padding.
        calibrator: calibration and out-of-distribution reference.
        bank: None for a baseline.
        checks: what was found out about the files.

    Returns:
        A record an image, ready for JSON. Where the stored cases vote, ``vote`` has what they say
        of each finding, 0 ... 1 or None if they know nothing, and ``evidence`` the ten most
        similar with their shares in it.
    """
    scores, thresholds = calibrator.scores(outputs["logits"]), calibrator.thresholds()
    without = calibrator.scores(outputs["without_memory"]) if "without_memory" in outputs else None
    judged = _judged(outputs, calibrator, checks)
    made = []
    for row, score in enumerate(scores):
        above = np.flatnonzero(score >= thresholds)  # never so for NaN
        found = [] if judged[row]["unfamiliar"] else [calibrator.findings[i] for i in above]
        record = {
            "findings": None if np.isnan(thresholds).all() else found,
            **judged[row],
            "scores": _named(calibrator.findings, score),
            "logits": _named(calibrator.findings, outputs["logits"][row]),
        }
        if without is not None:
            record["without_memory"] = _named(calibrator.findings, without[row])
            record["evidence"] = _evidence(outputs, row, calibrator.findings, bank)
            if "vote" in outputs:
                vote = _named(calibrator.findings, outputs["vote"][row])
                record["vote"] = {k: None if np.isnan(v) else v for k, v in vote.items()}
        made.append(record)
    return made


def _judged(
    outputs: Mapping[str, np.ndarray], calibrator: Calibrator, checks: Sequence[Check]
) -> list[Record]:
    """Return the measures with their percentiles, and whether an image is unfamiliar."""
    values, thumbnails = ood.measures(outputs), outputs["thumbnail"]
    sd = thumbnails.std(axis=(1, 2))
    percentiles = {}
    if calibrator.reference is not None:
        percentiles = ood.judge(calibrator.reference, values, thumbnails)
    judged = []
    for row, check in enumerate(checks):
        mine = {name: float(value[row]) for name, value in percentiles.items()}
        reasons = ood.reasons(mine, float(sd[row]))
        warnings = list(check.remarks)
        if check.sliver:
            reasons.append("range")
            warnings.insert(0, check.sliver.advice)
        entry: Record = {
            "unfamiliar": bool(reasons) if reasons or mine else None,
            "unfamiliar_in": reasons,
            "warnings": warnings,
        }
        for name in ("novelty", "disagreement", "appearance"):
            if name in values:
                entry[name] = round(float(values[name][row]), 6)
            if name in mine:
                entry[f"{name}_percentile"] = round(mine[name], 2)
        judged.append(entry)
    return judged


def _evidence(
    outputs: Mapping[str, np.ndarray], row: int, findings: Sequence[str], bank: StoredCases
) -> list[Record]:
    """Return an entry for each case that was read, the most similar first; of votes, ten."""
    entries: dict[int, Record] = {}
    shown = _VOTES if "vote" in outputs else None
    for rank, case in enumerate(outputs["cases"][row].tolist()[:shown]):
        if case < 0:
            continue
        if case in entries:
            entries[case]["times"] += 1
            continue
        labels = named_labels(findings, bank.labels[case])
        entries[case] = {
            "case": str(bank.cases["image"].get(case, case)),
            "patient": str(bank.cases["patient"].get(case, "")),
            "labels": labels,
            "cosine": round(float(outputs["similarities"][row, rank]), 6),
            "times": 1,
            "contributions": _named(findings, outputs["contributions"][row, rank]),
        }
    return list(entries.values())


def named_labels(
    findings: Sequence[str], labels: Int8[np.ndarray, " findings"]
) -> list[str] | None:
    """Return the findings whose label is 1; None where no label is known."""
    if (labels < 0).all():
        return None
    return [name for name, label in zip(findings, labels, strict=True) if label == 1]


def _named(findings: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: round(float(v), 6) for name, v in zip(findings, values, strict=True)}
