"""Paired patient bootstraps of networks over seeds, for the benchmarks that compare many."""

import numpy as np

Values = dict[str, np.ndarray]


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
