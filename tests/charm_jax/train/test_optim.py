import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import shapes

from charm_jax.models.state import trainable
from charm_jax.train import optim

PEAK = 2e-4


def fastai_cosine(start, end, position):
    return start + (1 + np.cos(np.pi * (1 - position))) * (end - start) / 2


def fastai_combined(start, middle, end, position, pct=0.25):
    """fastai's combined_cos: one cosine up to ``pct``, another one down."""
    if position < pct:
        return fastai_cosine(start, middle, position / pct)
    return fastai_cosine(middle, end, (position - pct) / (1 - pct))


CYCLES = [cycle for cycles in optim.SCHEDULES.values() for cycle in cycles]


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 40, 1001])
@pytest.mark.parametrize("cycle", CYCLES, ids=str)
def test_both_schedules_are_fastais_at_every_step(cycle, steps):
    schedule = optim.one_cycle(PEAK / cycle.peak, steps, cycle)
    rate, b1 = (jax.vmap(each)(np.arange(steps)) for each in (schedule.rate, schedule.b1))
    positions, pct = np.arange(steps) / steps, cycle.warm_up
    expected = [fastai_combined(PEAK / cycle.div, PEAK, PEAK / 1e5, p, pct) for p in positions]
    np.testing.assert_allclose(rate, expected, rtol=1e-4)
    expected = [fastai_combined(0.95, 0.85, 0.95, p, pct) for p in positions]
    np.testing.assert_allclose(b1, expected, rtol=1e-5)


@pytest.mark.parametrize("cycle", CYCLES, ids=str)
def test_the_rate_falls_from_the_step_of_its_peak_on(cycle):
    schedule = optim.one_cycle(PEAK / cycle.peak, 400, cycle)
    both = (schedule.rate, schedule.b1)
    rates, b1s = (np.array(jax.vmap(each)(np.arange(401))) for each in both)
    assert rates.argmax() == b1s.argmin() == optim.peak_step(400, cycle) == 400 * cycle.warm_up
    np.testing.assert_allclose(rates[[0, -1]], [PEAK / cycle.div, PEAK / 1e5], rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_very_short_cycle_does_not_begin_at_its_peak(steps):
    schedule = optim.one_cycle(PEAK, steps, optim.Cycle())
    np.testing.assert_allclose([schedule.rate(0), schedule.b1(0)], [PEAK / 25, 0.95], rtol=1e-5)


def test_weight_decay_acts_on_kernels_only():
    # The tree of a whole network; the shapes do not matter.
    params = jax.tree.map(lambda _: jnp.zeros(()), shapes("efficientnet_v2_nano")["params"])
    decayed = jax.tree_util.tree_leaves_with_path(optim.decays(params))
    by_leaf = {}
    for path, value in decayed:
        by_leaf.setdefault(path[-1].key, set()).add(value)
    assert by_leaf == {"kernel": {True}, "bias": {False}, "scale": {False}}


def adamw(params, all_grads, rates, b1s):
    """AdamW in float64; decay on the kernel."""
    mean, square = (jax.tree.map(np.zeros_like, params) for _ in range(2))
    params = dict(params)
    for count, (grads, rate, b1) in enumerate(zip(all_grads, rates, b1s, strict=True), start=1):
        for name, grad in grads.items():
            mean[name] = b1 * mean[name] + (1 - b1) * grad
            square[name] = 0.99 * square[name] + 0.01 * grad**2
            unbiased = mean[name] / (1 - b1**count)
            scale = np.sqrt(square[name] / (1 - 0.99**count)) + 1e-5
            decay = 0.01 * params[name] if name == "kernel" else 0.0
            params[name] = params[name] - rate * (unbiased / scale + decay)
    return params


@pytest.mark.parametrize("steps", [1, 3])
def test_a_step_is_adamw(steps):
    rng = np.random.default_rng(0)
    params = {"kernel": 3 * rng.standard_normal((4, 3)), "bias": rng.standard_normal(3)}
    # Some as small as epsilon, so that its place matters.
    all_grads = [
        {name: 10 ** rng.uniform(-6, 0, p.shape) for name, p in params.items()}
        for _ in range(steps)
    ]
    peak = 0.1
    optimizer = optim.adamw_one_cycle(optim.geometric(peak, peak), 8)

    def single(tree):
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

    actual = single(params)
    state = optimizer.init(actual)
    for grads in all_grads:
        updates, state = optimizer.update(single(grads), state, actual)
        actual = optax.apply_updates(actual, updates)
    positions = np.arange(steps) / 8
    rates = [fastai_combined(peak / 25, peak, peak / 1e5, p) for p in positions]
    b1s = [fastai_combined(0.95, 0.85, 0.95, p) for p in positions]
    expected = adamw(params, all_grads, rates, b1s)
    for name in params:
        change = actual[name] - params[name]
        np.testing.assert_allclose(change, expected[name] - params[name], rtol=1e-3, atol=1e-6)
    # The numbers of the last step can be read off the state.
    last = optim.hyperparams(state)
    np.testing.assert_allclose(last["learning_rate"], rates[-1], rtol=1e-5)
    np.testing.assert_allclose(last["b1"], b1s[-1], rtol=1e-5)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"at least one step, not {steps}"):
        optim.adamw_one_cycle(optim.geometric(PEAK, PEAK), steps)


PARAMS = {part: {"kernel": jnp.ones((2, 2))} for part in ("trunk", "expansion", "fusion", "head")}


def ones_like(tree):
    return jax.tree.map(jnp.ones_like, tree)


def changes(optimizer, params=PARAMS, grads=None, steps=1):
    """What a number of equal gradients do to the parameters together."""
    grads, state, now = grads or ones_like(params), optimizer.init(params), params
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, now)
        now = optax.apply_updates(now, updates)
    return jax.tree.map(lambda new, old: new - old, now, params)


def test_the_rates_of_the_groups_are_a_geometric_row():
    assert optim.geometric(2e-5, 8e-5) == pytest.approx(
        {"trunk": 2e-5, "expansion": 4e-5, "head": 8e-5}
    )
    assert optim.geometric(PEAK, PEAK) == pytest.approx(dict.fromkeys(optim.GROUPS, PEAK))


def test_a_group_moves_by_its_share_of_the_rate():
    even = changes(optim.adamw_one_cycle(optim.geometric(8e-2, 8e-2), 8))
    spread = changes(optim.adamw_one_cycle(optim.geometric(2e-2, 8e-2), 8))
    for part, share in {"trunk": 0.25, "expansion": 0.5, "fusion": 1, "head": 1}.items():
        np.testing.assert_allclose(
            spread[part]["kernel"], share * even[part]["kernel"], rtol=1e-4, err_msg=part
        )


def test_a_frozen_trunk_is_unknown_to_the_optimizer():
    rest = trainable(PARAMS, freeze_trunk=True)
    assert set(rest) == {"expansion", "fusion", "head"}
    assert trainable(PARAMS, freeze_trunk=False) == PARAMS
    state = optim.adamw_one_cycle(optim.geometric(1e-3, 4e-3), 8).init(rest)
    moments = optax.tree.get(state, "mu")
    assert set(moments) == set(rest)


def test_long_gradients_are_clipped_and_short_ones_are_not():
    def first_moment(clip_norm):
        optimizer = optim.adamw_one_cycle(optim.geometric(1.0, 1.0), 8, clip_norm=clip_norm)
        _, state = optimizer.update(ones_like(PARAMS), optimizer.init(PARAMS), PARAMS)
        return optax.tree.norm(optax.tree.get(state, "mu"))

    norm = 4.0  # of 16 ones
    np.testing.assert_allclose(first_moment(2.0), first_moment(0.0) * 2.0 / norm, rtol=1e-5)
    np.testing.assert_allclose(first_moment(5.0), first_moment(0.0), rtol=1e-6)


def test_accumulated_batches_make_one_update_of_their_mean():
    peaks = optim.geometric(1e-2, 4e-2)
    two = optim.adamw_one_cycle(peaks, 16, accumulate=2)
    grads = [jax.tree.map(lambda p, s=s: s * jnp.ones_like(p), PARAMS) for s in (1.0, 3.0)]
    state, now = two.init(PARAMS), PARAMS
    for number, each in enumerate(grads):
        updates, state = two.update(each, state, now)
        now = optax.apply_updates(now, updates)
        if number == 0:
            chex.assert_trees_all_equal(now, PARAMS)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    expected = changes(optim.adamw_one_cycle(peaks, 8), grads=mean)
    chex.assert_trees_all_close(
        jax.tree.map(lambda new, old: new - old, now, PARAMS), expected, rtol=1e-5
    )


@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"accumulate": 3}])
@pytest.mark.parametrize("spread", [1, 4])
def test_rate_and_b1_can_be_read_off_any_state(spread, options):
    optimizer = optim.adamw_one_cycle(optim.geometric(PEAK / spread, PEAK), 40, **options)
    _, state = optimizer.update(ones_like(PARAMS), optimizer.init(PARAMS), PARAMS)
    values = optim.hyperparams(state)
    np.testing.assert_allclose(values["learning_rate"], PEAK / 25, rtol=1e-5)
    np.testing.assert_allclose(values["b1"], 0.95, rtol=1e-5)


def test_limit_and_spread_keep_the_leaves_of_the_state():
    """A run goes on with another limit; other accumulation is another optimizer."""

    def leaves(spread=1.0, **keys):
        optimizer = optim.adamw_one_cycle(optim.geometric(PEAK / spread, PEAK), 8, **keys)
        state = jax.eval_shape(optimizer.init, PARAMS)
        return [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(state)]

    assert leaves() == leaves(clip_norm=1.0) == leaves(spread=4.0)
    assert leaves() != leaves(accumulate=2)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_new_state_can_stand_at_any_update(accumulate):
    """With gradients of zero, and so moments of zero, it is the state after so many updates."""
    optimizer = optim.adamw_one_cycle(optim.geometric(PEAK, PEAK), 30, accumulate=accumulate)
    new = state = optimizer.init(PARAMS)
    for _ in range(4 * accumulate):
        _, state = optimizer.update(jax.tree.map(jnp.zeros_like, PARAMS), state, PARAMS)
    chex.assert_trees_all_equal(
        *(optax.tree.get_all_with_path(optim.at_update(s, 4), "count") for s in (new, state))
    )
    rates = []
    for s in (optim.at_update(new, 4), state):
        for _ in range(accumulate):
            _, s = optimizer.update(jax.tree.map(jnp.zeros_like, PARAMS), s, PARAMS)
        rates.append(optim.hyperparams(s)["learning_rate"])
    assert rates[0] == rates[1]
