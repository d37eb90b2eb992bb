import re
import shlex
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import experiment_of

from charm_jax.config import cli, recipe, settings, validate
from charm_jax.runs import arguments
from charm_jax.train import __main__ as command
from charm_jax.train import setup, trainer
from charm_jax.train.plan import Progress
from charm_jax.train.trainer import Beginning, Training, traced
from data_pipelines.errors import InputError


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
    training.finished, training.signals = {"focal": {"seconds": 7.0}}, []
    return training


def newest(config, *, finished, epoch=1):
    """Return the record of the newest checkpoint of a run with a config."""
    return {"config": config.to_dict(), "progress": {"finished": finished, "epoch": epoch}}


@pytest.mark.parametrize("freeze_trunk", [True, False])
@pytest.mark.parametrize("phase", ["bce_frozen", "bce"])
def test_the_newest_phase_of_a_run_can_be_extended_if_it_is_finished(phase, freeze_trunk):
    config = recipe.defaults()
    config.name, config.stages.bce.freeze_trunk = "x", freeze_trunk
    done, underway = (newest(config, finished=finished) for finished in (True, False))
    assert training_of(config)._check_epochs(phase, done) is False
    config.stages.bce["frozen_epochs" if phase == "bce_frozen" else "epochs"] += 2
    assert training_of(config)._check_epochs(phase, done) is True
    assert training_of(config)._check_epochs(phase, underway) is False


def test_epochs_of_a_phase_that_is_over_are_refused():
    config = recipe.defaults()
    config.name = "x"
    over = newest(config, finished=False)
    config.stages.bce.frozen_epochs += 2
    with pytest.raises(InputError, match=r"config\.stages\.bce\.frozen_epochs is 5"):
        training_of(config)._check_epochs("bce", over)
    training_of(config)._check_epochs("bce_frozen", over)


def test_fewer_epochs_than_were_trained_are_refused():
    config = recipe.defaults()
    config.name = "x"
    over = newest(config, finished=False, epoch=4)
    config.stages.focal.epochs = 4
    with pytest.raises(InputError, match="focal: set it to 5 or more"):
        training_of(config)._check_epochs("focal", over)
    config.stages.focal.epochs = 5
    training_of(config)._check_epochs("focal", over)


def test_the_steps_of_a_run_are_those_of_one_batch_size():
    config = recipe.defaults()
    config.name = "x"
    underway = newest(config, finished=False)
    config.stages.focal.batch_size *= 2
    with pytest.raises(InputError, match=r"config\.stages\.focal\.batch_size .* of 128:"):
        training_of(config)._check_epochs("focal", underway)


SUGGESTED = re.compile(r"\((--[^)]*)\)")


@pytest.mark.parametrize("find_lr", [False, True])
@pytest.mark.parametrize("last", [None, ("bce", 7)])
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_the_remedies_of_a_nan_change_what_they_say(find_lr, last, clip_norm):
    flags = ["--config.name=x", f"--config.stages.bce.find_lr={find_lr}"]
    flags.append(f"--config.stages.bce.clip_norm={clip_norm}")

    def parsed(*more):
        arguments = cli.parse(cli.Command("", command._OPTIONS, config=True), [*flags, *more])
        given = cli.load_settings(arguments, "demo")
        validate.check(given)
        return arguments.flags["from"].value, given

    before = parsed()[1]
    training = object.__new__(Training)
    training.settings, training.peaks = before, {"bce": 1e-5}  # by a range test, or not
    training.plans = {"bce": SimpleNamespace(stage="bce")}
    limit, lower = map(str.split, SUGGESTED.findall(training._remedy("bce", last)))
    source, limited = parsed(*limit)
    assert (source, limited.name) == ("", "x")
    assert limited.resume == ("auto" if last is None else "force")
    assert 0 < limited.stages["bce"].clip_norm < (clip_norm or np.inf)
    source, lowered = parsed(*lower)
    assert (source, lowered.name) == (("", "x") if last is None else ("x:bce/7", "x-2"))
    assert lowered.stages["bce"].peak_lr < 1e-5
    assert not lowered.stages["bce"].find_lr  # which would overrule it


def small_training(tmp_path):
    config = recipe.defaults()
    config.update(name="x", runs_dir=str(tmp_path))
    return training_of(config)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_calibration_of_a_finished_run(
    number, code, tmp_path, monkeypatch, capsys
):
    training = small_training(tmp_path)
    monkeypatch.setattr(training, "_load", lambda memory: signal.raise_signal(number))
    before = signal.getsignal(number)
    assert training._calibrate() == code
    assert signal.getsignal(number) == before
    message = capsys.readouterr().err
    assert "is finished, but not calibrated" in message
    assert "charm-jax eval --run x" in message
    assert "Done" not in message


def test_a_signal_before_the_calibration_leaves_it_out(tmp_path, monkeypatch):
    training = small_training(tmp_path)
    training.signals = [signal.SIGTERM]
    monkeypatch.setattr(training, "_load", lambda memory: pytest.fail("it was fitted"))
    assert training._calibrate() == 143


def test_a_calibration_says_that_the_run_is_done(tmp_path, monkeypatch, capsys):
    training = small_training(tmp_path)
    monkeypatch.setattr(training, "_load", lambda memory: None)
    monkeypatch.setattr(trainer.fitted, "load_calibrator", lambda run, data: None)
    assert training._calibrate() == 0
    assert "Done in 7 s. Evaluate it: charm-jax eval --run x" in capsys.readouterr().err


def test_images_that_another_process_cannot_load_end_all(tmp_path, monkeypatch):
    training = small_training(tmp_path)
    training.experiment.__dict__["cases"] = None
    monkeypatch.setattr(trainer.processes, "any_of", lambda flag: True)
    with pytest.raises(InputError, match="Another process cannot go on"):
        training.prepare(Beginning(None, Progress("bce")))
