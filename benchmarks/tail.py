"""Compare the rows of a sweep on frequent and on rare findings.

    charm-jax sweep tail
    python benchmarks/tail.py runs/tail

Prints the table for RESULTS.md: macro AUROC and average precision and their means over head, medium
and tail findings (by prevalence in training). The first row has the values, ± SD over seeds, the
others their difference to it with a 95 % interval; it draws patients and seeds and is paired by
both. A star marks macro values that differ at 5 % after Holm's correction for the number of rows.

With folds a finding's value is the mean over the folds that have both classes; --groups 3 has the
three most frequent and the three rarest findings in place of head and tail, where images were
sampled by finding.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from charm_jax.metrics import bootstrap
from charm_jax.metrics.classification import GROUPS, auroc_and_ap
from charm_jax.sweep import comparison, plan

KINDS = ("auroc", "average_precision")
Means = dict[tuple[str, str], np.ndarray]


def groups_of(prevalence: dict[str, float], ends: int) -> dict[str, list[str]]:
    """Return the findings of each column: by prevalence, or all and so many at both ends."""
    if ends:
        order = sorted(prevalence, key=prevalence.__getitem__)
        return {
            "macro": order,
            f"{ends} most frequent": order[-ends:],
            f"{ends} rarest": order[:ends],
        }
    limits = [*GROUPS.items()]
    group_of = {
        name: next(g for g, low in limits if prevalence[name] >= low) for name in prevalence
    }
    return {"macro": [*prevalence]} | {
        group: [name for name in prevalence if group_of[name] == group] for group in GROUPS
    }


def of_findings(run: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Return AUROC and AP, ``[1 + resamples, findings]``: as they are, then drawn."""
    table = pd.read_csv(run / "eval/test/predictions.csv", dtype={"patient": str})
    logits = table[[f"{name}_logit" for name in names]].to_numpy(np.float32)
    labels = table[[f"{name}_label" for name in names]].fillna(-1).to_numpy(np.int8)
    drawn = bootstrap.resampled(logits, labels, table["patient"].to_numpy())
    exact = auroc_and_ap(logits, labels, names)
    values = {}
    for kind in KINDS:
        first = np.array([exact[name][kind] for name in names], float)[None]
        values[kind] = np.concatenate([first, getattr(drawn, kind)])
    return values


def means_of(runs: list[Path], ends: int) -> Means:
    """Return the means of each column, ``[1 + resamples]``, over a seed's run or folds."""
    split = json.loads((runs[0] / "split.json").read_text(encoding="utf-8"))
    names = list(split["prevalence"])
    every = [of_findings(run, names) for run in runs]
    means = {}
    for kind in KINDS:
        with warnings.catch_warnings():  # a draw may lack a finding in all folds
            warnings.simplefilter("ignore", RuntimeWarning)
            values = np.nanmean([one[kind] for one in every], axis=0)
            for group, chosen in groups_of(split["prevalence"], ends).items():
                columns = [names.index(name) for name in chosen]
                means[kind, group] = np.nanmean(values[:, columns], axis=1)
    return means


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the sweep's runs")
    parser.add_argument("--groups", type=int, default=0, metavar="N")
    args = parser.parse_args()
    folder = args.folder
    points: dict[tuple[str, int], list[Path]] = {}
    for point in plan.read(folder.name, {"runs_dir": str(folder.parent)}).points:
        points.setdefault((point.row, point.seed), []).append(folder / point.name)
    runs: dict[str, dict[int, Means]] = {}
    for (row, seed), paths in points.items():
        if all((path / "eval/test/predictions.csv").exists() for path in paths):
            runs.setdefault(row, {})[seed] = means_of(paths, args.groups)
    columns = [*next(iter(next(iter(runs.values())).values()))]
    heads = [f"{'AUROC' if kind == 'auroc' else 'AP'}, {group}" for kind, group in columns]
    print("| row | seeds |", " | ".join(heads), "|")
    print("| --- |" + " ---: |" * (1 + len(columns)))
    first, *others = runs
    cells = []
    for column in columns:
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
            for column in columns
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
