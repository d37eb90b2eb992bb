"""Write the report of a search: its trials as text and CSV, a figure and a page."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, NullFormatter

from charm_jax.report.provenance import DISCLAIMER
from charm_jax.sweep import report
from charm_jax.sweep.plan import Range, Search
from charm_jax.sweep.search import Trials, best
from data_pipelines.errors import InputError
from data_pipelines.figures import Figure

_DONE, _PRUNED = "#0072B2", "#999999"
_COLUMNS = 3
_FIGURE = "Validation macro AUROC of the trials by each value"
_METHOD = (
    "Trials are chosen by their macro AUROC on the validation images. The best of many is too "
    "high there; only the chosen one is evaluated on the test images."
)


def write(search: Search, trials: Trials) -> str:
    """Write ``report.csv``, ``report.png`` and ``report.html`` of the trials.

    Returns:
        The table and what it shows, as text.

    Raises:
        InputError: no trial is done.
    """
    rows = trials.table()
    chosen = best(rows)
    if chosen is None:
        raise InputError(
            f"No trial of the search {search.name} is done: start it with charm-jax sweep "
            f"{search.name}."
        )
    values = pd.DataFrame(rows)
    table = values.assign(
        validation=[_shown(value, "{:.4f}") for value in values["validation"]],
        **{key: [_shown(value) for value in values[key]] for key in search.ranges},
    )
    result = _result(search, chosen)
    simulated = " SIMULATED images." if result.get("simulated") else ""
    flags = " ".join(f"--config.{key}={_shown(chosen[key])}" for key in search.ranges)
    notes = [DISCLAIMER + simulated]
    if trials.ended() < search.total:
        notes.append(f"{search.total - trials.ended()} of {search.total} trials are not done.")
    notes += [f"{name} failed: {why}" for name, why in trials.failures().items()]
    notes.append(f"Best on validation: {chosen['trial']} ({chosen['validation']:.4f}): {flags}")
    if result:
        notes.append(
            "On the test images it has {:.4f} ({:.4f} to {:.4f}).".format(
                result["macro_auroc"], *result["macro_auroc_interval"]
            )
        )
    title = search.name + (" (SIMULATED images)" if simulated else "")
    figure = draw(rows, search.ranges, title)
    return report.write_files(search, table, values, notes, figure, [_FIGURE, _METHOD])


def _result(search: Search, chosen: Mapping[str, Any]) -> dict[str, Any]:
    path = search.folder / chosen["trial"] / "eval" / "test" / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _shown(value: Any, form: str = "{:.4g}") -> str:
    if value is None or value != value:
        return ""
    return form.format(value) if isinstance(value, float) else str(value)


def draw(rows: Sequence[Mapping[str, Any]], ranges: Mapping[str, Range], title: str) -> Figure:
    """Draw the score on validation against the values of each key; pruned trials are grey."""
    columns = min(_COLUMNS, len(ranges))
    lines = -(-len(ranges) // columns)
    figure = Figure(figsize=(4 * columns, 0.6 + 3 * lines), layout="constrained", dpi=110)
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes in panels.flat[len(ranges) :]:
        axes.set_axis_off()
    for axes, (key, found) in zip(panels.flat, ranges.items(), strict=False):
        for state, colour in (("done", _DONE), ("pruned", _PRUNED)):
            scored = [row for row in rows if row["state"] == state and row["validation"]]
            places = [_place(row[key], found) for row in scored]
            heights = [row["validation"] for row in scored]
            axes.plot(places, heights, "o", color=colour, alpha=0.7, label=state)
        if found.choices:
            axes.set_xticks(np.arange(len(found.choices)), [str(value) for value in found.choices])
        elif found.log:
            axes.set_xscale("log")
            axes.set_xticks(np.geomspace(found.low, found.high, 3))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(key)
        axes.grid(alpha=0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel("validation macro AUROC")
    panels[0, 0].legend()
    figure.suptitle(title)
    return figure


def _place(value: Any, found: Range) -> int | float:
    return found.choices.index(value) if found.choices else value
