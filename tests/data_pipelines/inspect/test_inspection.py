import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data_pipelines.inspect.__main__ import main
from data_pipelines.inspect.inspection import choose_examples
from data_pipelines.phantom import draw as phantom
from data_pipelines.sources.nih_chest_xray14 import load

PICTURES = {"prevalence.png", "co_occurrence.png", "contact_sheet.png", "image_statistics.png"}
LISTS = {"summary.txt", "summary.json", "duplicates.csv", "quarantine.csv"}


def _inspect(films, out, *more):
    return main([str(films.path), "--out", str(out), "--size", "32", *more])


def _summary(out):
    return json.loads((out / "summary.json").read_text())


def test_everything_is_written_and_the_text_is_that_of_the_screen(films, tmp_path, capsys):
    out = tmp_path / "a" / "out"
    assert _inspect(films, out) == 0
    assert {file.name for file in out.iterdir()} == PICTURES | LISTS
    text = (out / "summary.txt").read_text()
    assert capsys.readouterr().out.startswith(text)
    assert "12 in the table, 12 present, 0 missing, 0 refused" in text
    assert "0 of 2 abnormal test images" in text
    assert "SIMULATED" not in text
    found = _summary(out)
    assert found["parts"]["test"]["listed"] == found["parts"]["test"]["images"] == 3
    assert found["parts"]["test"]["findings"]["Mass"]["prevalence"] == 1 / 3
    assert found["duplicates"]["images"] == 0


@pytest.mark.usefixtures("no_pictures")
def test_a_double_in_another_part_is_found_by_name(films, tmp_path, capsys):
    shutil.copy(films.file(films.names[1]), films.file(films.names[10]))
    assert _inspect(films, tmp_path / "out") == 0
    assert "groups across splits: 1, across patients: 1, with different findings: 0" in (
        capsys.readouterr().out
    )
    with (tmp_path / "out" / "duplicates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [films.names[1], films.names[10]]
    assert rows[0]["focal"] in ("train", "val") and rows[1]["focal"] == "test"
    assert {row["across_parts"] for row in rows} == {"True"}


@pytest.mark.usefixtures("no_pictures")
def test_images_that_use_little_of_their_range_are_listed(films, tmp_path, capsys):
    for name in films.names[:7]:
        film = np.asarray(Image.open(films.file(name))).astype(np.uint16)
        Image.fromarray(film * 16).save(films.file(name))
    assert _inspect(films, tmp_path / "out") == 0
    assert "7 of 12 images use at most" in capsys.readouterr().out
    oddities = _summary(tmp_path / "out")["oddities"]
    assert list(oddities["range_used"]) == films.names[:7]
    assert oddities["range_measured"] == 12
    assert _inspect(films, tmp_path / "full", "--value-range", "4095") == 0
    assert _summary(tmp_path / "full")["oddities"]["range_used"] == {}


@pytest.mark.usefixtures("no_pictures")
def test_refused_images_are_listed_and_end_in_code_1(films, tmp_path, capsys):
    films.file(films.names[0]).unlink()
    films.file(films.names[4]).write_text("<html>Not Found</html>")
    assert _inspect(films, tmp_path / "out") == 1
    assert "11 present, 1 missing, 1 refused" in capsys.readouterr().out
    assert films.names[4] in (tmp_path / "out" / "quarantine.csv").read_text()
    assert _summary(tmp_path / "out")["pixels"]["read"] == 10


@pytest.mark.usefixtures("no_pictures")
def test_a_sample_says_what_it_is_and_is_the_same_again(films, tmp_path, capsys):
    assert _inspect(films, tmp_path / "a", "--sample", "5") == 0
    text = capsys.readouterr().out
    assert "Image statistics of 5 of 12 images" in text
    assert "Only the 5 images read were compared" in text
    assert _inspect(films, tmp_path / "b", "--sample", "5") == 0
    assert _summary(tmp_path / "a") == _summary(tmp_path / "b")


def test_examples_show_the_finding_and_one_image_a_patient(nih):
    table = load(nih.path)
    chosen = choose_examples(table, np.arange(12), 3)
    assert list(chosen) == [*table.findings, "No Finding"]
    for column, name in enumerate(table.findings):
        assert (table.labels[chosen[name], column] == 1).all()
        assert len(np.unique(table.patients[chosen[name]])) == len(chosen[name])
    assert len(chosen["Mass"]) == 3 and len(chosen["Hernia"]) == 0
    assert not table.abnormal[chosen["No Finding"]].any()


@pytest.mark.usefixtures("no_pictures")
def test_simulated_data_are_called_simulated_and_the_notebook_leaks(tmp_path, capsys):
    phantom.write_phantoms(
        tmp_path / "set",
        train_images=40,
        test_images=30,
        image_size=16,
        seed=0,
        min_test_positives=1,
        min_train_positives=1,
    )
    arguments = [str(tmp_path / "set"), "--size", "16", "--split", "notebook", "--sample", "0"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("SIMULATED data")
    found = _summary(tmp_path / "inspection" / "set")  # the default folder
    assert found["simulated"]
    assert found["pixels"]["read"] == 70
    assert {"focal test", "focal test_published"} <= set(found["parts"])
    leak = found["leak"]["table"]
    assert f"{leak['images']} of {leak['of']} abnormal test images" in text
    assert 0 < leak["images"] < leak["of"]


@pytest.mark.usefixtures("no_pictures")
def test_the_real_images(nih_dir, tmp_path):
    assert main([str(nih_dir), "--out", str(tmp_path / "out")]) == 0
    found = _summary(tmp_path / "out")
    assert found["images"] == {
        "table": 112_120,
        "present": 1_000,
        "missing": 111_120,
        "refused": 0,
    }
    assert found["leak"]["table"]["images"] == 0
    assert found["parts"]["focal train"]["listed"] + found["parts"]["focal val"]["listed"] == 86_524
    assert found["parts"]["test"]["images"] == 310
    assert found["duplicates"]["groups"] == 0
    assert not any(found["pixels"]["outliers"].values())
