"""The training step, a pure function of a state and a batch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from charm_jax.distributed import mesh
from charm_jax.distributed.compiler import Batch as HostBatch
from charm_jax.distributed.compiler import BatchShapes, CompiledStep
from charm_jax.inference.steps import Batch, cases_of
from charm_jax.models import momentum as momentum_branch
from charm_jax.models.charm import Charm, Output
from charm_jax.models.create import Network
from charm_jax.models.state import TrainState, trainable
from charm_jax.train.optim import Number, OneCycle, hyperparams
from data_pipelines.loading.augment import mixup
from data_pipelines.loading.resident import ResidentCases

Loss = Callable[[Array, Array], Array]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Network,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    vote_loss: Loss | None = None,
    augment: Callable[[Key[Array, ""], Array], Array],
    mixup_alpha: float = 0.0,
    momentum_step: Number,
    average_decay: float = 0.0,
    averaged_steps: Number = 0,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Take one training step.

    Args:
        state: before the step.
        batch: ``image`` uint8 ``[B, S, S, 1]``, ``labels`` int8 ``[B, F]``, ``case_id`` and
            ``patient_id`` int32 ``[B]``.
        model: network; a frozen trunk is not differentiated.
        optimizer: of the phase, made by ``optim``.
        loss: ``(logits, labels) -> scalar``.
        vote_loss: loss of the vote's logits; by default ``loss``.
        augment: ``(key, uint8 images) -> float32 [B, S, S, 3]``.
        mixup_alpha: α of mixup; 0 for none. The memory takes a mixed image for the case that has
            the larger share in it.
        momentum_step: 1 - m of the momentum branch.
        average_decay: share that the average of all weights, if any, keeps. After t steps of the
            run it is at most (1 + t) / (10 + t), so that the first weights are soon forgotten.
        averaged_steps: t at the first step of the phase.

    Returns:
        The state after the step, and scalars: ``loss``, ``grad_norm`` (global, before the
        optimizer), ``rate`` (of the head), ``b1`` and those of the model's output.
    """
    step_key = jax.random.fold_in(state.rng, state.step)
    augment_key, dropout_key = jax.random.split(step_key)
    images, targets = augment(augment_key, batch["image"]), batch["labels"]
    if mixup_alpha:
        mixup_key = jax.random.fold_in(step_key, 2)  # 0 and 1 are the others
        images, targets = mixup(mixup_key, images, targets, mixup_alpha)

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
        value = loss(output.logits, targets)
        if output.vote_logits is not None:
            value += output.vote_loss_share * (vote_loss or loss)(output.vote_logits, targets)
        return value, (output, updated["batch_stats"])

    gradient = jax.value_and_grad(objective, has_aux=True)
    (value, (output, batch_stats)), grads = gradient(trained)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    params = state.params | optax.apply_updates(trained, updates)
    momentum = output.momentum
    if momentum is not None:
        # With the parameters from before this step's update, as in the reference.
        momentum = momentum_branch.update(momentum, state.params["expansion"], momentum_step)
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


class PhaseNumbers(NamedTuple):
    """The numbers in which phases differ that share a compiled program.

    Attributes:
        schedule: of the learning rate and b1.
        stage: place of the stage's losses among those of all stages.
        steps_before: steps of the phases before.
        momentum_step: 1 - m of the momentum branch.
        threshold: of the rule by which the published network stores cases.
    """

    schedule: OneCycle
    stage: Number
    steps_before: Number
    momentum_step: Number
    threshold: Number


def phase_step(
    state: TrainState,
    batch: Batch,
    numbers: PhaseNumbers,
    *,
    model: Network,
    make_optimizer: Callable[[OneCycle], optax.GradientTransformation],
    losses: Sequence[tuple[Loss, Loss]],
    **parts: Any,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Take one training step of a phase, whose numbers are an argument.

    Args:
        state: before the step.
        batch: as for ``train_step``.
        numbers: of the phase.
        model: network; that its rule has a threshold of its own has no effect.
        make_optimizer: from the schedule.
        losses: of each stage: that of the logits and that of the vote's.
        **parts: the other keyword arguments of ``train_step``.

    Returns:
        As ``train_step``.
    """
    loss, vote_loss = (
        _of_stage(functions, numbers.stage) for functions in zip(*losses, strict=True)
    )
    if isinstance(model, Charm):
        model = model.clone(select=partial(model.select, threshold=numbers.threshold))
    return train_step(
        state,
        batch,
        model=model,
        optimizer=make_optimizer(numbers.schedule),
        loss=loss,
        vote_loss=vote_loss,
        momentum_step=numbers.momentum_step,
        averaged_steps=numbers.steps_before,
        **parts,
    )


def _of_stage(functions: Sequence[Loss], stage: Number) -> Loss:
    if len(set(functions)) == 1:
        return functions[0]
    return lambda logits, labels: jax.lax.switch(stage, functions, logits, labels)


class PhaseStep:
    """A compiled ``phase_step`` with the numbers of a phase: ``(state, batch)`` to the next."""

    def __init__(self, step: CompiledStep, numbers: PhaseNumbers, over: Mesh | None = None):
        self._step = step
        # On each device once, and not with each step.
        self._numbers = mesh.replicated(jax.tree.map(jnp.asarray, numbers), over)

    def __call__(self, state: TrainState, batch: HostBatch) -> Any:
        """Take a step."""
        return self._step(state, batch, self._numbers)

    def lower(self, state: TrainState, batch: BatchShapes) -> Any:
        """Lower the step, as ``jax.jit(step).lower`` does."""
        return self._step.lower(state, batch, self._numbers)


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


def jit_phase_step(
    cases: ResidentCases | None = None, over: Mesh | None = None, **parts: Any
) -> CompiledStep:
    """Bind the keyword arguments of ``phase_step`` and compile it, as ``jit_train_step`` does."""
    return CompiledStep(partial(phase_step, **parts), cases, over, donate_argnums=0)
