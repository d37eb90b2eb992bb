import errno
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from weight_states import NANO, new_baseline_state, new_state, random_like

from charm_jax import convert
from charm_jax.config import recipe
from charm_jax.config.cli import guarded
from charm_jax.config.settings import PHASES
from charm_jax.models.backbones import BACKBONES
from charm_jax.runs import folder as runs
from charm_jax.runs.checkpoints import Checkpoints
from charm_jax.weights import card, files, load
from data_pipelines.errors import InputError
from data_pipelines.tables.findings import NIH_FINDINGS


def make_run(folder, state):
    run = folder / "runs" / "tried"
    run.mkdir(parents=True)
    config = recipe.defaults()
    config.model.backbone = NANO
    runs.write_json(run / "config.json", config.to_dict())
    split = {"source": "phantom", "simulated": True, "patients_known": True, "rule": "official"}
    runs.write_json(run / "split.json", split | {"findings": list(NIH_FINDINGS), "stages": {}})
    checkpoints = Checkpoints(run / "checkpoints", PHASES, keep=2)
    checkpoints.save("bce", state, {"progress": {"best_step": 0}}, 0)
    checkpoints.close()
    return run


@pytest.fixture
def state():
    empty = new_state(NANO)
    bank = empty.memory.replace(
        features=empty.memory.features.at[:3].set(2.0), cursor=empty.memory.cursor + 3
    )
    return empty.replace(
        params=random_like(empty.params), memory=bank, opt_state={"count": np.zeros(2)}
    )


def test_a_run_becomes_a_file_that_loads_again(tmp_path, state, capsys):
    run = make_run(tmp_path, state)
    target = tmp_path / "weights.safetensors"
    arguments = ["--run", str(run), "--to", "safetensors", "--checkpoint", "bce/0", str(target)]
    assert guarded(convert.main, arguments) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"checkpoint bce/0 of {run} to {target}." in shown.err
    made = load.load(new_state(NANO), files.read(target), BACKBONES[NANO])
    loaded = made.state
    assert made.left_out == []
    chex.assert_trees_all_equal(loaded.params, state.params)
    chex.assert_trees_all_equal(loaded.momentum, jax.tree.map(np.asarray, state.momentum))
    chex.assert_trees_all_equal(loaded.memory.features, state.memory.features)
    assert int(loaded.memory.cursor) == 3


def test_a_plain_run_gets_torchvisions_names(tmp_path):
    run = make_run(tmp_path, new_baseline_state(NANO))
    assert convert.main([str(tmp_path / "plain.safetensors"), f"--run={run}"]) == 0
    names = files.read(tmp_path / "plain.safetensors").keys()
    assert {"features.0.0.weight", "classifier.1.weight"} <= names
    assert not any(name.startswith(("base_model.", "memory_bank.")) for name in names)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name one file to write, not 0"),
        (["--run=tried", "--to=torch"], "Name one file to write, not 0"),
        (["a.safetensors", "--run=tried", "b.safetensors"], "Name one file to write, not 2"),
        (["--run=tried", "--to=torch", "a.safetensors"], "give --to safetensors, or use .pth"),
        (["--run=tried", "a.pth"], "give --to torch, or use .safetensors"),
        (["--run=tried", "--to=torch", "told.pth"], "told.pth.json already exists: move it"),
        (
            ["--run=tried", "--to=safetensors", "a.npz"],
            "a.npz has no suffix of a weight file: use one of .pt",
        ),
        (["--run=tried", "--to=safetensors", "none/a.safetensors"], "There is no folder none"),
        (["--run=tried", "--to=safetensors", "there.safetensors"], "already exists"),
        (["--run=tride", "--to=safetensors", "a.safetensors"], "did you mean 'tried'?"),
        (["--run=tried", "--to=keras", "a.keras"], "--to is 'keras': choose one of torch"),
        (["--config.model.charm=False", "a.safetensors"], "only --config.runs_dir can be given"),
        (["-config.seed=2", "a.safetensors"], "only --config.runs_dir can be given"),
        (["--config=a.py", "a.safetensors"], "Unexpected option --config"),
        (["--run=tried", "--checkpoint=focal/7", "a.safetensors"], "no checkpoint 'focal/7'"),
    ],
)
def test_bad_arguments_get_a_sentence_and_leave_nothing(tmp_path, capsys, arguments, said):
    make_run(tmp_path, new_state(NANO))
    (tmp_path / "there.safetensors").write_text("mine")
    (tmp_path / "told.pth.json").write_text("{}")
    assert guarded(convert.main, arguments) == 2
    assert said in capsys.readouterr().err
    mine = {"runs", "there.safetensors", "told.pth.json"}
    assert {file.name for file in tmp_path.iterdir()} == mine
    assert (tmp_path / "there.safetensors").read_text() == "mine"


def test_a_damaged_checkpoint_is_refused(tmp_path, state):
    run = make_run(tmp_path, state)
    largest = max((run / "checkpoints").rglob("*"), key=lambda f: f.is_file() and f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged"):
        convert.main([f"--run={run}", str(tmp_path / "a.safetensors")])
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("where", ["write_bytes", "write_beside"])
@pytest.mark.torch
def test_a_disk_that_fills_leaves_neither_weights_nor_card(tmp_path, capsys, monkeypatch, where):
    pytest.importorskip("torch")
    run = make_run(tmp_path, new_baseline_state(NANO))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path if where == "write_bytes" else card, where, full)
    assert guarded(convert.main, [f"--run={run}", "--to=torch", "a.pth"]) == 2
    assert "no space is left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
