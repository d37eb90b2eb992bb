"""Write the report of a sweep: a table as text and CSV, a figure and a page."""

import base64
import collections
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from charm_jax.report.provenance import DISCLAIMER
from charm_jax.sweep import comparison
from charm_jax.sweep.comparison import Compared
from charm_jax.sweep.plan import Plan, Point, Search
from charm_jax.sweep.queue import Queue
from data_pipelines.atomic_files import whole_file, whole_path
from data_pipelines.errors import InputError
from data_pipelines.figures import Figure

_POINT, _PUBLISHED = "#0072B2", "#D55E00"  # distinct for the colour-blind
_FIGURE = "Macro AUROC of each row with its interval"
_METHOD = (
    "Intervals and p-values are of a bootstrap that draws patients and seeds; p is corrected for "
    "the number of rows (Holm)."
)
Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # logits, labels, patients


def write(plan: Plan, queue: Queue) -> str:
    """Write ``report.csv``, ``report.png`` and ``report.html`` of the finished runs.

    A seed counts when all of its folds are done.

    Returns:
        The table and what it shows, as text.

    Raises:
        InputError: no seed of any row is done, or the files of a run are missing.
    """
    scores = queue.scores()
    whole = collections.defaultdict(list)
    for point in plan.points:
        whole[point.row, point.seed].append(point)
    done = {key: points for key, points in whole.items() if {p.name for p in points} <= {*scores}}
    if not done:
        raise InputError(
            f"No run of the sweep {plan.name} is done: start it with charm-jax sweep {plan.name}."
        )
    runs: dict[str, dict[int, comparison.Draws]] = {}
    validation = collections.defaultdict(list)
    simulated = False
    for (title, seed), points in done.items():
        parts = [_part(plan, point) for point in points]
        runs.setdefault(title, {})[seed] = comparison.macro_draws([part for part, _ in parts])
        validation[title] += [scores[point.name] for point in points]
        simulated = simulated or any(drawn for _, drawn in parts)
    ordered = {row.title: runs[row.title] for row in plan.rows if row.title in runs}
    rows = comparison.compare(
        ordered,
        {title: float(np.mean(values)) for title, values in validation.items()},
        {row.title: row.published for row in plan.rows},
        plan.baseline,
    )
    rows.sort(key=lambda row: -row.mean)
    notes = _notes(plan, rows, queue, simulated)
    table = pd.DataFrame([_cells(row) for row in rows]).dropna(axis=1, how="all").fillna("")
    values = pd.DataFrame([_values(row) for row in rows])
    figure = draw(rows, plan.name + (" (SIMULATED images)" if simulated else ""))
    return write_files(plan, table, values, notes, figure, [_FIGURE, _METHOD])


def write_files(
    plan: Plan | Search,
    table: pd.DataFrame,
    values: pd.DataFrame,
    notes: Sequence[str],
    figure: Figure,
    below: Sequence[str],
) -> str:
    """Write the table as CSV, PNG and HTML; return it as text.

    Args:
        table: as it is read.
        values: in full precision.
        below: what the figure shows in words, and how the numbers came about.
    """
    with whole_file(plan.folder / "report.csv") as file:
        values.to_csv(file, index=False)
    with whole_path(plan.folder / "report.png") as draft:
        figure.savefig(draft, format="png")
    with whole_file(plan.folder / "report.html") as file:
        file.write(_page(plan, table, notes, figure, below))
    return "\n".join(
        [table.to_string(index=False), "", *notes, f"Written to {plan.folder}/report.html."]
    )


def _part(plan: Plan, point: Point) -> tuple[Part, bool]:
    """Return the scores of a run's test images, and whether they are simulated."""
    folder = plan.folder / point.name / "eval" / "test"
    try:
        table = pd.read_csv(folder / "predictions.csv", dtype={"image": str, "patient": str})
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"The run {point.name} has no {error.filename}: evaluate it again with charm-jax eval "
            f"--run {point.name} --config.runs_dir={plan.folder}."
        ) from None
    names = [column.removesuffix("_logit") for column in table if column.endswith("_logit")]
    logits, labels = (table[[f"{name}_{kind}" for name in names]] for kind in ("logit", "label"))
    known = labels.fillna(-1).to_numpy(np.int8)
    return (logits.to_numpy(np.float32), known, table["patient"].to_numpy()), metrics["simulated"]


def _notes(plan: Plan, rows: Sequence[Compared], queue: Queue, simulated: bool) -> list[str]:
    best = max(rows, key=lambda row: row.validation)
    notes = [f"{DISCLAIMER} SIMULATED images."] if simulated else [DISCLAIMER]
    missing = len(plan.points) - len(queue.scores())
    if missing:
        notes.append(f"{missing} of {len(plan.points)} runs are not done.")
    notes += [f"{name} failed: {why}" for name, why in queue.failures().items()]
    notes.append(
        f"Best on validation: {best.title} ({best.validation:.4f}; {best.mean:.4f} on the test "
        "images). Choose by validation: the best of many test scores is too high."
    )
    kinds = comparison.spread(rows)
    if kinds:
        notes.append(
            f"The means of the rows have an SD of {kinds[0]:.4f}; seeds alone would give them one "
            f"of {kinds[1]:.4f}."
        )
    named = [row for row in rows if row.published is not None]
    if named[2:]:
        theirs = [row.published for row in named]
        order = pd.Series(theirs).corr(pd.Series([row.mean for row in named]), method="spearman")
        notes.append(
            f"The published values have an SD of {np.std(theirs, ddof=1):.4f}, with one run a row; "
            f"their rank correlation with the means is {order:+.2f}."
        )
    different = [row.title for row in rows if row.verdict in ("better", "worse")]
    if rows[1:]:
        notes.append(
            f"Differ from {plan.baseline}: {', '.join(different)}."
            if different
            else f"No row differs from {plan.baseline} by what these seeds can show."
        )
    return notes


def _cells(row: Compared) -> dict[str, Any]:
    deviation = f" ± {np.std(row.seeds, ddof=1):.4f}" if row.seeds[1:] else ""
    low, high = row.interval
    cells = {
        "row": row.title,
        "seeds": len(row.seeds),
        "macro AUROC": f"{row.mean:.4f}{deviation}",
        "95 %": f"{low:.4f} to {high:.4f}",
        "minus baseline": None,
        "verdict": row.verdict,
        "validation": f"{row.validation:.4f}",
        "published": None if row.published is None else f"{row.published:.4f}",
    }
    if row.difference_interval:
        low, high = row.difference_interval
        cells["minus baseline"] = f"{row.difference:+.4f} ({low:+.4f} to {high:+.4f})"
    return cells


def _values(row: Compared) -> Mapping[str, Any]:
    """Return the line of the CSV, in full precision."""
    low, high = row.difference_interval or (None, None)
    return {
        "row": row.title,
        "seeds": len(row.seeds),
        "macro_auroc": row.mean,
        "macro_auroc_low": row.interval[0],
        "macro_auroc_high": row.interval[1],
        "sd_over_seeds": np.std(row.seeds, ddof=1) if row.seeds[1:] else None,
        "difference": row.difference,
        "difference_low": low,
        "difference_high": high,
        "p_holm": row.p,
        "validation_macro_auroc": row.validation,
        "published": row.published,
    }


def draw(rows: Sequence[Compared], title: str) -> Figure:
    """Draw each row's mean, interval and seeds, and its published value in a second panel."""
    named = any(row.published is not None for row in rows)
    height = 1.6 + 0.28 * len(rows)
    figure = Figure(figsize=(11 if named else 8, height), layout="constrained", dpi=110)
    axes = figure.subplots(1, 2 if named else 1, sharey=True, squeeze=False)[0]
    places = np.arange(len(rows))[::-1]
    ours = axes[0]
    for place, row in zip(places, rows, strict=True):
        ours.plot(row.interval, [place, place], color=_POINT, linewidth=2, alpha=0.5)
        seeds = [place] * len(row.seeds)
        ours.plot(row.seeds, seeds, "o", markersize=4, color=_POINT, markerfacecolor="none")
    ours.plot([row.mean for row in rows], places, "o", color=_POINT)
    ours.set(xlabel="macro AUROC: mean, 95 % interval, seeds (open)", yticks=places)
    ours.set_yticklabels([row.title for row in rows])
    if named:
        values = [np.nan if row.published is None else row.published for row in rows]
        axes[1].plot(values, places, "s", color=_PUBLISHED)
        axes[1].set(xlabel="published AUROC: other images, one run a row")
    for each in axes:
        each.grid(alpha=0.3)
    figure.suptitle(title)
    return figure


def _page(
    plan: Plan | Search,
    table: pd.DataFrame,
    notes: Sequence[str],
    figure: Figure,
    below: Sequence[str],
) -> str:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("charm_jax.sweep"), jinja2.PackageLoader("charm_jax.report")]
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("sweep.html").render(
        name=plan.name,
        table=table,
        notes=notes,
        picture=base64.b64encode(picture.getvalue()).decode(),
        shown=below[0],
        method=below[1],
        disclaimer=DISCLAIMER,
    )
