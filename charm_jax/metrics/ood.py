"""Judge whether an image is out-of-distribution, against validation (NumPy; not jitted).

Three measures, each as a percentile of the validation split, so that one limit serves all:

- ``novelty``: 1 - the highest cosine to a stored case: the distance from the memory bank.
- ``disagreement``: 1 - cosine of the pooled features of main and momentum branch.
- ``appearance``: the share of a thumbnail's contrast that the principal components of validation
  thumbnails do not explain. It uses pixels alone: the other two ask the network, which places
  every picture somewhere among its cases, and let photographs pass.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num

LIMIT = 99.5  # percentile of validation from which an image counts as out-of-distribution
SIDE = 32  # of a thumbnail in pixels; every source has images that large
ENOUGH = 200  # validation images from which that percentile is more than their highest value
_STEPS = np.linspace(0, 100, 201)  # percentiles that are kept; LIMIT is one of them
_COMPONENTS = 16
_IMAGES_EACH = 5  # thumbnails that a component takes, at least
_FOLDS = 5
_FLAT = 2.0  # grey levels; an image of a lower SD is nearly constant
_LEAST = 20  # thumbnails that components are fitted on, at least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """``novelty.json``: a result of ``fit``.

    Raises:
        ValueError: a list has another length than ``fit`` makes.
    """

    n_images: int
    percentiles: dict[str, tuple[float, ...]]
    mean: tuple[float, ...] = ()
    components: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        for name, kept in self.percentiles.items():
            if len(kept) != len(_STEPS):
                raise ValueError(f"its percentiles.{name} has {len(kept)} numbers")
        fitted, lengths = (
            "appearance" in self.percentiles,
            {*map(len, (self.mean, *self.components))},
        )
        if lengths != {SIDE**2 * fitted} or bool(self.components) != fitted:
            raise ValueError("its mean and components do not fit thumbnails")


def measures(outputs: Mapping[str, np.ndarray]) -> dict[str, Float[np.ndarray, " n"]]:
    """Compute novelty and disagreement, 0 ... 2 each, as far as the network has them.

    The novelty is 1, as at a right angle to every stored case, where none may be read.

    Args:
        outputs: outputs of ``eval_step`` or ``explain_step``, ``[n, ...]`` each.
    """
    found = {}
    if outputs.get("similarities", np.zeros((0, 0))).shape[1]:
        best = np.where(outputs["valid"], outputs["similarities"], 0.0).max(axis=1)
        found["novelty"] = 1 - best.astype(np.float64)
    if "disagreement" in outputs:
        found["disagreement"] = outputs["disagreement"].astype(np.float64)
    return found


def fit(
    values: Mapping[str, Float[np.ndarray, " n"]], thumbnails: Num[np.ndarray, "n height width"]
) -> dict[str, Any]:
    """Fit the reference of a validation split.

    Args:
        values: result of ``measures``.
        thumbnails: grey images, 0 ... 255. Each is measured by components fitted without it (five
            folds); otherwise validation would look more familiar than any new image.

    Returns:
        ``n_images``, ``percentiles`` of each measure in steps of 0.5, and ``components`` with their
        ``mean``; ready for JSON. Below 20 images there are no components and no ``appearance``;
        below 200 the limit is little more than the highest value that was seen.
    """
    from sklearn.model_selection import KFold  # a second, which a prediction need not wait

    kept = {name: np.percentile(value, _STEPS).tolist() for name, value in values.items()}
    reference: dict[str, Any] = {"n_images": len(thumbnails), "percentiles": kept}
    if len(thumbnails) < _LEAST:
        return reference
    x = _standardised(thumbnails)
    left = np.empty(len(x))
    for train, test in KFold(_FOLDS, shuffle=True, random_state=0).split(x):
        left[test] = _unexplained(x[test], *_components(x[train]))
    kept["appearance"] = np.percentile(left, _STEPS).tolist()
    mean, components = _components(x)
    return reference | {
        "mean": np.round(mean, 4).tolist(),
        "components": np.round(components, 4).tolist(),
    }


def judge(
    reference: Mapping[str, Any],
    values: Mapping[str, Float[np.ndarray, " n"]],
    thumbnails: Num[np.ndarray, "n height width"],
) -> dict[str, Float[np.ndarray, " n"]]:
    """Compute percentiles, 0 ... 100, in each measure of the reference.

    Args:
        reference: result of ``fit``.
        values: result of ``measures``.
        thumbnails: grey images, 0 ... 255.
    """
    values = dict(values)
    if "components" in reference:
        mean, components = np.array(reference["mean"]), np.array(reference["components"])
        values["appearance"] = _unexplained(_standardised(thumbnails), mean, components)
    kept = reference["percentiles"]
    return {name: _percentile(kept[name], value) for name, value in values.items() if name in kept}


def reasons(percentiles: Mapping[str, float], grey_sd: float) -> list[str]:
    """Return why an image is out-of-distribution; nothing where it is not.

    Args:
        percentiles: result of ``judge`` for one image.
        grey_sd: standard deviation of its grey levels, 0 ... 255.
    """
    return [name for name, found in beyond(percentiles, grey_sd).items() if found]


def beyond(
    percentiles: Mapping[str, Float[np.ndarray, "..."] | float],
    grey_sd: Float[np.ndarray, "..."] | float,
) -> dict[str, Bool[np.ndarray, "..."] | bool]:
    """Return for each reason whether it makes images out-of-distribution.

    Args:
        percentiles: result of ``judge``.
        grey_sd: standard deviation of the grey levels of each image, 0 ... 255.
    """
    above = {name: percentile >= LIMIT for name, percentile in percentiles.items()}
    return above | {"nearly constant": grey_sd < _FLAT}


def _percentile(kept: list[float], value: np.ndarray) -> np.ndarray:
    """Ties get the lowest percentile: a value that all have is not unusual."""
    levels, first = np.unique(kept, return_index=True)
    return np.interp(value, levels, _STEPS[first], right=100.0)


def _standardised(thumbnails: np.ndarray) -> np.ndarray:
    """Scale to mean 0 and SD 1, so that brightness and contrast do not count."""
    x = thumbnails.reshape(len(thumbnails), -1).astype(np.float64)
    x = x - x.mean(axis=1, keepdims=True)
    return x / np.maximum(x.std(axis=1, keepdims=True), _FLAT)


def _components(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.decomposition import PCA

    number = min(_COMPONENTS, len(x) // _IMAGES_EACH)
    fitted = PCA(number, svd_solver="randomized", random_state=0).fit(x)
    return fitted.mean_, fitted.components_


def _unexplained(x: np.ndarray, mean: np.ndarray, components: np.ndarray) -> np.ndarray:
    centred = x - mean
    drawn = centred @ components.T @ components
    return np.square(centred - drawn).mean(axis=1)
