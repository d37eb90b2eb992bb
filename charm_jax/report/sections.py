"""The sections of a report, each from plain data to markup; None where there is nothing to say."""

from collections.abc import Mapping, Sequence
from typing import Any

from charm_jax.config.settings import PHASES
from charm_jax.report import cases, curves, provenance, tables
from charm_jax.report.cases import Read
from charm_jax.report.contents import Bank, Evaluated, shown
from charm_jax.report.figures import finding_figure, seen
from charm_jax.report.html import (
    UNDEFINED,
    Html,
    definitions,
    element,
    figure_svg,
    joined,
    number,
    percent,
    table,
)

Json = Mapping[str, Any]
_DELONG = "those of AUROC by DeLong, which takes images for independent"


def subject(
    metrics: Json, config: Json, environments: Mapping[str, Json], summary: Json | None
) -> Html:
    """Describe data, split, network and versions."""
    simulated = " (SIMULATED)" if metrics["simulated"] else ""
    facts = [
        ("Source", f"{metrics['source']}{simulated}"),
        ("Part", f"{metrics['split']} of split rule {metrics['rule']}"),
        (
            "Images",
            f"{metrics['n_images']:,}; {provenance.patients(metrics['n_patients'], metrics)}",
        ),
        ("SHA-256 of their names", element("code", metrics["split_sha256"])),
        ("Images missing", f"{metrics['images_missing']:,}"),
        ("Images refused", f"{metrics['refused']:,}"),
        ("Seen before", " ".join(provenance.leak(metrics))),
        ("Checkpoint", element("code", metrics["checkpoint"])),
        ("Began from", _began_from(metrics)),
        ("Network", _network(config["model"])),
        ("Image size", f"{config['data']['image_size']} pixels"),
        *_trained(summary),
        *((f"{use} with", _environment(known)) for use, known in environments.items()),
    ]
    return definitions(facts)


def _began_from(metrics: Json) -> str:
    if metrics["trained_on_simulated"] is None:
        return "unknown"
    return metrics["began_from"] or "no weight file of the user's"


def _network(keys: Json) -> str:
    if not keys["charm"]:
        return f"{keys['backbone']} with a linear classifier, without CHARM"
    without = [
        name
        for name, has in (
            ("attention", keys["fusion"]),
            ("momentum branch", keys["momentum_branch"]),
            ("reading of the memory bank", keys["retrieval_k"]),
        )
        if not has
    ]
    return f"{keys['backbone']} with CHARM" + f", without {', '.join(without)}" * bool(without)


def _trained(summary: Json | None) -> list[tuple[str, Html | str]]:
    if summary is None:
        return []
    stages = ", ".join(
        f"{name}: {stage['epochs']} epochs, best {stage['best_epoch']}"
        + " (stopped early)" * stage["stopped_early"]
        for name, stage in summary["stages"].items()
    )
    return [
        ("Training", f"{stages}; {summary['seconds']:,.0f} s"),
        ("SHA-256 of the parameters", element("code", summary["params_sha256"])),
    ]


def _environment(known: Json) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in known["packages"].items())
    commit = known["commit"] or "unknown"
    devices = ", ".join(known["devices"])
    return f"commit {commit}; Python {known['python']}, {packages}; on {devices}"


def findings(metrics: Json) -> Html:
    """Make the tables of all findings."""
    left_out = None
    if metrics["undefined"]:
        names = ", ".join(map(shown, metrics["undefined"]))
        left_out = (
            f"{UNDEFINED} is undefined: {names} lack images with or without the finding here, and "
            "are left out of the means."
        )
    return joined(
        element(
            "p",
            f"Bars are {_intervals(metrics)}. The tick beside an "
            "average precision is the share of images with the finding, which chance would reach. "
            "Without an interval, too few images have the finding, or lack it.",
        ),
        tables.ranking(metrics),
        element("p", left_out) if left_out else None,
        element("h3", "Frequent and rare findings"),
        tables.groups(metrics),
        element("h3", "Thresholds and calibration"),
        element("p", _calibrated(metrics)),
        tables.decisions(metrics["findings"]),
    )


def _intervals(metrics: Json) -> str:
    if metrics["interval_method"]["auroc"] == "delong":
        return f"95 % intervals, {_DELONG}"
    if metrics["patients_known"]:
        return "95 % intervals from resampled patients"
    return "95 % intervals from resampled images, which are taken for independent"


def _calibrated(metrics: Json) -> str:
    """Where thresholds and temperatures are from."""
    fitted = metrics["calibration"]
    if fitted is None:
        return (
            "Nothing is known of the validation part: there is no threshold and no temperature, "
            "and scores are no probabilities."
        )
    where = f"{provenance.validation(metrics)} (SHA-256 {fitted['split_sha256'][:12]})"
    if fitted["on_these_images"]:
        where = "these very images, so that this table is too good"
    return (
        f"Scores are no probabilities until they are calibrated. Thresholds (Youden, on the "
        f"calibrated score) and temperatures were fitted on {where}. {UNDEFINED}: fitting, or "
        "this part, does not define it."
    )


def comparison(metrics: Json) -> Html | None:
    """Show the differences from the compared run."""
    compared = metrics.get("comparison")
    if compared is None:
        return None
    delong = compared["interval_method"]["auroc"] == "delong"
    resamples = "95 % intervals are over the same resamples of both"
    text = (
        f"How much more than {compared['run']}, checkpoint {compared['checkpoint']}, on the same "
        f"images. {resamples}{f', {_DELONG}' if delong else ''}; one that holds 0 tells them not "
        "apart."
    )
    return joined(element("p", text), tables.comparison(compared))


def each_finding(metrics: Json, evaluated: Evaluated) -> Html:
    """Draw a card of curves for each finding."""
    cards = []
    for column, (name, values) in enumerate(metrics["findings"].items()):
        known = evaluated.labels[:, column] >= 0
        logits, labels = evaluated.logits[known, column], evaluated.labels[known, column]
        title = element("h3", shown(name))
        if not 0 < labels.sum() < len(labels):
            said = f"Undefined: {labels.sum():,} of {len(labels):,} images have it."
            cards.append(element("article", title, element("p", said)))
            continue
        figure = finding_figure(
            logits,
            labels,
            threshold=values["threshold"],
            temperature=values["temperature"],
        )
        said = (
            f"AUROC {number(values['auroc'])}, average precision "
            f"{number(values['average_precision'])}, {values['positives']:,} of {len(labels):,} "
            f"images ({percent(values['prevalence'])})"
        )
        alt = f"{shown(name)}: ROC and precision-recall curve, calibration and scores. {said}."
        plot = figure_svg(figure, f"finding-{column}", alt)
        cards.append(element("article", title, element("p", said), plot))
    legend = (
        "Grey lines are chance, and in the calibration a score that were a probability; a diamond "
        "and a dashed line are the threshold. Calibration is in tenths of the images by score."
    )
    return joined(element("p", legend), element("div", *cards, class_="cards"))


def errors(metrics: Json, evaluated: Evaluated, bank: Bank | None, read: Read) -> Html | None:
    """Show each finding's highest false and lowest true score."""
    values = list(metrics["findings"].values())
    decided = [
        seen(z, threshold=entry["threshold"], temperature=entry["temperature"])
        for z, entry in zip(evaluated.logits.T, values, strict=True)
    ]
    found = cases.confident_errors(evaluated, decided)
    if not found:
        return None
    attention = (
        " Beside each image the network's attention over it, from its lowest value on, paler "
        "where it is nearly flat: it is the same for all findings."
        if evaluated.attention is not None
        else ""
    )
    most = (
        f" Here are those of the {cases.FINDINGS} most frequent of {len(values)} findings."
        if len(values) > cases.FINDINGS
        else ""
    )
    text = (
        "For each finding the image without it that scores highest and the one with it that "
        "scores lowest, where they are on the wrong side of the threshold or there is none. "
        f"Labels of public sets are read from reports and are themselves wrong at times."
        f"{most}{attention}"
    )
    temperatures = [entry["temperature"] for entry in values]
    tiles = cases.error_tiles(found, evaluated, temperatures, bank, read)
    return joined(element("p", text), tiles)


def training(log: Sequence[Json], metrics: Json) -> Html | None:
    """Losses, validation AUROC and rates of each stage of the run."""
    stages = [stage for stage in PHASES if any(entry["stage"] == stage for entry in log)]
    if not stages:
        return None
    simulated = "SIMULATED images. " if metrics["trained_on_simulated"] else ""
    plots = []
    for stage in stages:
        figure = curves.stage_curves(log, [stage])
        alt = f"Stage {stage}: losses, macro AUROC on validation, and learning rate over the steps"
        plots.append(element("article", figure_svg(figure, f"training-{stage}", alt)))
    text = f"{simulated}Loss and AUROC on the run's own training and validation parts."
    return joined(element("p", text), element("div", *plots, class_="cards wide"))


def settings(config: Json) -> Html:
    """Every key of the config."""
    keys = table("Config", ["Key", "Value"], tables.flat(config))
    return element("details", element("summary", "Every key"), keys, class_="config")
