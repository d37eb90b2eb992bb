"""The notebooks run as written, on small networks and images, simulated and real."""

import importlib
import os
import re
import shlex
import shutil
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pytest
from running import SMALL, command_here

from charm_jax.__main__ import _COMMANDS

jupytext = pytest.importorskip("jupytext")
FOLDER = Path(__file__).resolve().parents[2] / "docs/notebooks"


def cells(name):
    """The code cells of a notebook; its commands are calls of ``run``."""
    path = FOLDER / f"{name}.nb.py"
    made = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    for number, source in enumerate(made):
        source = re.sub(r"^!charm-jax (.*)$", r'run(f"\1")', source, flags=re.MULTILINE)
        yield compile(source, f"{path.name}, cell {number}", "exec")


def execute(name, folder, monkeypatch, run="demo", **parameters):
    """Run a notebook in a folder with the finished run, and return its names.

    Args:
        run: if it is another one, its training is only checked, and the finished run stands for it.
        parameters: replace values of the cell with parameters.
    """
    dry = [] if run == "demo" else ["--config.model.backbone=efficientnet_v2_nano", "--dry_run"]
    options = [*SMALL, "--config.model.init_from=random", *dry]

    def call(line):
        command, *words = shlex.split(line)
        if _COMMANDS[command][0].startswith("data_pipelines"):
            assert importlib.import_module(_COMMANDS[command][0]).main(words) == 0
            return
        if command == "eval" and "--config.data" not in line:
            return  # the finished run is evaluated
        result = command_here(command, *words, *options * (command == "train"), cwd=folder)
        assert result.returncode == 0, result.stderr
        if command == "train":
            (folder / "runs/demo").rename(folder / "runs" / run)

    monkeypatch.chdir(folder)
    names = {"run": call}
    try:
        for cell in cells(name):
            exec(cell, names)
            names |= {key: value for key, value in parameters.items() if key in names}
    finally:
        plt.close("all")
    return names


@pytest.fixture
def demo(finished, tmp_path):
    """A folder with the finished run, which the notebooks go on with."""
    for part in ("runs", "data"):
        shutil.copytree(finished[0] / part, tmp_path / part)
    return tmp_path


@pytest.mark.daily
def test_quick_start(demo, monkeypatch):
    names = execute("quick_start", demo, monkeypatch)
    assert names["out"].probs.shape == (4, 14)
    # The files are as large as what the network sees, so nothing is resized.
    np.testing.assert_allclose(names["model"].predict(names["images"]).probs, names["out"].probs)


@pytest.mark.daily
def test_explain_and_forget(demo, monkeypatch):
    names = execute("explain_and_forget", demo, monkeypatch)
    assert len(names["without"].memory) < len(names["model"].memory)
    assert len(names["shown"]) > 0


@pytest.mark.daily
def test_own_data(demo, monkeypatch):
    names = execute("own_data", demo, monkeypatch, "mine", IMAGES=120)
    assert names["table"][names["FINDINGS"]].to_numpy().sum(0).tolist() == [40, 30, 24]
    assert names["out"].probs.shape == (3, 14)


@pytest.mark.daily
def test_chestxray14(demo, monkeypatch):
    """On real images where there are some."""
    root = os.environ.get("CHARM_TEST_DATA")
    folder = Path(root, "nih_chest_xray14") if root else demo / "data/phantom"
    monkeypatch.setenv("CHARM_DATA", str(folder))
    names = execute("chestxray14", demo, monkeypatch, "nih", CONFIG="lite0")
    assert names["nih"] == folder
    assert len(list((demo / "part/images").iterdir())) == 225
    assert list((demo / "runs/nih/eval").glob("test-nih_chest_xray14-*"))


def test_the_nih_folder_is_drawn_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHARM_DATA", raising=False)
    names = {}
    with mock.patch("subprocess.run") as called:
        for cell in list(cells("chestxray14"))[:3]:
            exec(cell, names)
    assert called.call_args.args[0][1:4] == ["-m", "charm_jax", "phantom"]
    assert names["nih"] == Path("simulated")


def test_every_notebook_is_run_here():
    tested = {name.removeprefix("test_") for name in globals()}
    assert {path.name.removesuffix(".nb.py") for path in FOLDER.glob("*.py")} <= tested
