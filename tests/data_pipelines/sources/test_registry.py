import dataclasses

import pytest

from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.prepare.preparation import prepare


def test_registered_source_loads(nih):
    table = sources.load("nih_chest_xray14", nih.path)
    assert table.source == "nih_chest_xray14"
    assert table.images.tolist() == nih.names


def test_csv_reaches_the_source(nih):
    with pytest.raises(InputError, match=r"gone\.csv"):
        sources.load("nih_chest_xray14", nih.path, "gone.csv")


def test_unknown_source_names_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"config\.data\.source is 'nih_xray'.*'nih_chest_xray14'"):
        sources.load("nih_xray", tmp_path)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("labels.csv", "name the folder that it is in"),
        ("chestmnist.npz", "name the folder that it is in"),
        ("images.zip", "unpack it"),
        ("images_001.tar.gz", "unpack it"),
    ],
)
@pytest.mark.parametrize("source", ["csv_folder", "chestmnist", "nih_chest_xray14"])
def test_a_file_in_place_of_the_folder_is_named(tmp_path, source, name, remedy):
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=rf"{name} is a file: {remedy}"):
        sources.load(source, tmp_path / name)


def test_an_unfinished_preparation_is_named(nih, tmp_path):
    prepare("nih_chest_xray14", nih.path, tmp_path / "out", size=8, part=(0, 1))
    with pytest.raises(InputError, match=r"not finished: run .* once more without --part"):
        sources.load("nih_chest_xray14", tmp_path / "out")


@pytest.mark.parametrize("text", ["whole", "0", "70000", "4095.0", ""])
def test_a_value_range_is_checked(nih, text):
    with pytest.raises(
        InputError, match=r"config\.data\.value_range is .*: give container, image or"
    ):
        sources.load("nih_chest_xray14", nih.path, value_range=text)


def test_a_prepared_folder_keeps_the_range_that_it_was_made_with(nih, tmp_path):
    out = tmp_path / "out"
    prepare("nih_chest_xray14", nih.path, out, size=8, value_range="image")
    assert sources.load("nih_chest_xray14", out, value_range="image").store.value_range == "image"
    with pytest.raises(InputError, match=r"prepared with 'image': set --config\.data\.value_range"):
        sources.load("nih_chest_xray14", out)


def test_boxes_of_a_source_without_them_are_refused(nih, tmp_path):
    out = tmp_path / "out"
    prepare("nih_chest_xray14", nih.path, out, size=8)
    table = sources.load("nih_chest_xray14", out)
    with pytest.raises(InputError, match="prepared images without their boxes: name the folder"):
        sources.read_boxes(out, "", table)
    other = dataclasses.replace(table, source="openi")
    with pytest.raises(
        InputError, match="openi has no boxes around findings: use one of nih_chest_xray14, rsna"
    ):
        sources.read_boxes(nih.path, "", other)
