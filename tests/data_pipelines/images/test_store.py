import numpy as np
from PIL import Image

from data_pipelines.images.decode import read_image
from data_pipelines.images.store import ImageArray, ImageFiles, ImageStore


def _images():
    return np.random.default_rng(0).integers(0, 256, (3, 40, 40), np.uint8)


def test_both_stores_are_stores():
    assert isinstance(ImageArray(_images()), ImageStore)
    assert isinstance(ImageFiles(np.array(["a"]), {}), ImageStore)


def test_images_in_memory_are_resized_as_files_are(tmp_path):
    images = _images()
    for size in (16, 40, 64):
        read = ImageArray(images).read(np.array([2, 0]), size)
        for image, number in zip(read, (2, 0), strict=True):
            Image.fromarray(images[number]).save(tmp_path / "image.png")
            np.testing.assert_array_equal(image, read_image(tmp_path / "image.png", size))


def test_no_image_in_memory_is_absent_or_damaged():
    store = ImageArray(_images())
    assert store.present.tolist() == [True] * 3
    for number in range(3):
        image, check = store.examine(number, 16)
        np.testing.assert_array_equal(image, store.read(np.array([number]), 16)[0])
        assert (check.fault, check.sliver, store.check_header(number).fault) == ("", None, "")


def test_images_in_memory_that_use_a_sliver_are_measured_and_stretched():
    dark = _images() // 17
    (_, check) = ImageArray(dark).examine(0, 16)
    assert check.sliver.white == 15
    (bright,) = ImageArray(dark, "15").read(np.array([0]), 40)
    np.testing.assert_array_equal(bright[..., 0], dark[0] * 17)
