import chex
import jax
import numpy as np
from golden import OTHERS, PUBLISHED, close, for_networks, numbers, variables

from charm_jax.models import momentum
from charm_jax.models.backbones import BACKBONES
from charm_jax.weights import torch_names


@for_networks(PUBLISHED, *OTHERS)
def test_the_average_equals_the_original(arch):
    network, branch = variables(arch)
    updated = momentum.update(branch, network["params"]["expansion"], 1 - 0.99)
    ours = torch_names.to_torch({"momentum_params": updated.params}, BACKBONES[arch])
    stored = numbers("charm", arch)
    prefix, key = "momentum_final_block.final_block.", "train64/tol/momentum"
    names = [prefix + name for name in stored[f"{key}/names"]]
    assert set(names) == set(ours)
    values = [ours[name].astype(np.float64) for name in names]
    for name, statistic in (("norms", np.linalg.norm), ("means", np.mean)):
        actual = np.float32([statistic(value) for value in values])
        close(actual, stored[f"{key}/{name}"], arch, f"charm/train/tol/momentum/{name}")
    whole = [k.removeprefix(f"{key}/param/") for k in stored if k.startswith(f"{key}/param/")]
    assert whole
    for name in whole:
        stored_value = stored[f"{key}/param/{name}"]
        close(ours[prefix + name], stored_value, arch, f"charm/train/tol/momentum/param/{name}")


def test_the_statistics_are_not_averaged():
    network, branch = variables(PUBLISHED)
    updated = momentum.update(branch, network["params"]["expansion"], 1.0)
    chex.assert_trees_all_equal(updated.batch_stats, branch.batch_stats)
    chex.assert_trees_all_equal(updated.params, network["params"]["expansion"])


def test_the_copy_shares_no_buffer():
    network, _ = variables(PUBLISHED)
    stats, params = network["batch_stats"]["expansion"], network["params"]["expansion"]
    copy = momentum.copy_of(params, stats)
    chex.assert_trees_all_equal(copy.params, params)
    originals = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, stats))}
    assert not originals & {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(copy)}
