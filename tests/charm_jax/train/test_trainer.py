import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import experiment_of

from charm_jax.config import cli, recipe, settings
from charm_jax.models.state import TrainState
from charm_jax.runs import arguments
from charm_jax.runs.checkpoints import Checkpoints
from charm_jax.train import setup, trainer
from charm_jax.train.trainer import Training, traced


@pytest.mark.parametrize(("calls", "expected"), [(10, False), (11, True), (12, True), (30, True)])
def test_steps_after_the_tenth_are_traced(tmp_path, calls, expected):
    jitted = jax.jit(lambda state, batch: (state + batch, {}))
    state = jnp.zeros(())
    for stage in ("bce", "focal"):  # a trace that is not over would be in the way of the next
        with traced(jitted, tmp_path / stage, 2) as step:
            for _ in range(calls):
                state, _ = step(state, 1.0)
        assert bool(list((tmp_path / stage).rglob("*.xplane.pb"))) == expected
    assert state == 2 * calls


def test_nothing_is_traced_unasked(tmp_path):
    with traced(lambda state, batch: (state + batch, {}), tmp_path, 0) as step:
        for _ in range(12):
            step(1, 1)
    assert not list(tmp_path.iterdir())


def test_several_processes_agree_every_tenth_step(monkeypatch):
    """Every process gathers at the same steps, whatever it wishes; between them nothing happens."""
    gathered = []

    def gather(rows):
        gathered.append(rows.tolist())
        return np.concatenate([rows, [[False, True]]])  # the other process is due for a save

    monkeypatch.setattr(trainer.processes, "all_gather", gather)
    assert trainer.agree(3, (True, False)) == (True, False)  # one process asks nobody
    assert gathered == []
    monkeypatch.setattr(trainer.jax, "process_count", lambda: 2)
    answers = [trainer.agree(step, (step == 10, False)) for step in range(1, 21)]
    assert [i for i, answer in enumerate(answers, 1) if any(answer)] == [10, 20]
    assert answers[9] == [True, True]
    assert answers[19] == [False, True]
    assert gathered == [[[True, False]], [[False, False]]]


@pytest.mark.parametrize("runs_dir", ["runs", "other runs"])
def test_the_hint_after_training_finds_the_run(runs_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = settings.from_dict(recipe.defaults().to_dict() | {"name": "x", "runs_dir": runs_dir})
    for folder in ("runs", "other runs"):  # the newest run is another one
        (tmp_path / folder / "x").mkdir(parents=True)
        (tmp_path / folder / "x" / "config.json").touch()
    program, command, *given = shlex.split(trainer.evaluation_command(trained))
    assert (program, command) == ("charm-jax", "eval")
    parsed = cli.parse(cli.Command("", arguments.RUN, ("runs_dir",)), given)
    assert arguments.find_run(parsed) == trained.directory
    assert given == ["--run", "x"] or runs_dir != "runs"  # no flag that is not needed


def training_of(config):
    """A training that was not begun, on images that are not there."""
    training = object.__new__(Training)
    training.experiment = experiment_of(config, {"bce": 640, "focal": 1280})
    training.settings = training.experiment.settings
    training.directory = training.settings.directory
    phases = training.settings.phases
    training.plans = {phase: setup.make_plan(training.experiment, phase) for phase in phases}
    return training


@pytest.mark.parametrize("freeze_trunk", [True, False])
def test_frozen_epochs_that_freeze_nothing_can_be_extended(freeze_trunk):
    config = recipe.defaults()
    config.name, config.stages.bce.freeze_trunk = "x", freeze_trunk
    earlier = config.to_dict()
    config.stages.bce.frozen_epochs = 5
    training, done = training_of(config), {"finished": True}
    assert training._extension("bce_frozen", earlier, done)["finished"] is False
    assert training._extension("bce", earlier, done) == {}


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_run_begins_from_the_averaged_weights_of_another(average, tmp_path):
    config = recipe.defaults()
    config.update(name="x", runs_dir=str(tmp_path))
    training = training_of(config)
    training.split = {"findings": [], "sha256": {}, "cases": ""}

    def state_of(value, average=None):
        params = {"head": {"bias": jnp.full(2, value)}}
        return TrainState(
            jnp.int32(0), params, {}, None, None, (), jax.random.key(0), average=average
        )

    weights = {"params": state_of(3.0).params, "batch_stats": {}}
    other = tmp_path / "other"
    checkpoints = Checkpoints(other / "checkpoints", ("bce",), keep=1)
    meta = {
        "progress": {"best_step": 8},
        "split": training.split,
        "config": {"model": {"average": average}},
    }
    checkpoints.save("bce", state_of(2.0, weights if average else None), meta, 8)
    checkpoints.close()
    (other / "config.json").write_text("{}")
    state, _ = training._from_run("other:last", state_of(1.0))
    assert state.params["head"]["bias"].tolist() == [3.0 if average else 2.0] * 2
    assert state.average is None
