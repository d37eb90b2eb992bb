import collections
import io
import os
import socket
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.errors import InputError
from data_pipelines.images.decode import (
    check_header,
    decode,
    examine,
    read_image,
    valid_value_range,
)

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


def test_real_images_of_every_kind(nih_dir):
    modes = collections.Counter()
    for path in nih_dir.glob("images/*.png"):
        with Image.open(path) as stored:
            modes[stored.mode] += 1
            expected = np.asarray(stored.convert("L"))
        np.testing.assert_array_equal(read_image(path, 64)[..., 0], expected)
    assert modes == {"RGB": 979, "RGBA": 21}


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


def _tiff(values, photometric=1, sample_format=1, side=SIZE, bits=None):
    """One uncompressed strip of grey; Pillow writes only a few of the kinds that there are."""
    data = values.tobytes()
    order = ">" if values.dtype.byteorder == ">" else "<"
    bits = bits or values.dtype.itemsize * 8
    tags = [(256, side), (257, side), (258, bits), (259, 1), (262, photometric), (273, 8)]
    tags += [(277, 1), (278, side), (279, len(data)), (339, sample_format)]
    directory = struct.pack(order + "H", len(tags))
    for tag, value in tags:
        directory += struct.pack(order + "HHII", tag, 4, 1, value)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", 8 + len(data)) + data + directory + bytes(4)


def _packed_12_bits():
    pairs = (np.arange(256) * 4095 // 255).reshape(-1, 2).tolist()
    packed = [b for p, q in pairs for b in (p >> 4, (p & 15) << 4 | q >> 8, q & 255)]
    return np.array(packed, np.uint8)


SIXTEEN = GREY.astype(np.uint16) * 257
TIFFS = {
    "8": _tiff(GREY),
    "8, white is zero": _tiff(255 - GREY, photometric=0),
    "16 little": _tiff(SIXTEEN),
    "16 big": _tiff(SIXTEEN.astype(">u2")),
    "16, white is zero": _tiff(65_535 - SIXTEEN, photometric=0),
    "12": _tiff(_packed_12_bits(), bits=12),
    "signed, but not negative": _tiff(SIXTEEN.astype(np.int32), sample_format=2),
}


@pytest.mark.parametrize("content", TIFFS.values(), ids=TIFFS)
def test_every_tiff_of_grey_gives_the_same_grey(tmp_path, content):
    path = tmp_path / "image.tiff"
    path.write_bytes(content)
    assert (check_header(path).fault, examine(path, 8)[1].fault) == ("", "")
    np.testing.assert_array_equal(read_image(path, SIZE)[..., 0], GREY)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["L", "I;16", "RGB"])
def test_compressed_tiffs_are_read(tmp_path, mode, compression):
    _of_mode(mode).save(tmp_path / "image.tiff", compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "image.tiff", SIZE)[..., 0], GREY)


def _saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png_that_claims(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return _png()[:12] + header + checksum + _png()[33:]


SMALL = Image.fromarray(GREY)
REFUSED_BY_HEADER = {
    "pages": (_saved(SMALL, "TIFF", save_all=True, append_images=[SMALL]), "2 pages"),
    "signed bytes": (_tiff(GREY, sample_format=2), "signed"),
    "fax": (_saved(SMALL.convert("1"), "TIFF", compression="group4"), "group4"),
    "float": (_tiff(GREY.astype(np.float32), sample_format=3), "pixel format F"),
    "another format": (_saved(SMALL, "BMP"), "not a PNG, JPEG, TIFF or DICOM"),
    "TIFF bomb": (_tiff(SIXTEEN, side=60_000), "exceeds limit"),
    "PNG just too large": (_png_that_claims(8_001, 10_000), "8001 x 10000 pixels"),
    "PNG that Pillow warns of": (_png_that_claims(10_000, 10_000), "10000 x 10000 pixels"),
    "PNG bomb": (_png_that_claims(2**31 - 1, 2**31 - 1), "exceeds limit"),
    "JPEG bomb": (
        _saved(SMALL, "JPEG").replace(b"\0\x10\0\x10\1", b"\xff\xff\xff\xff\1", 1),
        "exceeds limit",
    ),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED_BY_HEADER.values(), ids=REFUSED_BY_HEADER)
def test_what_cannot_be_used_is_refused_by_its_header(tmp_path, content, reason):
    path = tmp_path / "image"
    path.write_bytes(content)
    assert reason in check_header(path).fault
    assert reason in examine(path, 8)[1].fault
    with pytest.raises(InputError, match=f"image cannot be read .*{reason}"):
        read_image(path, 4)


def test_negative_values_are_refused(tmp_path):
    path = tmp_path / "image.tiff"
    path.write_bytes(_tiff(GREY.astype(np.int16) - 1, sample_format=2))
    assert examine(path, 8)[1].fault == "its values are -1 to 254, not 0 to 65535"
    with pytest.raises(InputError, match="-1 to 254"):
        read_image(path, 4)


def test_a_refusal_takes_no_memory_for_the_pixels(tmp_path):
    (tmp_path / "image.png").write_bytes(_png_that_claims(9_000, 9_000))
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read_image(tmp_path / "image.png", 4)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_oddities_of_a_usable_file_are_not_told(tmp_path):
    """Pillow warns of a tag that has more values than it should."""
    path = tmp_path / "image.tiff"
    at = TIFFS["8"].index(struct.pack("<HHI", 278, 4, 1))
    path.write_bytes(TIFFS["8"][: at + 4] + struct.pack("<I", 2) + TIFFS["8"][at + 8 :])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert check_header(path).fault == ""
    assert caught == []


def _check(path, whole):
    return examine(path, 8)[1] if whole else check_header(path)


@pytest.mark.parametrize("whole", [True, False])
def test_faults_have_a_reason_each(tmp_path, whole):
    path = tmp_path / "image.png"
    assert _check(path, whole).fault == "absent"
    path.write_bytes(b"")
    assert _check(path, whole).fault == "empty"
    path.write_bytes(_png())
    assert _check(path, whole).fault == ""
    path.write_bytes(_png()[:1000])
    assert bool(_check(path, whole).fault) == whole


def test_lungs_are_darker_than_the_mediastinum_in_real_images(fullsize_dir):
    """In all but the DICOM whose tag alone was turned to MONOCHROME1 (see ``test_dicom.py``)."""
    polarity = {}
    for path in fullsize_dir.iterdir():
        image = read_image(path, 100)[..., 0].astype(float)
        lungs, middle = (image[40:55, 18:30], image[40:55, 70:82]), image[50:70, 46:54]
        polarity[path.name] = middle.mean() - max(lung.mean() for lung in lungs)
    assert polarity.pop("Fake_MONOHR1.dcm") < -20
    assert len(polarity) == 4
    assert min(polarity.values()) > 20


def test_real_images_are_what_pillow_gives(fullsize_dir):
    for path in [*fullsize_dir.glob("*.png"), *fullsize_dir.glob("*.jpg")]:
        with Image.open(path) as stored:
            square = stored.convert("L").resize((224, 224), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(read_image(path, 224)[..., 0], np.asarray(square))


# A chest that is not symmetric, in 12 bits.
TWELVE = (np.add.outer(np.arange(64) * 40, np.arange(64) * 17) % 3646).astype(np.uint16)
AS_8_BITS = np.rint(TWELVE * (255 / 4095))


def _save_12_bits(path, container="png", marked=False):
    stored = TWELVE.copy()
    if marked:  # letters burnt in by another program
        stored[:3, :20] = 65_535
    if container == "8":
        Image.fromarray((stored >> 8).astype(np.uint8)).save(path, "PNG")
    else:
        Image.fromarray(stored).save(path, container.upper())
    return path


@pytest.mark.parametrize("container", ["png", "tiff", "8"])
@pytest.mark.parametrize("marked", [True, False])
def test_values_that_use_a_sliver_of_their_container_are_measured(tmp_path, container, marked):
    marked &= container != "8"
    _, check = examine(_save_12_bits(tmp_path / "image", container, marked), 64)
    assert check.fault == ""
    assert 0.02 < check.sliver.used <= 1 / 16
    assert check.sliver.white == (15 if container == "8" else 4095)
    assert "--config.data.value_range=" in check.sliver.advice


def test_values_at_the_top_of_their_container_are_a_sliver_too(tmp_path):
    Image.fromarray(61_000 + TWELVE).save(tmp_path / "image.png")
    sliver = examine(tmp_path / "image.png", 8)[1].sliver
    assert sliver.used <= 1 / 16
    assert sliver.advice.endswith("value_range=image")


@pytest.mark.parametrize("bits", [8, 16])
def test_ordinary_and_constant_images_are_no_slivers(tmp_path, bits):
    ordinary = (AS_8_BITS * (257 if bits == 16 else 1)).astype(f"u{bits // 8}")
    for stored in (ordinary, np.full_like(ordinary, 90)):
        Image.fromarray(stored).save(tmp_path / "image.png")
        assert examine(tmp_path / "image.png", 8)[1].sliver is None


def test_an_image_of_nearly_one_value_is_a_sliver(tmp_path):
    stored = np.full((64, 64), 200, np.uint16)
    stored[0, :32] = np.arange(32) * 100
    Image.fromarray(stored).save(tmp_path / "image.png")
    assert examine(tmp_path / "image.png", 8)[1].sliver.used == 0


def test_a_value_range_that_makes_an_image_white_is_told(tmp_path):
    Image.fromarray(TWELVE + 64).save(tmp_path / "image.png")
    image, check = examine(tmp_path / "image.png", 8, "63")
    assert (image == 255).all()
    assert (check.sliver.used, check.sliver.white) == (0, None)


def test_no_real_image_is_a_sliver(nih_dir):
    for path in sorted(nih_dir.glob("images/*.png"))[::5]:
        assert decode(path).sliver() is None


@pytest.mark.parametrize("container", ["png", "tiff"])
def test_a_stated_value_is_white(tmp_path, container):
    path = _save_12_bits(tmp_path / "image", container)
    np.testing.assert_array_equal(read_image(path, 64, "4095")[..., 0], AS_8_BITS)
    assert decode(path, "4095").sliver() is None


def test_a_stated_value_changes_no_image_that_has_fewer(tmp_path):
    Image.fromarray(AS_8_BITS.astype(np.uint8)).save(tmp_path / "image.png")
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", 64, "4095")[..., 0], AS_8_BITS)


def test_the_range_of_each_image_may_be_shown(tmp_path):
    image = read_image(_save_12_bits(tmp_path / "image"), 64, "image")[..., 0]
    assert (image.min(), image.max()) == (0, 255)
    Image.new("L", (9, 9), 70).save(tmp_path / "flat.png")
    assert (read_image(tmp_path / "flat.png", 4, "image") == 70).all()


@pytest.mark.parametrize(
    ("text", "valid"),
    [("container", True), ("image", True), ("4095", True), ("0", False), ("65536", False)]
    + [(text, False) for text in ("", "12 bit", "-1", "1e3", "\u0663")],
)
def test_a_value_range_is_a_word_or_a_number(text, valid):
    assert valid_value_range(text) == valid


UPRIGHT = AS_8_BITS.astype(np.uint8)


def _stored(upright, orientation):
    """Return the pixels that a camera stores for an EXIF orientation."""
    turned = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }
    return Image.fromarray(np.ascontiguousarray(turned.get(orientation, upright)))


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_an_image_is_turned_upright(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    _stored(UPRIGHT, orientation).save(tmp_path / "image", kind, exif=exif, quality=100)
    image = read_image(tmp_path / "image", 64)[..., 0]
    assert abs(image.astype(int) - UPRIGHT).max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_image_that_is_not_square_is_turned_whole(tmp_path, kind, orientation, dtype):
    exif, upright = Image.Exif(), UPRIGHT[:40].astype(dtype)
    exif[274] = orientation
    _stored(upright, orientation).save(tmp_path / f"image.{kind}", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / f"image.{kind}").image, upright)


def test_16_bits_are_turned_upright_too(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(TWELVE).copy()).save(tmp_path / "image.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", 64, "4095")[..., 0], AS_8_BITS)


@pytest.mark.parametrize(
    ("exif", "remarks"),
    [
        (b"no exif at all", ("EXIF is damaged and ignored",)),
        (b"II*\0\x08\0\0\0\x05\0", ()),
    ],
)
def test_damaged_exif_is_ignored(tmp_path, exif, remarks):
    path = tmp_path / "image.png"
    Image.fromarray(UPRIGHT).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path, 64)[..., 0], UPRIGHT)
    assert examine(path, 64)[1].remarks == remarks


def _pipe(path):
    os.mkfifo(path)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # the full path may be too long


NO_FILES = {
    "folder": (lambda path: path.mkdir(), "it is a folder"),
    "pipe": (_pipe, "it is a named pipe"),
    "socket": (_socket, "it is a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "dangling link": (lambda path: path.symlink_to("gone"), "a link to a file that does not exist"),
    "link to itself": (lambda path: path.symlink_to(path.name), "too many levels"),
}


@pytest.mark.parametrize(("make", "reason"), NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path, make, reason):
    make(tmp_path / "image.png")
    for check in (check_header(tmp_path / "image.png"), examine(tmp_path / "image.png", 8)[1]):
        assert reason in check.fault
        assert str(tmp_path) not in check.fault
    with pytest.raises(InputError, match=reason):
        read_image(tmp_path / "image.png", 8)
