"""Compare the rows of a sweep on frequent and on rare findings.

    charm-jax sweep tail
    python benchmarks/tail.py runs/tail

Prints the table for RESULTS.md: macro AUROC and average precision and their means over head, medium
and tail findings (by prevalence in training). The first row has the values, ± SD over seeds, the
others their difference to it with a 95 % interval; it draws patients and seeds and is paired by
both. A star marks macro values that differ at 5 % after Holm's correction for the number of rows.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from charm_jax.metrics import bootstrap
from charm_jax.metrics.classification import GROUPS, auroc_and_ap
from charm_jax.sweep import comparison, plan

KINDS = ("auroc", "average_precision")
COLUMNS = [(kind, group) for kind in KINDS for group in ("macro", *GROUPS)]


def values_of(run: Path) -> dict[tuple[str, str], np.ndarray]:
    """Return the means of each column, ``[1 + resamples]``: as they are, then drawn."""
    table = pd.read_csv(run / "eval/test/predictions.csv", dtype={"patient": str})
    prevalence = json.loads((run / "split.json").read_text(encoding="utf-8"))["prevalence"]
    names = list(prevalence)
    logits = table[[f"{name}_logit" for name in names]].to_numpy(np.float32)
    labels = table[[f"{name}_label" for name in names]].fillna(-1).to_numpy(np.int8)
    drawn = bootstrap.resampled(logits, labels, table["patient"].to_numpy())
    exact = auroc_and_ap(logits, labels, names)
    limits = [*GROUPS.items()]
    group_of = [next(g for g, low in limits if prevalence[name] >= low) for name in names]
    means = {}
    for kind, group in COLUMNS:
        chosen = [group in ("macro", own) for own in group_of]
        first = np.array([exact[name][kind] for name in names], float)[None]
        every = np.concatenate([first, getattr(drawn, kind)])[:, chosen]
        means[kind, group] = np.nanmean(every, axis=1)
    return means


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the sweep's runs")
    folder = parser.parse_args().folder
    runs: dict[str, dict[int, dict]] = {}
    for point in plan.read(folder.name, {"runs_dir": str(folder.parent)}).points:
        if (folder / point.name / "eval/test/predictions.csv").exists():
            runs.setdefault(point.row, {})[point.seed] = values_of(folder / point.name)
    heads = [f"{'AUROC' if kind == 'auroc' else 'AP'}, {group}" for kind, group in COLUMNS]
    print("| row | seeds |", " | ".join(heads), "|")
    print("| --- |" + " ---: |" * (1 + len(COLUMNS)))
    first, *others = runs
    cells = []
    for column in COLUMNS:
        seeds = [values[column][0] for values in runs[first].values()]
        deviation = f" ± {np.std(seeds, ddof=1):.4f}" if seeds[1:] else ""
        cells.append(f"{np.mean(seeds):.4f}{deviation}")
    print(f"| {first} | {len(runs[first])} |", " | ".join(cells), "|")
    lines = {}
    for title in others:
        shared = sorted(runs[title].keys() & runs[first].keys())
        lines[title] = {
            column: comparison.over_seeds(
                [runs[title][seed][column] - runs[first][seed][column] for seed in shared]
            )
            for column in COLUMNS
        }
    p_of = {
        kind: dict(
            zip(
                lines,
                comparison.holm(
                    [comparison.p_value(line[kind, "macro"]) for line in lines.values()]
                ),
                strict=True,
            )
        )
        for kind in KINDS
    }
    for title, line in lines.items():
        cells = []
        for (kind, group), draws in line.items():
            low, high = comparison.interval(draws)
            star = "*" if group == "macro" and p_of[kind][title] < 0.05 else ""
            cells.append(f"{draws[0]:+.4f} [{low:+.4f}, {high:+.4f}]{star}")
        print(f"| {title} | {len(runs[title])} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
