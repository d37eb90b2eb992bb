"""A run whose stored cases vote, from training to evidence."""

import csv
import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from running import SMALL, command_here, copy_data, read, train, train_here

import charm_jax
from charm_jax import convert
from charm_jax.config import build
from charm_jax.config.cli import guarded
from charm_jax.export import verified
from charm_jax.inference import loaded
from charm_jax.runs.banks import TRAINED
from charm_jax.runs.folder import restore
from charm_jax.weights import card

pytestmark = pytest.mark.daily

RUN = "runs/vote"
KEYS = (
    "--config.preset=vote",
    "--config.name=vote",
    "--config.stages.bce.frozen_epochs=0",
    "--config.model.bank_size=150",
    "--config.model.retrieval_k=20",
)


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vote")
    copy_data(finished, folder)
    trained = train_here(*KEYS, cwd=folder)
    assert trained.returncode == 0, trained.stderr
    assert "with CHARM (vote)" in trained.stderr
    assert "warning" not in trained.stderr
    evaluated = command_here("eval", "--run", "vote", cwd=folder)
    assert evaluated.returncode == 0, evaluated.stderr
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return charm_jax.load(folder / RUN)


def test_training_ends_with_a_bank_of_its_own_cases_each_once(folder, model):
    made = read(folder / RUN / "memory" / TRAINED / "memory.json")
    assert (made["rule"], made["split"], made["cases"]) == ("balanced", "train", 150)
    assert made["images"] > 150
    cases = model.memory.cases
    assert len(cases) == len(model.memory) == cases["image"].nunique() == 150
    split = pd.read_csv(folder / RUN / "cases.csv")
    assert cases["image"].isin(split["image"]).all()


def same_end(folder, run, other):
    """Assert that two runs ended with the same parameters and the same bank."""
    for file in ("summary.json", f"memory/{TRAINED}/memory.json"):
        ended, expected = read(folder / run / file), read(other / RUN / file)
        for key in ("params_sha256", "weights_sha256", "images"):
            assert ended.get(key) == expected.get(key)
    bank = f"memory/{TRAINED}/bank.safetensors"
    assert (folder / run / bank).read_bytes() == (other / RUN / bank).read_bytes()


def test_a_run_that_is_killed_ends_with_the_same_parameters_and_bank(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    command = [sys.executable, "-m", "charm_jax.train", *SMALL, *KEYS]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    log = tmp_path / RUN / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 6):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9
    continued = train(*KEYS, cwd=tmp_path)
    assert continued.returncode == 0, continued.stderr
    assert f"Continuing {RUN} from step" in continued.stderr
    same_end(tmp_path, RUN, folder)


def test_a_bank_that_was_not_filled_is_filled_by_the_same_command(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / RUN / "memory" / TRAINED)
    (tmp_path / "copy" / RUN / "summary.json").unlink()
    again = train_here(*KEYS, cwd=tmp_path / "copy")
    assert again.returncode == 0, again.stderr
    same_end(tmp_path / "copy", RUN, folder)


def test_the_bank_holds_what_an_evaluation_computes(folder, model):
    shapes = build.state_shapes(model.model.network, model.model.settings)
    ring = restore(folder / RUN, "best", lambda _: shapes)[0].memory
    bank = model.model.state.memory
    rows = {int(case): slot for slot, case in enumerate(ring.case_ids)}
    shared = [slot for slot, case in enumerate(bank.case_ids.tolist()) if case in rows]
    theirs = [rows[int(bank.case_ids[slot])] for slot in shared]
    assert len(shared) > 20
    # Training's features used the statistics of a batch.
    assert not np.allclose(np.asarray(bank.features)[shared], np.asarray(ring.features)[theirs])


def test_shares_add_up_to_the_vote_and_ten_are_listed(folder, model):
    image = folder / "data/phantom/images/00000001_000.png"
    predicted = command_here("predict", str(image), "--run", "vote", cwd=folder)
    assert predicted.returncode == 0, predicted.stderr
    record = json.loads(predicted.stdout.splitlines()[-1])
    assert len(record["evidence"]) == 10
    assert all(0 <= value <= 1 for value in record["vote"].values())
    for name, value in record["vote"].items():
        listed = sum(entry["contributions"][name] for entry in record["evidence"])
        assert -1e-6 <= listed <= value + 1e-5
        for entry in record["evidence"]:
            assert (entry["contributions"][name] > 0) <= (name in entry["labels"])
    own = {entry["patient"] for entry in record["evidence"]}
    assert record["known_as"].split("_")[0].lstrip("0") not in own


def test_forgetting_cases_is_the_same_as_a_bank_without_them(folder, model):
    images = np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8)
    read_cases = {entry["case"] for entry in model.predict(images).evidence[0]}
    fewer = model.memory.forget(sorted(read_cases))
    after = fewer.predict(images)
    assert len(fewer.memory) == 150 - len(read_cases)
    assert not read_cases & {entry["case"] for entry in after.evidence[0]}
    assert np.abs(after.logits - model.predict(images).logits).max() > 1e-3


def test_a_bank_that_a_user_fills_and_its_list(folder):
    refilled = command_here(
        "memory", "vote", "refill", "--label", "val", "--split", "val", cwd=folder
    )
    assert refilled.returncode == 0, refilled.stderr
    listed = command_here("memory", "vote", "list", "--memory", "val", cwd=folder)
    rows = list(csv.DictReader(io.StringIO(listed.stdout)))
    assert {row["slots"] for row in rows} == {"1"}
    assert len(rows) == read(folder / RUN / "memory/val/memory.json")["cases"]


def test_the_report_says_how_the_bank_was_filled(folder):
    page = (folder / RUN / "eval/test/report.html").read_text()
    assert "chosen by the rule balanced (all cases, or as many of each finding" in page
    assert "reads the 20 most similar ones" in page


def test_a_file_holds_the_network_without_its_vote(folder, model, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    assert guarded(convert.main, ["w.safetensors", "--run", "vote"]) == 0
    assert "w.safetensors gives other scores than runs/vote" in capfd.readouterr().err
    assert card.read(Path("w.safetensors")).retrieval_k is None
    plain = charm_jax.load("w.safetensors")
    images = np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8)
    empty = model.memory.forget(model.memory.cases["image"].tolist())
    np.testing.assert_allclose(
        plain.predict(images).logits, empty.predict(images).logits, rtol=1e-4, atol=1e-4
    )


def test_a_damaged_bank_is_named_and_the_keys_of_training_vote(folder, caplog):
    bank = folder / RUN / "memory" / TRAINED / "bank.safetensors"
    whole = bank.read_bytes()
    bank.write_bytes(whole[:100])
    damaged = charm_jax.load(folder / RUN)
    bank.write_bytes(whole)
    assert f"memory/{TRAINED} is damaged and not read: delete it." in caplog.text
    assert "votes with the keys that training stored last" in caplog.text
    assert 0 < len(damaged.memory) <= 150


def test_what_is_fitted_belongs_to_the_numbers_of_the_vote(model):
    reading = model.model.reading(model.model.settings.data)
    assert (reading["vote_weight"], reading["vote_temperature"]) == (0.4, 0.05)


def test_a_run_with_another_memory_is_refused_with_the_key(folder):
    refused = train_here("--config.name=other", "--from", "vote", cwd=folder)
    assert refused.returncode == 2
    assert "--config.model.memory=vote" in refused.stderr
    assert not (folder / "runs/other").exists()


@pytest.mark.daily
def test_it_is_written_as_onnx(folder, tmp_path):
    for package in ("onnx", "onnxruntime", "jax2onnx"):
        pytest.importorskip(package)
    differences = verified.write(loaded.load_run(folder / RUN), tmp_path / "vote.onnx", "onnx")
    assert max(differences.values()) < 1e-4
