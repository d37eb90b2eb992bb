"""The evaluation step: a pure function of a state and a batch."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree, UInt8

from charm_jax.distributed.compiler import CompiledStep
from charm_jax.metrics import ood
from charm_jax.models.charm import Cases
from charm_jax.models.create import Network
from charm_jax.models.state import TrainState
from data_pipelines.loading.resident import ResidentCases

Batch = Mapping[str, Array]

# Outputs of ``eval_step`` that are large and read by few; computed always, so that validation,
# calibration, banks and evaluation share one compiled program.
LARGE = ("fused", "stored", "thumbnail")


def cases_of(batch: Batch) -> Cases:
    """Return the part of a batch that is not pixels."""
    return Cases(batch["labels"], batch["case_id"], batch["patient_id"])


def eval_step(
    state: TrainState, batch: Batch, *, model: Network, prepare: Callable[[Array], Array]
) -> dict[str, Array]:
    """Run the network as in evaluation.

    The average of the weights is used if the state keeps one. ``prepare`` maps uint8 images to
    normalised float32.

    Returns:
        ``logits`` ``[B, F]``; the output's ``evidence``; ``thumbnail`` ``[B, 32, 32]``. With a bank
        also ``fused`` ``[B, D]``, with which it is read, and ``stored``, which it keeps.
    """
    variables = variables_of(state)
    output = model.apply(
        variables,
        prepare(batch["image"]),
        cases_of(batch),
        state.momentum,
        state.memory,
        train=False,
    )
    kept = {
        "logits": output.logits,
        "thumbnail": thumbnails(batch["image"]),
        **output.evidence(),
    }
    if state.memory is None:
        return kept
    stored = output.fused if output.key is None else output.key
    return kept | {"fused": output.fused, "stored": stored}


def variables_of(state: TrainState) -> PyTree[Array]:
    """Return the variables of an evaluation: the average of the weights if the state keeps one."""
    return state.average or {"params": state.params, "batch_stats": state.batch_stats}


def thumbnails(images: UInt8[Array, "batch height width 1"]) -> Float[Array, "batch 32 32"]:
    """Shrink images to 32 x 32 without aliasing, 0 ... 255."""
    grey = images[..., 0].astype(jnp.float32)
    return jax.image.resize(grey, (len(grey), ood.SIDE, ood.SIDE), "linear")


def jit_eval_step(
    cases: ResidentCases | None = None, over: Mesh | None = None, **parts: object
) -> Callable[[TrainState, Batch], dict[str, Array]]:
    """Bind the keyword arguments of ``eval_step`` and compile it, as ``CompiledStep`` does."""
    return CompiledStep(partial(eval_step, **parts), cases, over)
