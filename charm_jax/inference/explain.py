"""Why a prediction is what it is: pure functions of a state and a batch, jitted by the commands."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, PyTree, UInt8

from charm_jax.inference.steps import Batch, cases_of, eval_step
from charm_jax.models import memory_bank
from charm_jax.models.baseline import Baseline
from charm_jax.models.charm import Cases, Charm
from charm_jax.models.memory_bank import MemoryBank, Retrieved
from charm_jax.models.state import TrainState

_THUMBNAIL = 32  # pixels; coarse enough that every source's images have them

Read = Callable[[Array, Cases, MemoryBank], Float[Array, "batch findings"]]


def explain_step(
    state: TrainState, batch: Batch, *, model: Charm | Baseline, prepare: Callable[[Array], Array]
) -> dict[str, Array]:
    """``eval_step`` with the share of every retrieved case; the heavy part is computed once.

    Args:
        state: of the run; the average of its weights is used where it keeps one.
        batch: as ``eval_step`` takes it.
        model: the network.
        prepare: uint8 images to normalised float32.

    Returns:
        ``logits`` ``[B, F]`` and the output's ``evidence``; ``main`` ``[B, h, w, D]``, the features
        that ``grad_cams`` looks at; ``thumbnail`` ``[B, 32, 32]``. With a bank
        also ``fused`` ``[B, D]``; ``cases`` ``[B, k]``, the case ids that were read, -1 for none;
        ``contributions`` ``[B, k, F]``, the logits minus those with that case forgotten, 0 for
        none; ``without_memory`` ``[B, F]``, the logits with an empty bank.
    """
    variables, cases = _variables(state), cases_of(batch)
    output = model.apply(
        variables, prepare(batch["image"]), cases, state.momentum, state.memory, train=False
    )
    kept = {
        "logits": output.logits,
        "main": output.main,
        "thumbnail": thumbnails(batch["image"]),
        **output.evidence(),
    }
    if state.memory is None:
        return kept
    if output.momentum_features is not None:
        kept["momentum_features"] = output.momentum_features

    def read(fused: Array, cases: Cases, memory: MemoryBank) -> Array:
        return model.apply(variables, fused, cases, memory, train=False, method="read")[-1]

    retrieved = output.retrieved
    ids = jnp.where(retrieved.valid, state.memory.case_ids[retrieved.indices], -1)
    empty = memory_bank.mask_all(state.memory)
    return kept | {
        "fused": output.fused,
        "cases": ids,
        "contributions": contributions(
            read, output.logits, output.fused, cases, state.memory, retrieved
        ),
        "without_memory": read(output.fused, cases, empty),
    }


def familiar_step(
    state: TrainState, batch: Batch, *, model: Charm | Baseline, prepare: Callable[[Array], Array]
) -> dict[str, Array]:
    """``eval_step``, and the ``thumbnail`` ``[B, 32, 32]`` of each image."""
    outputs = eval_step(state, batch, model=model, prepare=prepare)
    return outputs | {"thumbnail": thumbnails(batch["image"])}


def thumbnails(images: UInt8[Array, "batch height width 1"]) -> Float[Array, "batch 32 32"]:
    """Grey images at 32 x 32, 0 ... 255, shrunk without aliasing."""
    grey = images[..., 0].astype(jnp.float32)
    return jax.image.resize(grey, (len(grey), _THUMBNAIL, _THUMBNAIL), "linear")


def contributions(
    read: Read,
    logits: Float[Array, "batch findings"],
    fused: Float[Array, "batch dim"],
    cases: Cases,
    memory: MemoryBank,
    retrieved: Retrieved,
) -> Float[Array, "batch k findings"]:
    """Subtract the logits with each retrieved case forgotten, the next case moving in.

    A case goes with every slot that it has: where it was read twice, both entries tell the same.
    What only counts as empty contributes 0. A case that was not read changes nothing when it is
    forgotten, but where a read one has a negative cosine: the slot that falls empty goes before
    it. The shares of a sum would not do, as the head is not
    linear and forgetting changes which cases are read; for that reason these do not add up to the
    difference that the whole memory makes.

    Args:
        read: logits of fused features, their cases and a bank.
        logits: with the whole bank.
        fused: q.
        cases: of the queries.
        memory: the bank.
        retrieved: what the queries read of it.
    """
    ids = jnp.where(retrieved.valid, memory.case_ids[retrieved.indices], -1)

    def without(query: Array, case: Cases, forgotten: Array) -> Array:
        bank = memory_bank.mask_case(memory, forgotten)
        alone = jax.tree.map(lambda leaf: leaf[None], (query, case))
        return read(*alone, bank)[0]

    over_slots = jax.vmap(without, in_axes=(None, None, 0))
    counterfactual = jax.vmap(over_slots)(fused, cases, ids)
    return jnp.where(retrieved.valid[..., None], logits[:, None] - counterfactual, 0.0)


def grad_cams(
    state: TrainState,
    batch: Batch,
    explained: dict[str, Array],
    rows: Int32[Array, " pairs"],
    findings: Int32[Array, " pairs"],
    *,
    model: Charm | Baseline,
) -> Float[Array, "pairs h w"]:
    """Grad-CAM of pairs of an image and a finding, over the expansion block's features.

    The map is relu(Σ_d α_d f_d), α_d the mean over space of the logit's derivative by f_d, divided
    by its highest value; 0 throughout where nothing speaks for the finding. The derivative goes
    through attention, cosines and head; momentum branch and bank are constants.

    Source: Selvaraju et al., ICCV 2017.

    Args:
        state: of the run.
        batch: that ``explain_step`` took.
        explained: what it gave.
        rows: of the batch.
        findings: their numbers.
        model: the network.
    """
    variables = _variables(state)
    cases = jax.tree.map(lambda leaf: leaf[rows], cases_of(batch))
    main = explained["main"][rows].astype(jnp.float32)
    momentum_features = explained.get("momentum_features")
    if momentum_features is not None:
        momentum_features = momentum_features[rows]

    def chosen(main: Array) -> Array:
        logits = model.apply(
            variables, main, momentum_features, cases, state.memory, method="classify"
        )
        # Images do not meet in evaluation, so the gradient of the sum is that of each.
        return jnp.take_along_axis(logits, findings[:, None], axis=1).sum()

    weights = jax.grad(chosen)(main).mean((1, 2))
    heat = jax.nn.relu(jnp.einsum("phwd,pd->phw", main, weights))
    highest = heat.max((1, 2), keepdims=True)
    return heat / jnp.where(highest > 0, highest, 1.0)


def embed_step(
    state: TrainState, batch: Batch, *, model: Charm, prepare: Callable[[Array], Array]
) -> dict[str, Array]:
    """``fused`` ``[B, D]`` of a batch: all that reading and writing a bank need of an image."""
    output = model.apply(
        _variables(state),
        prepare(batch["image"]),
        cases_of(batch),
        state.momentum,
        state.memory,
        train=False,
    )
    return {"fused": output.fused}


def read_step(
    state: TrainState,
    memory: MemoryBank,
    fused: Float[Array, "batch dim"],
    cases: Cases,
    *,
    model: Charm,
) -> dict[str, Array]:
    """Classify embedded images with another bank."""
    retrieved, _, logits = model.apply(
        _variables(state), fused, cases, memory, train=False, method="read"
    )
    return {
        "logits": logits,
        "slots": retrieved.indices,
        "similarities": retrieved.similarities,
        "valid": retrieved.valid,
    }


def write_selected(
    memory: MemoryBank,
    fused: Float[Array, "batch dim"],
    cases: Cases,
    fresh: Bool[Array, " batch"],
    *,
    model: Charm,
) -> tuple[MemoryBank, Int32[Array, ""]]:
    """Write the rows of a batch that the rule selects, and count them.

    Args:
        memory: the bank.
        fused: q of a batch of real images: rows of padding would shift what the rule compares with.
        cases: of the batch.
        fresh: False for rows that only fill the batch up and are not to be written.
    """
    keep = model.select(fused, cases.labels) & fresh
    written = memory_bank.write(
        memory, fused, cases.labels, cases.case_ids, cases.patient_ids, keep
    )
    return written, keep.sum(dtype=jnp.int32)


def _variables(state: TrainState) -> PyTree[Array]:
    return state.average or {"params": state.params, "batch_stats": state.batch_stats}
