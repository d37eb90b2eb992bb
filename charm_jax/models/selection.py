"""Select the features of a training batch that the memory bank stores."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int8

from charm_jax.models.memory_bank import normalise
from charm_jax.models.shapes import Vectors

_DEFAULT = -1.0  # stands for the rule's default: the types of a config are fixed

Threshold = float | Float[Array, ""]
Prevalence = Float[Array, " findings"] | tuple[float, ...]
Rule = Callable[..., Bool[Array, " batch"]]


def norm_deviation(features: Vectors) -> Float[Array, " batch"]:
    """Compute abs(‖q‖ - μ) / μ, μ the batch mean of ‖q‖: the reference's "rarity score".

    Differs: 0 where the reference divides 0 by 0 (a batch of zero vectors).
    """
    norms = jnp.linalg.norm(jax.lax.stop_gradient(features), axis=-1)
    mean = jnp.mean(norms)
    return jnp.abs(norms - mean) / jnp.where(mean > 0, mean, 1.0)


def norm_inlier(
    features: Vectors, *, threshold: Threshold, **_unused: object
) -> Bool[Array, " batch"]:
    """Keep features whose norm is *near* the batch mean: deviation below ``threshold``.

    It keeps the common features, not the rare ones, and none of a batch of zero vectors.

    Source: the notebook that made the published AUC table.
    """
    return (norm_deviation(features) < threshold) & jnp.any(features != 0)


def norm_outlier(
    features: Vectors, *, threshold: Threshold, **_unused: object
) -> Bool[Array, " batch"]:
    """Keep features whose norm is *far* from the batch mean: deviation above ``threshold``.

    Source: the paper's text.
    """
    return norm_deviation(features) > threshold


def angle_outlier(
    features: Vectors, *, threshold: Threshold, **_unused: object
) -> Bool[Array, " batch"]:
    """Keep features with 1 - cos(q, mean vector of the batch) above ``threshold`` (0 … 2).

    Source: the paper's overview figure. A zero vector has cosine 0 with everything.
    """
    mean = jnp.mean(features, axis=0, keepdims=True)
    return 1.0 - jnp.sum(normalise(features) * normalise(mean), axis=-1) > threshold


def rare_finding(
    features: Vectors,
    *,
    labels: Int8[Array, "batch findings"],
    threshold: Threshold,
    prevalence: Prevalence,
) -> Bool[Array, " batch"]:
    """Keep cases with a finding whose ``prevalence`` (0 … 1) is below ``threshold``.

    Differs: not in the reference. Labels are known in training, so 'rare' can mean rare.
    """
    del features
    rare = jnp.asarray(prevalence, jnp.float32) < threshold
    return jnp.any((labels == 1) & rare[None, :], axis=-1)


class SelectionRule(NamedTuple):
    """Describe a rule: its function, its default threshold, and what it keeps, for people."""

    select: Rule
    threshold: float
    keeps: str


SELECTION_RULES = {
    "norm_inlier": SelectionRule(
        norm_inlier, 0.2, "features of a norm near the batch's mean, the common ones"
    ),
    "norm_outlier": SelectionRule(
        norm_outlier, 0.2, "features of a norm far from the batch's mean"
    ),
    "angle_outlier": SelectionRule(
        angle_outlier, 0.2, "features turned away from the batch's mean"
    ),
    "rare_finding": SelectionRule(
        rare_finding, 0.02, "cases with a finding that is rare in training"
    ),
}


def resolve_threshold(rule: str, threshold: float) -> float:
    """Return ``threshold``, or for -1.0 the rule's default.

    Raises:
        ValueError: the rule is unknown, or the threshold is NaN or negative other than -1.0.
    """
    if rule not in SELECTION_RULES:
        raise ValueError(
            f"unknown selection rule {rule!r}: choose one of {', '.join(SELECTION_RULES)}"
        )
    default = SELECTION_RULES[rule].threshold
    if threshold == _DEFAULT:
        return default
    if not threshold >= 0:
        raise ValueError(
            f"the threshold of rule {rule!r} is {threshold}: "
            f"use a number from 0 up, or {_DEFAULT} for the default {default}"
        )
    return threshold


def select(
    features: Vectors,
    labels: Int8[Array, "batch findings"],
    *,
    rule: str,
    threshold: Threshold,
    prevalence: Prevalence,
) -> Bool[Array, " batch"]:
    """Return which rows of a batch the named rule stores.

    Args:
        threshold: τ, from 0 up.
        prevalence: share of the training images with each finding, for ``rare_finding``.
    """
    function = SELECTION_RULES[rule].select
    return function(features, labels=labels, threshold=threshold, prevalence=prevalence)
