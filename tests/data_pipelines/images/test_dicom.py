import builtins
import io
import logging
import re
import struct
import warnings

import numpy as np
import pydicom
import pytest
from dicom_files import (
    LOSSLESS,
    RAMP,
    TWELVE,
    compress,
    make_compressed,
    make_dicom,
    make_table,
    save,
)
from PIL import Image
from pydicom import uid

from data_pipelines.errors import InputError
from data_pipelines.images import dicom
from data_pipelines.images.decode import check_header, examine, read_image


@pytest.mark.parametrize("size", [16, 8, 24])
def test_eight_bits_come_out_as_a_png_does(tmp_path, size):
    Image.fromarray(RAMP).save(tmp_path / "image.png")
    path = save(make_dicom(), tmp_path / "image.dcm")
    png, image = read_image(tmp_path / "image.png", size), read_image(path, size)
    assert (image.shape, image.dtype) == ((size, size, 1), np.uint8)
    assert abs(png.astype(int) - image).max() <= (0 if size == 16 else 1)


def test_the_format_is_seen_from_the_content(tmp_path):
    path = save(make_dicom(), tmp_path / "image.png")
    np.testing.assert_array_equal(read_image(path, 16)[..., 0], RAMP)


@pytest.mark.parametrize("little", [True, False])
def test_implicit_and_big_endian_files_are_read(tmp_path, little):
    path = tmp_path / "image"
    dataset = make_dicom(TWELVE, 12, VOILUTSequence=[make_table(0, list(range(4096)), 12)])
    if not little:
        dataset.PixelData = TWELVE.byteswap().tobytes()
        dataset.VOILUTSequence[0].LUTData = np.arange(4096).astype(">u2").tobytes()
    syntax = uid.ImplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, implicit_vr=little, little_endian=little, enforce_file_format=True)
    np.testing.assert_allclose(dicom.read_grey(path).values, TWELVE / 4095, atol=1e-6)


def _without(dataset, *names):
    for name in names:
        delattr(dataset, name)
    return dataset


def _with_syntax(syntax):
    dataset = make_dicom()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _colour(photometric="RGB"):
    dataset = make_dicom()
    dataset.set_pixel_data(np.zeros((4, 4, 3), np.uint8), "RGB", 8)
    dataset.PhotometricInterpretation = photometric
    return dataset


def _frames():
    return make_dicom(np.zeros((3, 4, 4), np.uint8))


def _float_pixels():
    dataset = _without(make_dicom(), "PixelData")
    dataset.FloatPixelData = bytes(16 * 16 * 4)
    return dataset


REFUSED_BY_HEADER = {
    "several frames": (_frames, "3 frames"),
    "colour": (_colour, "not grey.*RGB"),
    "palette": (lambda: make_dicom(PhotometricInterpretation="PALETTE COLOR"), "not grey.*PALETTE"),
    "several channels": (lambda: make_dicom(SamplesPerPixel=3), "not grey.*SamplesPerPixel 3"),
    "no pixels": (lambda: _without(make_dicom(), "PixelData"), r"no image \(1\.2\.840"),
    "float pixels": (_float_pixels, "no image"),
    "no image": (lambda: _without(make_dicom(), "PixelData", "Rows", "Columns"), "no image"),
    "no rows": (lambda: _without(make_dicom(), "Rows"), "no image"),
    "zero rows": (lambda: make_dicom(Rows=0), "16 x 0 pixels"),
    "absurd rows": (lambda: make_dicom(Rows=65535, Columns=65535), "65535 x 65535.*80 million"),
    "more rows than data": (lambda: make_dicom(Rows=5000, Columns=5000), "cut short"),
    "32 bits": (lambda: make_dicom(BitsAllocated=32), "8 of 32 bits"),
    "no bits": (lambda: make_dicom(BitsStored=0), "0 of 8 bits"),
    "more bits than there are": (lambda: make_dicom(BitsStored=12), "12 of 8 bits"),
    "no sign": (lambda: _without(make_dicom(), "PixelRepresentation"), "PixelRepresentation"),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED_BY_HEADER.values(), ids=REFUSED_BY_HEADER)
def test_what_cannot_be_used_is_refused_by_its_header(tmp_path, make, reason):
    path = save(make(), tmp_path / "image.dcm")
    with pytest.raises(ValueError, match=reason):
        dicom.check_header(path)
    with pytest.raises(InputError, match=rf"image\.dcm cannot be read \(.*{reason}") as caught:
        read_image(path, 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_file_that_is_cut_short_is_refused(tmp_path, share):
    path = save(make_dicom(), tmp_path / "image.dcm")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert check_header(path).fault
    with pytest.raises(InputError, match=r"image\.dcm cannot be read"):
        read_image(path, 8)


def test_pixels_of_another_depth_are_refused(tmp_path):
    dataset = make_dicom()
    dataset.PixelData += dataset.PixelData
    path = save(dataset, tmp_path / "image.dcm")
    with pytest.raises(InputError, match=r"512 bytes.*are 256"):
        read_image(path, 8)


def test_pixels_that_end_before_the_file_does_are_refused(tmp_path):
    dataset = make_dicom(DataSetTrailingPadding=bytes(500))
    dataset.PixelData = dataset.PixelData[:200]
    path = save(dataset, tmp_path / "image.dcm")
    with pytest.raises(InputError, match=r"200 bytes.*are 256"):
        read_image(path, 8)


def test_a_file_larger_than_any_image_is_not_read(tmp_path, monkeypatch):
    path = save(make_dicom(), tmp_path / "image.dcm")
    monkeypatch.setattr(dicom, "MAX_PIXELS", 100)
    with pytest.raises(InputError, match=r"it is larger than"):
        read_image(path, 8)


@pytest.mark.parametrize("start", [128, 132])
def test_a_file_without_preamble_is_read(tmp_path, start):
    path = save(make_dicom(), tmp_path / "image.dcm")
    path.write_bytes(path.read_bytes()[start:])
    np.testing.assert_array_equal(read_image(path, 16)[..., 0], RAMP)
    assert dicom.check_header(path) == ("Preamble is absent",)


@pytest.mark.parametrize("implicit", [True, False])
def test_a_bare_data_set_is_read(tmp_path, implicit):
    path, dataset = tmp_path / "image.dcm", make_dicom()
    del dataset.file_meta
    dataset.save_as(path, implicit_vr=implicit, little_endian=True)
    np.testing.assert_array_equal(read_image(path, 16)[..., 0], RAMP)
    kind = "Implicit" if implicit else "Explicit"
    assert f"TransferSyntaxUID is absent: read as {kind}" in dicom.check_header(path)[1]


@pytest.mark.parametrize("preamble", [True, False])
def test_a_deflated_data_set_is_inflated(tmp_path, preamble):
    path = tmp_path / "image.dcm"
    dataset = make_dicom()
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    save(dataset, path)
    data = path.read_bytes()
    path.write_bytes(data if preamble else data[132:])
    np.testing.assert_array_equal(read_image(path, 16)[..., 0], RAMP)
    path.write_bytes(data[:-40])
    assert "cut short" in check_header(path).fault


def test_a_data_set_that_inflates_without_end_is_refused(tmp_path, monkeypatch):
    dataset = make_dicom(np.zeros((300, 300), np.uint8))
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    path = save(dataset, tmp_path / "image.dcm")
    monkeypatch.setattr(dicom, "MAX_PIXELS", 20_000)
    assert "too large" in examine(path, 8)[1].fault


def _nameless(syntax, stored=RAMP):
    dataset = make_dicom(stored)
    if uid.UID(syntax).is_compressed:
        compress(dataset, syntax)
    return dataset


@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, *LOSSLESS], ids=lambda syntax: syntax.name
)
@pytest.mark.parametrize("named", [None, "1.2.3.4"])
def test_the_transfer_syntax_is_seen_from_the_pixels(tmp_path, syntax, named):
    stored = np.random.default_rng(0).integers(0, 256, (40, 40)).astype(np.uint8)
    path = save(_nameless(syntax, stored), tmp_path / "image.dcm")
    dataset = pydicom.dcmread(path)
    if named:
        dataset.file_meta.TransferSyntaxUID = named
    else:
        del dataset.file_meta.TransferSyntaxUID
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    np.testing.assert_array_equal(read_image(path, 40)[..., 0], stored)
    assert dicom.check_header(path)[0].startswith(f"TransferSyntaxUID {named or 'is absent'}")


@pytest.mark.parametrize(
    ("tags", "remark"),
    [
        ({"NumberOfFrames": 0}, "NumberOfFrames 0 is taken for 1"),
        ({"NumberOfFrames": -1}, "NumberOfFrames -1"),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "RescaleSlope 0 is not usable"),
        ({"RescaleSlope": "nan"}, "RescaleSlope"),
        ({"WindowCenter": 9, "WindowWidth": 0}, "WindowWidth 0 with WindowCenter 9"),
        ({"WindowCenter": 9, "WindowWidth": -5}, "WindowWidth -5"),
        ({"WindowCenter": "wide", "WindowWidth": "9"}, "Window"),
        ({"NumberOfFrames": "1\\1"}, "NumberOfFrames [1, 1]"),
        ({"NumberOfFrames": "ONE"}, "NumberOfFrames ONE"),
        ({"RescaleSlope": "1e-20", "RescaleIntercept": "1000"}, "RescaleSlope 1e-20"),
        ({"RescaleIntercept": "-inf"}, "RescaleIntercept -inf"),
        ({"WindowCenter": 9}, "WindowWidth nan with WindowCenter 9"),
        ({"WindowCenter": 9000, "WindowWidth": 10}, "WindowWidth 10 with WindowCenter 9000"),
        (
            {"WindowCenter": "-99\\inf", "WindowWidth": "5\\5"},
            "WindowWidth 5 with WindowCenter inf",
        ),
        ({"VOILUTSequence": [make_table(0, [7] * 256, 8)]}, "VOILUTSequence with one entry"),
        ({"VOILUTSequence": [make_table(300, [0, 9], 8)]}, "VOILUTSequence with one entry"),
        ({"ModalityLUTSequence": [make_table(0, [7] * 256, 16)]}, "ModalityLUTSequence with one"),
        ({"PhotometricInterpretation": "monochrome2"}, "PhotometricInterpretation 'monochrome2'"),
        ({"PhotometricInterpretation": "Monochrome 2"}, "is taken for MONOCHROME2"),
        ({"VOILUTSequence": [make_table(0, [1] * 9, 32)]}, "VOILUTSequence of 32 bits"),
        ({"VOILUTSequence": [pydicom.Dataset()]}, "VOILUTSequence without LUTDescriptor"),
    ],
)
def test_a_tag_that_is_unusable_is_ignored_and_named(tmp_path, tags, remark):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = save(_with_raw(make_dicom(), tags), tmp_path / "image.dcm")
    np.testing.assert_array_equal(read_image(path, 16)[..., 0], RAMP)
    for check in (check_header(path), examine(path, 8)[1]):
        assert remark in " ".join(check.remarks)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, *LOSSLESS])
@pytest.mark.parametrize(
    "tag", ["SamplesPerPixel", "BitsAllocated", "BitsStored", "PhotometricInterpretation"]
)
def test_an_absent_tag_has_its_usual_value(tmp_path, syntax, tag):
    stored = np.random.default_rng(0).integers(0, 256, (40, 40)).astype(np.uint8)
    dataset = _nameless(syntax, stored)
    delattr(dataset, tag)
    path = save(dataset, tmp_path / "image.dcm")
    np.testing.assert_array_equal(read_image(path, 40)[..., 0], stored)
    assert check_header(path).remarks == examine(path, 8)[1].remarks
    assert check_header(path).remarks[0].startswith(f"{tag} is absent and taken for")


def test_absent_bits_follow_from_the_highest(tmp_path):
    for absent in ("BitsStored", "HighBit", "BitsAllocated"):
        path = save(_without(make_dicom(TWELVE, 12), absent), tmp_path / "image.dcm")
        np.testing.assert_allclose(dicom.read_grey(path).values, TWELVE / 4095, atol=1e-6)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, *LOSSLESS])
@pytest.mark.parametrize(("shift", "signed"), [(4, 0), (4, 1), (0, 0)])
def test_values_in_the_upper_bits_are_moved_down(tmp_path, syntax, shift, signed):
    """A HighBit above the stored bits is followed where the pixels agree."""
    dataset = make_dicom(TWELVE << shift, 16, PixelRepresentation=signed)
    if uid.UID(syntax).is_compressed:
        compress(dataset, syntax)
    dataset.BitsStored, dataset.HighBit = 12, 15
    path = save(dataset, tmp_path / "image.dcm")
    expected = TWELVE ^ 2048 if signed else TWELVE
    np.testing.assert_allclose(dicom.read_grey(path).values, expected / 4095, atol=1e-6)
    assert check_header(path).remarks[0] == "HighBit 15 contradicts BitsStored 12"


@pytest.mark.parametrize(
    ("syntax", "named"),
    [
        (uid.JPEG2000Lossless, uid.JPEGBaseline8Bit),
        (uid.JPEG2000Lossless, uid.RLELossless),
        (uid.JPEGLSLossless, uid.JPEG2000),
        (uid.JPEGLSLossless, uid.ExplicitVRLittleEndian),
        (uid.ExplicitVRLittleEndian, uid.JPEGLosslessSV1),
    ],
)
def test_pixels_that_contradict_the_transfer_syntax_are_read_by_their_own(tmp_path, syntax, named):
    path = save(_nameless(syntax, TWELVE), tmp_path / "image.dcm")
    path.write_bytes(path.read_bytes().replace(_element(syntax), _element(named)))
    np.testing.assert_allclose(dicom.read_grey(path).values, TWELVE / 65535, atol=1e-6)
    assert f"TransferSyntaxUID {named}: read as" in dicom.check_header(path)[0]


def _element(syntax):
    """Return the bytes of TransferSyntaxUID."""
    text = syntax.encode() + b"\0" * (len(syntax) % 2)
    return b"\2\0\x10\0UI" + struct.pack("<H", len(text)) + text


def _with_raw(dataset, tags):
    """Set tags, numbers as the text that the file then has."""
    for name, value in tags.items():
        if isinstance(value, list):
            setattr(dataset, name, value)
            continue
        element = pydicom.DataElement(name, "LO", str(value))
        element.VR = pydicom.datadict.dictionary_VR(name)
        dataset.add(element)
    return dataset


@pytest.mark.parametrize("padding", [b"\0" * 7, b" " * 6, b"\xff" * 8])
@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLSLossless])
def test_bytes_after_the_end_of_a_frame_are_ignored(tmp_path, syntax, padding):
    dataset = _packed(syntax)
    expected = read_image(save(dataset, tmp_path / "plain.dcm"), 40)
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    end = frame.rfind(b"\xff\xd9") + 2
    path = save(make_compressed(frame[:end] + padding, syntax, dataset), tmp_path / "image.dcm")
    np.testing.assert_array_equal(read_image(path, 40), expected)
    assert "bytes after the end" in examine(path, 8)[1].remarks[0]


def test_the_next_decoder_reads_what_the_first_cannot(tmp_path, monkeypatch):
    path = save(_packed(uid.JPEG2000Lossless), tmp_path / "image.dcm")
    expected = read_image(path, 40)
    decode = pydicom.pixels.pixel_array

    def decode_by_another(dataset, decoding_plugin):
        if decoding_plugin == "pylibjpeg":
            raise RuntimeError("no")
        return decode(dataset, decoding_plugin=decoding_plugin)

    monkeypatch.setattr(pydicom.pixels, "pixel_array", decode_by_another)
    np.testing.assert_array_equal(read_image(path, 40), expected)
    assert "since another decoder failed" in examine(path, 8)[1].remarks[0]


def test_a_fault_is_found_by_the_header(tmp_path):
    path = save(make_dicom(), tmp_path / "image.dcm")
    assert (examine(path, 8)[1].fault, check_header(path).fault) == ("", "")
    save(_frames(), path)
    assert "3 frames" in check_header(path).fault


def test_without_pydicom_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    path = save(make_dicom(), tmp_path / "image.dcm")
    load = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pydicom":
            raise ModuleNotFoundError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for read in (lambda: read_image(path, 8), lambda: check_header(path).fault):
        with pytest.raises(InputError, match=r'image\.dcm.*pip install "charm-jax\[dicom\]"'):
            read()


def test_oddities_of_a_usable_file_are_not_told(tmp_path, capfd, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = make_dicom(PatientBirthDate="no date", AccessionNumber="x" * 99)
        dataset.PixelData += bytes(10)
        path = save(dataset, tmp_path / "image.dcm")
    caplog.clear()
    logging.getLogger("pydicom").setLevel(logging.NOTSET)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(read_image(path, 16)[..., 0], RAMP)
    assert (caught, caplog.records) == ([], [])
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def real_dicoms(fullsize_dir):
    paths = sorted(fullsize_dir.glob("*.dcm"))
    by_kind = {pydicom.dcmread(path).PhotometricInterpretation: path for path in paths}
    assert sorted(by_kind) == ["MONOCHROME1", "MONOCHROME2"]
    return by_kind


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_real_files_are_what_pydicom_gives(real_dicoms, kind):
    dataset = pydicom.dcmread(real_dicoms[kind])
    stored = dataset.pixel_array
    expected = 255 - stored if kind == "MONOCHROME1" else stored
    found = dicom.read_grey(real_dicoms[kind])
    assert found.inverted == (kind == "MONOCHROME1")
    np.testing.assert_array_equal(np.rint(found.values * 255), stored)
    square = Image.fromarray(expected).resize((224, 224), Image.Resampling.BILINEAR)
    image = read_image(real_dicoms[kind], 224)[..., 0]
    assert abs(image.astype(int) - np.asarray(square)).max() <= 1


def test_the_real_monochrome1_file_is_the_other_with_its_tag_changed(real_dicoms):
    """Its pixels were not inverted: by the standard it is a negative, and comes out as one."""
    one, two = (pydicom.dcmread(real_dicoms[f"MONOCHROME{n}"]) for n in (1, 2))
    assert one.PixelData == two.PixelData
    inverse, plain = (read_image(real_dicoms[f"MONOCHROME{n}"], 224) for n in (1, 2))
    assert abs(inverse.astype(int) + plain - 255).max() <= 1


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 12), (np.uint16, 16)])
def test_lossless_compression_changes_nothing(grey, syntax, dtype, bits):
    stored = np.random.default_rng(0).integers(0, 2**bits, (40, 56)).astype(dtype)
    plain = make_dicom(stored, bits)
    packed = make_dicom(stored, bits)
    compress(packed, syntax)
    np.testing.assert_array_equal(grey(packed), grey(plain))


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless])
def test_compressed_signed_values_keep_their_sign(grey, syntax):
    stored = np.random.default_rng(0).integers(-2048, 2048, (40, 56)).astype(np.int16)
    packed = make_dicom(stored, 12)
    compress(packed, syntax)
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
    np.testing.assert_array_equal(dicom.read_grey(packed).values, dicom.read_grey(plain).values)


def _resized(side):
    frame = _jpeg().replace(struct.pack(">HH", 16, 16), struct.pack(">HH", side, side), 1)
    return make_compressed(frame, uid.JPEGBaseline8Bit, make_dicom())


def _packed(syntax):
    dataset = make_dicom(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))
    compress(dataset, syntax)
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
def test_a_compressed_file_that_is_cut_short_is_refused(tmp_path, syntax, share):
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
    assert re.search(reason, check_header(path).fault)
    with pytest.raises(InputError, match=reason):
        read_image(path, 8)


def test_a_missing_plugin_is_named_with_what_to_install(tmp_path, monkeypatch):
    path = save(_packed(uid.RLELossless), tmp_path / "image.dcm")
    monkeypatch.setattr(dicom, "_PLUGINS", ())
    with pytest.raises(InputError, match=r"RLE Lossless is installed: pip install"):
        read_image(path, 8)


def test_a_frame_is_looked_at_when_the_whole_file_is(tmp_path):
    path = save(_resized(17), tmp_path / "image.dcm")
    assert check_header(path).fault == ""
    assert "17 x 17" in examine(path, 8)[1].fault
