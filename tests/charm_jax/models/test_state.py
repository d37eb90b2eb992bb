import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charm_jax.models import memory_bank, state
from charm_jax.models.attention import MultiScaleAttention
from charm_jax.models.backbones.efficientnet_v2 import ConvNormAct, Stage, Trunk
from charm_jax.models.charm import Charm, Head
from charm_jax.train import optim

DIM = 16
STAGES = (Stage(True, 1, 2, 8, 1),)  # small: quick to compile


@pytest.fixture(scope="module")
def create():
    model = Charm(
        trunk=Trunk(8, STAGES, drop_rate=0.2),
        expansion=ConvNormAct(DIM, 1),
        fusion=MultiScaleAttention(),
        head=Head(3),
        retrieval_k=2,
        select=lambda features, labels: jnp.ones(len(features), bool),
    )

    @jax.jit
    def run(key):
        return state.create(model, key, jnp.zeros((1, 32, 32, 3)), memory_bank.empty(8, DIM, 3))

    return lambda seed: run(jax.random.key(seed))


@pytest.fixture(scope="module")
def fresh(create):
    return create(0)


def used(fresh):
    """A state in the middle of a stage: every field differs from a new one's."""
    moved = jax.tree.map(lambda x: x + 1, fresh.replace(rng=jnp.zeros(())))
    return moved.replace(opt_state=(jnp.ones(3),), rng=jax.random.key(5))


def test_the_momentum_branch_starts_equal_to_the_expansion_block(fresh):
    chex.assert_trees_all_equal(fresh.momentum.params, fresh.params["expansion"])
    chex.assert_trees_all_equal(fresh.momentum.batch_stats, fresh.batch_stats["expansion"])


def test_no_two_leaves_share_a_buffer(fresh):
    leaves = jax.tree.leaves(fresh.replace(rng=jax.random.key_data(fresh.rng)))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_the_bank_starts_empty(fresh):
    chex.assert_trees_all_equal(fresh.memory, memory_bank.empty(8, DIM, 3))


def test_everything_starts_in_float32_at_step_0(fresh):
    trees = (fresh.params, fresh.batch_stats, fresh.momentum, fresh.memory.features)
    assert {leaf.dtype for leaf in jax.tree.leaves(trees)} == {jnp.dtype(jnp.float32)}
    chex.assert_tree_all_finite(trees)
    assert (int(fresh.step), fresh.opt_state) == (0, ())
    assert set(fresh.params) == {"trunk", "expansion", "fusion", "head"}


def test_the_running_statistics_start_as_torchs(fresh):
    for path, leaf in jax.tree_util.tree_leaves_with_path(fresh.batch_stats):
        assert np.all(leaf == {"mean": 0, "var": 1}[path[-1].key])


def test_the_key_seeds_the_parameters(create, fresh):
    chex.assert_trees_all_equal(create(0).params, fresh.params)
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(fresh.params),
        jax.tree.leaves(create(1).params),
        strict=True,
    ):
        # Norms start as constants, and in the backbone biases, too.
        backbone = path[0].key in ("trunk", "expansion")
        constant = path[-1].key != "kernel" if backbone else path[-2].key == "norm"
        assert np.array_equal(one, other) == constant, jax.tree_util.keystr(path)


def test_a_stage_begins_with_a_new_step_and_optimizer_alone(fresh, traces):
    old, key = used(fresh), jax.random.key(9)
    optimizer = optim.adamw_one_cycle(optim.geometric(1e-3, 1e-3), 8)
    new = state.begin_stage(old, optimizer, key)
    assert traces["init_fn"] == 1
    assert int(new.step) == 0
    assert new.rng == key
    chex.assert_trees_all_equal(new.opt_state, optimizer.init(old.params))
    for kept in ("params", "batch_stats", "momentum", "memory"):
        chex.assert_trees_all_equal(getattr(new, kept), getattr(old, kept))
    # The one that was given is as it was.
    assert (int(old.step), len(old.opt_state)) == (1, 1)


def test_a_stage_begins_from_the_averaged_weights(fresh):
    halved = jax.tree.map(lambda leaf: leaf / 2, fresh.params)
    old = fresh.replace(average={"params": halved, "batch_stats": fresh.batch_stats})
    optimizer = optim.adamw_one_cycle(optim.geometric(1e-3, 1e-3), 8)
    new = state.begin_stage(state.averaged(old), optimizer, jax.random.key(9))
    chex.assert_trees_all_equal(new.params, halved)
    chex.assert_trees_all_equal(new.average["params"], halved)
    assert state.averaged(fresh) == fresh
