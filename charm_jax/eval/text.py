"""Format an evaluation for the terminal."""

from collections.abc import Iterable, Mapping

from charm_jax.metrics.intervals import RANKED
from charm_jax.metrics.result import (
    Comparison,
    EvaluationResult,
    FindingResult,
    GroupResult,
    Interval,
)
from charm_jax.report import contents, provenance
from charm_jax.report.provenance import DISCLAIMER
from charm_jax.runs.banks import TRAINED

_SHORT = {
    "auroc": "AUROC",
    "average_precision": "AP",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "brier": "Brier",
    "ece_equal_width": "ECE (equal width)",
    "ece_equal_mass": "ECE (equal mass)",
}
_AT_THRESHOLD = ("f1", "sensitivity", "specificity", "ppv", "npv")
_METHODS = {
    "bootstrap": "95 % of {unit} bootstraps",
    "delong": "95 % by DeLong, assuming independent images",
}
_PAIRED = {
    "bootstrap": "of {unit} bootstraps, the same for both",
    "delong": "by DeLong for AUROC, assuming independent images; of {unit} bootstraps for AP",
}
_GROUPS = {"head": "head, 5 % and more", "medium": "medium", "tail": "tail, below 2 %"}


def table(result: EvaluationResult) -> str:
    """Format the metrics: a line for each finding, means, groups and subgroups."""
    lines = [*_header(result), "", *_findings(result.findings), "", *_means(result)]
    lines += [*_calibrated(result), "", *_groups(result), *_subgroups(result)]
    if result.comparison is not None:
        lines += ["", *_comparison(result.comparison, _unit(result))]
    return "\n".join([*lines, "", DISCLAIMER])


def _header(result: EvaluationResult) -> list[str]:
    simulated = "SIMULATED images" if result.simulated else "images"
    memory = f" with memory {result.memory}" if result.memory not in (None, TRAINED) else ""
    lines = [
        f"{result.source}, split '{result.split}' of rule '{result.rule}': {result.n_images:,} "
        f"{simulated}, {provenance.patients(result)}, checkpoint {result.checkpoint}{memory}, "
        f"sha256 {result.split_sha256[:12]}",
        *provenance.leak(result),
        *provenance.independence(result),
        *provenance.bank(result),
    ]
    if result.trained_on_simulated and not result.simulated:
        lines.append("The network was trained on SIMULATED images.")
    if result.images_missing:
        lines.append(f"{result.images_missing:,} images of the table are missing.")
    return lines


def _unit(result: EvaluationResult) -> str:
    """Return the unit that bootstraps resample."""
    return "patient" if result.patients_known else "image"


def _findings(findings: Mapping[str, FindingResult]) -> list[str]:
    """Format the findings; unknown labels have a column where there are any."""
    width = _width(findings)
    some_unknown = any(entry.unknown for entry in findings.values())
    unknown = f" {'unknown':>8}" if some_unknown else ""
    lines = [
        f"{'finding':<{width}} {'AUROC':>7} {'interval':>15} {'AP':>7} {'prevalence':>11} "
        f"{'positives':>10}{unknown}"
    ]
    for name, entry in findings.items():
        unknown = f" {entry.unknown:>8,}" if some_unknown else ""
        lines.append(
            f"{name:<{width}} {_number(entry.auroc):>7} {_interval(entry.auroc_interval):>15} "
            f"{_number(entry.average_precision):>7} {_number(entry.prevalence):>11} "
            f"{entry.positives:>10,}{unknown}"
        )
    return lines


def _means(result: EvaluationResult) -> list[str]:
    lines = []
    for metric in RANKED:
        entry, method = result.macro[metric], result.interval_method[metric]
        value = "undefined" if entry.value is None else _number(entry.value)
        noun = "finding" if entry.findings == 1 else "findings"
        how = _METHODS[method].format(unit=_unit(result))
        ends = _interval(entry.interval, " to ")
        interval = "" if ends == "-" else f" ({how}: {ends})"
        lines.append(f"macro {_SHORT[metric]} {value} over {entry.findings} {noun}{interval}")
    if result.undefined:
        lines.append(f"without both classes, left out: {', '.join(result.undefined)}")
    return lines


def _calibrated(result: EvaluationResult) -> list[str]:
    """Format the means that need thresholds or probabilities, and where these are from."""
    fitted = result.calibration
    if fitted is None:
        return ["no thresholds and temperatures: F1, Brier score and calibration are undefined"]
    total = len(result.findings)
    parts = {}
    for metric, entry in result.macro.items():
        over = "" if entry.findings == total else f" (over {entry.findings})"
        parts[metric] = f"{_SHORT[metric]} {_number(entry.value)}{over}"
    ranked = {*RANKED, *_AT_THRESHOLD}
    where = "thresholds (Youden) and temperatures were fitted on "
    if fitted.on_these_images:
        where += "THESE IMAGES: threshold metrics are optimistic"
    else:
        where += f"{provenance.validation(result)}, sha256 {fitted.split_sha256[:12]}"
    lines = [
        f"macro {', '.join(parts[metric] for metric in _AT_THRESHOLD)}",
        f"macro {', '.join(parts[metric] for metric in parts if metric not in ranked)}, "
        "of calibrated probabilities",
        where,
    ]
    for key in ("temperature", "threshold"):
        without = [name for name, entry in result.findings.items() if getattr(entry, key) is None]
        if without:
            lines.append(f"validation gives no {key} for {', '.join(without)}")
    return lines


def _groups(result: EvaluationResult) -> list[str]:
    """Format the groups of findings by prevalence in training."""
    if result.groups is None:
        return ["prevalence in training unknown: no means over frequent and rare findings"]
    lines = [f"{'in training':<20} {'AUROC':>7} {'interval':>15} {'AP':>7} {'findings':>11}"]
    lines += [_group(_GROUPS[name], group) for name, group in result.groups.items()]
    grouped = {name for group in result.groups.values() for name in group.findings}
    without = [name for name in result.findings if name not in grouped]
    if without:
        lines.append(f"in no group, since no training image is known: {', '.join(without)}")
    return lines


def _group(name: str, group: GroupResult) -> str:
    undefined = f" ({len(group.undefined)} left out)" if group.undefined else ""
    return (
        f"{name:<20} {_number(group.auroc):>7} {_interval(group.auroc_interval):>15} "
        f"{_number(group.average_precision):>7} {len(group.findings):>11}{undefined}"
    )


def _subgroups(result: EvaluationResult) -> list[str]:
    lines = []
    for attribute, values in result.subgroups.items():
        if len(values) == 1:  # all images
            continue
        for value, entry in values.items():
            patients = f"{entry.n_patients:,}" if result.patients_known else "unknown"
            lines.append(
                f"{f'{attribute} {value}':<20} {_number(entry.macro_auroc):>7} "
                f"{_interval(entry.macro_auroc_interval):>15} {entry.n_images:>7,} "
                f"{patients:>11} {len(entry.undefined):>10}"
            )
    header = (
        f"{'subgroup':<20} {'AUROC':>7} {'interval':>15} {'images':>7} {'patients':>11} "
        f"{'undefined':>10}"
    )
    return ["", header, *lines] if lines else []


def _comparison(comparison: Comparison, unit: str) -> list[str]:
    """Format the differences from the other run, a line for each finding."""
    rows = {**comparison.findings, "macro": comparison.macro}
    width = _width(rows)
    intervals = _PAIRED[comparison.interval_method["auroc"]].format(unit=unit)
    lines = [
        f"Differences from {comparison.run}, checkpoint {comparison.checkpoint}, on the same "
        "images,",
        f"with 95 % {intervals}:",
        f"{'finding':<{width}} {'AUROC':>7} {'other':>7} {'more':>8} {'interval':>18} "
        f"{'AP more':>8} {'interval':>18}",
    ]
    for name, entry in rows.items():
        auroc, precision = entry["auroc"], entry["average_precision"]
        lines.append(
            f"{name:<{width}} {_number(auroc.value):>7} {_number(auroc.other):>7} "
            f"{_signed(auroc.difference):>8} {_difference(auroc.interval):>18} "
            f"{_signed(precision.difference):>8} {_difference(precision.interval):>18}"
        )
    return lines


def _width(names: Iterable[str]) -> int:
    return max(20, *map(len, names))


def _number(value: float | None) -> str:
    return "-" if value is None else contents.number(value, 4).replace("< ", "<")


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}" if value else "0"


def _interval(interval: Interval, between: str = "-") -> str:
    low, high = interval
    return "-" if low is None else f"{_number(low)}{between}{_number(high)}"


def _difference(interval: Interval) -> str:
    low, high = interval
    return "-" if low is None else f"{low:+.4f} to {high:+.4f}"
