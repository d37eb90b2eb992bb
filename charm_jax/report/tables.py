"""The tables of a report: parts of ``metrics.json`` to markup."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from charm_jax.report import published as published_results
from charm_jax.report.contents import shown
from charm_jax.report.html import (
    UNDEFINED,
    Html,
    element,
    interval_bar,
    joined,
    number,
    percent,
    span,
    table,
)
from data_pipelines.tables.findings import NIH_FINDINGS

Metrics = Mapping[str, Any]
_NOWHERE = (None, None)
_GROUPS = {
    "head": "5 % and more in training",
    "medium": "2 to 5 %",
    "tail": "below 2 %",
}


def ranking(metrics: Metrics) -> Html:
    """AUROC and average precision of each finding with their intervals."""
    findings, macro = metrics["findings"], metrics["macro"]
    start = _start([(v["auroc"], v["auroc_interval"]) for v in findings.values()])
    unknown = any(values["unknown"] for values in findings.values())
    rows = [_ranked(name, values, start, unknown) for name, values in findings.items()]
    mean = [
        f"Mean of {macro['auroc']['findings']}",
        *("", "") + ("",) * unknown,
        *_measure(macro["auroc"]["value"], macro["auroc"]["interval"], start),
        *_measure(macro["average_precision"]["value"], macro["average_precision"]["interval"], 0.0),
    ]
    header = [
        *("Finding", "Images with", "Share"),
        *(["Unknown"] if unknown else []),
        *("AUROC", _scale(start), "Average precision", _scale(0.0)),
    ]
    return table("AUROC and average precision of each finding", header, [*rows, mean])


def _ranked(name: str, values: Metrics, start: float, unknown: bool) -> list:
    return [
        shown(name),
        f"{values['positives']:,}",
        percent(values["prevalence"]),
        *([f"{values['unknown']:,}"] if unknown else []),
        *_measure(values["auroc"], values["auroc_interval"], start),
        *_measure(
            values["average_precision"],
            values["average_precision_interval"],
            0.0,
            values["prevalence"],
        ),
    ]


def _measure(
    value: float | None, interval: Sequence | None, start: float, mark: float | None = None
) -> tuple:
    """Two cells: the number with its interval, and both as a bar."""
    interval = interval or _NOWHERE
    ends = element("small", span(interval)) if span(interval) else None
    return joined(number(value), " ", ends), interval_bar(value, interval, start, mark)


def _start(measured: Sequence[tuple[float | None, Sequence | None]]) -> float:
    """Where a scale of AUROCs and their intervals starts: at 0.5, or lower if one of them does."""
    known = [x for value, interval in measured for x in (value, *(interval or ())) if x is not None]
    return min([0.5, *(math.floor(10 * x) / 10 for x in known)])


def _scale(start: float) -> Html:
    ends = (element("span", f"{start:g}"), element("span", "1"))
    return element("span", *ends, class_="scale")


def decisions(findings: Mapping[str, Metrics]) -> Html:
    """Make the table of thresholds and calibration."""
    keys = {
        "Threshold": "threshold",
        "Sensitivity": "sensitivity",
        "Specificity": "specificity",
        "F1": "f1",
        "Temperature": "temperature",
        "Brier score": "brier",
        "ECE, equal mass": "ece_equal_mass",
        "ECE, equal width": "ece_equal_width",
    }
    rows = [
        [shown(name), *(number(values[key]) for key in keys.values())]
        for name, values in findings.items()
    ]
    return table("Thresholds and calibration of each finding", ["Finding", *keys], rows)


def groups(metrics: Metrics) -> Html:
    """Means over the frequent, less frequent and rare findings."""
    start = _start([(v["auroc"], v["auroc_interval"]) for v in metrics["groups"].values()])
    rows = [
        [
            joined(group, _below(_GROUPS.get(group, ""))),
            *_measure(values["auroc"], values["auroc_interval"], start),
            *_measure(values["average_precision"], values["average_precision_interval"], 0.0),
            element("span", ", ".join(map(shown, values["findings"])) or "none", class_="list"),
        ]
        for group, values in metrics["groups"].items()
    ]
    header = ["Group", "AUROC", _scale(start), "Average precision", _scale(0.0), "Findings"]
    return table("Frequent and rare findings", header, rows)


def subgroups(metrics: Metrics) -> Html | None:
    """Macro AUROC for each view, sex and age, and each finding's below."""
    known = {kind: values for kind, values in metrics["subgroups"].items() if values}
    if not known:
        return None
    entries = [entry for values in known.values() for entry in values.values()]
    start = _start([(e["macro_auroc"], e["macro_auroc_interval"]) for e in entries])
    rows, number_of = [], len(metrics["findings"])
    for kind, values in known.items():
        for value, entry in values.items():
            rows.append(
                [
                    f"{kind} {value}",
                    f"{entry['n_images']:,}",
                    f"{entry['n_patients']:,}" if metrics["patients_known"] else "unknown",
                    *_measure(entry["macro_auroc"], entry["macro_auroc_interval"], start),
                    f"{number_of - len(entry['undefined'])}",
                ]
            )
    header = ["Subgroup", "Images", "Patients", "Macro AUROC", _scale(start), "Findings in it"]
    whole = table("Macro AUROC of each subgroup", header, rows)
    return joined(whole, _by_finding(metrics, known))


def _by_finding(metrics: Metrics, known: Mapping[str, Mapping[str, Metrics]]) -> Html:
    columns = {
        f"{kind} {value}": entry["findings"]
        for kind, values in known.items()
        for value, entry in values.items()
    }
    rows = [
        [shown(name), *(number(column[name]) for column in columns.values())]
        for name in metrics["findings"]
    ]
    summary = element("summary", "AUROC of each finding in each subgroup")
    inner = table("AUROC of each finding in each subgroup", ["Finding", *columns], rows)
    return element("details", summary, inner)


def comparison(compared: Metrics) -> Html:
    """How much more each AUROC and average precision is than another run's."""
    rows = [
        [
            shown(name),
            *(cell for metric in ("auroc", "average_precision") for cell in _more(entry[metric])),
        ]
        for name, entry in (compared["findings"] | {"Mean": compared["macro"]}).items()
    ]
    header = ["Finding"]
    for metric in ("AUROC", "Average precision"):
        header += [metric, "other", "more"]
    return table("Differences from another run", header, rows)


def _more(entry: Metrics) -> tuple:
    low, high = entry["interval"]
    ends = None if low is None else element("small", f"{low:+.3f} to {high:+.3f}")
    difference = entry["difference"]
    said = UNDEFINED if difference is None else f"{difference:+.3f}"
    return number(entry["value"]), number(entry["other"]), joined(said, " ", ends)


def published(metrics: Metrics, model: str) -> Html | None:
    """Put published numbers beside ours; None for findings other than ChestX-ray14's."""
    if tuple(metrics["findings"]) != NIH_FINDINGS:
        return None
    ours = [
        element("strong", f"This report: {model}"),
        element("strong", number(metrics["macro_auroc"], 4)),
        element("span", _our_split(metrics), class_="wrap"),
        "",
        "",
    ]
    rows = [
        [
            joined(result.model, _below(result.note)),
            result.macro,
            element("span", published_results.SPLITS[result.split], class_="wrap"),
            result.selected_on or UNDEFINED,
            result.source,
        ]
        for result in published_results.RESULTS
    ]
    header = ["Model", "Macro AUROC", "Split", "Selected on", "Source"]
    return joined(
        element("p", comparable(metrics)),
        table("Published macro AUROC", header, [ours, *rows]),
        _published_findings(metrics),
    )


def _our_split(metrics: Metrics) -> str:
    simulated = "SIMULATED images, " if metrics["simulated"] else ""
    return (
        f"{simulated}rule {metrics['rule']}, part {metrics['split']}, {metrics['n_images']:,} "
        "images"
    )


def comparable(metrics: Metrics) -> str:
    """Which of the published numbers ours may be compared with."""
    general = "Numbers on different splits are not comparable: they are of other patients."
    if metrics["simulated"]:
        return f"{general} These images are SIMULATED: ours compares with none of them."
    if metrics["source"] != "nih_chest_xray14":
        return f"{general} These images are not those of ChestX-ray14: ours compares with none."
    if metrics["images_missing"] or metrics["refused"]:
        return (
            f"{general} Here images are missing, so that ours is of other images than any of these."
        )
    if (metrics["rule"], metrics["split"]) == ("official", "test"):
        return f"{general} Ours is to be read beside those on the official test list alone."
    if metrics["rule"] == "notebook" and metrics["split"] in ("test", "test_published"):
        return f"{general} Ours is to be read beside those on the split that leaks alone."
    return f"{general} Ours is of parts that no other of these numbers was taken on."


def _published_findings(metrics: Metrics) -> Html:
    papers = published_results.BY_FINDING
    header = [
        *("Finding", "This report"),
        *(joined(model, _below(published_results.SPLITS[split])) for model, split in papers),
    ]
    rows = [
        [
            shown(name),
            element("strong", number(values["auroc"], 4)),
            *(paper[name] for paper in papers.values()),
        ]
        for name, values in metrics["findings"].items()
    ]
    return table("Published AUROC of each finding", header, rows)


def _below(text: str) -> Html | None:
    return element("small", text, class_="below") if text else None


def flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """List the keys of a nested config with their values."""
    entries = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, Mapping)
        entries += flat(value, f"{name}.") if nested else [(name, str(value))]
    return entries
