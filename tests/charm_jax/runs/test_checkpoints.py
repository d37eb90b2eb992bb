import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charm_jax.models.state import TrainState
from charm_jax.runs.checkpoints import Checkpoints, DamagedCheckpoint, tree_sha256
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
