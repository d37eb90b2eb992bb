import collections
import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import InputError
from data_pipelines.phantom import draw as phantom
from data_pipelines.tables.findings import NIH_FINDINGS, NO_FINDING

SIZES = {
    "train_images": 90,
    "test_images": 60,
    "image_size": 32,
    "seed": 3,
    "min_test_positives": 3,
    "min_train_positives": 4,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("simulated") / "set"
    phantom.write_phantoms(directory, **SIZES)
    return directory


def _rows(directory):
    with open(directory / "Data_Entry_2017_v2020.csv", newline="") as file:
        return list(csv.DictReader(file))


def _listed(directory, part):
    return (directory / f"{part}_list.txt").read_text().split()


def _positives(label_sets):
    return collections.Counter(name for labels in label_sets for name in labels.split("|"))


def _contents(directory):
    return {
        file.relative_to(directory): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(directory, tmp_path):
    phantom.write_phantoms(tmp_path / "again", **SIZES)
    assert _contents(tmp_path / "again") == _contents(directory)


def test_another_seed_gives_other_labels_and_pixels(directory, tmp_path):
    phantom.write_phantoms(tmp_path / "other", **SIZES | {"seed": 4})
    ours, theirs = _contents(directory), _contents(tmp_path / "other")
    same = [name for name in ours.keys() & theirs.keys() if ours[name] == theirs[name]]
    assert not same


def test_the_layout_is_complete(directory):
    assert (directory / "Data_Entry_2017_v2020.csv").read_text().splitlines()[0] == phantom.HEADER
    rows = _rows(directory)
    names = [row["Image Index"] for row in rows]
    train, test = _listed(directory, "train_val"), _listed(directory, "test")
    assert (len(train), len(test)) == (90, 60)
    assert names == train + test and len(set(names)) == 150
    assert {file.name for file in (directory / "images").iterdir()} == set(names)
    for row in rows:
        expected = f"{int(row['Patient ID']):08d}_{int(row['Follow-up #']):03d}.png"
        assert row["Image Index"] == expected
        assert 0 < int(row["Patient Age"]) < 100 and row["Patient Gender"] in "FM"
        with Image.open(directory / "images" / expected) as image:
            assert (image.mode, image.size) == ("L", (32, 32))


def test_labels_are_findings_in_the_tables_own_writing(directory):
    for row in _rows(directory):
        names = row["Finding Labels"].split("|")
        assert names == [NO_FINDING] or (set(names) <= set(NIH_FINDINGS) and names == sorted(names))


def test_the_marker_says_what_this_is(directory):
    text = (directory / "SIMULATED.txt").read_text()
    for words in ("SIMULATED", "no patient", "not for clinical use", "seed 3", "32 x 32"):
        assert words in text
    assert "at least 4 positives in train_val\nand 3 in test" in text
    record = json.loads((directory / "phantom.json").read_text())
    assert record == {"version": phantom.GENERATOR_VERSION, **SIZES}


@pytest.mark.parametrize(("part", "floor"), [("train_val", 4), ("test", 3)])
def test_each_finding_reaches_its_floor(directory, part, floor):
    listed = set(_listed(directory, part))
    rows = [row for row in _rows(directory) if row["Image Index"] in listed]
    have = _positives(row["Finding Labels"] for row in rows)
    assert min(have[name] for name in NIH_FINDINGS) >= floor


def test_no_patient_is_in_both_parts(directory):
    train = {name[:8] for name in _listed(directory, "train_val")}
    assert train.isdisjoint(name[:8] for name in _listed(directory, "test"))


def test_an_image_depends_on_its_own_numbers_only(directory, tmp_path):
    phantom.write_phantoms(tmp_path / "more", **SIZES | {"test_images": 70})
    name = _listed(directory, "train_val")[-1]
    ours, theirs = (folder / "images" / name for folder in (directory, tmp_path / "more"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_too_few_images_for_the_floor_are_refused(tmp_path):
    with pytest.raises(InputError, match="20 simulated images are too few for 10 positives"):
        phantom.write_phantoms(
            tmp_path / "set", **SIZES | {"min_test_positives": 10, "test_images": 20}
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value"), [("image_size", 4), ("test_images", 0), ("seed", -1)])
def test_a_size_that_is_too_small_is_named(tmp_path, name, value):
    with pytest.raises(InputError, match=f"{name} = {value} is too small"):
        phantom.write_phantoms(tmp_path / "set", **SIZES | {name: value})


def test_images_of_a_patient_share_the_anatomy():
    pictures = [
        phantom.draw_phantom((), patient, image, 64).astype(float)
        for patient, image in ((1, 1), (1, 2), (9, 3))
    ]
    same, other = (np.corrcoef(pictures[0].ravel(), p.ravel())[0, 1] for p in pictures[1:])
    assert other < same < 1


def test_all_findings_together_can_be_drawn():
    picture = phantom.draw_phantom(NIH_FINDINGS, 0, 0, 48)
    assert picture.shape == (48, 48) and picture.dtype == np.uint8
    backwards = phantom.draw_phantom(NIH_FINDINGS[::-1], 0, 0, 48)
    np.testing.assert_array_equal(picture, backwards)


def test_an_unknown_finding_is_named():
    with pytest.raises(InputError, match="No sign is known for 'Cold'"):
        phantom.draw_phantom(("Cold",), 0, 0, 32)


def test_air_is_dark_and_the_apex_points_to_the_images_right():
    picture = np.mean([phantom.draw_phantom((), n, n, 64) for n in range(20)], axis=0)
    lungs, abdomen = picture[20:30, [14, 15, 48, 49]].mean(), picture[58:62].mean()
    assert lungs < 0.6 * abdomen
    beside_heart = slice(40, 44)
    assert picture[beside_heart, 40:46].mean() > 1.2 * picture[beside_heart, 18:24].mean()


def test_a_second_call_does_nothing(directory):
    before = {file: file.stat().st_mtime_ns for file in directory.rglob("*")}
    phantom.write_phantoms(directory, **SIZES)
    assert {file: file.stat().st_mtime_ns for file in directory.rglob("*")} == before


@pytest.mark.parametrize("other", [{"seed": 9}, {"image_size": 48}, {"min_train_positives": 0}])
def test_another_set_is_not_overwritten(directory, other):
    before = _contents(directory)
    with pytest.raises(InputError, match=r"set holds other files .* name a new or empty folder"):
        phantom.write_phantoms(directory, **SIZES | other)
    assert _contents(directory) == before


def test_foreign_content_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="name a new or empty folder"):
        phantom.write_phantoms(tmp_path, **SIZES)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, error):
    drawn = []

    def fail_at_the_fifth(*arguments):
        drawn.append(arguments)
        if len(drawn) == 5:
            raise error
        return np.zeros((32, 32), np.uint8), {}

    monkeypatch.setattr(phantom, "draw_with_boxes", fail_at_the_fifth)
    with pytest.raises(error):
        phantom.write_phantoms(tmp_path / "deep" / "set", **SIZES)
    assert not list((tmp_path / "deep").iterdir())


def test_the_same_set_written_meanwhile_by_another_run_is_kept(directory, tmp_path, monkeypatch):
    target = tmp_path / "set"

    def another_run_is_first(drawn, sets):
        (drawn / "late.txt").write_text("late")
        shutil.copytree(directory, target)

    monkeypatch.setattr(phantom, "_write_set", another_run_is_first)
    phantom.write_phantoms(target, **SIZES)
    assert _contents(target) == _contents(directory)
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot be written to .*set"):
        phantom.write_phantoms(tmp_path / "file" / "set", **SIZES)


def test_the_boxes_of_a_set_are_those_of_its_signs(directory):
    with open(directory / "BBox_List_2017.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = {row["Image Index"]: row["Finding Labels"].split("|") for row in _rows(directory)}
    boxed = {(row["Image Index"], row["Finding Label"]) for row in rows}
    assert boxed == {(n, f) for n, names in labels.items() for f in names if f != NO_FINDING}
    for row in rows:
        x, y, wide, high = (float(row[key]) for key in ("Bbox [x", "y", "w", "h]"))
        assert x >= 0 and y >= 0 and wide > 0 and high > 0
        assert x + wide <= 1024 and y + high <= 1024  # also of images with 32 pixels a side
