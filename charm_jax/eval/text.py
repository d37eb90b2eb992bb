"""What an evaluation prints."""

from collections.abc import Mapping
from typing import Any

from charm_jax.report import provenance
from charm_jax.report.provenance import DISCLAIMER

_SHORT = {
    "auroc": "AUROC",
    "average_precision": "AP",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "brier": "Brier",
    "ece_equal_width": "ECE (equal width)",
    "ece_equal_mass": "ECE (equal mass)",
}
_METHODS = {
    "bootstrap": "95 % of {unit} bootstraps",
    "delong": "95 % by DeLong, as if images were independent",
}
_PAIRED = {
    "bootstrap": "of {unit} bootstraps, the same for both",
    "delong": "by DeLong for AUROC, as if images were independent; of {unit} bootstraps for AP",
}


def table(metrics: Mapping[str, Any]) -> str:
    """Format the metrics: a line for each finding, means, groups and subgroups."""
    lines = [*_header(metrics), "", *_findings(metrics["findings"]), "", *_means(metrics)]
    lines += _calibrated(metrics)
    lines += ["", *_groups(metrics["groups"])]
    lines += _subgroups(metrics)
    if metrics.get("comparison"):
        lines += ["", *_comparison(metrics["comparison"], _unit(metrics))]
    return "\n".join([*lines, "", DISCLAIMER])


def _header(metrics: Mapping[str, Any]) -> list[str]:
    simulated = "SIMULATED images" if metrics["simulated"] else "images"
    memory = f" with memory {metrics['memory']}" if "memory" in metrics else ""
    lines = [
        f"{metrics['source']}, part '{metrics['split']}' of rule '{metrics['rule']}': "
        f"{metrics['n_images']:,} {simulated}, "
        f"{provenance.patients(metrics['n_patients'], metrics)}, checkpoint "
        f"{metrics['checkpoint']}{memory}, sha256 {metrics['split_sha256'][:12]}",
        *provenance.leak(metrics),
        *provenance.independence(metrics),
        *provenance.bank(metrics),
    ]
    if metrics["trained_on_simulated"] and not metrics["simulated"]:
        lines.append("The network was trained on SIMULATED images.")
    if metrics["images_missing"]:
        lines.append(f"{metrics['images_missing']:,} images of the table are missing.")
    return lines


def _unit(metrics: Mapping[str, Any]) -> str:
    """Return the unit that bootstraps resample."""
    return "patient" if metrics["patients_known"] else "image"


def _findings(findings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Format the findings; unknown labels have a column where there are any."""
    width = max(20, *map(len, findings))
    some_unknown = any(values["unknown"] for values in findings.values())
    unknown = f" {'unknown':>8}" if some_unknown else ""
    lines = [
        f"{'finding':<{width}} {'AUROC':>7} {'interval':>15} {'AP':>7} {'prevalence':>11} "
        f"{'positives':>10}{unknown}"
    ]
    for name, values in findings.items():
        unknown = f" {values['unknown']:>8,}" if some_unknown else ""
        lines.append(
            f"{name:<{width}} {_number(values['auroc']):>7} "
            f"{_interval(values['auroc_interval'], '-'):>15} "
            f"{_number(values['average_precision']):>7} {_number(values['prevalence']):>11} "
            f"{values['positives']:>10,}{unknown}"
        )
    return lines


def _means(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    for metric in ("auroc", "average_precision"):
        entry, method = metrics["macro"][metric], metrics["interval_method"][metric]
        value = "undefined" if entry["value"] is None else f"{entry['value']:.4f}"
        noun = "finding" if entry["findings"] == 1 else "findings"
        low, high = entry["interval"]
        said = _METHODS[method].format(unit=_unit(metrics))
        interval = "" if low is None else f" ({said}: {low:.4f} to {high:.4f})"
        lines.append(f"macro {_SHORT[metric]} {value} over {entry['findings']} {noun}{interval}")
    if metrics["undefined"]:
        lines.append(f"without both classes, left out: {', '.join(metrics['undefined'])}")
    return lines


def _calibrated(metrics: Mapping[str, Any]) -> list[str]:
    """Means of what needs thresholds or probabilities, and where these are from."""
    fitted = metrics["calibration"]
    if fitted is None:
        return ["no thresholds and temperatures: F1, Brier score and calibration are undefined"]
    total = len(metrics["findings"])
    parts = []
    for metric, entry in metrics["macro"].items():
        if metric in ("auroc", "average_precision"):
            continue
        over = "" if entry["findings"] == total else f" (over {entry['findings']})"
        parts.append(f"{_SHORT[metric]} {_number(entry['value'])}{over}")
    lines = [
        f"macro {', '.join(parts[:3])}",
        f"macro {', '.join(parts[3:])}, of calibrated probabilities",
    ]
    where = "thresholds (Youden) and temperatures were fitted on "
    if fitted["on_these_images"]:
        where += "THESE VERY IMAGES: what hangs on them is too good"
    else:
        where += f"{provenance.validation(metrics)}, sha256 {fitted['split_sha256'][:12]}"
    lines.append(where)
    for key, noun in (("temperature", "temperature"), ("threshold", "threshold")):
        without = [name for name, entry in metrics["findings"].items() if entry[key] is None]
        if without:
            lines.append(f"validation gives no {noun} for {', '.join(without)}")
    return lines


def _groups(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Format the groups of findings by prevalence in training."""
    lines = [f"{'in training':<20} {'AUROC':>7} {'interval':>15} {'AP':>7} {'findings':>11}"]
    said = {"head": "head, 5 % and more", "medium": "medium", "tail": "tail, below 2 %"}
    for name, group in groups.items():
        undefined = len(group["undefined"])
        less = f" ({undefined} left out)" if undefined else ""
        lines.append(
            f"{said[name]:<20} {_number(group['auroc']):>7} "
            f"{_interval(group['auroc_interval'], '-'):>15} "
            f"{_number(group['average_precision']):>7} {len(group['findings']):>11}{less}"
        )
    return lines


def _subgroups(metrics: Mapping[str, Any]) -> list[str]:
    header = (
        f"{'subgroup':<20} {'AUROC':>7} {'interval':>15} {'images':>7} {'patients':>11} "
        f"{'undefined':>10}"
    )
    lines = []
    for attribute, values in metrics["subgroups"].items():
        if len(values) == 1:  # all of the part
            continue
        for value, entry in values.items():
            patients = f"{entry['n_patients']:,}" if metrics["patients_known"] else "unknown"
            lines.append(
                f"{f'{attribute} {value}':<20} {_number(entry['macro_auroc']):>7} "
                f"{_interval(entry['macro_auroc_interval'], '-'):>15} {entry['n_images']:>7,} "
                f"{patients:>11} {len(entry['undefined']):>10}"
            )
    return ["", header, *lines] if lines else []


def _comparison(comparison: Mapping[str, Any], unit: str) -> list[str]:
    """Format the differences from the other run, a line for each finding."""
    rows = {**comparison["findings"], "macro": comparison["macro"]}
    width = max(20, *map(len, rows))
    intervals = _PAIRED[comparison["interval_method"]["auroc"]].format(unit=unit)
    lines = [
        f"How much more than {comparison['run']}, checkpoint {comparison['checkpoint']}, on the "
        "same images,",
        f"with 95 % {intervals}:",
        f"{'finding':<{width}} {'AUROC':>7} {'other':>7} {'more':>8} {'interval':>18} "
        f"{'AP more':>8} {'interval':>18}",
    ]
    for name, entry in rows.items():
        auroc, precision = entry["auroc"], entry["average_precision"]
        lines.append(
            f"{name:<{width}} {_number(auroc['value']):>7} {_number(auroc['other']):>7} "
            f"{_signed(auroc['difference']):>8} {_interval(auroc['interval'], ' to ', '+'):>18} "
            f"{_signed(precision['difference']):>8} "
            f"{_interval(precision['interval'], ' to ', '+'):>18}"
        )
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}" if value else "0"


def _interval(interval: list[float | None], between: str, sign: str = "") -> str:
    low, high = interval
    return "-" if low is None else f"{low:{sign}.4f}{between}{high:{sign}.4f}"
