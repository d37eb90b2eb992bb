"""What --boxes compares, leaves and refuses."""

import csv
import dataclasses

import numpy as np
import pytest
from html_check import Page
from running import command_here, read

from charm_jax.eval import __main__ as eval_command
from charm_jax.eval.localisation import find_pairs
from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.tables.boxes import Boxes

DATA = "data/phantom"


@pytest.fixture(scope="module")
def compared(finished, tmp_path_factory):
    """The files of an evaluation with boxes, and what was printed."""
    out = tmp_path_factory.mktemp("compared")
    done = command_here("eval", "--run", "demo", "--boxes", f"--out={out}", cwd=finished[0])
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_every_box_of_the_split_is_counted(finished, compared):
    out, text = compared
    test = set((finished[0] / DATA / "test_list.txt").read_text().split())
    with open(finished[0] / DATA / "BBox_List_2017.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["Image Index"] in test]
    saved = read(out / "localisation.json")
    for name, entry in saved["findings"].items():
        mine = [row["Image Index"] for row in rows if row["Finding Label"] == name]
        assert (entry["boxes"], entry["images"]) == (len(mine), len(set(mine)))
        assert list(entry["methods"]) == [*saved["maps"], "image_centre", "mean_box"]
        share = entry["methods"]["mean_box"]["iobb"]["0.1"]
        low, high = share["interval"]
        assert share["value"] in (0, 1) if low is None else low <= share["value"] <= high
    assert len(saved["findings"]) == 14
    assert saved["simulated"] and saved["split"] == "test"
    # The last map of 32 pixels has 2 x 2 places, the one before it 4 x 4.
    places = {name: entry["places"] for name, entry in saved["maps"].items()}
    assert places == {"attention": [2, 2], "grad_cam": [2, 2], "grad_cam_finer": [4, 4]}
    assert f"Localisation: {len(rows):,} boxes" in text and "SIMULATED images, intervals" in text


def test_the_page_shows_the_shares_and_pictures(compared):
    page = Page((compared[0] / "report.html").read_text(encoding="utf-8"))
    assert page.faults == []
    saved = read(compared[0] / "localisation.json")
    for word in ("pointing game", "Finer Grad-CAM", "Mean box"):
        assert word in page.text
    share = saved["findings"]["Cardiomegaly"]["methods"]["mean_box"]["pointing"]["value"]
    assert f"{share:.3f}" in page.text


def test_a_set_without_boxes_is_refused(finished, tmp_path, refused):
    """A set of the time before there were boxes, in a folder of its own."""
    old = tmp_path / "old"
    old.mkdir()
    for path in (finished[0] / DATA).iterdir():
        if path.name != "BBox_List_2017.csv":
            (old / path.name).symlink_to(path)
    arguments = ["--run", "demo", "--boxes", f"--config.data.dir={old}"]
    words = ("old has no boxes, BBox_List_2017.csv", "drawn by an earlier version")
    refused(eval_command.main, arguments, *words, cwd=finished[0])


def test_pairs_are_of_evaluated_images_and_findings_of_the_model(finished):
    table = sources.load("phantom", finished[0] / DATA)
    table = dataclasses.replace(table, findings=("Mass", "Effusion"))
    boxes = Boxes(
        rows=np.array([5, 5, 2, 5, 9]),
        findings=np.array(["Effusion", "Pleural Effusion", "Mass", "Hernia", "Mass"]),
        places=np.tile([8.0, 16.0, 32.0, 64.0], (5, 1)),
        sizes=np.full((5, 2), 128.0),
    )
    pairs = find_pairs(boxes, table, np.array([1, 2, 5]), "test")
    assert pairs.rows.tolist() == [2, 5]
    assert pairs.truth.findings.tolist() == [0, 1]
    assert pairs.truth.pairs.tolist() == [1, 1, 0]
    assert pairs.truth.patients.tolist() == table.patients[[2, 5]].tolist()
    assert pairs.truth.boxes[0].tolist() == [1 / 16, 1 / 8, 5 / 16, 5 / 8]
    with pytest.raises(InputError, match=r"None of the 5 boxes of phantom .* \(split 'val'"):
        find_pairs(boxes, table, np.array([1, 3]), "val")
