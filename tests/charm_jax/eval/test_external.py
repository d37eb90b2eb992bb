"""A run on another hospital's images: what is shared, beside its own test images."""

import csv
import dataclasses
import shutil
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from running import command_here, read

from charm_jax.eval import external
from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics.result import EvaluationResult
from charm_jax.runs.folder import write_json
from data_pipelines.phantom.draw import draw_phantom
from data_pipelines.tables.findings import NIH_FINDINGS

SHARED = ("Effusion", "Cardiomegaly", "Mass", "Pneumothorax")
UNKNOWN = ("Fracture", "Lung Lesion")
RUN = "runs/demo"


@pytest.fixture(scope="module")
def elsewhere(finished, tmp_path_factory):
    """The run on a folder with four of its findings in another order and two unknown ones."""
    home = tmp_path_factory.mktemp("external")
    for part in ("runs", "data"):  # others read the folder of these
        shutil.copytree(finished[0] / part, home / part)
    data = home / "elsewhere"
    data.mkdir()
    (data / "SIMULATED.txt").touch()
    rng = np.random.default_rng(0)
    with (data / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "split", *SHARED, *UNKNOWN])
        for number in range(60):
            present = rng.random(4) < 0.4
            signs = [name for name, found in zip(SHARED, present, strict=True) if found]
            pixels = 255 - draw_phantom(signs, 9000 + number // 2, 9000 + number, 32)
            Image.fromarray(pixels).save(data / f"{number}.png")
            writer.writerow(
                [f"{number}.png", f"X{number // 2}", "test", *present.astype(int), 0, 1]
            )
    where = ["--config.data.source=csv_folder", f"--config.data.dir={data}"]
    done = command_here("eval", "--run=demo", *where, cwd=home)
    assert done.returncode == 0, done.stderr
    [folder] = (home / RUN / "eval").glob("test-csv_folder-*")
    return done.stdout, folder, home / RUN


def test_the_shared_findings_are_scored_and_the_others_named(elsewhere):
    text, folder, _ = elsewhere
    saved = read(folder / "metrics.json")
    scored = [name for name in NIH_FINDINGS if name in SHARED]
    assert saved["external"]["shared"] == scored
    assert saved["external"]["unknown"] == list(UNKNOWN)
    assert saved["external"]["lacking"] == saved["undefined"]
    assert saved["macro"]["auroc"]["findings"] == 4
    assert "4 of its 14 findings are labelled here and scored" in text
    assert "Unknown to the run: Fracture, Lung Lesion." in text.replace("\n", " ")


def test_the_own_test_images_are_beside_these(elsewhere):
    text, folder, run = elsewhere
    own, saved = read(run / "eval/test/metrics.json"), read(folder / "metrics.json")
    beside = saved["external"]["own"]
    assert beside["split_sha256"] == own["split_sha256"] != saved["split_sha256"]
    assert beside["findings"] == {
        name: own["findings"][name] for name in saved["external"]["shared"]
    }
    lines = text.split("On the run's own 310 SIMULATED images of phantom")[1].splitlines()[1:6]
    assert lines[0].split()[1:4] == ["AUROC", "here", "ECE"]
    for line in lines[1:]:
        name, there, here = line.split()[:3]
        assert there == f"{own['findings'][name]['auroc']:.3f}"
        assert here == f"{saved['findings'][name]['auroc']:.3f}"


def test_negatives_are_out_of_distribution_for_a_run_of_positives(elsewhere):
    text, folder, run = elsewhere
    found = read(folder / "metrics.json")["external"]["ood"]
    assert found["n_reference"] == read(run / "novelty.json")["n_images"]
    assert found["n_images"] >= max(found["by_reason"].values())
    assert found["by_reason"]["appearance"] > 30
    assert f"{found['n_images']} of 60 images" in text


def test_the_report_has_the_section(elsewhere):
    page = (elsewhere[1] / "report.html").read_text(encoding="utf-8")
    assert "<h2>External validation" in page
    assert "out-of-distribution for the run" in page
    assert "Undefined: 0 of 0 images" not in page


@pytest.fixture
def model(tmp_path):
    """What is asked of a model, with the digest of its weights."""
    return mock.Mock(
        spec=LoadedModel,
        pathologies=NIH_FINDINGS,
        run=tmp_path,
        folder=tmp_path,
        checkpoint="focal/9",
        provenance={"memory": None},
        tta=False,
        network_sha256="digest",
    )


def test_without_its_own_evaluation_the_command_for_it_is_given(model):
    found = external.describe(model, ("Mass",), {}, None)
    assert found.own is found.ood is None
    assert found.command == f"charm-jax eval --run {model.run} --checkpoint focal/9"
    model.provenance["memory"] = "ours"
    assert external.describe(model, ("Mass",), {}, None).command.endswith("--memory ours")


@pytest.mark.parametrize("change", ["network_sha256", "damaged", "older"])
def test_an_evaluation_of_another_network_is_not_its_own(change, model, elsewhere):
    saved = read(elsewhere[2] / "eval/test/metrics.json")
    own = EvaluationResult.from_json(saved)
    model.network_sha256 = own.network_sha256
    path = model.folder / "eval/test/metrics.json"
    path.parent.mkdir(parents=True)
    write_json(path, saved)
    assert external.describe(model, ("Mass",), {}, None).own.findings == {
        "Mass": own.findings["Mass"]
    }
    if change == "network_sha256":
        write_json(path, dataclasses.asdict(own) | {"network_sha256": "other"})
    elif change == "older":
        write_json(path, {k: v for k, v in saved.items() if k != "macro"})
    else:
        path.write_text("{")
    assert external.describe(model, ("Mass",), {}, None).own is None
