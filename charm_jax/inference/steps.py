"""The evaluation step: a pure function of a state and a batch."""

from collections.abc import Callable, Mapping
from functools import partial

from jax.sharding import Mesh
from jaxtyping import Array

from charm_jax.distributed.compiler import CompiledStep
from charm_jax.models.charm import Cases
from charm_jax.models.create import Network
from charm_jax.models.state import TrainState
from data_pipelines.loading.resident import ResidentCases

Batch = Mapping[str, Array]


def cases_of(batch: Batch) -> Cases:
    """Return the part of a batch that is not pixels."""
    return Cases(batch["labels"], batch["case_id"], batch["patient_id"])


def eval_step(
    state: TrainState, batch: Batch, *, model: Network, prepare: Callable[[Array], Array]
) -> dict[str, Array]:
    """Compute ``logits`` ``[B, F]`` of a batch and the output's ``evidence``.

    The average of the weights is used if the state keeps one. ``prepare`` maps uint8 images to
    normalised float32.
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


def jit_eval_step(
    cases: ResidentCases | None = None, over: Mesh | None = None, **parts: object
) -> Callable[[TrainState, Batch], dict[str, Array]]:
    """Bind the keyword arguments of ``eval_step`` and compile it, as ``CompiledStep`` does."""
    return CompiledStep(partial(eval_step, **parts), cases, over)
