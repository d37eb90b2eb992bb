"""Fit temperatures, Platt scalings and decision thresholds on validation (NumPy)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.special import expit, logit

from charm_jax.metrics.classification import check_scores

# Beyond these a temperature only says that the logits order validation perfectly, or not at all.
TEMPERATURES = (0.05, 20.0)
_TOLERANCE = 1e-8
# Further thresholds of each finding: this one is at least so high on validation.
OPERATING_POINTS = {"sensitivity_95": 0.95, "specificity_95": 0.95}
_NO_THRESHOLDS = dict.fromkeys(("threshold", *OPERATING_POINTS))
_PLATT = ("slope", "intercept", "prior")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """The numbers of a finding; early versions wrote the first two alone."""

    temperature: float | None
    threshold: float | None
    slope: float | None = None
    intercept: float | None = None
    prior: float | None = None
    sensitivity_95: float | None = None
    specificity_95: float | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"a temperature is {self.temperature}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """``calibration.json``: a result of `fit`, and what it was fitted with.

    Raises:
        ValueError: The findings are not the outputs in their order.
    """

    checkpoint: str
    split_sha256: str
    outputs: tuple[str, ...]
    findings: dict[str, Fitted]
    images: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if tuple(self.findings) != self.outputs:
            raise ValueError("its findings are not its outputs in their order")


def fit(
    logits: Num[np.ndarray, "images findings"],
    labels: Int[np.ndarray, "images findings"],
    findings: Sequence[str],
) -> dict[str, Any]:
    """Fit a temperature, a Platt scaling and decision thresholds for each finding.

    The temperature T minimises the cross-entropy of sigmoid(logit / T) within `TEMPERATURES` (Guo
    et al., 2017; one T a finding). Thresholds are on that calibrated probability: "threshold"
    maximises sensitivity + specificity (Youden), the highest of equals; "sensitivity_95" is the
    highest that reaches this sensitivity, "specificity_95" the lowest that reaches this
    specificity.

    "slope" and "intercept" are Platt's (1999): sigmoid(slope · logit + intercept) has the mean
    "prior", which is the prevalence on validation, short of 0 by what as many images leave open. A
    temperature alone leaves the mean where it is, so prior shift cannot be estimated from it
    (Alexandari et al., 2020, ICML, "Maximum likelihood with bias-corrected calibration").

    Args:
        logits: Logits on validation.
        labels: 1, 0 or -1 (unknown).
        findings: Names of the columns.

    Returns:
        {"findings": {name: {"temperature", "slope", "intercept", "prior", "threshold",
        "sensitivity_95", "specificity_95", "positives", "negatives"}}}, ready for JSON. All but the
        counts are None without both classes and where the highest temperature is too low; a
        threshold also where it is no better than chance, and Platt's for constant scores.

    Raises:
        ValueError: If the shapes do not agree, a logit is not finite or a label is none of these.
    """
    check_scores(logits, labels, findings)
    result = {}
    for column, name in enumerate(findings):
        known = labels[:, column] >= 0
        z, truth = logits[known, column].astype(np.float64), labels[known, column]
        positives = int(np.sum(truth == 1))
        temperature, platt, limits = None, dict.fromkeys(_PLATT), _NO_THRESHOLDS
        if 0 < positives < len(truth):
            temperature = _temperature(z, truth)
            if temperature is not None:
                platt = _platt(z, truth) if z.std() > 0 else platt
                limits = _thresholds(expit(z / temperature), truth)
        result[name] = {
            "temperature": temperature,
            **platt,
            **limits,
            "positives": positives,
            "negatives": len(truth) - positives,
        }
    return {"findings": result}


def nothing(findings: Sequence[str]) -> dict[str, Any]:
    """Return the result of `fit` for a validation split without images."""
    nulls = dict.fromkeys(("temperature", *_PLATT)) | _NO_THRESHOLDS
    entry = {**nulls, "positives": 0, "negatives": 0}
    return {"findings": {name: dict(entry) for name in findings}}


def calibrated(
    logits: Num[np.ndarray, "images findings"], calibration: dict[str, Any]
) -> Float[np.ndarray, "images findings"]:
    """Compute sigmoid(logit / temperature), 0 … 1; NaN for a finding without a temperature.

    Args:
        logits: With a column for each finding of the calibration, in its order.
        calibration: Result of `fit`.

    Raises:
        ValueError: If the number of findings differs.
    """
    temperatures = _numbers(calibration, "temperature")
    if logits.shape[1] != len(temperatures):
        raise ValueError(f"{len(temperatures)} temperatures for {logits.shape[1]} findings")
    return expit(logits.astype(np.float64) / temperatures[None, :])


def divided(
    logits: Num[np.ndarray, "images findings"], calibration: Mapping[str, Any]
) -> Float[np.ndarray, "images findings"]:
    """Compute logit / temperature; the logit itself for a finding without a temperature.

    Args:
        logits: With a column for each finding of the calibration, in its order.
        calibration: Result of `fit`.
    """
    temperatures = _numbers(calibration, "temperature")
    return logits.astype(np.float64) / np.where(np.isnan(temperatures), 1.0, temperatures)[None, :]


def averaged(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return temperature and thresholds for the mean of calibrated logits of several networks.

    The temperature is 1, since each was divided by its own. A threshold is the mean of theirs, as
    logits. Each is None where one of the networks has none.

    Args:
        entries: Entries of one finding, of results of `fit`.
    """
    found: dict[str, Any] = {}
    for key in ("temperature", *_NO_THRESHOLDS):
        values = [entry[key] for entry in entries]
        mean = None
        if None not in values:
            mean = 1.0 if key == "temperature" else float(expit(np.mean(logit(values))))
        found[key] = mean
    return found


def platt_scaled(
    logits: Num[np.ndarray, "images findings"], calibration: dict[str, Any]
) -> tuple[Float[np.ndarray, "images findings"], Float[np.ndarray, " findings"]]:
    """Compute sigmoid(slope · logit + intercept), and its mean on validation; NaN for none.

    Args:
        logits: With a column for each finding of the calibration, in its order.
        calibration: Result of `fit`.
    """
    slope, intercept, prior = (_numbers(calibration, key) for key in _PLATT)
    return expit(logits.astype(np.float64) * slope + intercept), prior


def thresholds(
    calibration: dict[str, Any], point: str = "threshold"
) -> Float[np.ndarray, " findings"]:
    """Return each finding's threshold on the calibrated probability; NaN for none.

    Args:
        calibration: Result of `fit`.
        point: "threshold" or one of `OPERATING_POINTS`.
    """
    return _numbers(calibration, point)


def _numbers(calibration: Mapping[str, Any], key: str) -> np.ndarray:
    values = [entry[key] for entry in calibration["findings"].values()]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _temperature(z: np.ndarray, truth: np.ndarray) -> float | None:
    """Fit the temperature; None where even the highest is too low.

    Where one temperature after another is too high, validation is in perfect order, which few
    positives often are, and any certainty would fit. Then the targets are Platt's.
    """
    low, high = TEMPERATURES
    temperature = _minimise(z, (truth == 1).astype(np.float64))
    if temperature <= low:
        temperature = _minimise(z, _platt_targets(truth))
    return temperature if temperature < high else None


def _platt_targets(truth: np.ndarray) -> np.ndarray:
    """Return targets short of 0 and 1 by what as many images leave open (Platt, 1999)."""
    positives = np.sum(truth == 1)
    most, least = (positives + 1) / (positives + 2), 1 / (len(truth) - positives + 2)
    return np.where(truth == 1, most, least)


def _platt(z: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Fit slope and intercept; logits are standardised meanwhile."""
    target, middle, sd = _platt_targets(truth), z.mean(), z.std()
    x = np.stack([(z - middle) / sd, np.ones(len(z))])

    def cross_entropy(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = weights @ x
        loss = np.mean(np.logaddexp(0.0, scaled) - target * scaled)
        return loss, x @ (expit(scaled) - target) / len(z)

    from scipy.optimize import minimize  # as below

    slope, intercept = minimize(
        cross_entropy, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": _TOLERANCE}
    ).x
    slope /= sd
    return {
        "slope": float(slope),
        "intercept": float(intercept - slope * middle),
        "prior": float(target.mean()),
    }


def _minimise(z: np.ndarray, target: np.ndarray) -> float:
    """Minimise over 1 / T, in which the cross-entropy is convex."""
    from scipy.optimize import minimize_scalar  # a prediction needs neither this nor scikit-learn

    def cross_entropy(inverse: float) -> float:
        scaled = inverse * z
        return float(np.mean(np.logaddexp(0.0, scaled) - target * scaled))

    low, high = (1 / t for t in reversed(TEMPERATURES))
    found = minimize_scalar(
        cross_entropy, bounds=(low, high), method="bounded", options={"xatol": _TOLERANCE}
    )
    return 1 / min((low, float(found.x), high), key=cross_entropy)


def _thresholds(probability: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """Find the thresholds that are better than chance."""
    from sklearn.metrics import roc_curve

    false, true, at = roc_curve(truth, probability, drop_intermediate=False)
    best = {
        "threshold": int(np.argmax(true - false)),
        "sensitivity_95": int(np.argmax(true >= OPERATING_POINTS["sensitivity_95"])),
        "specificity_95": int(np.flatnonzero(1 - false >= OPERATING_POINTS["specificity_95"])[-1]),
    }
    return {name: float(at[i]) if true[i] > false[i] else None for name, i in best.items()}
