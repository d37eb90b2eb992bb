"""Sources with other findings than the 14: unknown labels, and a single finding."""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from running import read

from charm_jax.config import cli, settings
from charm_jax.eval import __main__ as eval_command
from charm_jax.models.backbones import BACKBONES
from charm_jax.models.backbones.efficientnet_v2 import ConvNormAct, Stage, Trunk
from charm_jax.runs import data as run_data
from charm_jax.train import __main__ as train_command
from data_pipelines.phantom.draw import draw_phantom

pytestmark = pytest.mark.daily

SIGNS = ("Mass", "Cardiomegaly", "Effusion")
FINDINGS = ("Mass", "Cardiomegaly", "Effusion, either side")  # with a comma, and long
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(
        {
            "data": {"image_size": 32},
            "model": {"backbone": "tiny", "bank_size": 16},
            "stages": {
                "bce": {"frozen_epochs": 0, "epochs": 1, "batch_size": 6},
                "focal": {"epochs": 1, "batch_size": 6},
            },
        }
    )
"""


@pytest.fixture(scope="module", autouse=True)
def _tiny_backbone():
    """The smallest network of its kind: only its ends hang on the data."""
    trunk = functools.partial(Trunk, 8, (Stage(True, 1, 2, 8, 1),))
    tiny = dataclasses.replace(
        BACKBONES["efficientnet_v2_nano"],
        trunk=trunk,
        expansion=functools.partial(ConvNormAct, 16, 1),
        feature_dim=16,
    )
    # Each step runs a few times only: compiling it well would take longer.
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", tiny)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@dataclasses.dataclass
class Done:
    folder: Path
    trained: str
    table: str
    evaluated: str

    @property
    def run(self):
        return self.folder / "runs/own"


def _command(main, *arguments):
    """Runs a command in this process, which has compiled and imported already."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.guarded(main, list(arguments))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert code == 0, err.getvalue()
    return out.getvalue(), err.getvalue()


def _train_and_evaluate(folder, source, *more):
    (folder / "own.py").write_text(CONFIG)
    where = [f"--config.data.source={source}", "--config.data.dir=data", *more]
    with contextlib.chdir(folder):
        _, trained = _command(train_command.main, "--config", "own.py", *where)
        table, evaluated = _command(eval_command.main, "--run", "own")
    return Done(folder, trained, table, evaluated)


def _lines():
    """Three of four labels known, one image without any; patients of two images each."""
    rng = np.random.default_rng(0)
    for patient in range(24):
        part = "train" if patient < 14 else "val" if patient < 18 else "test"
        for follow_up in range(2):
            present = rng.random(3) < 0.5
            cells = [
                str(int(x)) if rng.random() < 0.75 else rng.choice(["", "-1"]) for x in present
            ]
            if (patient, follow_up) == (0, 0):
                cells = ["", "-1", ""]
            findings = [name for name, x in zip(SIGNS, present, strict=True) if x]
            pixels = draw_phantom(findings, patient, 2 * patient + follow_up, 32)
            yield f"{part}/{patient}_{follow_up}.png", f"P{patient:02d}", part, cells, pixels


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run on a folder with labels.csv, three findings and unknown labels."""
    folder = tmp_path_factory.mktemp("own")
    data = folder / "data"
    for part in ("train", "val", "test"):
        (data / part).mkdir(parents=True)
    (data / "SIMULATED.txt").touch()
    with (data / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "split", *FINDINGS])
        for name, patient, part, cells, pixels in _lines():
            Image.fromarray(pixels).save(data / name)
            writer.writerow([name, patient, part, *cells])
    return _train_and_evaluate(folder, "csv_folder")


@pytest.fixture(scope="module")
def pneumonia(tmp_path_factory):
    """A run on a small file like PneumoniaMNIST's, with all that the recipe offers."""
    folder = tmp_path_factory.mktemp("pneumonia")
    (folder / "data").mkdir()
    rng, arrays = np.random.default_rng(1), {}
    for part, n in (("train", 24), ("val", 8), ("test", 10)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, 28, 28), np.uint8)
        arrays[f"{part}_labels"] = (np.arange(n) % 2)[:, None].astype(np.uint8)
    np.savez(folder / "data/pneumoniamnist.npz", **arrays)
    keys = (
        *("stages.focal.epochs=0", "stages.bce.frozen_epochs=1", "stages.bce.find_lr=True"),
        *("stages.bce.clip_norm=1.0", "stages.bce.accumulate=2", "model.average=0.9"),
    )
    return _train_and_evaluate(folder, "pneumoniamnist", *(f"--config.{key}" for key in keys))


def test_each_phase_has_a_range_test_and_trains_at_its_rate(pneumonia):
    lines = [json.loads(line) for line in (pneumonia.run / "metrics.jsonl").open()]
    assert [line["stage"] for line in lines if line["kind"] == "epoch"] == ["bce_frozen", "bce"]
    for stage in ("bce_frozen", "bce"):
        found = read(pneumonia.run / f"range_test_{stage}.json")
        assert found["peak_lr"] in found["rates"]
        assert len(found["losses"]) == len(found["rates"]) > 20
        assert (pneumonia.run / f"range_test_{stage}.png").stat().st_size > 5000
        assert f"Peak rate of stage {stage} by its range test: {found['peak_lr']:.2e}" in (
            pneumonia.trained
        )


def _predictions(done):
    with (done.run / "eval/test/predictions.csv").open() as file:
        return list(csv.DictReader(file))


def test_predictions_have_the_findings_and_patients_of_the_table(own):
    rows = {row["image"]: row for row in _predictions(own)}
    expected = {name: (who, cells) for name, who, part, cells, _ in _lines() if part == "test"}
    assert rows.keys() == expected.keys()
    for name, (patient, cells) in expected.items():
        assert rows[name]["patient"] == patient
        labels = [rows[name][f"{finding}_label"] for finding in FINDINGS]
        assert labels == ["" if cell == "-1" else cell for cell in cells]
        assert all(0 < float(rows[name][finding]) < 1 for finding in FINDINGS)


def test_unknown_labels_are_counted_and_left_out(own):
    metrics = read(own.run / "eval/test/metrics.json")
    assert tuple(metrics["findings"]) == FINDINGS
    assert metrics["n_images"] == 12
    for column, name in enumerate(FINDINGS):
        cells = [cells[column] for _, _, part, cells, _ in _lines() if part == "test"]
        entry = metrics["findings"][name]
        assert entry["positives"] == cells.count("1")
        assert entry["negatives"] == cells.count("0")
        assert entry["unknown"] == len(cells) - cells.count("0") - cells.count("1") > 0
    header, *lines = own.table.split("\n\n")[1].splitlines()
    assert header.split() == [
        *("finding", "AUROC", "interval", "AP", "prevalence", "positives", "unknown")
    ]
    assert {len(line) for line in lines} == {len(header)}


def test_own_data_keep_their_patients_apart_and_their_simulated_images_marked(own):
    assert "No patient is in two splits." in own.trained
    assert "warning" not in own.trained
    assert "SIMULATED" in own.trained
    assert read(own.run / "split.json")["findings"] == list(FINDINGS)
    assert read(own.run / "eval/test/metrics.json")["patients_known"] is True


def test_the_prevalence_is_that_among_the_known(own):
    with contextlib.chdir(own.folder):
        config = cli.load_config(own.folder / "own.py")
        config.data.source, config.data.dir = "csv_folder", "data"
        data = run_data.load_data(settings.from_dict(config.to_dict()))
    train = [cells for _, _, part, cells, _ in _lines() if part == "train"]
    for column, prevalence in enumerate(data.prevalence):
        cells = [cells[column] for cells in train]
        known = cells.count("0") + cells.count("1")
        assert known < len(cells)
        assert prevalence == pytest.approx(cells.count("1") / known)


def test_a_single_finding_uses_all_images_in_the_first_stage_and_says_so(pneumonia):
    sentence = "The only finding is Pneumonia, which every abnormal image has: stage bce uses all"
    assert pneumonia.trained.count(sentence) == 1
    assert read(pneumonia.run / "split.json")["stages"]["bce"]["train"]["images"] == 24
    rows = _predictions(pneumonia)
    assert list(rows[0]) == ["image", "patient", "Pneumonia", "Pneumonia_label", "Pneumonia_logit"]
    assert [row["image"] for row in rows] == [f"test_{i:05d}" for i in range(10)]
    assert [row["Pneumonia_label"] for row in rows] == ["0", "1"] * 5
    assert "over 1 finding " in pneumonia.table
    (header,) = (line for line in pneumonia.table.splitlines() if line.startswith("finding"))
    assert "unknown" not in header  # a column of unknown labels


def test_nothing_is_said_of_patients_that_a_source_does_not_tell_apart(pneumonia):
    assert pneumonia.trained.count("warning: PneumoniaMNIST gives no patient numbers") == 1
    assert "No patient is in two splits" not in pneumonia.trained
    assert "does not identify patients" in pneumonia.trained
    assert "is not known" in pneumonia.table
    assert read(pneumonia.run / "eval/test/metrics.json")["patients_known"] is False


def test_evaluation_on_other_findings_is_refused_with_both_lists(own, pneumonia, refused):
    path = pneumonia.folder / "data"
    arguments = ["--run", "own", f"--config.data.dir={path}", "--config.data.source=pneumoniamnist"]
    words = (
        "runs/own",
        "Mass, Cardiomegaly, Effusion, either side",
        "pneumoniamnist has only Pneumonia:",
    )
    refused(eval_command.main, arguments, *words, cwd=own.folder)


def test_a_resume_with_findings_in_another_order_is_refused(own, tmp_path, refused):
    folder = tmp_path / "copy"
    shutil.copytree(own.folder, folder)
    path = folder / "data/labels.csv"
    path.write_text(path.read_text().replace("Mass,Cardiomegaly", "Cardiomegaly,Mass", 1))
    words = ("has the findings Mass, Cardiomegaly", "has Cardiomegaly, Mass")
    (folder / "runs/own/summary.json").unlink()
    where = ["--config.data.source=csv_folder", "--config.data.dir=data"]
    refused(train_command.main, ["--config", "own.py", *where], *words, cwd=folder)


def _elsewhere(own, folder, rename):
    """The test part in another folder, its lines renamed."""
    shutil.copytree(own.folder, folder)
    data = folder / "other"
    (data / "new").mkdir(parents=True)
    shutil.copy(folder / "data/SIMULATED.txt", data)
    with (data / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "split", *FINDINGS])
        for name, patient, part, cells, pixels in _lines():
            if part == "test":
                name, patient = rename(name, patient)
                (data / name).parent.mkdir(exist_ok=True)
                Image.fromarray(pixels).save(data / name)
                writer.writerow([name, patient, part, *cells])
    return data


def test_patients_of_training_under_other_image_names_are_refused(own, tmp_path, refused):
    folder = tmp_path / "copy"
    data = _elsewhere(
        own, folder, lambda name, who: (f"new/{name[5:]}", "P03" if who == "P20" else who)
    )
    words = ("2 of the 12 test images", "runs/own", "it saw 0 of these images", "rename them")
    refused(eval_command.main, ["--run=own", f"--config.data.dir={data}"], *words, cwd=folder)


def test_images_of_training_under_other_patients_are_refused(own, tmp_path, refused):
    folder = tmp_path / "copy"
    data = _elsewhere(
        own,
        folder,
        lambda name, who: ("train/3_0.png" if name == "test/20_0.png" else name, f"X{who}"),
    )
    words = ("2 of the 12 test images", "it saw 1 of these images")
    refused(eval_command.main, ["--run=own", f"--config.data.dir={data}"], *words, cwd=folder)


def test_other_patients_are_judged_by_thresholds_of_the_runs_own_validation(own, tmp_path):
    folder = tmp_path / "copy"
    data = _elsewhere(own, folder, lambda name, who: (f"new/{name[5:]}", f"X{who}"))
    shutil.rmtree(folder / "runs/own/eval")
    (folder / "runs/own/calibration.json").unlink()
    with contextlib.chdir(folder):
        shown, said = _command(eval_command.main, "--run=own", f"--config.data.dir={data}")
    assert "fitted on 8 validation images" in said
    fitted = read(folder / "runs/own/calibration.json")
    assert fitted == read(own.run / "calibration.json")
    (path,) = (folder / "runs/own/eval").glob("test-csv_folder-*/metrics.json")
    metrics = read(path)
    assert metrics["leak_of_all"] == metrics["leak_seen"] == 0
    assert metrics["calibration"]["on_these_images"] is False
    groups = read(own.run / "eval/test/metrics.json")["groups"]
    assert metrics["groups"].keys() == groups.keys()
    for name, group in groups.items():
        assert metrics["groups"][name]["findings"] == group["findings"]
    assert "Training and validation saw no image of these patients" in shown
