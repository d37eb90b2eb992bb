"""Temperature and threshold of each finding, fitted on a validation part (NumPy; not jitted)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import roc_curve

from charm_jax.metrics.classification import check_scores

# Beyond these a temperature only says that the logits order validation perfectly, or not at all.
TEMPERATURES = (0.05, 20.0)
_TOLERANCE = 1e-8


def fit(
    logits: Num[np.ndarray, "images findings"],
    labels: Int[np.ndarray, "images findings"],
    findings: Sequence[str],
) -> dict[str, Any]:
    """Fits each finding's temperature and threshold, which are two things.

    The temperature T minimises the cross-entropy of sigmoid(logit / T) within `TEMPERATURES` (Guo
    et al., 2017; one T a finding). The threshold, on that calibrated probability, maximises
    sensitivity + specificity (Youden); of equals, the highest.

    Args:
        logits: Of the validation part.
        labels: 1, 0 or -1 (unknown).
        findings: Names of the columns.

    Returns:
        {"findings": {name: {"temperature", "threshold", "positives", "negatives"}}}, ready for
        JSON. Without both classes temperature and threshold are None, and where the highest
        temperature is too low; where no threshold is better than chance, as for constant scores,
        the threshold is.

    Raises:
        ValueError: If the shapes do not agree, a logit is not finite or a label is none of these.
    """
    check_scores(logits, labels, findings)
    result = {}
    for column, name in enumerate(findings):
        known = labels[:, column] >= 0
        z, truth = logits[known, column].astype(np.float64), labels[known, column]
        positives = int(np.sum(truth == 1))
        temperature = threshold = None
        if 0 < positives < len(truth):
            temperature = _temperature(z, truth)
            if temperature is not None:
                threshold = _youden(expit(z / temperature), truth)
        result[name] = {
            "temperature": temperature,
            "threshold": threshold,
            "positives": positives,
            "negatives": len(truth) - positives,
        }
    return {"findings": result}


def nothing(findings: Sequence[str]) -> dict[str, Any]:
    """Return the result of `fit` for a validation split without images."""
    entry = {"temperature": None, "threshold": None, "positives": 0, "negatives": 0}
    return {"findings": {name: dict(entry) for name in findings}}


def calibrated(
    logits: Num[np.ndarray, "images findings"], calibration: dict[str, Any]
) -> Float[np.ndarray, "images findings"]:
    """Compute sigmoid(logit / temperature), 0 … 1; NaN for a finding without a temperature.

    Args:
        logits: With a column for each finding of the calibration, in its order.
        calibration: Of `fit`.

    Raises:
        ValueError: If the number of findings differs.
    """
    temperatures = _numbers(calibration, "temperature")
    if logits.shape[1] != len(temperatures):
        raise ValueError(f"{len(temperatures)} temperatures for {logits.shape[1]} findings")
    return expit(logits.astype(np.float64) / temperatures[None, :])


def thresholds(calibration: dict[str, Any]) -> Float[np.ndarray, " findings"]:
    """Each finding's threshold on the calibrated probability; NaN for none."""
    return _numbers(calibration, "threshold")


def _numbers(calibration: dict[str, Any], key: str) -> np.ndarray:
    values = [entry[key] for entry in calibration["findings"].values()]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _temperature(z: np.ndarray, truth: np.ndarray) -> float | None:
    """Fit the temperature; None where even the highest is too low.

    Where one temperature after another is too high, validation is in perfect order, which few
    positives often are, and any certainty would fit. Then the targets are Platt's (1999), short
    of 0 and 1 by what as many images leave open.
    """
    low, high = TEMPERATURES
    temperature = _minimise(z, (truth == 1).astype(np.float64))
    if temperature <= low:
        positives = np.sum(truth == 1)
        most, least = (positives + 1) / (positives + 2), 1 / (len(truth) - positives + 2)
        temperature = _minimise(z, np.where(truth == 1, most, least))
    return temperature if temperature < high else None


def _minimise(z: np.ndarray, target: np.ndarray) -> float:
    """Minimises over 1 / T, in which the cross-entropy is convex."""

    def cross_entropy(inverse: float) -> float:
        scaled = inverse * z
        return float(np.mean(np.logaddexp(0.0, scaled) - target * scaled))

    low, high = (1 / t for t in reversed(TEMPERATURES))
    found = minimize_scalar(
        cross_entropy, bounds=(low, high), method="bounded", options={"xatol": _TOLERANCE}
    )
    return 1 / min((low, float(found.x), high), key=cross_entropy)


def _youden(probability: np.ndarray, truth: np.ndarray) -> float | None:
    false, true, at = roc_curve(truth, probability)
    best = int(np.argmax(true - false))
    return float(at[best]) if true[best] > false[best] else None
