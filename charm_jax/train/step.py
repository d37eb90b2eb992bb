"""The jitted steps: pure functions of a state and a batch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from charm_jax.distributed import compiler, mesh
from charm_jax.models import momentum as momentum_branch
from charm_jax.models.baseline import Plain, PlainOutput
from charm_jax.models.charm import Cases, Charm, CharmOutput
from charm_jax.models.state import TrainState
from charm_jax.train.optim import hyperparams, trainable

Batch = Mapping[str, Array]
HostBatch = Mapping[str, Array | np.ndarray]
Loss = Callable[[Array, Array], Array]


def cases_of(batch: Batch) -> Cases:
    """The part of a batch that is not pixels."""
    return Cases(batch["labels"], batch["case_id"], batch["patient_id"])


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Charm | Plain,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    augment: Callable[[Key[Array, ""], Array], Array],
    momentum_decay: float,
    average_decay: float = 0.0,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One step of training.

    Args:
        state: the state before.
        batch: ``image`` uint8 ``[B, S, S, 1]``, ``labels`` int8 ``[B, F]``, ``case_id`` and
            ``patient_id`` int32 ``[B]``.
        model: the network. Of a frozen trunk nothing is differentiated.
        optimizer: of the stage.
        loss: ``(logits, labels) -> scalar``.
        augment: ``(key, uint8 images) -> float32 [B, S, S, 3]``.
        momentum_decay: m of the momentum branch.
        average_decay: share that the average of all weights keeps in a step, if there is one.

    Returns:
        The state after, and scalars: ``loss``, ``grad_norm`` (global, before the optimizer),
        ``rate`` (of the head) and ``b1`` of the optimizer, which must come from ``optim``, and
        those of the model's output.
    """
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.rng, state.step))
    images = augment(augment_key, batch["image"])

    trained = trainable(state.params, freeze_trunk=model.freeze_trunk)

    def objective(trained: PyTree) -> tuple[Array, tuple[CharmOutput | PlainOutput, PyTree]]:
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
        return loss(output.logits, batch["labels"]), (output, updated["batch_stats"])

    gradient = jax.value_and_grad(objective, has_aux=True)
    (value, (output, batch_stats)), grads = gradient(trained)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    params = state.params | optax.apply_updates(trained, updates)
    momentum = output.momentum
    if momentum is not None:
        # With the parameters from before this step's update, as in the reference.
        momentum = momentum_branch.update(momentum, state.params["expansion"], momentum_decay)
    new_state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        momentum=momentum,
        memory=output.memory,
        opt_state=opt_state,
        average=_average(state.average, params, batch_stats, average_decay),
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


def _average(
    average: PyTree | None, params: PyTree, batch_stats: PyTree, decay: float
) -> PyTree | None:
    if average is None:
        return None
    weights = {"params": params, "batch_stats": batch_stats}
    return optax.incremental_update(weights, average, 1 - decay)


def eval_step(
    state: TrainState, batch: Batch, *, model: Charm | Plain, prepare: Callable[[Array], Array]
) -> dict[str, Array]:
    """``logits`` ``[B, F]`` of a batch and the output's ``evidence``; nothing changes.

    Where the state keeps an average of all weights, that is what is evaluated. ``prepare`` maps
    uint8 images to normalised float32.
    """
    variables = state.average or {"params": state.params, "batch_stats": state.batch_stats}
    output = model.apply(
        variables,
        prepare(batch["image"]),
        cases_of(batch),
        state.momentum,
        state.memory,
        train=False,
    )
    return {"logits": output.logits, **output.evidence()}


@runtime_checkable
class DeviceCases(Protocol):
    """Cases in the device's memory: a pytree of arrays."""

    def batch(self, case_ids: Array) -> Batch:
        """The batch with these case ids."""


class CompiledStep:
    """A step compiled for one device, or for all of a mesh.

    Called with a state, whole on every device, and a batch: this process's share of it, which its
    devices divide. Where the cases are on the devices, of a batch only ``case_id`` is sent there.
    """

    def __init__(
        self, step: Callable, cases: DeviceCases | None, over: Mesh | None, **options: Any
    ):
        """Prepares ``step(state, batch)``; ``options`` are those of ``jax.jit``."""
        self._over, self._cases = over, cases
        if over is not None:
            options["out_shardings"] = mesh.everywhere(over)

        # The cases are an argument: as a constant they would be compiled into the program.
        def gather_and_step(state: TrainState, batch: Batch, cases: DeviceCases) -> object:
            return step(state, cases.batch(batch["case_id"]))

        function = step if cases is None else gather_and_step
        self._jitted = jax.jit(function, compiler_options=compiler.options(), **options)

    def __call__(self, state: TrainState, batch: HostBatch) -> Any:
        """What the step gives."""
        return self._on_devices(self._jitted, state, batch)

    def lower(self, state: TrainState, batch: HostBatch) -> Any:
        """The step before compilation, as ``jax.jit`` gives it."""
        return self._on_devices(self._jitted.lower, state, batch)

    def _on_devices(self, function: Callable, state: TrainState, batch: HostBatch) -> Any:
        cases = ()
        if self._cases is not None:
            batch, cases = {"case_id": batch["case_id"]}, (self._cases,)
        if self._over is None:
            return function(state, batch, *cases)
        with jax.set_mesh(self._over):
            return function(state, mesh.divided(batch, self._over), *cases)


def jit_train_step(
    cases: DeviceCases | None = None, over: Mesh | None = None, **parts: object
) -> Callable[[TrainState, Batch], tuple[TrainState, dict]]:
    """``train_step`` with its keyword arguments bound, compiled, the state donated.

    With ``cases`` on the device, of a batch only ``case_id`` is sent there. With a mesh, state and
    cases are whole ``over`` its devices, and a batch is this process's share, which they divide.
    """
    return CompiledStep(partial(train_step, **parts), cases, over, donate_argnums=0)


def jit_eval_step(
    cases: DeviceCases | None = None, over: Mesh | None = None, **parts: object
) -> Callable[[TrainState, Batch], dict[str, Array]]:
    """``eval_step`` with its keyword arguments bound, compiled; ``cases`` and ``over`` as above."""
    return CompiledStep(partial(eval_step, **parts), cases, over)
