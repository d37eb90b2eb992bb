"""Explain predictions: pure functions of a state and a batch."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from charm_jax.inference.steps import Batch, cases_of, thumbnails, variables_of
from charm_jax.models import memory_bank
from charm_jax.models.charm import Cases, Charm
from charm_jax.models.create import Network
from charm_jax.models.memory_bank import MemoryBank, Retrieved
from charm_jax.models.state import TrainState
from charm_jax.models.vote import Vote

Read = Callable[[Array, Cases, MemoryBank], Float[Array, "batch findings"]]


def explain_step(
    state: TrainState, batch: Batch, *, model: Network, prepare: Callable[[Array], Array]
) -> dict[str, Array]:
    """Compute ``eval_step`` and the contribution of every retrieved case.

    Returns:
        The outputs of ``eval_step``; ``main`` ``[B, h, w, D]``, the features for ``grad_cams``;
        ``thumbnail`` ``[B, 32, 32]``. With a bank also ``fused`` ``[B, D]``; ``cases`` ``[B, k]``,
        the case ids that were read, -1 for none; ``contributions`` ``[B, k, F]``, the logits minus
        those with that case forgotten, 0 for none; ``without_memory`` ``[B, F]``, the logits with
        an empty bank. A network whose cases vote has ``vote`` ``[B, F]``, NaN where no label of
        a read case is known, and as ``contributions`` the share of each case in it.
    """
    variables, cases = variables_of(state), cases_of(batch)
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

    if output.shares is None:
        shares = contributions(
            read, output.logits, output.fused, cases, state.memory, output.retrieved
        )
    else:
        shares = output.shares
        kept["vote"] = jnp.where(output.voted, shares.sum(1), jnp.nan)
    return kept | {
        "fused": output.fused,
        "cases": case_ids_read(state.memory, output.retrieved),
        "contributions": shares,
        "without_memory": read(output.fused, cases, memory_bank.mask_all(state.memory)),
    }


def contributions(
    read: Read,
    logits: Float[Array, "batch findings"],
    fused: Float[Array, "batch dim"],
    cases: Cases,
    memory: MemoryBank,
    retrieved: Retrieved,
) -> Float[Array, "batch k findings"]:
    """Compute the logits minus those with each retrieved case forgotten.

    Another case is read in place of the forgotten one. A case is forgotten with all its slots, so
    its entries are equal if it was read twice; empty slots contribute 0. Contributions do not add
    up to the effect of the whole memory, since the head is not linear and forgetting changes which
    cases are read. Forgetting a case that was not read has no effect, except where a read one has
    a negative cosine: the emptied slot, with cosine 0, is read in its place.

    Args:
        read: maps fused features, their cases and a bank to logits.
        logits: logits with the whole bank.
    """
    ids = case_ids_read(memory, retrieved)

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
    model: Network,
) -> Float[Array, "pairs h w"]:
    """Compute Grad-CAM for pairs of a row and a finding, over the expansion block's features.

    The map is relu(Σ_d α_d f_d), α_d the mean over space of the logit's derivative by f_d, divided
    by its highest value; 0 everywhere if nothing speaks for the finding. The derivative goes
    through attention, cosines and head; momentum branch and bank are constants.

    Source: Selvaraju et al., ICCV 2017.

    Args:
        batch: input of ``explain_step``.
        explained: its output.
        rows: rows of the batch.
        findings: columns of the logits.
    """
    variables = variables_of(state)
    cases = jax.tree.map(lambda leaf: leaf[rows], cases_of(batch))
    main = explained["main"][rows].astype(jnp.float32)
    momentum_features = explained.get("momentum_features")
    if momentum_features is not None:
        momentum_features = momentum_features[rows]

    def chosen(main: Array) -> Array:
        logits = model.apply(
            variables, main, momentum_features, cases, state.memory, method="classify"
        )
        # Images are independent in evaluation, so the gradient of the sum has that of each.
        return jnp.take_along_axis(logits, findings[:, None], axis=1).sum()

    return _heat(main, jax.grad(chosen)(main))


def finer_grad_cams(
    state: TrainState, batch: Batch, *, model: Network, prepare: Callable[[Array], Array]
) -> Float[Array, "pairs h w"]:
    """Compute Grad-CAM over the trunk's last map that is finer than the expansion block's.

    See ``grad_cams``; here the whole network runs again, and the derivative goes back to the output
    of that module of the trunk.

    Args:
        batch: input of ``explain_step``, a row for each pair, with ``finding``, the pair's column
            of the logits.
    """
    variables, cases, images = variables_of(state), cases_of(batch), prepare(batch["image"])

    def output(intercept: Callable) -> Any:
        with nn.intercept_methods(intercept):
            return model.apply(variables, images, cases, state.momentum, state.memory, train=False)

    maps = {}

    def noted(call: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and context.module.path[:-1] == ("trunk",):
            maps[context.module.path] = jax.ShapeDtypeStruct(out.shape, out.dtype)
        return out

    height = jax.eval_shape(lambda: output(noted).main).shape[1]
    chosen = [path for path, features in maps.items() if features.shape[1] > height][-1]

    def logit(shift: Array) -> tuple[Array, Array]:
        features = []

        def shifted(call: Callable, args: Any, kwargs: Any, context: Any) -> Any:
            out = call(*args, **kwargs)
            if context.method_name != "__call__" or context.module.path != chosen:
                return out
            features.append(out)
            return out + shift

        logits = output(shifted).logits
        return jnp.take_along_axis(logits, batch["finding"][:, None], axis=1).sum(), features[0]

    shift = jnp.zeros(maps[chosen].shape, maps[chosen].dtype)
    gradient, features = jax.grad(logit, has_aux=True)(shift)
    return _heat(features.astype(jnp.float32), gradient.astype(jnp.float32))


def _heat(
    features: Float[Array, "pairs h w dim"], gradient: Float[Array, "pairs h w dim"]
) -> Float[Array, "pairs h w"]:
    """Return relu(Σ_d α_d f_d) over its highest value, α_d the gradient's mean over space."""
    heat = jax.nn.relu(jnp.einsum("phwd,pd->phw", features, gradient.mean((1, 2))))
    highest = heat.max((1, 2), keepdims=True)
    return heat / jnp.where(highest > 0, highest, 1.0)


def read_step(
    state: TrainState,
    memory: MemoryBank,
    fused: Float[Array, "batch dim"],
    cases: Cases,
    *,
    model: Charm | Vote,
) -> dict[str, Array]:
    """Classify features with another bank: ``logits``, and ``cases`` and ``similarities`` read."""
    retrieved, _, logits = model.apply(
        variables_of(state), fused, cases, memory, train=False, method="read"
    )
    return {
        "logits": logits,
        "cases": case_ids_read(memory, retrieved),
        "similarities": retrieved.similarities,
    }


def read_without(
    state: TrainState,
    fused: Float[Array, "batch dim"],
    forgotten: Int32[Array, " forgotten"],
    *,
    model: Charm | Vote,
) -> dict[str, Array]:
    """Classify features of images that belong to nobody, with some cases forgotten.

    Args:
        forgotten: ids of the cases; -1 for none.

    Returns:
        The outputs of ``read_step``.
    """
    nobody = jnp.full(len(fused), -1, jnp.int32)
    labels = jnp.full((len(fused), state.memory.labels.shape[1]), -1, jnp.int8)
    memory = memory_bank.forget(state.memory, forgotten)
    return read_step(state, memory, fused, Cases(labels, nobody, nobody), model=model)


def case_ids_read(memory: MemoryBank, retrieved: Retrieved) -> Int32[Array, "batch k"]:
    """Return the ids of retrieved cases, -1 for none."""
    return jnp.where(retrieved.valid, memory.case_ids[retrieved.indices], -1)


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
        fused: q of real images only, since the rule compares with the whole batch.
        fresh: False for rows that only fill up the batch and are not written.
    """
    keep = model.select(fused, cases.labels) & fresh
    written = memory_bank.write(
        memory, fused, cases.labels, cases.case_ids, cases.patient_ids, keep
    )
    return written, keep.sum(dtype=jnp.int32)
