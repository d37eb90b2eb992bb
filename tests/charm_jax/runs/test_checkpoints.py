import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from charm_jax.models.memory_bank import empty
from charm_jax.models.momentum import Momentum
from charm_jax.models.state import TrainState, begin_stage
from charm_jax.runs.checkpoints import (
    Checkpoints,
    DamagedCheckpoint,
    network_sha256,
    tree_sha256,
    weights_sha256,
)
from charm_jax.train import optim
from data_pipelines.errors import InputError

LEAVES = {
    "vector": np.array([1.5, np.inf, -0.0, np.nan], np.float32),
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
    "half": np.arange(5).astype(jnp.bfloat16),
    "flags": np.array([True, False, True]),
    "labels": np.array([[-1, 0, 1]], np.int8),
    "scalar": np.int32(7),
    "nothing": np.zeros((0, 3), np.float32),
    "many": np.linspace(0, 1, 10_000, dtype=np.float32),
}


def state_of(step, **leaves):
    return TrainState(
        step=jnp.int32(step),
        params={name: jnp.asarray(value) for name, value in (LEAVES | leaves).items()},
        batch_stats={},
        momentum=None,
        memory=None,
        opt_state=(jnp.zeros(2),),
        rng=jax.random.key(3),
    )


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path, ("bce", "focal"), keep=2)
    yield opened
    opened.close()


def saved(checkpoints, *steps, best=None, stage="focal"):
    for step in steps:
        checkpoints.save(stage, state_of(step), {"progress": step}, best)
    checkpoints.wait()


def test_a_state_comes_back_bit_for_bit(checkpoints):
    saved(checkpoints, 5)
    state, meta = checkpoints.restore("focal", 5, state_of(0))
    assert meta["progress"] == 5
    assert state.step == 5
    assert tree_sha256(state.params) == tree_sha256(state_of(5).params)
    for name, value in LEAVES.items():
        assert state.params[name].dtype == value.dtype
        assert np.asarray(state.params[name]).tobytes() == value.tobytes()
    assert jnp.array_equal(jax.random.key_data(state.rng), jax.random.key_data(state_of(0).rng))


def test_what_is_saved_does_not_change_with_the_state(checkpoints):
    step = jax.jit(lambda s: s.replace(params=jax.tree.map(lambda x: x + x, s.params)))
    state = state_of(1)
    checkpoints.save("focal", state, {}, None)
    expected = tree_sha256(state.params)
    jax.block_until_ready(jax.jit(step, donate_argnums=0)(state))
    checkpoints.wait()
    restored, _ = checkpoints.restore("focal", 1, state_of(0))
    assert tree_sha256(restored.params) == expected


def test_a_state_without_an_optimizer_takes_the_rest(checkpoints):
    saved(checkpoints, 5)
    state, _ = checkpoints.restore("focal", 5, state_of(0).replace(opt_state=()))
    assert state.opt_state == ()


def test_no_array_needs_a_program_of_its_own(checkpoints, traces):
    shapes = {f"{side} wide": np.zeros((3, side), np.float32) for side in range(11, 31)}
    like = state_of(5).replace(params=shapes)
    checkpoints.save("focal", like, {}, None)
    checkpoints.wait()
    traces.clear()
    checkpoints.restore("focal", 5, like)
    assert traces.total() < len(shapes)


def test_the_newest_and_the_best_remain(checkpoints):
    for step in (1, 2, 3, 4, 5):
        saved(checkpoints, step, best=2 if step >= 2 else None)
    assert checkpoints.steps("focal") == [5, 4, 2]
    saved(checkpoints, 9, stage="bce")
    assert list(checkpoints.newest_first()) == [
        ("focal", 5),
        ("focal", 4),
        ("focal", 2),
        ("bce", 9),
    ]


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_a_flipped_bit_is_found_and_named(checkpoints, tmp_path):
    saved(checkpoints, 5)
    numbers = LEAVES["many"].tobytes()
    (path,) = (p for p in tmp_path.rglob("*") if p.is_file() and numbers in p.read_bytes())
    data = bytearray(path.read_bytes())
    data[data.find(numbers)] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedCheckpoint, match="focal/5 is damaged: params/many"):
        checkpoints.restore("focal", 5, state_of(0))


@pytest.mark.parametrize("item", ["state", "meta"])
@pytest.mark.parametrize("left", [20, 0, None])
def test_a_file_that_is_cut_or_gone_is_found_and_named(checkpoints, tmp_path, item, left):
    saved(checkpoints, 5)
    path = largest_file(tmp_path / "focal/5" / item)
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DamagedCheckpoint, match="focal/5 is damaged"):
        checkpoints.restore("focal", 5, state_of(0))


def test_another_architecture_is_named(checkpoints):
    saved(checkpoints, 5)
    with pytest.raises(InputError, match=r"params/new"):
        checkpoints.restore("focal", 5, state_of(0, new=np.zeros(2)))
    with pytest.raises(InputError, match=r"params/vector has shape \[4\] and not \[3\]"):
        checkpoints.restore("focal", 5, state_of(0, vector=np.zeros(3)))


def test_a_step_that_is_saved_again_replaces_the_old_one(checkpoints):
    saved(checkpoints, 5)
    checkpoints.save("focal", state_of(5, scalar=np.int32(8)), {}, None)
    checkpoints.wait()
    state, _ = checkpoints.restore("focal", 5, state_of(0))
    assert state.params["scalar"] == 8


def test_a_reader_makes_no_folder(tmp_path):
    reader = Checkpoints(tmp_path / "none", ("bce",))
    assert list(reader.newest_first()) == []
    assert not (tmp_path / "none").exists()


def whole_state():
    """A state as training has it: momentum branch, bank, grouped optimizer, average."""
    params = {
        part: {"conv": {"kernel": jnp.arange(4.0) + i, "bias": jnp.ones(2)}}
        for i, part in enumerate(("trunk", "expansion", "fusion", "head"))
    }
    stats = {"expansion": {"bn": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}}
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=stats,
        momentum=Momentum(params=params["expansion"], batch_stats=stats["expansion"]),
        memory=empty(4, 3, 2),
        opt_state=(),
        rng=jax.random.key(0),
        average={"params": params, "batch_stats": stats},
    )
    peaks = optim.geometric(1e-3, 1e-2)
    optimizer = optim.adamw_one_cycle(peaks, 10, clip_norm=1.0, accumulate=2)
    return begin_stage(state, optimizer, jax.random.key(7))


def keys_of(tree):
    """Path of each leaf, the names of dict keys, fields and indices joined with a slash."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    "restore",
    [
        lambda folder: ocp.PyTreeCheckpointer().restore(folder / "7" / "state"),
        lambda folder: ocp.StandardCheckpointer().restore(folder / "7" / "state"),
        lambda folder: ocp.CheckpointManager(folder).restore(
            7, args=ocp.args.Composite(state=ocp.args.StandardRestore())
        )["state"],
    ],
    ids=["PyTreeCheckpointer", "StandardCheckpointer", "CheckpointManager"],
)
def test_orbax_alone_restores_every_leaf_by_name(checkpoints, tmp_path, restore):
    state = whole_state().replace(step=jnp.int32(7))
    checkpoints.save("focal", state, {}, None)
    checkpoints.wait()
    restored = restore(tmp_path / "focal")
    assert set(restored) == {field.name for field in dataclasses.fields(TrainState)}
    assert restored["params"]["trunk"]["conv"]["kernel"].tolist() == [0, 1, 2, 3]
    key = jax.random.wrap_key_data(restored["rng"])
    assert jax.random.uniform(key) == jax.random.uniform(state.rng)
    found, expected = keys_of(restored), keys_of(state.replace(rng=restored["rng"]))
    assert found.keys() == expected.keys()
    assert len(found) > 50
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_state_as_training_has_it_comes_back(checkpoints):
    state = whole_state()
    checkpoints.save("focal", state, {}, None)
    checkpoints.wait()
    restored, _ = checkpoints.restore("focal", 0, jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert tree_sha256(restored.opt_state) == tree_sha256(state.opt_state)
    assert network_sha256(restored) == network_sha256(state)


@pytest.fixture
def state():
    fields = ("step", "params", "batch_stats", "opt_state", "momentum", "memory", "average")
    names = TrainState.__dataclass_fields__
    filled = {name: {"x": jnp.arange(3.0)} for name in fields if name in names}
    return TrainState(**dict.fromkeys(names) | filled)


@pytest.mark.parametrize("field", ["params", "batch_stats", "momentum", "average", "memory"])
def test_digests_cover_the_network_and_for_features_all_but_the_bank(state, field):
    other = state.replace(**{field: {"x": jnp.arange(3.0) + 1}})
    assert network_sha256(other) != network_sha256(state)
    same = weights_sha256(other) == weights_sha256(state)
    assert same == (field == "memory")


def test_digests_ignore_where_training_stands(state):
    other = state.replace(opt_state={"x": jnp.zeros(3)})
    assert network_sha256(other) == network_sha256(state)
