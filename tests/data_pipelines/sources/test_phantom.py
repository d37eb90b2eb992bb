import pytest

from data_pipelines.errors import InputError
from data_pipelines.phantom.draw import write_phantoms
from data_pipelines.sources import phantom

SIZES = {
    "train_images": 6,
    "test_images": 4,
    "image_size": 16,
    "seed": 0,
    "min_test_positives": 0,
    "min_train_positives": 0,
}


def test_a_drawn_set_is_read_and_left_as_it_is(tmp_path):
    write_phantoms(tmp_path / "set", **SIZES)
    table = phantom.load(tmp_path / "set")
    assert (table.source, table.simulated, len(table.images)) == ("phantom", True, 10)
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    for again in (phantom.load(tmp_path / "set", **SIZES), phantom.load(tmp_path / "set")):
        assert again.images.tolist() == table.images.tolist()
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn


def test_reading_draws_nothing(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        phantom.load(tmp_path / "set")
    with pytest.raises(InputError, match=r"phantom --out .*set --train_images 6 --test_images 4"):
        phantom.load(tmp_path / "set", **SIZES)
    assert not list(tmp_path.iterdir())
