import dataclasses

import numpy as np
import pytest
from tables import small_table

from data_pipelines.errors import InputError
from data_pipelines.images.decode import Check
from data_pipelines.inspect.image_statistics import duplicates, measure_images, read_each

SIZE = 16


@dataclasses.dataclass(frozen=True)
class Pixels:
    """A store in memory in which some images are broken."""

    images: np.ndarray
    broken: tuple[int, ...] = ()
    value_range: str = "container"

    @property
    def present(self):
        return np.ones(len(self.images), bool)

    def read(self, case_ids, size):
        for case_id in case_ids.tolist():
            if case_id in self.broken:
                raise InputError(f"The image {case_id} is broken.")
        return self.images[case_ids]

    def check_size(self, size):
        pass

    def examine(self, case_id, size):
        return self.images[case_id], Check()

    def check_header(self, case_id, *, checksums=False):
        return Check()


def _films(n, seed=0):
    """Squares that are bright in the middle, with noise."""
    noise = np.random.default_rng(seed).integers(0, 60, (n, SIZE, SIZE, 1))
    middle = np.zeros((SIZE, SIZE, 1), int)
    middle[4:12, 4:12] = 150
    return (20 + noise + middle).astype(np.uint8)


def _table(images, broken=(), **columns):
    return small_table(len(images), store=Pixels(images, broken), **columns)


def _no_parts(n):
    return {"focal": np.full(n, "", object)}


def test_numbers_are_those_of_all_pixels_over_many_batches():
    images = _films(100)
    images[3, :4] = 0
    images[5, :2] = 255
    found = measure_images(_table(images), np.arange(100), SIZE)
    np.testing.assert_allclose(found.mean, images.mean())
    np.testing.assert_allclose(found.sd, images.std())
    np.testing.assert_allclose(found.mean_image, images[..., 0].mean(axis=0))
    np.testing.assert_allclose(found.images["mean"], images.mean(axis=(1, 2, 3)))
    assert found.histogram.sum() == images.size
    assert found.images.black[3] == 4 / SIZE
    assert found.images.saturated[5] == 2 / SIZE
    assert found.refused == []


def test_sound_images_do_not_stand_out():
    found = measure_images(_table(_films(50)), np.arange(50), SIZE)
    assert {kind: ids.tolist() for kind, ids in found.outliers.items()} == {
        "nearly constant": [],
        "mostly black": [],
        "mostly saturated": [],
        "unlike the mean image": [],
    }


def test_each_kind_of_outlier_is_found():
    images = _films(50)
    images[7] = 255 - images[7]
    images[11] = 90
    images[13, :9] = 0
    images[17, :9] = 255
    outliers = measure_images(_table(images), np.arange(50), SIZE).outliers
    assert outliers["nearly constant"].tolist() == [11]
    assert outliers["mostly black"].tolist() == [13]
    assert outliers["mostly saturated"].tolist() == [17]
    assert 7 in outliers["unlike the mean image"]
    assert 11 not in outliers["unlike the mean image"]


def test_broken_images_are_refused_by_name_and_the_rest_is_read():
    table = _table(_films(70), broken=(2, 40))
    ids, images, refused = read_each(table, np.arange(5), SIZE)
    assert ids.tolist() == [0, 1, 3, 4] and len(images) == 4
    assert refused == [("00002.png", "The image 2 is broken.")]
    found = measure_images(table, np.arange(70), SIZE)
    assert len(found.images) == 68
    assert [name for name, _ in found.refused] == ["00002.png", "00040.png"]
    np.testing.assert_allclose(found.mean_image.mean(), found.mean)


def test_where_nothing_can_be_read_the_first_reason_is_given():
    with pytest.raises(InputError, match="The image 0 is broken"):
        measure_images(_table(_films(2), broken=(0, 1)), np.arange(2), SIZE)


def test_doubles_are_found_across_parts_and_patients():
    images = _films(40)
    images[35] = images[2]  # train and test, another patient
    images[9] = images[8]  # one part, one patient, other findings
    patients = np.arange(40, dtype=np.int32)
    patients[9] = 8
    labels = np.zeros((40, 1), np.int8)
    labels[9] = 1
    parts = np.array(["train"] * 30 + ["test"] * 10, object)
    parts[36] = "test+test_published"
    images[37] = images[36]  # in the test part both
    table = _table(images, patients=patients, labels=labels)
    statistics = measure_images(table, np.arange(40), SIZE)
    found = duplicates(table, statistics, {"focal": parts})
    assert found.image.tolist() == [f"{i:05d}.png" for i in (2, 35, 8, 9, 36, 37)]
    assert found.group.tolist() == [1, 1, 2, 2, 3, 3]
    assert found.focal.tolist() == [
        "train", "test", "train", "train", "test+test_published", "test",
    ]  # fmt: skip
    assert found.across_parts.tolist() == [True, True, False, False, False, False]
    assert found.across_patients.tolist() == [True, True, False, False, True, True]
    assert found.findings_differ.tolist() == [False, False, True, True, False, False]
    assert found.findings.tolist() == ["", "", "", "Mass", "", ""]


def test_one_pixel_makes_another_image():
    images = _films(10)
    images[1] = images[0]
    images[1, 0, 0, 0] ^= 1
    table = _table(images)
    found = duplicates(table, measure_images(table, np.arange(10), SIZE), _no_parts(10))
    assert found.empty
    assert "across_parts" in found.columns
