"""A command that is refused leaves every byte of a run as it was."""

import shutil

import numpy as np
import pytest
from running import SMALL

from charm_jax.runs import data
from charm_jax.runs.cases import cases_sha256
from charm_jax.train import __main__ as train_command
from charm_jax.train import lr_finder


@pytest.fixture(scope="module")
def unfinished(finished, tmp_path_factory):
    """The run `demo` as if it had been cut off, with its data."""
    folder = tmp_path_factory.mktemp("unfinished") / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "runs/demo/summary.json").unlink()
    # What a killed save leaves behind.
    rest = folder / "runs/demo/checkpoints/focal/9999.orbax-checkpoint-tmp"
    rest.mkdir()
    (rest / "half").write_text("written")
    return folder


def every_byte(run):
    """Content and time of each file of a folder."""
    return {
        str(path.relative_to(run)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def with_other_images(folder):
    other = folder / "other"
    if not other.exists():
        shutil.copytree(folder / "data/phantom", other)
        next(iter(sorted((other / "images").iterdir()))).unlink()
    return [
        "--config=demo",
        "--config.data.dir=other",
        "--config.data.missing=skip",
        "--config.resume=force",
    ]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--config.data.split_seed=7"], "split_seed"),
        (["--config.data.split=patient", "--config.resume=force"], "The images of"),
        (["--config.model.bank_size=64", "--config.resume=force"], "another architecture"),
        pytest.param(
            ["--config.model.backbone=densenet121", "--config.resume=force"],
            "architecture",
            marks=pytest.mark.daily,
        ),
        (["--config.stages.bce.batch_size=4096", "--config.resume=force"], "batch_size"),
        (["--config.stages.focal.loss=dice"], "dice"),
        (["--config.stages.bce.epochs=9", "--config.resume=force"], "set it to 2, or"),
        (["--config.stages.bce.epochs=1", "--config.resume=force"], "set it to 2, or"),
        (["--config.stages.focal.frozen_epochs=1", "--config.resume=force"], "set it to 0, or"),
        (["--config.stages.focal.epochs=0", "--config.resume=force"], "set it to 2 or more"),
        (["--config.stages.focal.batch_size=16", "--config.resume=force"], "batches of 32"),
        (with_other_images, "The images of"),
    ],
)
def test_a_refused_resume_changes_nothing(unfinished, refused, arguments, word):
    if callable(arguments):
        arguments = arguments(unfinished)
    before = every_byte(unfinished / "runs/demo")
    refused(train_command.main, [*SMALL, *arguments], word, cwd=unfinished)
    assert every_byte(unfinished / "runs/demo") == before


def test_a_resume_on_a_table_that_numbers_its_cases_differently_changes_nothing(
    unfinished, refused, monkeypatch
):
    """Other rows may shift the ids of the same training images."""

    monkeypatch.setattr(data, "cases_sha256", lambda table, ids: cases_sha256(table, ids[1:]))
    before = every_byte(unfinished / "runs/demo")
    refused(train_command.main, SMALL, "numbers its images", cwd=unfinished)
    assert every_byte(unfinished / "runs/demo") == before


@pytest.mark.parametrize(
    ("argument", "word"),
    [
        ("--config.model.init_from=gone.safetensors", "gone.safetensors"),
        ("--config.stages.bce.find_lr", "found no rate"),
    ],
)
def test_a_new_run_that_is_refused_leaves_no_folder(
    unfinished, refused, monkeypatch, argument, word
):
    flat = np.ones(2), np.ones(2)
    monkeypatch.setattr(lr_finder, "sweep", lambda state, batches, step: flat)
    refused(train_command.main, [*SMALL, "--config.name=new", argument], word, cwd=unfinished)
    assert not (unfinished / "runs/new").exists()
