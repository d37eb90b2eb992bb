import io
import re
import struct

import numpy as np
import pydicom
import pytest
from dicom_files import LOSSLESS, RAMP, TWELVE, make_compressed, make_dicom, save
from PIL import Image
from pydicom import uid

from data_pipelines.errors import InputError
from data_pipelines.images import dicom
from data_pipelines.images.decode import fault, read_image


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 12), (np.uint16, 16)])
def test_lossless_compression_changes_nothing(grey, syntax, dtype, bits):
    stored = np.random.default_rng(0).integers(0, 2**bits, (40, 56)).astype(dtype)
    plain = make_dicom(stored, bits)
    packed = make_dicom(stored, bits)
    packed.compress(syntax, generate_instance_uid=False)
    np.testing.assert_array_equal(grey(packed), grey(plain))


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless])
def test_compressed_signed_values_keep_their_sign(grey, syntax):
    stored = np.random.default_rng(0).integers(-2048, 2048, (40, 56)).astype(np.int16)
    packed = make_dicom(stored, 12)
    packed.compress(syntax, generate_instance_uid=False)
    np.testing.assert_array_equal(grey(packed), grey(make_dicom(stored, 12)))


def _jpeg(image=None, **options):
    buffer = io.BytesIO()
    (image or Image.fromarray(RAMP)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit])
def test_jpeg_frames_are_those_of_pillow(grey, syntax):
    frame = _jpeg(quality=90)
    expected = np.asarray(Image.open(io.BytesIO(frame))) / np.float32(255)
    image = grey(make_compressed(frame, syntax, make_dicom()))
    np.testing.assert_allclose(image, expected, atol=1.01 / 255)


def test_lossless_jpeg_is_read(grey, tmp_path):
    gdcm = pytest.importorskip("gdcm")
    plain, packed = save(make_dicom(TWELVE, 12), tmp_path / "plain"), tmp_path / "packed"
    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(plain))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(packed))
    assert writer.Write()
    assert pydicom.dcmread(packed).file_meta.TransferSyntaxUID == uid.JPEGLosslessSV1
    np.testing.assert_array_equal(dicom.read_grey(packed), dicom.read_grey(plain))


def _resized(side):
    frame = _jpeg().replace(struct.pack(">HH", 16, 16), struct.pack(">HH", side, side), 1)
    return make_compressed(frame, uid.JPEGBaseline8Bit, make_dicom())


def _packed(syntax):
    dataset = make_dicom(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))
    dataset.compress(syntax, generate_instance_uid=False)
    return dataset


def _cut(syntax):
    dataset = _packed(syntax)
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    return make_compressed(frame[: len(frame) // 2], syntax, dataset)


REFUSED_WHOLE = {
    "another size": (lambda: _resized(17), "17 x 17.*16 x 16"),
    "a bomb": (lambda: _resized(65500), "65500 x 65500"),
    "colour in the frame": (
        lambda: make_compressed(
            _jpeg(Image.new("RGB", (16, 16))), uid.JPEGBaseline8Bit, make_dicom()
        ),
        "3 channels",
    ),
    "frame of another kind": (
        lambda: make_compressed(b"\x89PNG" + bytes(96), uid.JPEGBaseline8Bit, make_dicom()),
        "neither JPEG",
    ),
    "damaged frame header": (
        lambda: make_compressed(b"\xff\xd8" + bytes(96), uid.JPEGBaseline8Bit, make_dicom()),
        "damaged",
    ),
    "RLE that grows": (
        lambda: make_compressed(bytes(9_999), uid.RLELossless, make_dicom()),
        "9999 bytes|10000 bytes",
    ),
    **{f"cut {syntax.name}": (lambda syntax=syntax: _cut(syntax), "") for syntax in LOSSLESS},
    "cut JPEG": (
        lambda: make_compressed(_jpeg()[:-40], uid.JPEGBaseline8Bit, make_dicom()),
        "cut short",
    ),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED_WHOLE.values(), ids=REFUSED_WHOLE)
def test_what_only_the_pixels_show_is_refused(tmp_path, make, reason):
    path = save(make(), tmp_path / "image.dcm")
    with pytest.raises(InputError, match=rf"image\.dcm cannot be read \(.*{reason}"):
        read_image(path, 8)


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_file_that_is_cut_short_is_refused(tmp_path, syntax, share):
    path = save(_packed(syntax), tmp_path / "image.dcm")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"image\.dcm cannot be read"):
        read_image(path, 8)


def _twelve_bit_jpeg():
    return make_compressed(_jpeg(), uid.JPEGExtended12Bit, make_dicom(TWELVE, 12))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: make_compressed(_jpeg(), uid.MPEG2MPML, make_dicom()), "No pixel data decoders"),
        (_twelve_bit_jpeg, "JPEG of more than 8 bits.*dcmdjpeg"),
    ],
    ids=["video", "12-bit JPEG"],
)
def test_a_compression_without_decoder_is_refused_by_the_header(tmp_path, make, reason):
    path = save(make(), tmp_path / "image.dcm")
    assert re.search(reason, fault(path, whole=False))
    with pytest.raises(InputError, match=reason):
        read_image(path, 8)


def test_a_missing_plugin_is_named_with_what_to_install(tmp_path, monkeypatch):
    path = save(_packed(uid.RLELossless), tmp_path / "image.dcm")
    monkeypatch.setattr(dicom, "_PLUGINS", ())
    with pytest.raises(InputError, match=r"RLE Lossless is installed: pip install"):
        read_image(path, 8)


def test_a_frame_is_looked_at_when_the_whole_file_is(tmp_path):
    path = save(_resized(17), tmp_path / "image.dcm")
    assert fault(path, whole=False) == ""
    assert "17 x 17" in fault(path, whole=True)
