"""Trackers get what metrics.jsonl has; one that fails is left alone."""

import json
import logging
import sys
import types

import pytest

from charm_jax.config import recipe
from charm_jax.train import trackers
from data_pipelines.errors import InputError

CONFIG = {"seed": 3, "model": {"momentum": 0.99}}
VALUES = {"loss": 0.5, "similarity": None}


class Wandb(types.SimpleNamespace):
    """Keeps what Weights & Biases would send."""

    Settings = dict

    def __init__(self):
        super().__init__(begun=[], logged=[], metrics=[], finished=0)

    def init(self, **given):
        self.begun.append(given)
        return self

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def opened(*names, directory, position=("bce", 0)):
    return trackers.open_trackers(names, directory, position, CONFIG)


def test_the_config_knows_every_tracker():
    assert (*trackers.TRACKERS,) == recipe.TRACKERS


def test_a_restart_continues_the_run_of_a_tracker(tmp_path, wandb):
    for step in (4, 8):
        [tracker] = opened("wandb", directory=tmp_path)
        tracker.write("bce", "interval", step, VALUES)
        tracker.close()
    first, second = wandb.begun
    assert first["id"] == second["id"]
    assert (first["name"], first["resume"]) == (tmp_path.name, "allow")
    assert first["config"] == {"seed": 3, "model.momentum": 0.99}
    assert wandb.metrics[0] == ("bce/*", "bce/step")
    assert wandb.logged == [{"bce/step": step, "bce/interval/loss": 0.5} for step in (4, 8)]
    assert wandb.finished == 2


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_said_once_and_left_alone(tmp_path, wandb, broken, caplog):
    def fail(*_, **__):
        raise ConnectionError("no route to host\nTraceback")

    setattr(wandb, broken, fail)
    caplog.set_level(logging.WARNING)
    [tracker] = opened("wandb", directory=tmp_path)
    for step in (4, 8):
        tracker.write("bce", "interval", step, VALUES)
    tracker.close()
    tracker.close()
    [record] = caplog.records
    assert record.getMessage() == (
        "wandb gets no more metrics (no route to host); metrics.jsonl has all."
    )


def test_a_tracker_that_is_not_installed_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    trackers.check(["tensorboard"])
    with pytest.raises(InputError, match=r'pip install "charm-jax\[mlflow\]"'):
        trackers.check(["tensorboard", "mlflow"])


@pytest.mark.filterwarnings("ignore")  # of its own database
def test_mlflow_has_the_values_by_step_and_the_config(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = tmp_path / "demo"
    run.mkdir()
    for step in (4, 8):
        [tracker] = opened("mlflow", directory=run)
        tracker.write("bce", "epoch", step, VALUES)
        tracker.close()
    client = mlflow.MlflowClient()
    name = json.loads((run / "trackers.json").read_text())["mlflow"]
    found = client.get_run(name)
    assert found.data.params == {"seed": "3", "model.momentum": "0.99"}
    assert found.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(name, "bce/epoch/loss")] == [4, 8]


def test_wandb_takes_what_it_is_given(tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    caplog.set_level(logging.WARNING)
    [tracker] = opened("wandb", directory=tmp_path)
    tracker.write("bce", "epoch", 4, VALUES)
    tracker.close()
    assert not caplog.records
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
