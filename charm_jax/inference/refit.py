"""Refit the last linear layer of a trained network on the features below it.

Source: decoupled training (Kang et al., arXiv 1910.09217), its classifier re-training.
Differs: the layer starts from the trained one rather than a random one; several labels of a case
cannot be balanced by drawing cases, so each finding's known labels have weights instead.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PyTree

from charm_jax.inference.loaded import LoadedModel
from charm_jax.inference.steps import Batch, cases_of
from charm_jax.models.create import Network
from charm_jax.models.losses import LOSSES, Loss
from charm_jax.models.shapes import Labels, Scalar, Vectors
from charm_jax.models.state import TrainState, averaged
from charm_jax.runs import refitted
from charm_jax.runs.data import Data
from charm_jax.runs.refitted import Layer

STRENGTHS = (0.1, 0.01, 1e-3, 1e-4)  # of the L2 penalty
_STEPS = 100  # of L-BFGS, at most
_GAIN = 1e-5  # of a step, over the objective, below which it ends


def refit(model: LoadedModel, data: Data) -> tuple[Layer, dict[str, Any]]:
    """Refit the last linear layer on the last stage's training images.

    The network runs as in evaluation. The loss is that of the stage, plus an L2 penalty whose
    strength the validation loss chooses.

    Returns:
        The layer, and for ``summary.json``: ``form``, ``l2``, ``val_loss_before`` and ``val_loss``
        (those of the whole validation, a sum if the loss is one), and ``replaced``, whether the
        second is smaller.
    """
    stage, form = model.settings.stage_names[-1], model.settings.refit
    loss, step = LOSSES[model.settings.stages[stage].loss], model.compile(features_step)
    labels, outputs = {}, {}
    for split in ("train", "val"):
        rows = data.split.rows(stage, split)
        labels[split] = jnp.asarray(data.table.labels[rows])
        outputs[split] = model.predict_rows(data, rows, f"features of {split}", step)
    features, logits = (
        jnp.asarray(outputs["val"]["features"]),
        jnp.asarray(outputs["val"]["logits"]),
    )
    trained = refitted.layer_of(model.state)
    rest = logits - _apply(trained, features)  # a vote of stored cases
    fitted = fit(
        jnp.asarray(outputs["train"]["features"]),
        labels["train"],
        trained,
        loss=loss,
        balanced=form == "balanced",
    )
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], fitted) for i in range(len(STRENGTHS))]
    losses = [float(loss(_apply(one, features) + rest, labels["val"])) for one in layers]
    best, before = losses.index(min(losses)), float(loss(logits, labels["val"]))
    return layers[best], {
        "form": form,
        "l2": STRENGTHS[best],
        "val_loss_before": before,
        "val_loss": losses[best],
        "replaced": losses[best] < before,
    }


def features_step(
    state: TrainState, batch: Batch, *, model: Network, prepare: Callable[[Array], Array]
) -> dict[str, Array]:
    """Compute ``logits`` ``[B, F]`` and ``features`` ``[B, D]``, the last layer's input."""
    kept, state = {}, averaged(state)

    def keep(call: Callable, arguments: tuple, named: dict, context: Any) -> Any:
        if context.module.path == refitted.layer_path(state):
            kept["features"] = arguments[0]
        return call(*arguments, **named)

    with nn.intercept_methods(keep):
        output = model.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            prepare(batch["image"]),
            cases_of(batch),
            state.momentum,
            state.memory,
            train=False,
        )
    return {"logits": output.logits, **kept}


@partial(jax.jit, static_argnames=("loss", "balanced"))
def fit(
    features: Vectors, labels: Labels, start: Layer, *, loss: Loss, balanced: bool = False
) -> Layer:
    """Fit the layer with each of ``STRENGTHS``, the strongest first, each from the one before.

    It minimises the sum over findings of the mean loss over cases, plus L2 / 2 times the squares of
    the weights of standardised features. ``balanced`` gives the positive and the negative cases of
    a finding the same weight in all, then fits the biases again without weights, since balance
    shifts them.

    Returns:
        The layers, stacked: ``[len(STRENGTHS), ...]``.
    """
    mean, spread = features.mean(0, keepdims=True), features.std(0, keepdims=True).T
    spread = jnp.where(spread > 0, spread, 1.0)

    def unscaled(layer: Layer) -> Layer:
        kernel = layer["kernel"] / spread
        return {"kernel": kernel, "bias": layer["bias"] - _product(mean, kernel)[0]}

    alone = jax.vmap(jax.vmap(lambda z, y: loss(z[None, None], y[None, None])))
    every = 1.0 / len(labels)
    weights = sum(
        kind / (2.0 * jnp.maximum(kind.sum(0, keepdims=True), 1))
        for kind in (labels == 1, labels == 0)
    )

    def next_fit(layer: Layer, l2: Scalar) -> tuple[Layer, Layer]:
        def objective(layer: Layer) -> Scalar:
            losses = alone(_apply(unscaled(layer), features), labels)
            penalty = l2 / 2 * (layer["kernel"] ** 2).sum()
            return ((weights if balanced else every) * losses).sum() + penalty

        layer = _minimise(objective, layer)
        if balanced:
            logits = _apply(unscaled(layer), features)
            shift = _minimise(
                lambda shift: every * alone(logits + shift[None], labels).sum(),
                jnp.zeros_like(layer["bias"]),
            )
            layer = layer | {"bias": layer["bias"] + shift}
        return layer, unscaled(layer)

    scaled = {
        "kernel": start["kernel"] * spread,
        "bias": start["bias"] + _product(mean, start["kernel"])[0],
    }
    return lax.scan(next_fit, scaled, jnp.asarray(STRENGTHS))[1]


def _minimise(objective: Callable[[PyTree], Scalar], start: PyTree) -> PyTree:
    """Minimise by L-BFGS until a step gains next to nothing."""
    solver = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(objective)

    def step(carry: tuple) -> tuple:
        layer, state, count, _ = carry
        value, gradient = value_and_gradient(layer, state=state)
        updates, state = solver.update(
            gradient, state, layer, value=value, grad=gradient, value_fn=objective
        )
        gain = (value - optax.tree.get(state, "value")) / jnp.abs(value)
        return optax.apply_updates(layer, updates), state, count + 1, gain

    first = (start, solver.init(start), jnp.int32(0), jnp.float32(jnp.inf))
    return lax.while_loop(lambda carry: (carry[2] < _STEPS) & (carry[3] > _GAIN), step, first)[0]


def _apply(layer: Layer, features: Vectors) -> Float[Array, "batch findings"]:
    return _product(features, layer["kernel"]) + layer["bias"][None]


def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)  # not TF32, a GPU's default
