import builtins
import io
import logging
import struct
import warnings

import numpy as np
import pydicom
import pytest
from dicom_files import RAMP, make_compressed, make_dicom, make_table, save
from PIL import Image
from pydicom import uid

from data_pipelines import dicom
from data_pipelines.decode import fault, read_image
from data_pipelines.errors import InputError

TWELVE = np.linspace(0, 4095, 1024).astype(np.uint16).reshape(32, 32)


@pytest.fixture
def grey(tmp_path):
    """Saves an object and reads it as grey in [0, 1]; its header is found in order first."""

    def read(dataset):
        path = save(dataset, tmp_path / "image")
        dicom.check_header(path)
        image = dicom.read_grey(path)
        assert image.dtype == np.float32
        assert 0 <= image.min() <= image.max() <= 1
        return image

    return read


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


def test_monochrome1_is_the_negative(grey):
    dataset = make_dicom(PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(grey(dataset), 1 - RAMP / np.float32(255), atol=1e-7)


@pytest.mark.parametrize(
    ("stored", "bits", "low", "high"),
    [
        (RAMP, 8, 0, 255),
        (RAMP.astype(np.uint16), 8, 0, 255),
        (TWELVE, 12, 0, 4095),
        (TWELVE * 16, 16, 0, 65535),
        (TWELVE.astype(np.int16) - 2048, 12, -2048, 2047),
        (RAMP.astype(np.int8), 8, -128, 127),
    ],
    ids=["8", "8 of 16", "12", "16", "signed 12", "signed 8"],
)
def test_without_a_window_the_range_of_the_stored_bits_is_shown(grey, stored, bits, low, high):
    expected = (stored.astype(float) - low) / (high - low)
    np.testing.assert_allclose(grey(make_dicom(stored, bits)), expected, atol=1e-6)


def test_a_dark_image_stays_dark(grey):
    assert grey(make_dicom(TWELVE // 8, 12)).max() < 0.13


@pytest.mark.parametrize(("slope", "intercept"), [(2.5, -1024), (0.001, 7)])
def test_a_rescale_alone_changes_nothing(grey, slope, intercept):
    dataset = make_dicom(TWELVE, 12, RescaleSlope=slope, RescaleIntercept=intercept)
    np.testing.assert_allclose(grey(dataset), TWELVE / 4095, atol=1e-6)


def test_a_negative_slope_inverts(grey):
    dataset = make_dicom(TWELVE, 12, RescaleSlope=-1, RescaleIntercept=4095)
    np.testing.assert_allclose(grey(dataset), 1 - TWELVE / 4095, atol=1e-6)


def _by_pydicom(dataset):
    """The window of pydicom, from its output range of 12 bits after the rescale to [0, 1]."""
    rescaled = pydicom.pixels.apply_modality_lut(dataset.pixel_array, dataset)
    low, high = -1000.0, 4095.0 * 2 - 1000
    return (pydicom.pixels.apply_windowing(rescaled, dataset) - low) / (high - low)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize(("center", "width"), [(1500, 800), (3000.5, 12000.0), (0, 7)])
def test_a_window_is_that_of_pydicom(grey, function, center, width):
    dataset = make_dicom(TWELVE, 12, RescaleSlope=2, RescaleIntercept=-1000)
    dataset.WindowCenter, dataset.WindowWidth = center, width
    if function:
        dataset.VOILUTFunction = function
    image = grey(dataset)
    np.testing.assert_allclose(image, _by_pydicom(dataset), atol=1e-5)
    assert len(np.unique(image)) > 1


def test_of_several_windows_the_first_counts(grey):
    both = make_dicom(TWELVE, 12, WindowCenter=[1000, 9], WindowWidth=[500, 9])
    one = make_dicom(TWELVE, 12, WindowCenter=1000, WindowWidth=500)
    np.testing.assert_array_equal(grey(both), grey(one))


def test_the_narrowest_window_is_a_threshold(grey):
    image = grey(make_dicom(WindowCenter=100, WindowWidth=1))
    np.testing.assert_array_equal(image, RAMP >= 100)


def test_a_window_that_is_not_whole_does_not_count(grey):
    for tags in ({"WindowCenter": 9}, {"WindowWidth": 9}, {"WindowCenter": "", "WindowWidth": ""}):
        np.testing.assert_array_equal(grey(make_dicom(**tags)), grey(make_dicom()))


@pytest.mark.parametrize("bits", [8, 10, 16])
def test_a_voi_table_is_looked_up_and_clipped_at_its_ends(grey, bits):
    top = 2**bits - 1
    entries = np.linspace(top, 0, 2000).astype(int)
    table = make_table(1000, entries.tolist(), bits)
    image = grey(make_dicom(TWELVE, 12, VOILUTSequence=[table], WindowCenter=1, WindowWidth=2))
    expected = entries[np.clip(TWELVE.astype(int) - 1000, 0, 1999)] / top
    np.testing.assert_allclose(image, expected, atol=1e-6)


def test_a_table_of_bytes_is_read(grey):
    table = make_table(0, [0] * 256, 8)
    table.LUTData = bytes(range(255, -1, -1))
    np.testing.assert_allclose(grey(make_dicom(VOILUTSequence=[table])), 1 - RAMP / 255, atol=1e-6)


def test_a_table_begins_below_zero_for_signed_values(grey):
    table = make_table(-2048, list(range(0, 4096)), 12)
    image = grey(make_dicom(TWELVE.astype(np.int16) - 2048, 12, VOILUTSequence=[table]))
    np.testing.assert_allclose(image, TWELVE / 4095, atol=1e-6)


def test_a_modality_table_comes_before_the_window(grey):
    table = make_table(0, [value * 16 for value in range(4096)], 16)
    dataset = make_dicom(TWELVE, 12, ModalityLUTSequence=[table])
    np.testing.assert_allclose(grey(dataset), TWELVE * 16.0 / 65535, atol=1e-6)
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 32760, 65520, "LINEAR_EXACT"
    np.testing.assert_allclose(grey(dataset), TWELVE / 4095, atol=1e-6)


def test_monochrome1_is_inverted_after_the_window(grey):
    window = {"WindowCenter": 100, "WindowWidth": 50}
    inverse = grey(make_dicom(PhotometricInterpretation="MONOCHROME1", **window))
    np.testing.assert_allclose(inverse, 1 - grey(make_dicom(**window)), atol=1e-6)


def test_bits_above_the_stored_ones_do_not_count(grey):
    overlaid = make_dicom(TWELVE, 12)
    overlaid.PixelData = (TWELVE | 0xF000).tobytes()
    np.testing.assert_array_equal(grey(overlaid), grey(make_dicom(TWELVE, 12)))


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
    np.testing.assert_allclose(dicom.read_grey(path), TWELVE / 4095, atol=1e-6)


LOSSLESS = [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless]


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


def _without(dataset, *names):
    for name in names:
        delattr(dataset, name)
    return dataset


def _resized(side):
    frame = _jpeg().replace(struct.pack(">HH", 16, 16), struct.pack(">HH", side, side), 1)
    return make_compressed(frame, uid.JPEGBaseline8Bit, make_dicom())


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
    "no photometric": (lambda: _without(make_dicom(), "PhotometricInterpretation"), "not grey"),
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
    "bits at the top": (lambda: make_dicom(TWELVE, 12, HighBit=15), "HighBit is 15"),
    "no sign": (lambda: _without(make_dicom(), "PixelRepresentation"), "PixelRepresentation"),
    "flat rescale": (lambda: make_dicom(RescaleSlope=0, RescaleIntercept=1), "rescale"),
    "no width": (lambda: make_dicom(WindowCenter=9, WindowWidth=0), "window"),
    "odd function": (
        lambda: make_dicom(WindowCenter=9, WindowWidth=9, VOILUTFunction="CUBIC"),
        "CUBIC",
    ),
    "short table": (lambda: _short_table(), "4 entries, not 9"),
    "wide table": (lambda: make_dicom(VOILUTSequence=[make_table(0, [1] * 9, 32)]), "32 bits"),
    "deflated": (lambda: _with_syntax(uid.DeflatedExplicitVRLittleEndian), "deflated"),
}


def _short_table():
    table = make_table(0, [1] * 9, 12)
    table.LUTData = table.LUTData[:8]
    return make_dicom(VOILUTSequence=[table])


@pytest.mark.parametrize(("make", "reason"), REFUSED_BY_HEADER.values(), ids=REFUSED_BY_HEADER)
def test_what_cannot_be_used_is_refused_by_its_header(tmp_path, make, reason):
    path = save(make(), tmp_path / "image.dcm")
    with pytest.raises(ValueError, match=reason):
        dicom.check_header(path)
    with pytest.raises(InputError, match=rf"image\.dcm cannot be read \(.*{reason}") as caught:
        read_image(path, 8)
    assert "\n" not in str(caught.value)


def _long():
    dataset = make_dicom()
    dataset.PixelData += dataset.PixelData
    return dataset


def _packed(syntax):
    dataset = make_dicom(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))
    dataset.compress(syntax, generate_instance_uid=False)
    return dataset


def _cut(syntax):
    dataset = _packed(syntax)
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    return make_compressed(frame[: len(frame) // 2], syntax, dataset)


REFUSED_WHOLE = {
    "twice the pixels": (_long, "512 bytes.*are 256"),
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
    "video": (
        lambda: make_compressed(_jpeg(), uid.MPEG2MPML, make_dicom()),
        "pixel data decoders",
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


@pytest.mark.parametrize("syntax", [None, *LOSSLESS])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_file_that_is_cut_short_is_refused(tmp_path, syntax, share):
    dataset = make_dicom(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))
    path = save(_packed(syntax) if syntax else dataset, tmp_path / "image.dcm")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"image\.dcm cannot be read"):
        read_image(path, 8)
    assert fault(path, whole=True)


@pytest.mark.parametrize("start", [128, 132])
def test_a_file_without_preamble_is_refused(tmp_path, start):
    path = save(make_dicom(), tmp_path / "image.dcm")
    path.write_bytes(path.read_bytes()[start:])
    with pytest.raises(InputError, match="128-byte preamble"):
        read_image(path, 8)


@pytest.mark.parametrize("implicit", [True, False])
def test_a_bare_data_set_is_refused(tmp_path, implicit):
    path, dataset = tmp_path / "image.dcm", make_dicom()
    del dataset.file_meta
    dataset.save_as(path, implicit_vr=implicit, little_endian=True)
    with pytest.raises(InputError, match="128-byte preamble"):
        read_image(path, 8)


def test_faults_are_found_by_header_and_whole(tmp_path):
    path = save(make_dicom(), tmp_path / "image.dcm")
    assert (fault(path, whole=True), fault(path, whole=False)) == ("", "")
    save(_resized(17), path)
    assert fault(path, whole=False) == ""
    assert "17 x 17" in fault(path, whole=True)
    save(_frames(), path)
    assert "3 frames" in fault(path, whole=False)


def test_without_pydicom_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    path = save(make_dicom(), tmp_path / "image.dcm")
    load = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pydicom":
            raise ModuleNotFoundError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for read in (lambda: read_image(path, 8), lambda: fault(path, whole=False)):
        with pytest.raises(InputError, match=r'image\.dcm.*pip install "charm-jax\[dicom\]"'):
            read()


def test_oddities_of_a_usable_file_are_not_told(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = make_dicom(PatientBirthDate="no date", AccessionNumber="x" * 99)
        dataset.PixelData += bytes(10)
        path = save(dataset, tmp_path / "image.dcm")
    logging.getLogger("pydicom").setLevel(logging.NOTSET)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(read_image(path, 16)[..., 0], RAMP)
    assert caught == []
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
    grey = dicom.read_grey(real_dicoms[kind])
    np.testing.assert_array_equal(np.rint(grey * 255), expected)
    square = Image.fromarray(expected).resize((224, 224), Image.Resampling.BILINEAR)
    image = read_image(real_dicoms[kind], 224)[..., 0]
    assert abs(image.astype(int) - np.asarray(square)).max() <= 1


def test_the_real_monochrome1_file_is_the_other_with_its_tag_changed(real_dicoms):
    """Its pixels were not inverted: by the standard it is a negative, and comes out as one."""
    one, two = (pydicom.dcmread(real_dicoms[f"MONOCHROME{n}"]) for n in (1, 2))
    assert one.PixelData == two.PixelData
    inverse, plain = (read_image(real_dicoms[f"MONOCHROME{n}"], 224) for n in (1, 2))
    assert abs(inverse.astype(int) + plain - 255).max() <= 1
