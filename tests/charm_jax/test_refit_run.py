"""A run whose classifier is refitted at its end."""

import contextlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import command_here, read, train_here
from safetensors.numpy import load_file

import charm_jax
from charm_jax.inference.loaded import load_run
from charm_jax.models.losses import LOSSES
from charm_jax.runs import data as run_data
from charm_jax.runs import refitted
from charm_jax.runs.arguments import read_settings
from charm_jax.runs.checkpoints import network_sha256
from charm_jax.train import __main__ as command
from charm_jax.train import trainer
from data_pipelines.errors import InputError

RUN = "runs/demo"


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    """A finished run that is refitted later."""
    folder = tmp_path_factory.mktemp("refit")
    for name in ("data", "runs"):
        shutil.copytree(finished[0] / name, folder / name)
    done = train_here("--config.refit=plain", "--config.resume=force", cwd=folder)
    assert done.returncode == 0, done.stderr
    made = read(folder / RUN / "summary.json")["refit"]
    assert f"Classifier refitted (plain, L2 {made['l2']:g})" in done.stderr
    assert "the refitted one is used" in done.stderr
    return folder


@contextlib.contextmanager
def training(folder):
    """Yield a stand-in for `Training` with what its refit needs."""
    with contextlib.chdir(folder):
        run = Path(RUN)
        settings = read_settings(run)
        experiment = SimpleNamespace(data=run_data.load_data(settings))
        yield SimpleNamespace(
            directory=run,
            settings=settings,
            experiment=experiment,
            _finish=lambda work: work(),
            _load=lambda memory: load_run(run, memory=memory),
        )


def test_the_layer_that_is_better_on_validation_is_used(finished, folder):
    made = read(folder / RUN / "summary.json")["refit"]
    assert made["replaced"]
    assert made["val_loss"] < made["val_loss_before"]
    with contextlib.chdir(folder):
        before = charm_jax.load(finished[0] / RUN).model
        after = charm_jax.load(folder / RUN).model
        layer = refitted.layer_of(after.state)
        jax.tree.map(np.testing.assert_array_equal, layer, load_file(folder / RUN / refitted.FILE))
        data = run_data.load_data(after.settings)
        losses = {}
        for split in ("train", "val"):
            rows = data.split.rows("focal", split)
            labels = jnp.asarray(data.table.labels[rows])
            logits = [model.predict_rows(data, rows, split)["logits"] for model in (before, after)]
            losses[split] = [float(LOSSES["focal"](jnp.asarray(z), labels)) for z in logits]
    assert losses["val"] == pytest.approx([made["val_loss_before"], made["val_loss"]], rel=1e-4)
    assert losses["train"][1] < losses["train"][0]


def test_killed_after_it_was_written_the_layer_is_fitted_from_the_trained_one_again(folder):
    file = folder / RUN / refitted.FILE
    written = file.read_bytes()
    with training(folder) as run:
        trainer.Training._refit(run)
    assert file.read_bytes() == written
    assert run.refitted == read(folder / RUN / "summary.json")["refit"]


def test_a_layer_that_is_no_better_on_validation_is_not_used(folder, monkeypatch, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")

    def worse(features, labels, start, **_):
        return jax.tree.map(lambda leaf: jnp.stack([leaf + 9] * 4), start)

    monkeypatch.setattr(trainer.refit, "fit", worse)
    with training(tmp_path / "copy") as run:
        trainer.Training._refit(run)
    assert not run.refitted["replaced"]
    assert run.refitted["val_loss"] > run.refitted["val_loss_before"]
    assert not (tmp_path / "copy" / RUN / refitted.FILE).exists()


def test_a_checkpoint_that_cannot_be_read_keeps_the_classifier_of_training(
    folder, tmp_path, capsys
):
    shutil.copytree(folder, tmp_path / "copy")
    with training(tmp_path / "copy") as run:

        def damaged(memory):
            raise InputError("focal/9 is damaged.")

        run._load = damaged
        trainer.Training._refit(run)
    assert "focal/9 is damaged. The classifier of training is kept" in capsys.readouterr().err
    assert not (tmp_path / "copy" / RUN / refitted.FILE).exists()


def test_an_evaluation_says_that_the_classifier_was_refitted(finished, folder):
    done = command_here("eval", "--run", "demo", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "with its classifier refitted (plain)" in done.stdout
    assert read(folder / RUN / "eval/test/metrics.json")["refit"] == "plain"
    report = (folder / RUN / "eval/test/report.html").read_text()
    assert "<dt>Classifier refitted</dt><dd>plain</dd>" in report
    assert read(finished[0] / RUN / "eval/test/metrics.json")["refit"] is None


def test_another_run_trains_on_from_the_layer_of_training(finished, folder):
    """A refitted one fits running statistics: with those of batches its logits may be any."""
    keys = ("--config.name=next", "--config.stages.bce.epochs=0", "--config.stages.focal.epochs=1")
    done = train_here("--from=demo", *keys, "--config.stages.bce.frozen_epochs=0", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "other images" not in done.stderr  # stage focal has those of stage bce, too
    state = load_run(finished[0] / RUN).state
    assert read(folder / "runs/next/weights.json")["sha256"] == network_sha256(state)


def test_several_processes_are_told_that_they_cannot_refit(monkeypatch):
    monkeypatch.setattr(command.jax, "process_count", lambda: 2)
    settings = command.cli.settings_from({"refit": "balanced"}, "here")
    with pytest.raises(InputError, match=r"config\.refit is balanced and 2 processes train"):
        command._check_refit(settings)
