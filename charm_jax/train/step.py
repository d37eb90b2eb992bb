"""The training step, a pure function of a state and a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from charm_jax.distributed.compiler import CompiledStep
from charm_jax.inference.steps import Batch, cases_of
from charm_jax.models import momentum as momentum_branch
from charm_jax.models.charm import Output
from charm_jax.models.create import Network
from charm_jax.models.state import TrainState, trainable
from charm_jax.train.optim import hyperparams
from data_pipelines.loading.resident import ResidentCases

Loss = Callable[[Array, Array], Array]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Network,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    augment: Callable[[Key[Array, ""], Array], Array],
    momentum_decay: float,
    average_decay: float = 0.0,
    averaged_steps: int = 0,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Take one training step.

    Args:
        state: before the step.
        batch: ``image`` uint8 ``[B, S, S, 1]``, ``labels`` int8 ``[B, F]``, ``case_id`` and
            ``patient_id`` int32 ``[B]``.
        model: network; a frozen trunk is not differentiated.
        optimizer: of the phase, made by ``optim``.
        loss: ``(logits, labels) -> scalar``.
        augment: ``(key, uint8 images) -> float32 [B, S, S, 3]``.
        momentum_decay: m of the momentum branch.
        average_decay: share that the average of all weights, if any, keeps. After t steps of the
            run it is at most (1 + t) / (10 + t), so that the first weights are soon forgotten.
        averaged_steps: t at the first step of the phase.

    Returns:
        The state after the step, and scalars: ``loss``, ``grad_norm`` (global, before the
        optimizer), ``rate`` (of the head), ``b1`` and those of the model's output.
    """
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.rng, state.step))
    images = augment(augment_key, batch["image"])

    trained = trainable(state.params, freeze_trunk=model.freeze_trunk)

    def objective(trained: PyTree) -> tuple[Array, tuple[Output, PyTree]]:
        output, updated = model.apply(
            {"params": state.params | trained, "batch_stats": state.batch_stats},
            images,
            cases_of(batch),
            state.momentum,
            state.memory,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        value = loss(output.logits, batch["labels"])
        if output.vote_logits is not None:
            value += output.vote_loss_share * loss(output.vote_logits, batch["labels"])
        return value, (output, updated["batch_stats"])

    gradient = jax.value_and_grad(objective, has_aux=True)
    (value, (output, batch_stats)), grads = gradient(trained)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    params = state.params | optax.apply_updates(trained, updates)
    momentum = output.momentum
    if momentum is not None:
        # With the parameters from before this step's update, as in the reference.
        momentum = momentum_branch.update(momentum, state.params["expansion"], momentum_decay)
    average = state.average
    if average is not None:
        weights = {"params": params, "batch_stats": batch_stats}
        done = averaged_steps + state.step
        kept = jnp.minimum(average_decay, (1 + done) / (10 + done))
        average = optax.incremental_update(weights, average, 1 - kept)
    new_state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        momentum=momentum,
        memory=output.memory,
        opt_state=opt_state,
        average=average,
    )
    chosen = hyperparams(opt_state)
    metrics = {
        "loss": value,
        "grad_norm": optax.tree.norm(grads),
        "rate": chosen["learning_rate"],
        "b1": chosen["b1"],
        **output.scalars(),
    }
    return new_state, metrics


def jit_train_step(
    cases: ResidentCases | None = None, over: Mesh | None = None, **parts: Any
) -> CompiledStep:
    """Bind the keyword arguments of ``train_step`` and compile it; the state is donated.

    Args:
        cases: on the device; then only ``case_id`` of a batch is sent there.
        over: mesh whose devices hold whole copies of state and cases, and divide this process's
            share of a batch.
        **parts: keyword arguments of ``train_step``.
    """
    return CompiledStep(partial(train_step, **parts), cases, over, donate_argnums=0)
