"""Paired patient bootstraps of networks over seeds, for the benchmarks that compare many."""

import numpy as np

from charm_jax.metrics import bootstrap
from charm_jax.metrics.classification import auroc_by_finding

Values = dict[str, np.ndarray]


def auroc_and_draws(logits: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Return each finding's AUROC, ``[1 + resamples, findings]``: as it is, then drawn.

    The draws are of the same patients for all runs on the same images. NaN where a class is absent.
    """
    drawn = bootstrap.resampled(logits, labels, patients, seed=0).auroc
    names = [*map(str, range(labels.shape[1]))]
    entries = auroc_by_finding(logits, labels, names).values()
    return np.concatenate([np.array([[entry["auroc"] for entry in entries]], float), drawn])


def row(name: str, values: list[Values], plain: list[Values]) -> str:
    """Return a network's line of a table: mean ± SD over seeds, and the difference to plain.

    Args:
        name: of the network.
        values: for each seed the columns of the table, ``[1 + resamples]`` each.
        plain: those of the network to compare with, none for no comparison; the seeds are averaged
            under each draw.
    """
    cells = [name]
    for key in values[0]:
        mine = np.mean([value[key] for value in values], axis=0)
        firsts = [value[key][0] for value in values]
        cells.append(f"{mine[0]:.4f}" + (f" ± {np.std(firsts, ddof=1):.4f}" if firsts[1:] else ""))
        if not plain:
            cells.append("-")
            continue
        difference = mine - np.mean([value[key] for value in plain], axis=0)
        low, high = np.nanquantile(difference[1:], [0.025, 0.975])
        cells.append(f"{difference[0]:+.4f} [{low:+.4f}, {high:+.4f}]")
    return f"| {' | '.join(cells)} |"
