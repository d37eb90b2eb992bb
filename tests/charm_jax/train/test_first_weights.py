import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import experiment_of
from tables import small_table

from charm_jax.config import cli, recipe
from charm_jax.models.state import TrainState
from charm_jax.runs.checkpoints import Checkpoints
from charm_jax.train import __main__ as command
from charm_jax.train import first_weights
from data_pipelines.errors import InputError

SPLIT = {"findings": ["Mass"], "sha256": {}, "cases": ""}


def state_of(value, average=None):
    params = {"head": {"bias": jnp.full(2, value)}}
    return TrainState(jnp.int32(0), params, {}, None, None, (), jax.random.key(0), average=average)


def other_run(folder, config, value=2.0, average=None):
    """Write a run `other` with one checkpoint."""
    checkpoints = Checkpoints(folder / "other/checkpoints", ("bce",), keep=1)
    meta = {
        "progress": {"best_step": 8},
        "split": SPLIT,
        "config": {"model": {"average": config.get("average", 0.0)}},
    }
    checkpoints.save("bce", state_of(value, average), meta, 8)
    checkpoints.close()
    groups = {"data": ("image_size", "value_range")}
    raw = {"model": {k: v for k, v in config.items() if k not in groups["data"]}}
    raw["data"] = {k: v for k, v in config.items() if k in groups["data"]}
    (folder / "other/config.json").write_text(json.dumps(raw))


@pytest.fixture
def experiment(tmp_path):
    """A run beside `other`."""
    config = recipe.defaults()
    config.update(name="x", runs_dir=str(tmp_path))
    config.model.input_range = "imagenet"
    experiment = experiment_of(config, {"bce": 640, "focal": 1280})
    experiment.data.table = small_table(2, findings=("Mass",))
    experiment.data.seen = np.arange(2)
    (tmp_path / "other").mkdir()
    names = "".join(f"{name}\n" for name in experiment.data.table.images)
    (tmp_path / "other/trained_on.txt").write_text(names)
    return experiment


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_run_begins_from_the_averaged_weights_of_another(average, tmp_path, experiment):
    weights = {"params": state_of(3.0).params, "batch_stats": {}}
    other_run(tmp_path, {"average": average}, average=weights if average else None)
    state, file = first_weights._of_run(experiment, state_of(1.0), SPLIT, "other:last")
    assert state.params["head"]["bias"].tolist() == [3.0 if average else 2.0] * 2
    assert state.average is None
    assert file["init_from"] == "other:last"


def test_images_that_only_the_other_run_saw_are_counted(tmp_path, experiment, capsys):
    other_run(tmp_path, {})
    first_weights._of_run(experiment, state_of(1.0), SPLIT, "other:last")
    assert capsys.readouterr().err == ""
    with (tmp_path / "other/trained_on.txt").open("a") as file:
        file.write("elsewhere/1.png\nelsewhere/2.png\n")
    first_weights._of_run(experiment, state_of(1.0), SPLIT, "other:last")
    assert "saw 2 other images, whose patients" in capsys.readouterr().err


def given(text):
    """Settings of a command with the flags that a sentence names."""
    flags = [word.strip(":.,;()") for word in shlex.split(text) if word.startswith("--config.")]
    parsed = cli.parse(cli.Command("", command._OPTIONS, config=True), flags)
    return cli.load_settings(parsed, "demo")


@pytest.mark.parametrize(
    ("key", "value"), [("channels", 1), ("charm", False), ("fusion", False), ("bank_size", 64)]
)
def test_a_run_of_another_architecture_is_refused_with_the_key(key, value, tmp_path, experiment):
    other_run(tmp_path, {key: value})
    with pytest.raises(InputError, match=f"architecture: give --config.model.{key}={value}") as no:
        first_weights._of_run(experiment, state_of(1.0), SPLIT, "other")
    assert getattr(given(str(no.value)).model, key) == value


def test_settings_that_weights_are_used_to_are_said_where_they_differ(tmp_path, experiment, capsys):
    habits = {"input_range": "xrv", "image_size": 64, "value_range": "4095", "retrieval_k": 3}
    other_run(tmp_path, habits)
    first_weights._of_run(experiment, state_of(1.0), SPLIT, "other:last")
    told = given(capsys.readouterr().err)
    assert {**vars(told.model), **vars(told.data)}.items() >= habits.items()


def test_weights_that_another_process_lacks_end_all(experiment, monkeypatch):
    monkeypatch.setattr(first_weights.processes, "any_of", lambda flag: True)
    with pytest.raises(InputError, match="Another process cannot go on"):
        first_weights.first_weights(experiment, state_of(1.0), SPLIT)
