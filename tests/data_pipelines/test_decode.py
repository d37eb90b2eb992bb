import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.decode import read_image
from data_pipelines.errors import InputError

SIZE = 16
# A ramp: every grey level of its own place, so that a swapped axis or channel shows.
GREY = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE)


def _alpha():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, GREY.shape, np.uint8))


def _of_mode(mode):
    grey = Image.fromarray(GREY)
    if mode == "LA":
        return Image.merge("LA", [grey, _alpha()])
    if mode == "RGBA":
        return Image.merge("RGBA", [grey, grey, grey, _alpha()])
    if mode == "P":
        image = Image.fromarray(255 - GREY).convert("P")
        image.putpalette([value for level in range(255, -1, -1) for value in [level] * 3])
        return image
    if mode == "I;16":
        return Image.fromarray(GREY.astype(np.uint16) * 257)
    return grey.convert(mode)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_every_png_mode_gives_the_same_grey(tmp_path, mode):
    path = tmp_path / "image.png"
    _of_mode(mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    image = read_image(path, SIZE)
    assert (image.shape, image.dtype) == ((SIZE, SIZE, 1), np.uint8)
    np.testing.assert_array_equal(image[..., 0], GREY)


def test_one_bit_image_is_black_and_white(tmp_path):
    bits = GREY > 100
    Image.fromarray(bits).save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png", SIZE)
    np.testing.assert_array_equal(image[..., 0], np.where(bits, 255, 0))


def test_32_bit_integers_are_taken_as_16_bit(tmp_path):
    Image.fromarray(GREY.astype(np.int32) * 257).save(tmp_path / "image.tiff")
    np.testing.assert_array_equal(read_image(tmp_path / "image.tiff", SIZE)[..., 0], GREY)


def test_16_bit_maps_the_whole_range(tmp_path):
    levels = np.array([[0, 128, 32_768, 65_535]], np.uint16).repeat(4, axis=0)
    Image.fromarray(levels).save(tmp_path / "image.png")
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", 4)[0, :, 0], [0, 0, 128, 255])


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_shrinking_does_not_alias(tmp_path, mode):
    board = (np.indices((64, 64)).sum(axis=0) % 2).astype(np.uint16)
    board = board * 65_535 if mode == "I;16" else (board * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "image.png")
    inner = read_image(tmp_path / "image.png", 16)[2:-2, 2:-2]
    assert abs(inner.astype(float) - 127.5).max() <= 2


@pytest.mark.parametrize("size", [8, 24])
def test_16_bit_is_resized_like_8_bit(tmp_path, size):
    for mode in ("L", "I;16"):
        _of_mode(mode).save(tmp_path / f"{mode[0]}.png")
    eight, sixteen = (read_image(tmp_path / f"{m}.png", size).astype(int) for m in "LI")
    assert abs(eight - sixteen).max() <= 1


def test_an_oblong_image_is_squeezed_not_cropped(tmp_path):
    oblong = np.repeat(np.array([[0, 80, 160, 240]], np.uint8), 32, axis=0).repeat(16, axis=1)
    Image.fromarray(oblong).save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png", 32)
    assert (image[0, 0, 0], image[0, -1, 0]) == (0, 240)


@pytest.fixture(scope="module")
def constant_path(tmp_path_factory):
    return tmp_path_factory.mktemp("constant") / "image.png"


@given(
    grey=st.integers(0, 255),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(1, 40),
)
def test_a_constant_image_stays_constant(constant_path, grey, height, width, size):
    Image.new("L", (width, height), grey).save(constant_path)
    assert (read_image(constant_path, size) == np.full((size, size, 1), grey)).all()


def test_real_images_of_every_kind(nih_dir, fullsize_dir):
    modes = set()
    for path in sorted(nih_dir.glob("images/*.png"))[:60]:
        with Image.open(path) as stored:
            modes.add(stored.mode)
            expected = np.asarray(stored.convert("L"))
        np.testing.assert_array_equal(read_image(path, 64)[..., 0], expected)
    assert modes == {"RGB", "RGBA"}
    for path in [*fullsize_dir.glob("*.png"), *fullsize_dir.glob("*.jpg")]:
        image = read_image(path, 224)
        assert image.shape == (224, 224, 1)
        assert image.std() > 20


def _png():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def _broken_chunk():
    data = bytearray(_png())
    data[60:64] = b"\0\0\0\0"
    return bytes(data)


@pytest.mark.parametrize(
    "content",
    [_png()[:1000], _png()[:20], _png()[:30], _broken_chunk(), b"", b"Not Found\n"],
    ids=["truncated", "signature", "half header", "bad checksum", "empty", "text"],
)
def test_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "00000001_000.png"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_image(path, 16)
    assert str(path) in str(caught.value)
    assert "fetch it again" in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png cannot be read \(absent\)"):
        read_image(tmp_path / "gone.png", 16)


def test_unsupported_pixel_format_is_named(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "image.tiff")
    with pytest.raises(InputError, match=r"image\.tiff.*pixel format F"):
        read_image(tmp_path / "image.tiff", 4)
