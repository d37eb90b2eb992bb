"""Turn a network's outputs into a record for each image (NumPy; not jitted)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int8, Integer

from charm_jax.inference.fitted import Calibrator
from charm_jax.metrics import conformal, ood
from data_pipelines.images.decode import Check

Record = dict[str, Any]
ATTENTION = "attention"
SHOWN = 10  # cases of a vote that are listed


@dataclasses.dataclass(frozen=True)
class StoredCases:
    """The cases of a bank.

    Attributes:
        cases: ``image`` and ``patient`` by case id.
        labels: labels by case id.
    """

    cases: pd.DataFrame
    labels: Mapping[int, Int8[np.ndarray, " findings"]]

    def name(self, case: int) -> str:
        """Return the name of a case's image; its id where the name is unknown."""
        return str(self.cases["image"].get(case, case))


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
            "scores": named(calibrator.findings, score),
            "logits": named(calibrator.findings, outputs["logits"][row]),
            **_sets(outputs["logits"][row], calibrator, unfamiliar=judged[row]["unfamiliar"]),
        }
        if "single_view" in outputs:
            single = calibrator.scores(outputs["single_view"][row : row + 1])[0]
            record["single_view"] = named(calibrator.findings, single)
        if without is not None:
            record["without_memory"] = named(calibrator.findings, without[row])
            record["evidence"] = _evidence(outputs, row, calibrator.findings, bank)
            if "vote" in outputs:
                vote = named(calibrator.findings, outputs["vote"][row])
                record["vote"] = {k: None if np.isnan(v) else v for k, v in vote.items()}
        if ATTENTION in outputs:
            heat = outputs[ATTENTION][row]
            record["attention_range"] = [round(float(v), 4) for v in (heat.min(), heat.max())]
        made.append(record)
    return made


def combined(
    members: Mapping[str, Sequence[Record]],
    logits: Float[np.ndarray, "n findings"],
    calibrator: Calibrator,
) -> list[Record]:
    """Return a record for each image of an ensemble, with those of its members.

    An image is unfamiliar if at least half of the members that can judge find it so, for whatever
    reasons; these are listed.

    Args:
        members: records of the images by each member, by its name.
        logits: of the ensemble.
        calibrator: of the ensemble.
    """
    scores, thresholds = calibrator.scores(logits), calibrator.thresholds()
    made = []
    for row, images in enumerate(zip(*members.values(), strict=True)):
        judging = [record for record in images if record["unfamiliar"] is not None]
        votes = sum(record["unfamiliar"] for record in judging)
        unfamiliar = 2 * votes >= len(judging) if judging else None
        given = [reason for record in judging for reason in record["unfamiliar_in"]]
        reasons = list(dict.fromkeys(given)) if unfamiliar else []
        above = np.flatnonzero(scores[row] >= thresholds)  # never so for NaN
        found = [] if unfamiliar else [calibrator.findings[i] for i in above]
        made.append(
            {
                "findings": None if np.isnan(thresholds).all() else found,
                "unfamiliar": unfamiliar,
                "unfamiliar_in": reasons,
                "warnings": images[0]["warnings"],
                "scores": named(calibrator.findings, scores[row]),
                "logits": named(calibrator.findings, logits[row]),
                **_sets(logits[row], calibrator, unfamiliar=unfamiliar),
                "members": {
                    name: {key: value for key, value in record.items() if key != "warnings"}
                    for name, record in zip(members, images, strict=True)
                },
            }
        )
    return made


def _sets(
    logits: Float[np.ndarray, " findings"], calibrator: Calibrator, *, unfamiliar: bool | None
) -> Record:
    """Return the conformal sets of an image, if any: None for an unfamiliar one, as they fail."""
    limits = calibrator.limits
    if limits is None:
        return {}
    found = conformal.sets(logits[None], limits)[0]
    labels = np.array(["absent", "present"])
    sets = {
        name: labels[held].tolist() for name, held in zip(calibrator.findings, found, strict=True)
    }
    return {"coverage": limits.coverage, "sets": None if unfamiliar else sets}


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
    ids, shown = outputs["cases"][row], SHOWN if "vote" in outputs else None
    entries = retrieved(ids[:shown], outputs["similarities"][row, :shown], findings, bank)
    for case, entry in entries.items():
        shares = outputs["contributions"][row, ids.tolist().index(case)]
        entry["contributions"] = named(findings, shares)
    return list(entries.values())


def retrieved(
    ids: Integer[np.ndarray, " k"],
    similarities: Float[np.ndarray, " k"],
    findings: Sequence[str],
    bank: StoredCases,
) -> dict[int, Record]:
    """Describe the cases that an image read, by case id, the most similar first.

    Args:
        ids: case ids, -1 for none.
        similarities: their cosines.
    """
    entries: dict[int, Record] = {}
    for case, cosine in zip(ids.tolist(), similarities.tolist(), strict=True):
        if case in entries:
            entries[case]["times"] += 1
        elif case >= 0:
            entries[case] = {
                "case": bank.name(case),
                "patient": str(bank.cases["patient"].get(case, "")),
                "labels": named_labels(findings, bank.labels[case]),
                "cosine": round(cosine, 6),
                "times": 1,
            }
    return entries


def named_labels(
    findings: Sequence[str], labels: Int8[np.ndarray, " findings"]
) -> list[str] | None:
    """Return the findings whose label is 1; None where no label is known."""
    if (labels < 0).all():
        return None
    return [name for name, label in zip(findings, labels, strict=True) if label == 1]


def named(findings: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """Return the value of each finding, rounded to 6 digits."""
    return {name: round(float(v), 6) for name, v in zip(findings, values, strict=True)}
