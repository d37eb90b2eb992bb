import chex
import jax
import numpy as np
from golden import numbers, variables

from charm_jax import momentum, pretrained
from charm_jax.backbones import BACKBONES

ARCH = "efficientnet_v2_s"


def test_the_average_equals_the_original():
    network, branch = variables(ARCH)
    updated = momentum.update(branch, network["params"]["expansion"], 0.99)
    ours = pretrained.to_torch({"momentum_params": updated.params}, BACKBONES[ARCH])
    stored = numbers("charm", ARCH)
    prefix = "momentum_final_block.final_block."
    for name, norm, mean in zip(
        stored["train64/tol/momentum/names"],
        stored["train64/tol/momentum/norms"],
        stored["train64/tol/momentum/means"],
        strict=True,
    ):
        value = ours[prefix + name].astype(np.float64)
        np.testing.assert_allclose(np.linalg.norm(value), norm, rtol=1e-4)
        np.testing.assert_allclose(value.mean(), mean, atol=1e-4 * np.abs(value).mean())
    for name in ("0.1.weight", "0.1.bias"):
        stored_value = stored[f"train64/tol/momentum/param/{name}"]
        np.testing.assert_allclose(ours[prefix + name], stored_value, atol=1e-6)


def test_the_statistics_are_not_averaged():
    network, branch = variables(ARCH)
    updated = momentum.update(branch, network["params"]["expansion"], 0.0)
    chex.assert_trees_all_equal(updated.batch_stats, branch.batch_stats)
    chex.assert_trees_all_equal(updated.params, network["params"]["expansion"])


def test_the_copy_shares_no_buffer():
    network, _ = variables(ARCH)
    stats, params = network["batch_stats"]["expansion"], network["params"]["expansion"]
    copy = momentum.copy_of(params, stats)
    chex.assert_trees_all_equal(copy.params, params)
    originals = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, stats))}
    assert not originals & {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(copy)}
