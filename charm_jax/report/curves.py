"""Draw the training curves of a run, and the sweep of a range test."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from data_pipelines.atomic_files import whole_path
from data_pipelines.figures import Figure

_TRAIN, _VALIDATION, _BEST = "#0072B2", "#D55E00", "#000000"  # distinct for the colour-blind


def draw_curves(directory: Path, title: str, stages: Sequence[str]) -> None:
    """Draw ``curves.png`` of a run from its ``metrics.jsonl``, a column for each phase."""
    figure = stage_curves(read_log(directory / "metrics.jsonl"), stages)
    figure.suptitle(title)
    _save(figure, directory / "curves.png")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a ``metrics.jsonl``, except one that a killed run left incomplete."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    return entries


def stage_curves(entries: Sequence[dict[str, Any]], stages: Sequence[str]) -> Figure:
    """Plot losses, validation AUROC and rates, a column for each phase."""
    figure = Figure(figsize=(5.2 * len(stages), 9), layout="constrained", dpi=110)
    axes = figure.subplots(3, len(stages), squeeze=False, sharex="col")
    for (losses, auroc, rates), stage in zip(axes.T, stages, strict=True):
        epochs, intervals = (
            [entry for entry in entries if (entry["stage"], entry["kind"]) == (stage, kind)]
            for kind in ("epoch", "interval")
        )
        train = {"color": _TRAIN, "label": "training, mean of the epoch", "marker": "o"}
        steps = {"color": _TRAIN, "label": "training, single steps", "alpha": 0.4, "linewidth": 1}
        validation = {"color": _VALIDATION, "marker": "s"}
        _line(losses, intervals, "loss", **steps)
        _line(losses, epochs, "train_loss", **train)
        _line(losses, epochs, "val_loss", **validation, label="validation")
        for best in [entry for entry in epochs if entry.get("best")][-1:]:
            label = f"best, epoch {best['epoch']}"
            losses.axvline(best["step"], color=_BEST, linestyle=":", label=label)
        if epochs:
            losses.legend(fontsize="small")
        losses.set(title=f"stage {stage}", ylabel="loss")
        _line(auroc, epochs, "val_macro_auroc", **validation)
        auroc.set(ylabel="macro AUROC, validation")
        _line(rates, intervals, "rate", color=_TRAIN)
        rates.set(xlabel="step", ylabel="learning rate of the head")
        for each in (losses, auroc, rates):
            each.grid(alpha=0.3)
        right = rates.twinx()
        _line(right, intervals, "b1", color=_VALIDATION, linestyle="--")
        right.set(ylabel="Adam's b1 (dashed)")
    return figure


def _line(axes: Axes, entries: list[dict], key: str, **style: Any) -> None:
    known = [entry for entry in entries if entry.get(key) is not None]
    axes.plot([entry["step"] for entry in known], [entry[key] for entry in known], **style)


def draw_sweep(
    path: Path,
    title: str,
    rates: Sequence[float],
    losses: Sequence[float],
    peak_lr: float,
) -> None:
    """Draw the losses of a range test over the rate, and the rate that was chosen."""
    figure = Figure(figsize=(6, 4), layout="constrained", dpi=110)
    axes = figure.subplots()
    axes.semilogx(rates, losses, color=_TRAIN)
    axes.axvline(peak_lr, color=_VALIDATION, linestyle="--", label=f"chosen: {peak_lr:.1e}")
    axes.set_title(title, fontsize="small")
    axes.set(xlabel="learning rate of the head", ylabel="training loss, smoothed")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with whole_path(path) as draft:
        figure.savefig(draft, format="png")
