"""Score heat maps against boxes around the findings (NumPy and SciPy; not jitted).

Boxes are left, top, right and bottom edge as shares of the image's width and height, 0 ... 1.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import ndimage

from charm_jax.metrics import bootstrap
from charm_jax.metrics.result import UNDEFINED, Interval

# T(IoU) and T(IoBB): Li et al., CVPR 2018, have all of them, Wang et al., CVPR 2017, some.
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_LEVEL = 0.5  # of a map's range: what is higher is inside its box
_SIDE = 128  # pixels to which a map is enlarged before its box is cut out


@dataclasses.dataclass(frozen=True)
class Truth:
    """Hold the boxes of p pairs of an image and a finding.

    Attributes:
        boxes: n boxes, one or several of each pair.
        pairs: pair of each box.
        findings: column of each pair's finding.
        patients: patient of each pair's image; numbers or strings.
    """

    boxes: Float[np.ndarray, "n 4"]
    pairs: Int[np.ndarray, " n"]
    findings: Int[np.ndarray, " p"]
    patients: Shaped[np.ndarray, " p"]


@dataclasses.dataclass(frozen=True)
class Located:
    """Hold where a method finds the p pairs; NaN is undefined and left out, (-1, -1) is a miss.

    Attributes:
        peaks: x and y of the point, as shares of width and height.
        boxes: one box for each pair.
    """

    peaks: Float[np.ndarray, "p 2"]
    boxes: Float[np.ndarray, "p 4"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """The share of pairs that are found, with its 95 % interval; None where undefined.

    There is no interval where all resamples agree: none or all found does not mean certainty.
    """

    value: float | None
    interval: Interval = UNDEFINED


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodResult:
    """The shares of a method.

    Attributes:
        pointing: the peak lies in a box, without tolerance.
        iou: by threshold as text, the intersection of the method's box and a true one, over their
            union, is larger.
        iobb: the same, over the method's box.
    """

    pointing: Share
    iou: dict[str, Share]
    iobb: dict[str, Share]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindingResult:
    """The shares of each method for one finding, and the numbers that they are over."""

    images: int
    patients: int
    boxes: int
    methods: dict[str, MethodResult]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalisationResult:
    """The shares of each method by finding, and their means over the findings."""

    findings: dict[str, FindingResult]
    mean: dict[str, MethodResult]


def from_maps(maps: Float[np.ndarray, "p h w"]) -> Located:
    """Find the peak of each map and the box around it.

    The peak is the centre of the highest cell, and of several the mean. The box holds the connected
    region around it where the map, enlarged linearly, is above half its range. A map that is 0
    everywhere is a miss.

    Source: Wang et al., CVPR 2017. Differs: there each region has a box and any may be right; here
    one box has to be.
    """
    peaks, boxes = np.full((len(maps), 2), -1.0), np.full((len(maps), 4), -1.0)
    sides = np.array(maps.shape[1:])
    for row, heat in enumerate(maps.astype(float)):
        if not heat.any():
            continue
        highest = np.argwhere(heat == heat.max()).mean(axis=0)
        peaks[row] = ((highest + 0.5) / sides)[::-1]
        large = ndimage.zoom(heat, _SIDE / sides, order=1, mode="nearest", grid_mode=True)
        low, high = large.min(), large.max()
        regions, _ = ndimage.label(large >= low + _LEVEL * (high - low))
        region = regions.flat[np.argmax(large)]
        down, across = ndimage.find_objects(regions)[region - 1]
        boxes[row] = np.array([across.start, down.start, across.stop, down.stop]) / _SIDE
    return Located(peaks, boxes)


def image_centre(truth: Truth) -> Located:
    """Point at the centre of every image, without a box."""
    pairs = len(truth.findings)
    return Located(np.full((pairs, 2), 0.5), np.full((pairs, 4), np.nan))


def mean_box(truth: Truth) -> Located:
    """Return the mean of the finding's boxes in other patients, and its centre.

    It is undefined for a finding that a single patient has.
    """
    _, patients = np.unique(truth.patients, return_inverse=True)
    finding, patient = truth.findings[truth.pairs], patients[truth.pairs]
    # One number for each finding and patient.
    own = finding * len(patients) + patient
    pair_own = truth.findings * len(patients) + patients
    sums, counts = (_summed(rows, finding) for rows in (truth.boxes, np.ones((len(own), 1))))
    of_own, n_own = (_summed(rows, own) for rows in (truth.boxes, np.ones((len(own), 1))))
    others = counts[truth.findings] - n_own[pair_own]
    total = sums[truth.findings] - of_own[pair_own]
    boxes = np.where(others > 0, total / np.maximum(others, 1), np.nan)
    return Located((boxes[:, :2] + boxes[:, 2:]) / 2, boxes)


def _summed(
    rows: Float[np.ndarray, "n columns"], groups: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "groups columns"]:
    sums = np.zeros((groups.max() + 1, rows.shape[1]))
    np.add.at(sums, groups, rows)
    return sums


def hits(located: Located, truth: Truth) -> Float[np.ndarray, "p measures"]:
    """Return 1 for a hit, 0 for a miss and NaN for undefined.

    The measures are the pointing game, IoU and then IoBB at each threshold. The best of a pair's
    boxes counts.

    Source: Zhang et al., ECCV 2016, for the pointing game. Differs: without its tolerance of 15
    pixels. Wang et al., CVPR 2017, for IoBB, "intersection over the detected box".
    """
    point, box = located.peaks[truth.pairs], located.boxes[truth.pairs]
    first, last = truth.boxes[:, :2], truth.boxes[:, 2:]
    inside = ((first <= point) & (point <= last)).all(axis=1)
    inside = np.where(np.isnan(point[:, 0]), np.nan, inside)
    extent = np.minimum(box[:, 2:], last) - np.maximum(box[:, :2], first)
    shared = extent.clip(0).prod(axis=1)
    area, true_area = (box[:, 2:] - box[:, :2]).prod(axis=1), (last - first).prod(axis=1)
    iou = shared / (area + true_area - shared)
    iobb = shared / np.where(area == 0, 1, area)  # a missed map's has none
    best = np.full((len(truth.findings), 3), -np.inf)
    np.maximum.at(best, truth.pairs, np.stack([inside, iou, iobb], axis=1))
    found = [best[:, :1], *(best[:, [i]] > np.array(THRESHOLDS) for i in (1, 2))]
    values = np.concatenate(found, axis=1).astype(float)
    values[:, 1:][np.isnan(located.boxes[:, 0])] = np.nan
    return values


def score(
    located: Mapping[str, Located], truth: Truth, findings: Sequence[str]
) -> LocalisationResult:
    """Compute the shares of hits with intervals from resampled patients.

    Args:
        located: methods by name.
        truth: boxes, of one pair or more.
        findings: names of the columns; those without a box are left out.
    """
    columns, groups = np.unique(truth.findings, return_inverse=True)
    values = np.concatenate([hits(method, truth) for method in located.values()], axis=1)
    n_pairs = np.bincount(groups)
    means = np.stack([values[groups == group].mean(axis=0) for group in range(len(columns))])
    drawn = bootstrap.resampled_means(values, groups, truth.patients)
    n_boxes = np.bincount(groups[truth.pairs])
    by_finding = {
        findings[column]: FindingResult(
            images=int(n_pairs[group]),
            patients=len(np.unique(truth.patients[groups == group])),
            boxes=int(n_boxes[group]),
            methods=_methods(located, means[group], drawn[:, group]),
        )
        for group, column in enumerate(columns)
    }
    mean, mean_drawn = (
        np.stack([bootstrap.macro(v[..., i]) for i in range(values.shape[1])], axis=-1)
        for v in (means[None], drawn)
    )
    return LocalisationResult(findings=by_finding, mean=_methods(located, mean[0], mean_drawn))


def _methods(
    names: Mapping[str, Located],
    means: Float[np.ndarray, " measures"],
    drawn: Float[np.ndarray, "resamples measures"],
) -> dict[str, MethodResult]:
    """Name the shares of all methods, whose measures follow each other."""
    shares = [
        Share(
            value=None if np.isnan(value) else float(value),
            interval=_interval(column),
        )
        for value, column in zip(means, drawn.T, strict=True)
    ]
    n, width = len(THRESHOLDS), len(shares) // len(names)
    made = {}
    for start, name in zip(range(0, len(shares), width), names, strict=True):
        pointing, *others = shares[start : start + width]
        by_threshold = [
            {str(t): share for t, share in zip(THRESHOLDS, part, strict=True)}
            for part in (others[:n], others[n:])
        ]
        made[name] = MethodResult(pointing=pointing, iou=by_threshold[0], iobb=by_threshold[1])
    return made


def _interval(drawn: Float[np.ndarray, " resamples"]) -> Interval:
    """Return the interval of a share; undefined where all resamples that define it agree."""
    defined = drawn[~np.isnan(drawn)]
    return UNDEFINED if (defined == defined[:1]).all() else bootstrap.interval(drawn)
