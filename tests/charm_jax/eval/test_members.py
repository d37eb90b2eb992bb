"""Several runs as an ensemble, over views, with conformal sets."""

import csv
import shutil

import numpy as np
import pytest
from running import command_here, copy_with_earlier, read

from charm_jax.eval import __main__ as eval_command
from data_pipelines.tables.findings import NIH_FINDINGS

BOTH = ["--run=demo", "--run=other"]


@pytest.fixture(scope="module")
def home(finished, tmp_path_factory):
    return copy_with_earlier(finished, tmp_path_factory.mktemp("members"))


@pytest.fixture(scope="module")
def done(home):
    done = command_here("eval", *BOTH, "--tta", "--coverage=0.8", cwd=home)
    assert done.returncode == 0, done.stderr
    [folder] = (home / "runs/ensembles").glob("demo+1-*/tta/eval/test")
    return done.stdout, folder


def logits(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([[float(row[f"{name}_logit"]) for name in NIH_FINDINGS] for row in rows])


def test_logits_are_the_mean_of_the_members_calibrated_logits(home, done):
    total = 0
    for name in ("demo", "other"):
        fitted = read(home / "runs" / name / "tta/calibration.json")["findings"]
        divisors = [fitted[finding]["temperature"] or 1.0 for finding in NIH_FINDINGS]
        total += logits(done[1] / "members" / name / "predictions.csv") / divisors
    np.testing.assert_allclose(logits(done[1] / "predictions.csv"), total / 2, atol=1e-5)


def test_the_ensemble_is_compared_with_each_member(home, done):
    text, folder = done
    saved = read(folder / "metrics.json")
    assert [member["run"] for member in saved["members"]] == ["runs/demo", "runs/other"]
    assert sum(member["best"] for member in saved["members"]) == 1
    for member in saved["members"]:
        macro = member["compared"]["macro"]["auroc"]
        assert macro["value"] == saved["macro_auroc"]
        assert macro["difference"] == pytest.approx(saved["macro_auroc"] - macro["other"])
        assert macro["interval"][0] <= macro["difference"] <= macro["interval"][1]
        assert list(member["compared"]["findings"]) == list(NIH_FINDINGS)
        best = max(m["validation_auroc"] for m in saved["members"])
        assert member["best"] == (member["validation_auroc"] == best)
        name = member["run"].removeprefix("runs/")
        assert (folder / "members" / name / "retrieval.csv").exists()
    assert saved["members"][0]["checkpoint"].startswith("focal/")
    assert saved["members"][1]["checkpoint"].startswith("bce/")
    assert "mean of 2 runs minus those of each run" in text
    assert "(best on validation)" in text
    page = (folder / "report.html").read_text()
    for title in ("Ensemble", "Test-time augmentation", "Conformal sets"):
        assert f"<h2>{title}" in page


def test_views_and_sets_are_in_the_result(done):
    text, folder = done
    saved = read(folder / "metrics.json")
    views = saved["single_view"]["macro"]["auroc"]
    assert views["value"] == saved["macro_auroc"]
    assert "Differences from the single view" in text
    sets = saved["conformal"]
    assert sets["coverage"] == 0.8
    for finding in sets["findings"].values():
        assert finding["decided"] + finding["both"] + finding["neither"] == pytest.approx(1)
    assert "Conformal sets for a coverage of 0.8, fitted on validation" in text


def test_thresholds_are_fitted_on_the_validation_split_that_the_members_share(done):
    saved = read(done[1] / "metrics.json")
    assert saved["calibration"]["averaged"] is False
    known = [f for f in saved["findings"].values() if f["temperature"] is not None]
    assert known
    assert {finding["temperature"] for finding in known} != {1.0}


@pytest.fixture
def copy(home, tmp_path):
    shutil.copytree(home / "runs", tmp_path / "runs")
    (tmp_path / "data").symlink_to(home / "data")
    return tmp_path


def test_runs_that_are_no_ensemble_are_refused(copy, refused):
    other = copy / "runs/other"
    twice = ["--run=demo", "--run=runs/demo"]
    refused(eval_command.main, twice, "runs/demo has the weights", "give each run once", cwd=copy)
    shutil.copytree(copy / "runs/demo", copy / "runs/twin")
    refused(eval_command.main, ["--run=demo", "--run=twin"], "runs/twin", "once", cwd=copy)
    with (other / "trained_on.txt").open("a") as file:
        file.write((copy / "data/phantom/test_list.txt").read_text().split()[0] + "\n")
    words = ("test images", "the run runs/other trained or validated on", "none of its runs saw")
    refused(eval_command.main, BOTH, *words, cwd=copy)
    text = (other / "split.json").read_text()
    (other / "split.json").write_text(text.replace('"Hernia"', '"Cyst"'))
    refused(eval_command.main, BOTH, "runs/other has the findings", "the same", cwd=copy)
    assert not list(copy.glob("runs/ensembles/*/eval"))


@pytest.mark.parametrize("value", ["0", "1", "1.5", "90", "-0.1", "much", "nan", ""])
def test_a_coverage_that_is_no_share_is_refused(finished, refused, value):
    words = (f"--coverage is {value!r}", "above 0 and below 1")
    refused(eval_command.main, [f"--coverage={value}"], *words, cwd=finished[0])


def test_boxes_are_of_one_network(home, refused):
    refused(eval_command.main, [*BOTH, "--boxes"], "--boxes", "give one --run", cwd=home)
