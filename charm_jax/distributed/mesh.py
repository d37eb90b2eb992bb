"""Divide batches among several devices and replicate everything else.

A step is one program over the whole batch, so that batch norms, losses and the memory bank equal
those of a single device that sees all of it.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

AXIS = "data"


def mesh() -> Mesh | None:
    """Return a mesh of all devices of all processes along one axis; None for a single device."""
    if jax.device_count() == 1:
        return None
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def replicated_sharding(over: Mesh) -> NamedSharding:
    """Return the sharding of arrays that every device holds in full."""
    return NamedSharding(over, PartitionSpec())


def shard_batch(batch: Mapping[str, np.ndarray], over: Mesh) -> dict[str, jax.Array]:
    """Turn this process's rows into global arrays that are sharded by rows."""
    by_rows = NamedSharding(over, PartitionSpec(AXIS))
    return {
        name: jax.make_array_from_process_local_data(by_rows, np.asarray(rows))
        for name, rows in batch.items()
    }


def replicated(tree: PyTree, over: Mesh | None) -> PyTree[jax.Array]:
    """Put arrays that are equal in all processes in full on every device."""
    if over is None:
        return jax.device_put(tree)
    sharding = replicated_sharding(over)

    def place(leaf: jax.Array | np.ndarray) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda where: host[where])

    return jax.tree.map(place, tree)
