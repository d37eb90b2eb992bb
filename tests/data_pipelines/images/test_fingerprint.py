"""The same X-ray in another file is recognised, and no other is taken for it."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.images import fingerprint


def stacked(images):
    return np.stack([np.asarray(image) for image in images])[..., None]


def smooth(n, side=64):
    """Images of random large shapes, as different from each other as X-rays are, or more."""
    small = np.random.default_rng(0).integers(0, 255, (n, 5, 5), dtype=np.uint8)
    return [Image.fromarray(s).resize((side, side), Image.Resampling.BICUBIC) for s in small]


def jpeg(image, quality, side):
    written = io.BytesIO()
    image.resize((side, side)).save(written, "JPEG", quality=quality)
    return Image.open(written)


def window(image):
    """The image with its darkest and brightest hundredths cut off, and a gamma."""
    values = np.asarray(image, np.float64)
    low, high = np.quantile(values, [0.01, 0.99])
    shown = 255 * np.clip((values - low) / max(high - low, 1), 0, 1) ** 0.8
    return Image.fromarray(shown.astype(np.uint8))


@pytest.mark.parametrize(
    "other",
    [lambda i: jpeg(i, 50, 64), lambda i: jpeg(i, 90, 32), lambda i: jpeg(i, 90, 256), window],
)
def test_an_image_is_found_recompressed_resized_or_windowed(other):
    images = smooth(40)
    known = fingerprint.thumbnails(stacked(images))
    shown = fingerprint.thumbnails(stacked([other(image) for image in images[::-1]]))
    best, correlation = fingerprint.nearest(shown, known)
    assert best.tolist() == list(range(40))[::-1]
    assert (correlation >= fingerprint.SAME).all()


def test_an_image_without_contrast_is_like_none():
    flat = np.full((1, 256), 7, np.uint8)
    _, correlation = fingerprint.nearest(flat, fingerprint.thumbnails(stacked(smooth(3))))
    assert correlation.tolist() == [0.0]


def test_blocks_give_what_one_product_gives(monkeypatch):
    known, images = (
        np.random.default_rng(i).integers(0, 255, (n, 256), np.uint8) for i, n in ((0, 9), (1, 7))
    )
    whole = fingerprint.nearest(images, known)
    monkeypatch.setattr(fingerprint, "_BLOCK", 3)
    for ours, expected in zip(fingerprint.nearest(images, known), whole, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.skipif("CHARM_TEST_DATA" not in os.environ, reason="needs real X-rays")
def test_real_images_of_different_patients_are_different_and_recompressed_ones_the_same():
    files = sorted(Path(os.environ["CHARM_TEST_DATA"], "nih_1539").rglob("*.png"))[::3]
    images = [Image.open(file).convert("L") for file in files]
    known = fingerprint.thumbnails(stacked(images))
    again = fingerprint.thumbnails(stacked([jpeg(image, 75, 64) for image in images]))
    best, correlation = fingerprint.nearest(again, known)
    assert best.tolist() == list(range(len(files)))
    assert correlation.min() >= fingerprint.SAME
    for i in range(len(files)):
        others = np.delete(np.arange(len(files)), i)
        assert fingerprint.nearest(known[i : i + 1], known[others])[1] < fingerprint.SAME
