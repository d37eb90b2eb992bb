"""Several runs predict files together, from the command line and from Python."""

import json
import shutil

import numpy as np
import pytest
from running import command_here, copy_with_earlier, read

import charm_jax
from charm_jax.export import portable
from charm_jax.inference import loaded
from charm_jax.predict import __main__ as predict
from charm_jax.predict import text
from data_pipelines.tables.findings import NIH_FINDINGS

BOTH = ["--run=demo", "--run=other"]


@pytest.fixture(scope="module")
def home(finished, tmp_path_factory):
    return copy_with_earlier(finished, tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def images(home):
    tested = (home / "data/phantom/test_list.txt").read_text().split()[0]
    trained = (home / "runs/demo/trained_on.txt").read_text().split()[0]
    return [str(home / "data/phantom/images" / name) for name in (tested, trained)]


@pytest.fixture(scope="module")
def records(home, images):
    arguments = [*images, *BOTH, "--coverage=0.8", "--json"]
    done = command_here("predict", *arguments, cwd=home)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_mean_is_predicted_and_each_run_gives_its_evidence(home, records):
    assert [record["seen_in_training"] for record in records] == [False, True]
    for record in records:
        assert list(record["members"]) == list(record["runs"]) == ["demo", "other"]
        total = 0
        for name, member in record["members"].items():
            assert member["evidence"]
            fitted = read(home / "runs" / name / "calibration.json")["findings"]
            divisors = [fitted[finding]["temperature"] or 1.0 for finding in NIH_FINDINGS]
            total += np.array([*member["logits"].values()]) / divisors
        np.testing.assert_allclose([*record["logits"].values()], total / 2, atol=1e-4)
        for finding in record["findings"]:
            assert {f"demo {finding}", f"other {finding}"} <= set(record["overlays"])
        assert set(record["sets"]) == set(NIH_FINDINGS)
        shown = text.describe(record, dict.fromkeys(NIH_FINDINGS, 0.5))
        assert shown.count("leaned on") >= 2
        assert "  demo: highest scores" in shown
        assert "at a coverage of 0.8" in shown


def test_python_predicts_the_same(home, images, records, monkeypatch):
    monkeypatch.chdir(home)
    model = charm_jax.load(["runs/demo", "runs/other"])
    out = model.predict(images, coverage=0.8)
    for row, record in enumerate(records):
        np.testing.assert_allclose(out.probs[row], [*record["scores"].values()], atol=1e-5)
        found = [n for n, yes in zip(out.pathologies, out.positive[row], strict=True) if yes]
        assert found == record["findings"]
        cases = [(entry["run"], entry["case"]) for entry in out.evidence[row]]
        members = record["members"].items()
        assert cases == [(n, e["case"]) for n, m in members for e in m["evidence"]]
        if record["sets"]:
            held = {
                n: [("absent", "present")[k] for k in np.flatnonzero(h)]
                for n, h in zip(out.pathologies, out.sets[row], strict=True)
            }
            assert held == record["sets"]
    assert model.thresholds.keys() == set(NIH_FINDINGS)
    assert [member.pathologies for member in model.members] == [out.pathologies] * 2


def test_a_portable_model_is_a_member_and_not_beside_its_run(home, images, tmp_path, refused):
    other = loaded.load_run(home / "runs/other")
    portable.write(other, tmp_path / "other", thumbnails=False, keep_names=True)
    folder = str(tmp_path / "other")
    out = charm_jax.load([home / "runs/demo", folder]).predict(images[:1])
    assert len(out.evidence[0]) > 1
    words = (f"{folder} has the weights of runs/other", "give each run once")
    refused(predict.main, [images[0], "--run=other", f"--run={folder}"], *words, cwd=home)


def test_a_run_without_calibration_is_refused(home, images, tmp_path, refused):
    shutil.copytree(home / "runs", tmp_path / "runs")
    other = tmp_path / "runs/other"
    for name in ("calibration.json", "validation.npz"):
        (other / name).unlink()
    config = read(other / "config.json")
    config["data"] |= {"source": "csv_folder", "dir": "gone"}
    (other / "config.json").write_text(json.dumps(config))
    words = ("runs/other is not calibrated", "charm-jax eval --run runs/other")
    refused(predict.main, [images[0], *BOTH], *words, cwd=tmp_path)
    refused(predict.main, [images[0], "--run=other", "--coverage=0.9"], "gone", cwd=tmp_path)
    refused(predict.main, [images[0], *BOTH, "--coverage=2"], "--coverage is '2'", cwd=tmp_path)
