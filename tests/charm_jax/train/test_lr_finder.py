import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes import experiment_of

from charm_jax.config import cli, recipe, validate
from charm_jax.models.state import TrainState, begin_stage
from charm_jax.train import lr_finder, optim, setup
from data_pipelines.errors import InputError


def test_the_rates_are_exponential_and_would_end_after_the_last_step():
    rates = np.array([lr_finder.rates()(step) for step in range(lr_finder.STEPS + 1)])
    np.testing.assert_allclose(rates[[0, -1]], [lr_finder.FIRST, lr_finder.LAST], rtol=1e-4)
    np.testing.assert_allclose(rates[1:] / rates[:-1], 10 ** (8 / 100), rtol=1e-3)


EMPTY = TrainState(jnp.zeros((), jnp.int32), {}, {}, None, None, (), jax.random.key(0))


def experiment_with(find_lr, tmp_path, schedule="one_cycle"):
    config = recipe.defaults()
    config.update(name="x", runs_dir=str(tmp_path))
    config.stages.bce.update(schedule=schedule, find_lr=find_lr)
    experiment = experiment_of(config, {"bce": 640, "focal": 1280})
    experiment.directory.mkdir()
    return experiment


@pytest.fixture
def sweeps(monkeypatch):
    """Losses of the range tests to come, which train nothing; the steps that they began at."""
    begun = []

    def sweep(state, batches, step):
        rates = np.logspace(-7 + len(begun), -1, 40)
        begun.append(int(state.step))
        return rates, np.linspace(*sweep.losses, 40)

    sweep.losses = 2, 1
    monkeypatch.setattr(lr_finder, "sweep", sweep)
    monkeypatch.setattr(lr_finder, "begin_stage", lambda state, *_, **__: state)
    monkeypatch.setattr(setup, "compile_test_step", lambda *_: None)
    monkeypatch.setattr(setup, "training_batches", lambda *_: (batch for batch in ()))
    sweep.begun = begun
    return sweep


def peak(experiment, phase, step=0):
    plan = setup.make_plan(experiment, phase)
    test = lr_finder.range_test(experiment, plan, EMPTY.replace(step=jnp.int32(step)))
    return lr_finder.peak_rate(experiment, plan, test)


@pytest.mark.parametrize(("schedule", "tests"), [("one_cycle", 2), ("fine_tune", 1)])
def test_the_two_cycles_of_fine_tune_share_a_range_test(schedule, tests, tmp_path, sweeps):
    experiment = experiment_with(True, tmp_path, schedule)
    peaks = [peak(experiment, phase) for phase in ("bce_frozen", "bce")]
    assert len(sweeps.begun) == len(set(peaks)) == tests


def test_a_phase_that_begins_ignores_the_range_test_of_another_run(tmp_path, sweeps):
    experiment = experiment_with(True, tmp_path)
    left = experiment.directory / "range_test_bce.json"
    left.write_text('{"peak_lr": 0.5}')
    found = peak(experiment, "bce")
    assert found < 0.1
    assert json.loads(left.read_text())["peak_lr"] == found
    assert peak(experiment, "bce", step=3) == found  # it goes on
    left.unlink()
    peak(experiment, "bce", step=3)
    assert sweeps.begun == [0, 3]


def test_a_range_test_without_a_fall_writes_nothing_and_names_what_to_give(tmp_path, sweeps):
    experiment = experiment_with(True, tmp_path)
    sweeps.losses = 1, 2
    with pytest.raises(InputError, match="range test of stage bce") as refused:
        peak(experiment, "bce")
    assert not list(experiment.directory.iterdir())
    flags = re.search(r"\((.*)\)", str(refused.value))[1].split()
    parsed = cli.parse(cli.Command("", {}, config=True), ["--config.stages.bce.find_lr", *flags])
    given = cli.load_settings(parsed, "demo")
    validate.check(given)
    assert not given.stages["bce"].find_lr
    assert given.resume == "force"


def test_no_range_test_is_run_unasked(tmp_path, sweeps):
    assert peak(experiment_with(False, tmp_path), "bce") == 2e-4
    assert not sweeps.begun


def losses_of(seed):
    """The losses of a range test: a fall, a rise, and noise."""
    rng = np.random.default_rng(seed)
    decade = np.linspace(-7, 1, 100, endpoint=False)
    valley, brink = rng.uniform(-4, -1), rng.uniform(-1, 1)
    fall = 0.5 / (1 + np.exp(-4 * (decade - valley)))
    rise = 0.2 * np.exp(rng.uniform(1, 8) * (decade - brink))
    return (0.7 - fall + rise + rng.normal(0, 0.05, 100)).astype(np.float32)


def found(losses):
    """The rate of a range test whose steps have these losses."""
    steps = itertools.count()

    def train_step(state, batch):
        step = next(steps)
        return state, {"loss": losses[step], "rate": 1e-7 * 10 ** (8 * step / 100)}

    return lr_finder.suggest(*lr_finder.sweep(EMPTY, itertools.repeat(None), train_step))


# What lr_find of fastai 2.8.12 returns for the losses of seeds 0, 1, 2, ...
FASTAI = [0.022909, 0.010965, 0.0025119, 0.0017378, 0.047863, 0.022909, 0.0052481, 0.033113]
FASTAI += [0.0043652, 0.0063096, 0.013183, 0.0017378]
FASTAI_THEN_NAN = [1e-05, 0.00015849, 0.00027542, 0.00057544, 0.022909, 0.013183]
FASTAI_THEN_INFINITE = [1e-05, 9.1201e-05, 0.00022909, 0.00047863, 0.013183, 0.010965]


def test_the_rate_found_is_fastais():
    rates = [found(losses_of(seed)) for seed in range(len(FASTAI))]
    np.testing.assert_allclose(rates, FASTAI, rtol=1e-4)


@pytest.mark.parametrize(
    ("bad", "expected"), [(np.nan, FASTAI_THEN_NAN), (np.inf, FASTAI_THEN_INFINITE)]
)
def test_the_rate_found_before_the_loss_runs_away_is_fastais(bad, expected):
    for seed, rate in enumerate(expected):
        losses = losses_of(seed)
        losses[40 + 10 * seed :] = bad
        assert found(losses) == pytest.approx(rate, rel=1e-4), seed


def plainly_found(losses):
    """Find the rate from a list of all falls: the longest, among equals the one that ends first."""
    smooth, points = 0.0, []
    for step, loss in enumerate(losses):
        smooth = 0.98 * smooth + 0.02 * float(loss)
        points.append((1e-7 * 10 ** (8 * step / 100), smooth / (1 - 0.98 ** (step + 1))))
        if points[-1][1] > 4 * min(value for _, value in points):
            break
    points = points[10:-5]
    falls = []  # of each point, the length of the longest fall that ends there
    for i, (_, value) in enumerate(points):
        before = [falls[j] for j in range(i) if points[j][1] > value]
        falls.append(1 + max(before, default=0))
    longest = max(falls)
    start = falls.index(longest) - longest
    return points[start + int(longest / 3) + int(longest / 3 / 2)][0]


def test_the_rate_found_is_that_of_the_plain_rule_on_many_curves():
    for seed in range(100, 300):
        losses = losses_of(seed)
        assert found(losses) == pytest.approx(plainly_found(losses)), seed


def test_the_valley_is_half_way_down_the_longest_fall():
    losses = np.array([5.0, 5.1, 5.0, 4.0, 3.0, 2.0, 1.0, 9.0])
    rates = 10.0 ** np.arange(-7, 1)
    # The fall 5.1 … 1 has six members, the places 1 to 6; its middle is place 3.
    assert lr_finder.valley(rates, losses) == pytest.approx(rates[3])
    # Of seven members fastai takes the place before the middle one.
    assert lr_finder.valley(np.arange(8.0), np.arange(8.0, 0, -1)[[0, *range(7)]]) == 3.0


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
    assert len(rates) == len(losses) == 31
    np.testing.assert_allclose(losses[:30], 1.0, rtol=1e-5)
