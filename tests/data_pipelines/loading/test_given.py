import sys

import numpy as np
import pytest
from dicom_files import make_dicom, save
from PIL import Image

from data_pipelines.errors import InputError
from data_pipelines.loading import given as given_images


def picture(path, value=90, side=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (side, side + 3), value).save(path)
    return path


def test_folders_are_read_with_all_below_them_in_order(tmp_path):
    for name in ("b/2.png", "a/1.PNG", "3.jpg", "c/4.tiff"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "README").write_text("no image either")
    (tmp_path / ".hidden.png").write_text("none")
    found = given_images.find([str(tmp_path)])
    assert found.names == ("3.jpg", "a/1.PNG", "b/2.png", "c/4.tiff")
    assert found.others == 2


def test_a_dicom_file_needs_no_ending_in_a_folder(tmp_path):
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    assert given_images.find([str(tmp_path)]).names == ("IM0001",)


def test_a_named_file_is_taken_whatever_it_is_called(tmp_path):
    path = tmp_path / "image.dat"
    picture(tmp_path / "x.png").rename(path)
    assert given_images.find([str(path)]).paths == (path,)


def test_a_file_that_is_named_twice_is_there_once(tmp_path):
    path = picture(tmp_path / "1.png")
    assert given_images.find([str(path), str(tmp_path)]).paths == (path,)


def test_equal_names_of_two_folders_become_their_paths(tmp_path):
    paths = [picture(tmp_path / folder / "1.png") for folder in "ab"]
    found = given_images.find([str(path) for path in paths])
    assert found.names == tuple(path.as_posix() for path in paths)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "No image is given"),
        (["none.png"], "There is no file or folder none.png"),
        (["."], "The folder . has no image"),
    ],
)
def test_nothing_to_read_is_a_sentence(given, words):
    with pytest.raises(InputError, match=words):
        given_images.find(given)


@pytest.mark.parametrize("n", [1, 4, 9])
def test_every_file_is_read_once_and_a_bad_one_stops_no_other(tmp_path, n):
    paths = [picture(tmp_path / f"{i}.png", value=10 * i, side=9 + i) for i in range(n)]
    paths[n // 2].write_bytes(b"no image")
    seen, faults = [], []
    for images, checks in given_images.batches(paths, image_size=6, batch_size=4):
        assert images.shape == (4, 6, 6, 1)
        assert not images[len(checks) :].any()
        seen += images[: len(checks), 0, 0, 0].tolist()
        faults += [check.fault for check in checks]
    expected = [0 if i == n // 2 else 10 * i for i in range(n)]
    assert seen == expected
    assert [bool(fault) for fault in faults] == [i == n // 2 for i in range(n)]


def test_without_pydicom_the_other_files_are_read(tmp_path, monkeypatch):
    paths = [picture(tmp_path / "a.png"), save(make_dicom(), tmp_path / "b"), tmp_path / "c.png"]
    picture(paths[2])
    assert given_images.find([str(tmp_path)]).names == ("a.png", "b", "c.png")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    ((images, checks),) = given_images.batches(paths, image_size=6, batch_size=3)
    assert images[:, 0, 0, 0].tolist() == [90, 0, 90]
    assert [bool(check.fault) for check in checks] == [False, True, False]
    assert checks[1].fault.endswith('needs more packages: pip install "charm-jax[dicom]".')


def test_a_missing_file_is_absent_and_no_path_is_repeated(tmp_path):
    ((_, (check,)),) = given_images.batches([tmp_path / "x.png"], image_size=6, batch_size=1)
    assert check.fault == "absent"


@pytest.mark.parametrize("folder", [".", "images"])
def test_drawn_images_are_known_by_the_marker_of_their_folder(tmp_path, folder):
    path = picture(tmp_path / folder / "1.png")
    assert not given_images.is_simulated(path)
    (tmp_path / "SIMULATED.txt").write_text("drawn")
    assert given_images.is_simulated(path)


def test_the_table_is_sorted_and_knows_no_patient():
    images = given_images.GivenImages(("b.png", "a.png"), (), 0)
    table = given_images.table_of(images, ["Mass"], simulated=False)
    assert table.images.tolist() == ["a.png", "b.png"]
    assert not table.patients_known
    np.testing.assert_array_equal(table.labels, [[-1], [-1]])
