import dataclasses
import gc
import itertools
import math
import weakref

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charm_jax.models.state import TrainState
from charm_jax.train import loop
from charm_jax.train.log import RunLog
from charm_jax.train.loop import Hooks, Interrupted, NonFiniteLoss
from charm_jax.train.optim import Cycle
from charm_jax.train.plan import Plan, Progress
from charm_jax.train.trainer import agree

PLAN = Plan(
    phase="bce",
    stage="bce",
    freeze_trunk=False,
    epochs=3,
    steps_per_epoch=4,
    steps_before=0,
    batch_size=2,
    cycle=Cycle(),
    peak_step=0,
    monitor="loss",
    patience=100,
    min_delta=0.0,
    save_every=100,
)


def plan(**changes):
    return dataclasses.replace(PLAN, **changes)


def state_at(step):
    return TrainState(
        step=np.int32(step),
        params={},
        batch_stats={},
        momentum=None,
        memory=None,
        opt_state=(),
        rng=None,
    )


def train_loss(step):
    """Another one each step; its sums round, so that their order shows."""
    return 1 / (step + 0.1)


def scores(loss, auroc=None, ap=None):
    return {"loss": loss, "auroc": auroc, "ap": ap}


class World(RunLog):
    """The hooks of a stage, with the loss of every step and validation given beforehand."""

    def __init__(
        self, val_losses=None, *, step_loss=train_loss, end_at=None, step_seconds=1.0, agree=agree
    ):
        self.val_losses = val_losses or itertools.repeat(1.0)
        self.step_loss = step_loss
        self.seconds, self.step_seconds, self.agree = 0.0, step_seconds, agree
        self.end_at = end_at  # the process is asked to end after this step
        self.trained, self.reported, self.epochs, self.begun, self.saved = [], [], [], [], []

    def hooks(self, start=0):
        values = itertools.islice(self.val_losses, start // PLAN.steps_per_epoch, None)
        case_ids = (np.array([10 * step, 10 * step + 1]) for step in itertools.count(start + 1))

        def train_step(state, batch):
            step = int(state.step) + 1
            assert batch["case_id"][0] == 10 * step, "the stream is not where the state is"
            self.trained.append(step)
            self.seconds += self.step_seconds
            return state_at(step), {
                "loss": jnp.float32(self.step_loss(step)),
                "grad_norm": jnp.float32(1.0),
            }

        return Hooks(
            train_step=train_step,
            begun=lambda state, batch: None,
            batches=({"case_id": ids} for ids in case_ids),
            validate=lambda state: scores(next(values), 0.5 + int(state.step) / 1000),
            log=self,
            save=lambda state, progress: self.saved.append((int(state.step), progress)),
            asked_to_stop=lambda: self.end_at is not None and self.trained[-1] >= self.end_at,
            agree=self.agree,
            clock=lambda: self.seconds,
        )

    def run(self, plan=PLAN, state=None, progress=None):
        state = state or state_at(0)
        hooks = self.hooks(int(state.step))
        return loop.run_phase(state, progress or Progress(plan.phase), plan, hooks)

    def begin_epoch(self, plan, epoch, done):
        self.begun.append((epoch, done))

    def step(self, plan, step, metrics):
        self.reported.append((step, metrics["loss"]))

    def epoch(self, plan, step, values):
        self.epochs.append({"step": step, **values})


def timeless(progress):
    return dataclasses.replace(progress, seconds=0.0)


def test_it_runs_every_step_once_and_in_order():
    world = World()
    state, progress = world.run()
    assert world.trained == list(range(1, 13))
    assert [step for step, _ in world.reported] == world.trained
    assert int(state.step) == 12
    assert (progress.epoch, progress.finished, progress.stopped_early) == (3, True, False)
    assert world.begun == [(0, 0), (1, 0), (2, 0)]


def test_an_epoch_reports_the_mean_loss_of_its_own_steps():
    world = World([3.0, 2.0, 1.0])
    world.run()
    for i, values in enumerate(world.epochs):
        mean = np.mean([train_loss(step) for step in range(4 * i + 1, 4 * i + 5)])
        assert values["train_loss"] == pytest.approx(mean, rel=1e-6)
        assert (values["epoch"], values["step"], values["val_loss"]) == (i + 1, 4 * i + 4, 3.0 - i)
        assert values["val_macro_auroc"] == 0.5 + (4 * i + 4) / 1000


def test_a_finished_stage_trains_nothing():
    world, done = World(), Progress("bce", epoch=3, finished=True)
    state, progress = world.run(state=state_at(12), progress=done)
    assert (int(state.step), progress) == (12, done)
    assert world.trained == world.saved == world.epochs == []


def test_the_best_is_the_lowest_loss_however_little_lower():
    world = World([0.5, 0.4, 0.3999, 0.45])
    _, progress = world.run(plan(epochs=4, min_delta=0.01))
    assert (progress.best_epoch, progress.best_step) == (3, 12)
    assert progress.best_scores == scores(0.3999, 0.5 + 12 / 1000)
    assert [values["best"] for values in world.epochs] == [True, True, True, False]
    # The patience compares with the loss that was lower by more than min_delta.
    assert (progress.reference, progress.waited) == (0.4, 2)


def test_of_equal_losses_the_first_is_the_best():
    _, progress = World([0.5, 0.5, 0.5]).run()
    assert (progress.best_epoch, progress.best_step) == (1, 4)


def test_small_gains_add_up_until_they_count():
    world = World([1.0, 0.994, 0.988, 0.982])
    _, progress = world.run(plan(epochs=4, min_delta=0.01, patience=2))
    assert (progress.epoch, progress.stopped_early) == (4, False)
    assert (progress.reference, progress.waited) == (0.988, 1)


def test_it_stops_when_the_patience_ends():
    world = World([0.5, 0.6, 0.6, 0.1])
    state, progress = world.run(plan(epochs=9, patience=2))
    assert (progress.epoch, progress.finished, progress.stopped_early) == (3, True, True)
    assert int(state.step) == 12
    assert progress.best_epoch == 1


def test_stopping_does_not_count_before_the_peak():
    losses = [0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    _, progress = World(losses).run(plan(epochs=7, patience=2, peak_step=12))
    # Epoch 3 ends on the peak itself; the epochs 4 and 5 are the first two that count.
    assert (progress.epoch, progress.stopped_early) == (5, True)


def test_running_out_of_patience_in_the_last_epoch_is_not_early():
    _, progress = World([0.5, 0.6, 0.6]).run(plan(epochs=3, patience=2))
    assert (progress.epoch, progress.finished, progress.stopped_early) == (3, True, False)


def test_an_undefined_macro_auroc_is_kept_as_none():
    world = World()
    hooks = dataclasses.replace(world.hooks(), validate=lambda state: scores(1.0))
    _, progress = loop.run_phase(state_at(0), Progress("bce"), PLAN, hooks)
    assert progress.best_scores == scores(1.0)


def test_it_saves_every_few_steps_and_once_after_each_epoch():
    world = World()
    world.run(plan(epochs=2, save_every=2))
    assert [step for step, _ in world.saved] == [2, 4, 6, 8]
    assert [progress.epoch for _, progress in world.saved] == [0, 1, 1, 2]
    assert [progress.finished for _, progress in world.saved] == [False, False, False, True]


def test_it_counts_the_steps_from_the_last_save():
    world = World()
    world.run(plan(epochs=2, save_every=3))
    # Not at step 6, two steps after the save of the first epoch.
    assert [step for step, _ in world.saved] == [3, 4, 7, 8]


def test_it_saves_when_time_has_passed_since_the_last_save():
    world = World(step_seconds=60.0)
    world.run(plan(epochs=2, save_seconds=150.0))
    # Three minutes after the last save: steps 3 and 7; the epochs end at 4 and 8.
    assert [step for step, _ in world.saved] == [3, 4, 7, 8]
    assert world.saved[0][1].seconds == 180.0


def test_without_a_time_only_steps_and_epochs_are_saved():
    world = World(step_seconds=1e6)
    world.run(plan(epochs=1, save_seconds=0.0))
    assert [step for step, _ in world.saved] == [4]


def test_no_garbage_is_kept_from_the_garbage_collector():
    world, cycles = World(), []
    hooks = world.hooks()

    def train_step(state, batch):
        cycle = World()
        cycle.itself = cycle
        cycles.append(weakref.ref(cycle))
        return hooks.train_step(state, batch)

    gc.disable()
    try:
        loop.run_phase(
            state_at(0), Progress("bce"), PLAN, dataclasses.replace(hooks, train_step=train_step)
        )
        assert cycles[0]() is None
    finally:
        gc.enable()


def test_the_garbage_collector_leaves_the_heap_alone_between_steps():
    world, counts = World(), []
    hooks = world.hooks()

    def train_step(state, batch):
        counts.append(gc.get_freeze_count())
        return hooks.train_step(state, batch)

    loop.run_phase(
        state_at(0), Progress("bce"), PLAN, dataclasses.replace(hooks, train_step=train_step)
    )
    # From the second step on: the first one compiles.
    assert counts[0] == 0
    assert min(counts[1:]) > 10_000
    assert gc.get_freeze_count() == 0


def test_what_is_saved_knows_the_losses_up_to_its_step():
    world = World()
    world.run(plan(epochs=1, save_every=3))
    (step, progress), (_, last) = world.saved
    assert step == 3
    assert progress.loss_sum == pytest.approx(sum(train_loss(s) for s in (1, 2, 3)), rel=1e-6)
    assert last.loss_sum == 0.0


def test_processes_with_different_clocks_save_at_the_same_steps():
    """All ask at the same steps; the slow one learns what the fast one, run before it, wished."""
    wishes_of = {"fast": [], "slow": []}

    def agree_of(name):
        def agree(step, wishes):
            mine = wishes_of[name]
            mine.append((step, list(wishes)))
            if step % 10:
                return [False] * len(wishes)
            asked_at, fast = wishes_of["fast"][len(mine) - 1]
            assert asked_at == step
            return [any(both) for both in zip(wishes, fast, strict=True)]

        return agree

    long = plan(epochs=2, steps_per_epoch=40, save_seconds=150.0)
    fast = World(step_seconds=10.0, agree=agree_of("fast"))
    slow = World(step_seconds=0.0, agree=agree_of("slow"))
    fast.run(long)
    slow.run(long)
    assert [step for step, _ in fast.saved] == [20, 40, 60, 80]
    assert [step for step, _ in slow.saved] == [20, 40, 60, 80]


@pytest.mark.parametrize("at", range(1, 12))
def test_a_resumed_stage_ends_as_if_it_had_never_stopped(at):
    losses = [0.5, 0.4, 0.45]
    whole = World(losses)
    _, expected = whole.run(plan(save_every=1))
    step, progress = next(entry for entry in whole.saved if entry[0] == at)
    rest = World(losses)
    state, ended = rest.run(plan(save_every=1), state_at(step), progress)
    assert rest.trained == list(range(at + 1, 13))
    assert int(state.step) == 12
    assert timeless(ended) == timeless(expected)
    # Bit for bit, the mean loss of the epoch that was cut in two included.
    assert rest.epochs == whole.epochs[at // 4 :]
    assert rest.begun[0] == (at // 4, at % 4)


def test_the_seconds_of_earlier_starts_are_kept():
    world = World()
    _, progress = world.run(progress=Progress("bce", seconds=1000.0))
    assert progress.seconds >= 1000.0
    assert all(saved.seconds >= 1000.0 for _, saved in world.saved)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [1, 3, 4, 12])
def test_a_non_finite_loss_names_its_step_and_its_cases(step, bad):
    world = World(step_loss=lambda s: bad if s == step else 1.0)
    message = rf"step {step} of stage bce is {bad}; .* case ids {10 * step}, {10 * step + 1}$"
    with pytest.raises(NonFiniteLoss, match=message):
        world.run()
    # At most one further step had begun, and the bad one was not reported.
    assert world.trained[-1] <= step + 1
    assert [s for s, _ in world.reported] == list(range(1, step))
    assert len(world.epochs) == (step - 1) // 4


@pytest.mark.parametrize("step", [2, 3])
def test_a_non_finite_loss_is_not_saved(step):
    world = World(step_loss=lambda s: math.nan if s == step else 1.0)
    with pytest.raises(NonFiniteLoss, match=f"step {step} "):
        world.run(plan(save_every=3))
    assert world.saved == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_validation_loss_ends_the_stage(bad):
    world = World([1.0, bad, 1.0])
    with pytest.raises(NonFiniteLoss, match=f"validation loss after step 8 of stage bce is {bad}"):
        world.run()
    assert [step for step, _ in world.saved] == [4]
    assert len(world.epochs) == 1


@pytest.mark.parametrize("at", [1, 3, 4, 6, 12])
def test_asked_to_end_it_saves_and_stops(at):
    world = World(end_at=at)
    with pytest.raises(Interrupted):
        world.run()
    assert world.trained[-1] == at
    step, progress = world.saved[-1]
    assert step == at
    # At the end of an epoch the validation is still made, and the save is that of the epoch.
    assert progress.epoch == at // 4
    assert [saved for saved, _ in world.saved] == sorted({*range(4, at, 4), at})
    rest, whole = World(), World()
    _, ended = rest.run(state=state_at(step), progress=progress)
    assert timeless(ended) == timeless(whole.run()[1])


def simple_stage(losses, plan):
    """(epochs run, best epoch, stopped early) by the plainest means."""
    reference, waited = math.inf, 0
    for i, loss in enumerate(losses[: plan.epochs], start=1):
        if loss < reference - plan.min_delta:
            reference, waited = loss, 0
        elif i * plan.steps_per_epoch > plan.peak_step:
            waited += 1
        if waited == plan.patience:
            break
    run = losses[:i]
    return i, run.index(min(run)) + 1, i < plan.epochs


@pytest.mark.parametrize("monitor", ["auroc", "ap"])
def test_the_best_is_the_highest_auroc_or_ap_and_stopping_waits_for_it(monitor):
    values = [0.7, 0.8, 0.801, 0.75, None, 0.9]
    chosen = plan(epochs=9, monitor=monitor, patience=3, min_delta=0.01)
    progress = Progress("bce")
    for epoch, value in enumerate(values[:5], start=1):
        assert not progress.finished
        # The loss falls all the time and has no say.
        given = scores(1 / epoch) | {monitor: value}
        progress = progress.after_validation(chosen, 4 * epoch, given)
    assert progress.stopped_early
    assert (progress.best_epoch, progress.reference, progress.waited) == (3, 0.8, 3)
    assert progress.best_scores == scores(1 / 3) | {monitor: 0.801}


def test_a_score_that_is_never_defined_has_no_best():
    progress = Progress("bce").after_validation(plan(monitor="ap"), 4, scores(1.0, 0.9))
    assert (progress.best_step, progress.best_scores, progress.waited) == (None, None, 1)


@settings(max_examples=150, derandomize=True)
@given(
    losses=st.lists(st.integers(0, 12).map(lambda n: n / 8), min_size=1, max_size=12),
    patience=st.integers(1, 4),
    min_delta=st.sampled_from([0.0, 0.125, 0.25]),
    peak_step=st.integers(0, 24),
)
def test_any_sequence_of_losses_ends_as_the_simple_rule_says(
    losses, patience, min_delta, peak_step
):
    chosen = plan(epochs=len(losses), patience=patience, min_delta=min_delta, peak_step=peak_step)
    progress, step = Progress("bce"), 0
    while not progress.finished:
        step += chosen.steps_per_epoch
        loss = losses[progress.epoch]
        progress = progress.after_validation(chosen, step, scores(loss, 1 - loss))
    epochs, best, early = simple_stage(losses, chosen)
    assert (progress.epoch, progress.best_epoch, progress.stopped_early) == (epochs, best, early)
    assert progress.best_step == best * chosen.steps_per_epoch
    assert progress.best_scores == scores(losses[best - 1], 1 - losses[best - 1])
