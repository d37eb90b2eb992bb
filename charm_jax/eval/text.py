"""Format an evaluation for the terminal."""

import textwrap
from collections.abc import Callable, Mapping, Sequence

from charm_jax.metrics.classification import METRICS, mean
from charm_jax.metrics.result import (
    UNDEFINED,
    Comparison,
    Conformal,
    Difference,
    EvaluationResult,
    External,
    FindingResult,
    Interval,
    OwnTest,
)
from charm_jax.report import contents, provenance
from charm_jax.report.contents import Localisation
from charm_jax.report.localisation import METHODS as LOCALISED
from charm_jax.report.provenance import DISCLAIMER
from charm_jax.runs.banks import TRAINED

_METHODS = {
    "bootstrap": "95 % of {unit} bootstraps",
    "delong": "95 % by DeLong, assuming independent images",
}
_DIFFERENCES = ["more", "interval", "AP more", "interval"]  # columns: of AUROC, then of AP
_PAIRED = {
    "bootstrap": "of {unit} bootstraps, the same for both",
    "delong": "by DeLong for AUROC, assuming independent images; of {unit} bootstraps for AP",
}
_GROUPS = {"head": "head, 5 % and more", "medium": "medium", "tail": "tail, below 2 %"}

_BESIDE = {
    "auroc": "AUROC",
    "ece_equal_mass": "ECE",
    "prevalence": "share",
    "sensitivity": "sens.",
    "specificity": "spec.",
}
_WIDTH = 100


def table(result: EvaluationResult) -> str:
    """Format the metrics: a line for each finding, means, groups and subgroups."""
    lines = [*_header(result), "", *_findings(result.labelled), "", *_means(result)]
    lines += [*_calibrated(result), "", *_groups(result), *_subgroups(result)]
    if result.members:
        lines += ["", *_members(result)]
    if result.single_view is not None:
        lines += ["", *_comparison(result.single_view, _unit(result))]
    if result.conformal is not None:
        lines += ["", *_sets(result, result.conformal)]
    if result.comparison is not None:
        lines += ["", *_comparison(result.comparison, _unit(result))]
    if result.external is not None:
        lines += ["", *_external(result, result.external)]
    return "\n".join([*lines, "", DISCLAIMER])


def localisation_table(result: EvaluationResult, found: Localisation) -> str:
    """Format the pointing game of each finding, and mean shares of IoU and IoBB by threshold."""
    findings, mean = found.result.findings, found.result.mean
    places = [
        f"{LOCALISED[name]} {heats.shape[1]} x {heats.shape[2]}"
        + (f" (0 everywhere in {found.empty(name):,} of {len(heats):,})" * bool(found.empty(name)))
        for name, heats in found.maps.items()
    ]
    images = "SIMULATED images" if result.simulated else "images"
    header = ["pointing game", "images"]
    for name in mean:
        header += [LOCALISED[name], *(["interval"] if name in found.maps else [])]
    rows = []
    for name, methods, count in (
        *((name, entry.methods, f"{entry.images:,}") for name, entry in findings.items()),
        ("mean", mean, ""),
    ):
        row = [name, count]
        for method, entry in methods.items():
            row.append(_number(entry.pointing.value))
            row += [_interval(entry.pointing.interval)] if method in found.maps else []
        rows.append(row)
    lines = [
        f"Localisation: {len(found.truth.boxes):,} boxes in {len(set(found.rows.tolist())):,} "
        f"{images}, intervals of {_unit(result)} bootstraps",
        f"places of the maps: {', '.join(places)}",
        *_columns(header, rows),
    ]
    for measure in ("IoU", "IoBB"):
        shares = {
            name: getattr(mean[name], measure.lower()) for name in mean if name != "image_centre"
        }
        thresholds = next(iter(shares.values()))
        rows = [
            [LOCALISED[name], *(_number(share.value) for share in by_threshold.values())]
            for name, by_threshold in shares.items()
        ]
        lines += ["", *_columns([f"mean share, {measure} above", *thresholds], rows)]
    return "\n".join(lines)


def _header(result: EvaluationResult) -> list[str]:
    simulated = "SIMULATED images" if result.simulated else "images"
    memory = f" with memory {result.memory}" if result.memory not in (None, TRAINED) else ""
    refit = f" with its classifier refitted ({result.refit})" if result.refit else ""
    network = f"checkpoint {result.checkpoint}"
    if result.members:
        network = f"mean of {len(result.members)} runs"
    views = "" if result.single_view is None else " with test-time augmentation"
    lines = [
        f"{result.source}, split '{result.split}' of rule '{result.rule}': {result.n_images:,} "
        f"{simulated}, {provenance.patients(result)}, {network}{refit}{memory}{views}, "
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
    unknown = any(entry.unknown for entry in findings.values())
    header = ["finding", "AUROC", "interval", "AP", "prevalence", "positives"]
    rows = [
        [
            *(name, _number(entry.auroc), _interval(entry.auroc_interval)),
            *(_number(entry.average_precision), _number(entry.prevalence)),
            f"{entry.positives:,}",
            *[f"{entry.unknown:,}"] * unknown,
        ]
        for name, entry in findings.items()
    ]
    return _columns([*header, *["unknown"] * unknown], rows)


def _means(result: EvaluationResult) -> list[str]:
    lines = []
    for metric in (name for name in result.macro if METRICS[name].needs == "order"):
        entry, interval = result.macro[metric], ""
        value = "undefined" if entry.value is None else _number(entry.value)
        noun = "finding" if entry.findings == 1 else "findings"
        if entry.interval != UNDEFINED:
            how = _METHODS[result.interval_method[metric]].format(unit=_unit(result))
            interval = f" ({how}: {_interval(entry.interval, ' to ')})"
        lines.append(
            f"macro {METRICS[metric].label} {value} over {entry.findings} {noun}{interval}"
        )
    if undefined := [name for name in result.undefined if name in result.labelled]:
        lines.append(f"without both classes, left out: {', '.join(undefined)}")
    told = (*result.labelled, *(result.external.lacking if result.external else ()))
    if unlabelled := [name for name in result.findings if name not in told]:
        lines.append(f"without a label here, left out: {', '.join(unlabelled)}")
    return lines


def _calibrated(result: EvaluationResult) -> list[str]:
    """Format the means that need thresholds or probabilities, and where these are from."""
    fitted = result.calibration
    if fitted is None:
        return ["no thresholds and temperatures: F1, Brier score and calibration are undefined"]
    shown: dict[str, list[str]] = {}
    for metric, entry in result.macro.items():
        over = f" (over {entry.findings})" if entry.undefined else ""
        text = f"{METRICS[metric].label} {_number(entry.value)}{over}"
        shown.setdefault(METRICS[metric].needs, []).append(text)
    if fitted.on_these_images:
        where = "THESE IMAGES: threshold metrics are optimistic"
    elif fitted.averaged:
        where = "the validation split of each run, and averaged"
    else:
        where = f"{provenance.validation(result)}, sha256 {fitted.split_sha256[:12]}"
    lines = [
        f"macro {', '.join(shown['threshold'])}",
        f"macro {', '.join(shown['probabilities'])}, of calibrated probabilities",
        f"thresholds (Youden) and temperatures were fitted on {where}",
    ]
    for key in ("temperature", "threshold"):
        without = [name for name, entry in result.labelled.items() if getattr(entry, key) is None]
        if without:
            lines.append(f"validation gives no {key} for {', '.join(without)}")
    return lines


def _groups(result: EvaluationResult) -> list[str]:
    """Format the groups of findings by prevalence in training."""
    if result.groups is None:
        return ["prevalence in training unknown: no means over frequent and rare findings"]
    rows = [
        [
            *(_GROUPS[name], _number(group.auroc), _interval(group.auroc_interval)),
            _number(group.average_precision),
            *(_count_in(names, result.labelled) for names in (group.findings, group.undefined)),
        ]
        for name, group in result.groups.items()
    ]
    lines = _columns(["in training", "AUROC", "interval", "AP", "findings", "undefined"], rows)
    grouped = {name for group in result.groups.values() for name in group.findings}
    without = [name for name in result.findings if name not in grouped]
    if without:
        lines.append(f"in no group, since no training image is known: {', '.join(without)}")
    return lines


def _subgroups(result: EvaluationResult) -> list[str]:
    rows = [
        [
            *(f"{attribute} {value}", _number(entry.macro_auroc)),
            *(_interval(entry.macro_auroc_interval), f"{entry.n_images:,}"),
            f"{entry.n_patients:,}" if result.patients_known else "unknown",
            _count_in(entry.undefined, result.labelled),
            *_gaps(result, attribute, value),
        ]
        for attribute, values in result.subgroups.items()
        if len(values) > 1  # otherwise it is all images
        for value, entry in values.items()
    ]
    header = ["subgroup", "AUROC", "interval", "images", "patients", "undefined"]
    if result.fairness:
        header += ["TPR gap", "FPR gap", "missed"]
    return ["", *_columns(header, rows)] if rows else []


def _gaps(result: EvaluationResult, attribute: str, value: str) -> list[str]:
    """Format a group's TPR and FPR minus those of the others, and its underdiagnosis rate."""
    if not result.fairness:
        return []
    group = result.fairness.get(attribute, {}).get(value)
    if group is None:
        return ["-"] * 3
    gaps = (group.tpr_gap, group.fpr_gap)
    return [
        *(_signed(gap.value) for gap in gaps),
        _number(group.underdiagnosis.value, 3),
    ]


def _differences(auroc: Difference, ap: Difference) -> list[str]:
    """Return the cells of the columns ``_DIFFERENCES``."""
    cells = []
    for more in (auroc, ap):
        cells += [_signed(more.difference), _interval(more.interval, " to ", _signed)]
    return cells


def _members(result: EvaluationResult) -> list[str]:
    """Format the ensemble's differences from each member, a line for each."""
    method = result.members[0].compared.interval_method["auroc"]
    rows = []
    for member in result.members:
        auroc, ap = (member.compared.macro[m] for m in ("auroc", "average_precision"))
        row = [f"{member.run}{' (best on validation)' * member.best}"]
        row += [_number(member.validation_auroc), _number(auroc.other)]
        rows.append([*row, *_differences(auroc, ap)])
    header = ["run", "val AUROC", "AUROC", *_DIFFERENCES]
    return [
        f"Macro metrics of the mean of {len(rows)} runs minus those of each run, on the same "
        "images,",
        f"with 95 % {_PAIRED[method].format(unit=_unit(result))}:",
        *_columns(header, rows),
    ]


def _sets(result: EvaluationResult, found: Conformal) -> list[str]:
    """Format coverage and sizes of the conformal sets, a line for each finding."""
    rows = []
    for name in result.labelled:
        entry, row = found.findings[name], [name]
        for share in (entry.present, entry.absent):
            row += [_number(share.value, 3), _interval(share.interval, "-", _short)]
        rows.append([*row, *(_number(x, 3) for x in (entry.decided, entry.both, entry.neither))])
    mean = ["mean"]
    for share in (found.present, found.absent):
        mean += [_number(share.value, 3), _interval(share.interval, "-", _short)]
    header = ["finding", "present", "interval", "absent", "interval", "decided", "both", "neither"]
    fitted = result.calibration
    where = "THESE IMAGES" if fitted and fitted.on_these_images else "validation"
    return [
        f"Conformal sets for a coverage of {found.coverage:g}, fitted on {where}: share of the "
        "images with",
        "a finding whose set has 'present' and of those without it whose set has 'absent', each "
        f"{_unit(result)} counted once; and of all images whose set has one label, both or "
        "neither:",
        *_columns(header, [*rows, [*mean, _number(found.decided, 3), "", ""]]),
    ]


def _short(value: float) -> str:
    return _number(value, 3)


def _comparison(comparison: Comparison, unit: str) -> list[str]:
    """Format the differences from the other run, a line for each finding."""
    intervals = _PAIRED[comparison.interval_method["auroc"]].format(unit=unit)
    rows = []
    for name, entry in {**comparison.findings, "macro": comparison.macro}.items():
        auroc, ap = entry["auroc"], entry["average_precision"]
        row = [name, _number(auroc.value), _number(auroc.other)]
        rows.append([*row, *_differences(auroc, ap)])
    header = ["finding", "AUROC", "other", *_DIFFERENCES]
    return [
        f"Differences from {comparison.run}, checkpoint {comparison.checkpoint}, on the same "
        "images,",
        f"with 95 % {intervals}:",
        *_columns(header, rows),
    ]


def _external(result: EvaluationResult, external: External) -> list[str]:
    """Format the run's own test images beside these, and the correction for prevalence."""
    shared = {name: result.findings[name] for name in external.shared}
    lines = textwrap.wrap(" ".join(provenance.external(result)), _WIDTH)
    if external.own is None:
        lines += [
            "This checkpoint is not evaluated on the run's own test images; to see both, first run",
            external.command,
        ]
    else:
        lines += ["", *_beside_own(external.own, shared)]
    shifts = [f.prior_shift for f in shared.values() if f.prior_shift is not None]
    shifts = [shift for shift in shifts if shift.brier is not None]
    if shifts:
        brier, after, ece, ece_after = (
            mean(getattr(shift, name) for shift in shifts)
            for name in ("brier", "brier_corrected", "ece", "ece_corrected")
        )
        lines.append(
            f"corrected for the prevalence that the scores tell: macro Brier {_number(brier)} -> "
            f"{_number(after)}, ECE {_number(ece)} -> {_number(ece_after)}"
        )
        if after > brier:
            lines.append(
                "The correction does harm: these images differ in more than prevalence, or "
                "validation tells too little of the finding."
            )
    return lines


def _beside_own(own: OwnTest, shared: Mapping[str, FindingResult]) -> list[str]:
    """Format values on the run's own test images and here, a line for each finding."""
    rows = [
        [
            name,
            *(
                _number(getattr(one, metric), 3)
                for metric in _BESIDE
                for one in (own.findings[name], entry)
            ),
        ]
        for name, entry in shared.items()
    ]
    header = [word for title in _BESIDE.values() for word in (title, "here")]
    images = "SIMULATED images" if own.simulated else "images"
    return [
        f"On the run's own {own.n_images:,} {images} of {own.source}, split 'test', and here:",
        *_columns(["finding", *header], rows),
    ]


def _columns(header: list[str], rows: list[list[str]]) -> list[str]:
    """Align the first column left, at least 20 wide, and the others right."""
    first, *others = (max(map(len, column)) for column in zip(header, *rows, strict=True))
    line = f"{{:<{max(20, first)}}}" + "".join(f"  {{:>{width}}}" for width in others)
    return [line.format(*row) for row in (header, *rows)]


def _count_in(names: Sequence[str], known: Mapping[str, FindingResult]) -> str:
    return str(sum(name in known for name in names))


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else contents.number(value, digits).replace("< ", "<")


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}" if value else "0"


def _interval(
    interval: Interval, between: str = "-", write: Callable[[float], str] = _number
) -> str:
    low, high = interval
    return "-" if low is None else f"{write(low)}{between}{write(high)}"
