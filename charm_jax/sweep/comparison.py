"""Compare the rows of a sweep: means over seeds, and differences to the baseline."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from charm_jax.metrics import bootstrap

LEVEL = 0.95
Draws = Float[np.ndarray, "draws"]  # the first is of the patients as they are


@dataclasses.dataclass(frozen=True)
class Compared:
    """A row of the table.

    Attributes:
        seeds: macro AUROC of each seed.
        validation: mean score on validation.
        mean: macro AUROC on the test images, averaged over the seeds.
        interval: of the mean; patients and seeds are drawn.
        difference: to the baseline; None for the baseline itself and where no seed is shared.
        difference_interval: of the difference.
        p: two-sided p-value of the difference, corrected for the number of rows (Holm).
    """

    title: str
    seeds: tuple[float, ...]
    validation: float
    mean: float
    interval: tuple[float, float]
    published: float | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    p: float | None = None

    @property
    def verdict(self) -> str:
        """Name what the difference shows."""
        if self.p is None:
            return "baseline" if self.difference is None else ""
        if self.p > 1 - LEVEL:
            return "no difference that these seeds can show"
        return "better" if self.difference > 0 else "worse"


def macro_draws(
    parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> Draws:
    """Return the macro AUROC of a seed's runs and under draws of patients.

    Scores of different folds come from different networks and are never compared: a finding's AUROC
    is the mean over the folds that have both classes. A finding counts if one does.

    Args:
        parts: logits and labels, ``[images, findings]``, and patients of each run: one, or one a
            fold.
    """
    with np.errstate(invalid="ignore"):
        values = np.stack([bootstrap.auroc_and_draws(*part) for part in parts])
        known = ~np.isnan(values[:, 0]).all(0)
        return _mean(_mean(values, 0)[:, known], 1)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean of the known values, NaN where there is none."""
    counts = (~np.isnan(values)).sum(axis)
    return np.where(counts > 0, np.nansum(values, axis) / np.maximum(counts, 1), np.nan)


def over_seeds(runs: Sequence[Draws]) -> Draws:
    """Return the mean over seeds; each draw of patients is one of the seeds, too."""
    values = np.stack(runs)
    drawn = np.random.default_rng(0).integers(len(runs), size=values.shape)
    drawn[:, 0] = np.arange(len(runs))
    return np.take_along_axis(values, drawn, 0).mean(0)


def interval(draws: Draws) -> tuple[float, float]:
    """Return the 95 % interval of the draws."""
    low, high = np.nanquantile(draws[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def p_value(draws: Draws) -> float:
    """Return the two-sided p-value of a difference: twice the share of draws beyond 0."""
    known = draws[1:][~np.isnan(draws[1:])]
    beyond = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (beyond + 1) / (len(known) + 1)))


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for their number, by Holm's step-down method."""
    order = np.argsort(values)
    scaled = np.asarray(values)[order] * np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return corrected.tolist()


def compare(
    runs: Mapping[str, Mapping[int, Draws]],
    validation: Mapping[str, float],
    published: Mapping[str, float | None],
    baseline: str,
) -> list[Compared]:
    """Compare rows, over the seeds that a row and the baseline share.

    Args:
        runs: macro AUROC of each row's seeds, as ``macro_draws`` returns it.
        validation: mean score on validation of each row.
        published: published value of each row.
        baseline: title of the row to compare with; without its runs there is no difference.
    """
    rows, differences = [], {}
    for title, seeds in runs.items():
        shared = sorted(seeds.keys() & runs.get(baseline, {}).keys())
        mean = over_seeds([*seeds.values()])
        if title != baseline and shared:
            pairs = [seeds[seed] - runs[baseline][seed] for seed in shared]
            differences[title] = over_seeds(pairs)
        rows.append(
            Compared(
                title,
                tuple(float(seed[0]) for seed in seeds.values()),
                validation[title],
                float(mean[0]),
                interval(mean),
                published.get(title),
            )
        )
    corrected = dict(
        zip(differences, holm([p_value(draws) for draws in differences.values()]), strict=True)
    )
    return [
        dataclasses.replace(
            row,
            difference=float(differences[row.title][0]),
            difference_interval=interval(differences[row.title]),
            p=corrected[row.title],
        )
        if row.title in differences
        else row
        for row in rows
    ]


def spread(rows: Sequence[Compared]) -> tuple[float, float] | None:
    """Return the SD of the rows' means, and the SD that seeds alone would give them.

    The second is the SD of seeds within a row over the root of their number. None without two rows
    of two seeds each.
    """
    several = [row for row in rows if row.seeds[1:]]
    if not several[1:]:
        return None
    within = np.mean([np.var(row.seeds, ddof=1) / len(row.seeds) for row in several])
    return float(np.std([row.mean for row in several], ddof=1)), float(np.sqrt(within))
