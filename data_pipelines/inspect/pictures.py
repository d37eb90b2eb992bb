"""Draw pictures of a data set as PNG files, in colour-blind-safe colours."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt8

from data_pipelines.atomic_files import whole_path
from data_pipelines.inspect.image_statistics import CONSTANT_SD, ImageStatistics

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

DPI = 110
SIMULATED = "SIMULATED data: "
# The palette of Okabe and Ito.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
_NAME = 20  # characters of an image's name below its picture


def draw_prevalence(
    path: Path, stages: Mapping[str, Mapping[str, dict]], *, simulated: bool
) -> None:
    """Draw bars of each finding's prevalence, with a panel for each stage.

    The last stage's first split decides the order, the most frequent finding at the top.

    Args:
        path: PNG file to write.
        stages: the splits of each panel by title: results of
            ``table_statistics.part_statistics`` by name.
        simulated: whether the title says so.
    """
    first = next(iter(list(stages.values())[-1].values()))["findings"]
    names = sorted(first, key=lambda name: first[name]["prevalence"] or 0)
    shares = [f["prevalence"] for part in _all_parts(stages) for f in part["findings"].values()]
    least = min([share for share in shares if share], default=0.1)
    floor = 10 ** np.floor(np.log10(least) - 0.1)
    figure = _figure(5.2 * len(stages) + 1.6, 0.52 * len(names) + 1.9)
    panels = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
    for axes, (stage, parts) in zip(panels, stages.items(), strict=True):
        _bars(axes, names, parts, floor)
        axes.set(xscale="log", xlim=(floor, 2.5), title=stage, xlabel="prevalence (log scale)")
        ticks = 10.0 ** np.arange(np.log10(floor), 0.5)
        axes.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    panels[0].set_ylim(-0.6, len(names) - 0.4)
    _title(figure, "Prevalence of the findings; numbers are positive images", simulated)
    _save(figure, path)


def _all_parts(stages: Mapping[str, Mapping[str, dict]]) -> list[dict]:
    return [part for parts in stages.values() for part in parts.values()]


def _bars(
    axes: "matplotlib.axes.Axes", names: Sequence[str], parts: Mapping[str, dict], floor: float
) -> None:
    height = 0.84 / len(parts)
    for number, (part, statistics) in enumerate(parts.items()):
        places = np.arange(len(names)) + 0.42 - (number + 0.5) * height
        findings = [statistics["findings"][name] for name in names]
        widths = [finding["prevalence"] or floor for finding in findings]
        label = f"{part} ({statistics['images']:,} images)"
        axes.barh(places, widths, height, color=_COLOURS[number % len(_COLOURS)], label=label)
        for place, width, finding in zip(places, widths, findings, strict=True):
            axes.text(1.06 * width, place, f"{finding['positive']:,}", va="center", fontsize=6)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.75 / axes.figure.get_figheight()),
        ncols=len(parts) if len(parts) < 4 else 2,
        fontsize=8,
        frameon=False,
    )


def draw_co_occurrence(
    path: Path,
    findings: Sequence[str],
    shares: Float[np.ndarray, "f f"],
    alone: Float[np.ndarray, " f"],
    counts: Int[np.ndarray, " f"],
    *,
    simulated: bool,
) -> None:
    """Draw a heat map of P(column | row), most frequent finding first.

    Args:
        path: PNG file to write.
        findings: names of the F findings.
        shares: see ``table_statistics.co_occurrence``, for ``alone`` and ``counts`` too.
        alone: an extra column.
        counts: shown beside the names.
        simulated: whether the title says so.
    """
    order = np.argsort(-counts, kind="stable")
    table = np.column_stack([shares[np.ix_(order, order)], alone[order]])
    np.fill_diagonal(table, np.nan)
    side = 0.5 * len(findings)
    figure = _figure(side + 4.2, side + 2.6)
    axes = figure.subplots()
    image = axes.imshow(100 * table, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_facecolor("0.85")
    for (row, column), share in np.ndenumerate(table):
        if not np.isnan(share):
            colour = "black" if share > 0.5 else "white"
            text = f"{100 * share:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    names = [findings[i].replace("_", " ") for i in order]
    axes.set_xticks(range(len(names) + 1), [*names, "no other"], rotation=45, ha="right")
    rows = [f"{name} (n = {counts[i]:,})" for name, i in zip(names, order, strict=True)]
    axes.set_yticks(range(len(names)), rows)
    axes.set(xlabel="also shows", ylabel="of the images with")
    axes.axvline(len(names) - 0.5, color="white", linewidth=3)
    figure.colorbar(image, label="share of the row's images (%)", fraction=0.05)
    _title(figure, "How findings go together: P(column | row) in %", simulated)
    _save(figure, path)


def draw_contact_sheet(
    path: Path,
    groups: Mapping[str, Sequence[tuple[str, UInt8[np.ndarray, "s s 1"]]]],
    *,
    simulated: bool,
) -> None:
    """Draw examples, a row for each group.

    Args:
        path: PNG file to write.
        groups: name and pixels of the images of each group, by title; may be empty.
        simulated: whether the title says so.
    """
    across = max(map(len, groups.values()), default=0) or 1
    figure = _figure(1.15 * across + 1.6, 1.38 * len(groups) + 0.6)
    axes = figure.subplots()
    for row, (title, images) in enumerate(groups.items()):
        top = 1.2 * row
        label = textwrap.fill(title.replace("_", " "), 14)
        axes.text(-0.08, top + 0.5, label, ha="right", va="center", fontsize=9)
        if not images:
            axes.text(0.04, top + 0.5, "no image", va="center", color="0.5")
        for column, (name, image) in enumerate(images):
            extent = (column + 0.02, column + 0.98, top + 0.98, top + 0.02)
            axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255, extent=extent)
            axes.text(column + 0.5, top + 1.08, _short(name), ha="center", va="center", fontsize=6)
    axes.set(xlim=(-1.3, across), ylim=(1.2 * len(groups), 0), aspect="equal")
    axes.axis("off")
    _title(figure, "Examples of each finding, chosen at random, one a patient", simulated)
    _save(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"


def draw_image_statistics(path: Path, statistics: ImageStatistics, *, simulated: bool) -> None:
    """Draw grey levels, the mean image, and each image's statistics.

    Args:
        path: PNG file to write.
        statistics: statistics of the images read.
        simulated: whether the title says so.
    """
    images = statistics.images
    figure = _figure(10.5, 8.0)
    (levels, mean), (spread, likeness) = figure.subplots(2, 2)
    share = 100 * statistics.histogram / statistics.histogram.sum()
    levels.fill_between(np.arange(256), share, step="mid", color=_COLOURS[0])
    levels.set(
        xlabel="grey level (0 to 255)",
        ylabel="share of the pixels (%)",
        title="Grey levels of all pixels",
        xlim=(0, 255),
        ylim=(0, None),
    )
    shown = mean.imshow(statistics.mean_image, cmap="gray", vmin=0, vmax=255)
    size = statistics.size
    mean.set(title="Mean image", xlabel=f"pixels, as read at {size} x {size}")
    figure.colorbar(shown, ax=mean, label="grey level")
    spread.scatter(images["mean"], images.sd, s=6, alpha=0.4, color=_COLOURS[0], linewidths=0)
    spread.axhline(CONSTANT_SD, color=_COLOURS[1], linestyle="--")
    spread.set(
        xlabel="mean grey level of an image",
        ylabel="SD of its grey levels",
        title="A dot for each image; below the line: nearly constant",
        xlim=(0, 255),
        ylim=(0, None),
    )
    likeness.hist(images.likeness.dropna(), np.linspace(-1, 1, 81), color=_COLOURS[0])
    likeness.axvline(0, color=_COLOURS[1], linestyle="--")
    likeness.set(
        xlabel="correlation with the mean image",
        ylabel="images",
        xlim=(-1, 1),
        title="Left of the line: inverted, or not the same view",
    )
    _title(figure, f"Image statistics of {len(images):,} images", simulated)
    _save(figure, path)


def _figure(width: float, height: float) -> "matplotlib.figure.Figure":
    """Make a figure, in inches, without a display or global state."""
    from data_pipelines.figures import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _title(figure: "matplotlib.figure.Figure", title: str, simulated: bool) -> None:
    lines = textwrap.wrap(SIMULATED * simulated + title, int(10 * figure.get_figwidth()))
    figure.suptitle("\n".join(lines), fontsize=12)


def _save(figure: "matplotlib.figure.Figure", path: Path) -> None:
    with whole_path(path) as draft:
        figure.savefig(draft, format="png")
