"""Test the folder of a run, and file systems without locks."""

import errno
import itertools
import json
import logging

import pytest
from filelock import FileLock

from charm_jax.config import recipe, settings
from charm_jax.config.settings import PHASES
from charm_jax.runs import folder
from data_pipelines.errors import InputError


def settings_of(epochs):
    """Settings with these epochs in each of the four phases."""
    config = recipe.defaults()
    for phase, count in zip(PHASES, epochs, strict=True):
        key = "frozen_epochs" if phase.endswith("_frozen") else "epochs"
        config.stages[phase.removesuffix("_frozen")][key] = count
    return settings.from_dict(config.to_dict())


EPOCHS = [epochs for epochs in itertools.product(range(3), repeat=4) if any(epochs)]
SETTINGS = {epochs: settings_of(epochs) for epochs in EPOCHS}


def trained(began, newest, done, wanted):
    """Epochs of each phase after training goes on from a phase, as a run does it: forwards."""
    before, after = list(began[:newest]), list(wanted[newest + 1 :])
    return (*before, max(done, wanted[newest]), *after)


def accepted(check, *arguments):
    try:
        return True, check(*arguments)
    except InputError as error:
        assert "config.stages." in str(error)
        assert "--from" in str(error)
        return False, None


def test_a_finished_run_takes_the_epochs_that_training_would_bring_about(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    for began, wanted in itertools.product(EPOCHS, repeat=2):
        last = max(i for i, count in enumerate(began) if count)
        possible = trained(began, last, began[last], wanted) == wanted
        answer = accepted(folder.is_finished, tmp_path, SETTINGS[began], SETTINGS[wanted])
        assert answer == (possible, began == wanted if possible else None), (began, wanted)


def test_a_run_that_was_cut_off_takes_the_epochs_that_training_would_bring_about(tmp_path):
    of = {epochs: folder.phase_epochs(config.raw) for epochs, config in SETTINGS.items()}
    for began, wanted in itertools.product(EPOCHS, repeat=2):
        for newest, count in enumerate(began):
            for done in range(1, count + 1):  # the epoch that it is in
                possible = trained(began, newest, done, wanted) == wanted
                check = (tmp_path, of[began], of[wanted], PHASES[newest], done)
                assert accepted(folder.check_epochs, *check)[0] == possible, check


def test_a_finished_run_that_is_to_be_refitted_is_not_finished(tmp_path):
    (tmp_path / "summary.json").write_text('{"refit": {}}')
    began = SETTINGS[1, 1, 1, 1]
    refitted = settings.from_dict(began.raw | {"refit": "plain"})
    assert folder.is_finished(tmp_path, refitted, refitted)
    assert not folder.is_finished(tmp_path, began, refitted)
    assert not folder.is_finished(tmp_path, refitted, began)
    (tmp_path / "summary.json").write_text("{}")  # its checkpoint could not be read
    assert not folder.is_finished(tmp_path, refitted, refitted)


def test_epochs_that_cannot_be_trained_are_named_with_those_that_can(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    began = SETTINGS[0, 2, 0, 1]
    for wanted, words in {
        (0, 2, 2, 1): "config.stages.focal.frozen_epochs is 2 and .* phase focal: set it to 0,",
        (0, 2, 0, 0): "config.stages.focal.epochs is 0 and .* phase focal: set it to 1 or more,",
        (1, 1, 0, 1): "config.stages.bce.frozen_epochs is 1 and",
    }.items():
        with pytest.raises(InputError, match=words):
            folder.is_finished(tmp_path, began, SETTINGS[wanted])


def test_a_run_without_a_summary_is_not_finished(tmp_path):
    assert not folder.is_finished(tmp_path, SETTINGS[1, 1, 1, 1], SETTINGS[1, 1, 1, 1])


def test_the_epochs_of_an_old_config_count_as_none():
    assert set(folder.phase_epochs({"stages": {"bce": {"epochs": 2}}}).values()) == {0, 2}
    assert set(folder.phase_epochs({}).values()) == {0}


def test_an_unknown_prevalence_is_read_as_none(tmp_path):
    text = json.dumps({"findings": ["Mass", "Edema"], "prevalence": {"Mass": None, "Edema": 0.0}})
    assert folder.prevalence(tmp_path, json.loads(text)) == (None, 0.0)


def refusing(number):
    def refuse(*_):
        raise OSError(number, "refused")

    return refuse


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_a_run_goes_on_with_a_warning(number, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("fcntl.flock", refusing(number))
    with folder.locked(tmp_path / "run"):
        (tmp_path / "run" / "config.json").touch()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{tmp_path / 'run'} has no locks" in record.message


def test_other_errors_and_other_processes_are_not_taken_for_a_lack_of_locks(tmp_path, monkeypatch):
    with (
        FileLock(tmp_path / "lock"),
        pytest.raises(InputError, match="Another process is training"),
        folder.locked(tmp_path),
    ):
        pass
    monkeypatch.setattr("fcntl.flock", refusing(errno.EIO))
    with pytest.raises(OSError, match="refused"), folder.locked(tmp_path):
        pass
