import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charm_jax.models.state import TrainState, begin_stage
from charm_jax.train import lr_finder, optim


def test_the_rates_are_exponential_from_end_to_end():
    rates = np.array([lr_finder.rates()(step) for step in range(lr_finder.STEPS)])
    np.testing.assert_allclose(rates[[0, -1]], [lr_finder.FIRST, lr_finder.LAST], rtol=1e-4)
    np.testing.assert_allclose(rates[1:] / rates[:-1], rates[1] / rates[0], rtol=1e-3)


def test_the_valley_is_half_way_down_the_longest_fall():
    losses = np.array([5.0, 5.1, 5.0, 4.0, 3.0, 2.0, 1.0, 9.0])
    rates = 10.0 ** np.arange(-7, 1)
    # The fall 5.1 … 1 has six members, the places 1 to 6; its middle is place 3.
    assert lr_finder.valley(rates, losses) == pytest.approx(rates[3])


def test_what_falls_first_and_last_does_not_count():
    rates = np.arange(1.0, 101.0)
    losses = np.full(100, 5.0)
    losses[:9] = np.linspace(9, 6, 9)
    losses[40:44] = [4, 3, 2, 1]
    losses[-4:] = [0.9, 0.8, 0.7, 0.6]
    assert rates[37] < lr_finder.suggest(rates, losses) < rates[44]
    assert lr_finder.suggest(rates[:12], losses[:12]) is None


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, 2.0, 3.0], [2.0, 2.0]])
def test_without_a_fall_there_is_no_rate(losses):
    assert lr_finder.valley(np.ones(len(losses)), np.array(losses)) is None


@given(st.lists(st.floats(0, 10), min_size=2, max_size=60))
def test_the_valley_is_one_of_the_rates_before_the_lowest_end(losses):
    rates = 10.0 ** np.linspace(-7, 1, len(losses))
    chosen = lr_finder.valley(rates, np.array(losses))
    falls = any(a > b for a, b in itertools.combinations(losses, 2))
    assert (chosen is not None) == falls
    if falls:
        assert chosen in rates


OPTIMIZER = optim.adamw(lr_finder.rates(), lr_finder.B1, share=dict.fromkeys(optim.GROUPS, 1.0))


def _train_step(loss):
    """A step whose loss is given by its number."""

    @jax.jit
    def step(state, batch):
        grads = jax.tree.map(jnp.ones_like, state.params)
        _, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
        rate = optim.hyperparams(opt_state)["learning_rate"]
        new = state.replace(step=state.step + 1, opt_state=opt_state)
        return new, {"loss": loss(state.step), "rate": rate}

    return step


def _state():
    params = {"head": {"kernel": jnp.ones(3)}}
    state = TrainState(jnp.zeros((), jnp.int32), params, {}, None, None, (), jax.random.key(0))
    return begin_stage(state, OPTIMIZER, jax.random.key(1))


def test_a_sweep_gives_rates_and_smoothed_losses_and_leaves_the_state():
    state = _state()
    rates, losses = lr_finder.sweep(
        state, itertools.repeat(None), _train_step(lambda step: jnp.float32(2.0))
    )
    np.testing.assert_allclose(losses, 2.0, rtol=1e-5)
    np.testing.assert_allclose(rates, [lr_finder.rates()(i) for i in range(100)], rtol=1e-5)
    assert int(state.step) == 0
    assert state.params["head"]["kernel"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("end", [jnp.inf, jnp.nan, 1e9])
def test_a_sweep_ends_where_the_loss_runs_away(end):
    step = _train_step(lambda step: jnp.where(step < 30, 1.0, end))
    rates, losses = lr_finder.sweep(_state(), itertools.repeat(None), step)
    assert len(rates) == len(losses) == 30
    assert np.isfinite(losses).all()
