"""Two networks on the same images: differences with paired intervals (NumPy; not jitted)."""

from typing import Any

import numpy as np
from jaxtyping import Float

from charm_jax.metrics import bootstrap, classification, delong
from charm_jax.metrics.summary import RANKING, Scored, Spread


def compare(
    ours: Scored, theirs: Float[np.ndarray, "images findings"], method: str = "bootstrap"
) -> dict[str, Any]:
    """Compute how much more one network's AUROC and average precision are than another's.

    Args:
        ours: the part with the logits of one.
        theirs: the other's logits of the same images and findings.
        method: of ``scoring.INTERVALS``. ``bootstrap`` draws the same patients for both.

    Returns:
        "macro" and "findings" → name: metric → {"value": ours, "other": theirs, "difference":
        value - other, "interval": [low, high] of the difference}; None where undefined.
    """
    other = Scored(theirs, ours.labels, ours.patients, ours.findings)
    spreads = [Spread(scored, method) for scored in (ours, other)]
    values = [classification.ranking(s.logits, s.labels, s.findings) for s in (ours, other)]
    result: dict[str, Any] = {"macro": {}, "findings": {name: {} for name in ours.findings}}
    for metric in RANKING:
        entries = [[entry[metric] for entry in value.values()] for value in values]
        drawn = spreads[0].drawn[metric] - spreads[1].drawn[metric]
        shares = None
        if metric == "auroc" and method == "delong":
            shares = spreads[0].shares - spreads[1].shares
        for column, name in enumerate(ours.findings):
            pair = [values[column] for values in entries]
            share = None if shares is None else shares[:, column]
            result["findings"][name][metric] = _difference(*pair, drawn[:, column], share)
        means = [classification.mean(values) for values in entries]
        share = None if shares is None else delong.macro(shares)
        result["macro"][metric] = _difference(*means, bootstrap.macro(drawn), share)
    return result


def _difference(
    value: float | None, other: float | None, drawn: np.ndarray, shares: np.ndarray | None
) -> dict[str, Any]:
    if value is None or other is None:
        return {"value": value, "other": other, "difference": None, "interval": [None, None]}
    difference = value - other
    if shares is None:
        interval = bootstrap.interval(drawn)
    else:
        interval = delong.interval(difference, shares, bounds=(-1.0, 1.0))
    return {
        "value": value,
        "other": other,
        "difference": difference,
        "interval": list(interval),
    }
