"""Write the report of an evaluation: one page that needs no network and no script."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from charm_jax.config.settings import PHASES
from charm_jax.metrics.classification import METRICS
from charm_jax.metrics.result import EvaluationResult, Member
from charm_jax.models.selection import SELECTION_RULES
from charm_jax.report import cases, curves, localisation, provenance, published
from charm_jax.report.contents import UNDEFINED, Contents, Evaluated, Json, number, shown
from charm_jax.report.figures import Plot, figure_svg, finding_figure, seen
from data_pipelines.atomic_files import whole_file
from data_pipelines.tables.findings import NIH_FINDINGS


def _rule(contents: Contents) -> str:
    """Return the rule that chose the stored cases, for people."""
    keys = contents.config["model"]
    if keys["memory"] == "vote":
        return "balanced (all cases, or as many of each finding where not all fit)"
    return f"{keys['rarity']} ({SELECTION_RULES[keys['rarity']].keeps})"


def write(path: Path, result: EvaluationResult, contents: Contents) -> None:
    """Write ``report.html``.

    Raises:
        InputError: an image that the page shows can no longer be read.
    """
    evaluated, bank, findings = contents.evaluated, contents.bank, result.findings
    entries = list(findings.values())
    decided = [
        seen(z, threshold=entry.threshold, temperature=entry.temperature)
        for z, entry in zip(evaluated.logits.T, entries, strict=True)
    ]
    errors = cases.error_tiles(
        cases.confident_errors(evaluated, decided),
        evaluated,
        [entry.temperature for entry in entries],
        bank,
        contents.read,
    )
    described = None
    if bank is not None:
        keys = contents.config["model"]
        temperature = keys["vote_temperature"] if keys["memory"] == "vote" else None
        described = cases.describe_bank(
            evaluated, bank, _rule(contents), contents.read, temperature
        )
    training = [
        figure_svg(
            curves.stage_curves(contents.log, [stage]),
            f"training-{stage}",
            f"Stage {stage}: losses, macro AUROC on validation, and learning rate over the steps",
        )
        for stage in PHASES
        if any(entry["stage"] == stage for entry in contents.log)
    ]
    subgroups = [
        (f"{kind} {value}", entry)
        for kind, values in result.subgroups.items()
        for value, entry in values.items()
    ]
    found = contents.localisation
    sections = {
        "Findings": True,
        "Decisions": True,
        "External validation": result.external,
        "Subgroups": subgroups,
        "Ensemble": result.members,
        "Test-time augmentation": result.single_view,
        "Conformal sets": result.conformal,
        "Compared": result.comparison,
        "Published numbers": tuple(findings) == NIH_FINDINGS,
        "Each finding": True,
        "Most confident errors": errors,
        "Localisation": found,
        "Memory bank": bank,
        "Training": training,
        "How to read this": True,
        "What was evaluated": True,
        "Config": True,
    }
    grouped = {name for group in (result.groups or {}).values() for name in group.findings}
    text = _templates().render(
        name=_name(result, contents),
        result=result,
        config=contents.config,
        flat_config=flat(contents.config),
        environments=contents.environments,
        summary=contents.summary,
        sections=[title for title, body in sections.items() if body],
        notices=provenance.notices(result),
        disclaimer=provenance.DISCLAIMER,
        patients=provenance.patients(result),
        validation=provenance.validation(result),
        seen_before=" ".join(provenance.leak(result)),
        undefined=UNDEFINED,
        metrics=_columns(),
        ungrouped=[name for name in findings if name not in grouped],
        subgroups=subgroups,
        published=published.read(),
        comparable=published.comparable(result),
        cards=_cards(result, evaluated),
        errors=errors,
        shown_findings=cases.FINDINGS,
        attention=None if evaluated.attention is None else evaluated.attention.shape[1:],
        localisation=found,
        located=None if found is None else localisation.tiles(found, evaluated, contents.read),
        bank=described,
        training=training,
    )
    with whole_file(path) as file:
        file.write(text)


def _name(result: EvaluationResult, contents: Contents) -> str:
    """Return the name of what was evaluated."""
    if result.members:
        return " + ".join(Path(member.run).name for member in result.members)
    return contents.config["name"] or result.checkpoint


def _columns() -> dict[str, dict[str, str]]:
    """Return titles of the metrics that have no bars, by need and metric."""
    columns: dict[str, dict[str, str]] = {"order": {}, "threshold": {}, "probabilities": {}}
    for name, metric in METRICS.items():
        if not metric.has_interval:
            columns[metric.needs][name] = metric.label[:1].upper() + metric.label[1:]
    return columns


def _templates() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "anchor": lambda title: title.lower().replace(" ", "-"),
        "count": lambda value: UNDEFINED if value is None else f"{value:,}",
        "method": localisation.METHODS.get,
        "number": number,
        "percent": percent,
        "place": _place,
        "shown": shown,
        "signed": lambda value: UNDEFINED if value is None else f"{value:+.3f}",
        "span": span,
    }
    environment.globals |= {"scale_start": scale_start, "reach": reach}
    return environment.get_template("report.html")


def span(interval: tuple[float | None, float | None], digits: int = 3) -> str:
    """Format the ends of an interval; empty where it is undefined."""
    low, high = interval
    return "" if low is None else f"{number(low, digits)} to {number(high, digits)}"


def percent(share: float | None) -> str:
    """Format a share in per cent."""
    return UNDEFINED if share is None else f"{number(100 * share, 1)} %"


def scale_start(entries: Iterable[Any], metric: str) -> float:
    """Return where the scale of an AUROC starts: 0.5, or lower if a value or interval does."""
    every = [(getattr(e, metric), *getattr(e, f"{metric}_interval")) for e in entries]
    return min([0.5, *(math.floor(10 * x) / 10 for xs in every for x in xs if x is not None)])


def reach(members: Iterable[Member]) -> float:
    """Return where the scale of differences in AUROC ends: at the farthest end of an interval."""
    entries = [member.compared.macro["auroc"] for member in members]
    every = [x for entry in entries for x in (entry.difference, *entry.interval) if x is not None]
    return max(map(abs, every), default=0.0) or 1.0


def _place(value: float, start: float) -> str:
    """Return the abscissa of a value on a bar from ``start`` to 1."""
    return f"{4 + 112 * (min(max(value, start), 1.0) - start) / (1 - start):.1f}"


def _cards(result: EvaluationResult, evaluated: Evaluated) -> list[dict[str, str | Plot | None]]:
    """Draw the curves of each finding that is labelled."""
    cards = []
    for column, (name, entry) in enumerate(result.findings.items()):
        if name not in result.labelled:
            continue
        known = evaluated.labels[:, column] >= 0
        logits, labels = evaluated.logits[known, column], evaluated.labels[known, column]
        title, plot = shown(name), None
        text = f"Undefined: {labels.sum():,} of {len(labels):,} images have it."
        if 0 < labels.sum() < len(labels):
            figure = finding_figure(
                logits, labels, threshold=entry.threshold, temperature=entry.temperature
            )
            text = (
                f"AUROC {number(entry.auroc)}, average precision "
                f"{number(entry.average_precision)}, {entry.positives:,} of {len(labels):,} images "
                f"({percent(entry.prevalence)})"
            )
            alt = f"{title}: ROC and precision-recall curve, calibration and scores. {text}."
            plot = figure_svg(figure, f"finding-{column}", alt)
        cards.append({"title": title, "text": text, "plot": plot})
    return cards


def flat(config: Json, prefix: str = "") -> list[tuple[str, str]]:
    """List the keys of a nested config with their values."""
    entries = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, Mapping)
        entries += flat(value, f"{name}.") if nested else [(name, str(value))]
    return entries
