import warnings

import numpy as np
import pydicom
import pytest
from dicom_files import RAMP, TWELVE, make_dicom, make_table, save

from data_pipelines.images import dicom
from data_pipelines.images.decode import decode, examine, read_image


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


def test_a_descriptor_of_zero_means_65536_entries(grey):
    table = make_table(0, list(range(65_535, -1, -1)), 16)
    assert table.LUTDescriptor[0] == 0
    image = grey(make_dicom(TWELVE * 16, VOILUTSequence=[table]))
    np.testing.assert_allclose(image, 1 - TWELVE * 16.0 / 65_535, atol=1e-6)


def test_many_entries_are_counted_right_for_signed_values(grey):
    """In the file the descriptor's numbers are then signed, 40,000 among them."""
    table = make_table(-20_000, list(range(40_000)), 16)
    stored = np.linspace(-32_768, 32_767, 256).astype(np.int16).reshape(16, 16)
    image = grey(make_dicom(stored, VOILUTSequence=[table]))
    expected = np.clip(stored.astype(int) + 20_000, 0, 39_999) / 65_535
    np.testing.assert_allclose(image, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted", "contradict"),
    [
        ("MONOCHROME2", "IDENTITY", False, False),
        ("MONOCHROME2", "INVERSE", True, True),
        ("MONOCHROME1", "INVERSE", True, False),
        ("MONOCHROME1", "IDENTITY", False, True),
        ("MONOCHROME1", "", True, False),
        ("MONOCHROME1", "LIN OD", True, False),
    ],
)
def test_the_presentation_shape_goes_before_the_photometric_interpretation(
    grey, tmp_path, photometric, shape, inverted, contradict
):
    dataset = make_dicom(PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    expected = 1 - RAMP / np.float32(255) if inverted else RAMP / np.float32(255)
    np.testing.assert_allclose(grey(dataset), expected, atol=1e-6)
    remarks = " ".join(dicom.read_grey(tmp_path / "image").remarks)
    assert (f"{shape} contradicts {photometric}" in remarks) == contradict
    assert ("LINOD is not usable" in remarks) == (shape == "LIN OD")


SIGNED = TWELVE.astype(np.int16) - 2048
_TABLES = {
    # pixels, bits, first value as the table should read it, tags
    "signed pixels": (SIGNED, 12, -2048, {}),
    "rescale below zero": (TWELVE, 12, -1024, {"RescaleSlope": 1, "RescaleIntercept": -1024}),
    "unsigned and large": (TWELVE + 40_000, 16, 40_000, {}),
    "signed pixels, positive start": (SIGNED, 12, 100, {}),
}


@pytest.mark.parametrize(("stored", "bits", "first", "tags"), _TABLES.values(), ids=_TABLES)
@pytest.mark.parametrize("vr", ["US", "SS"])
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_the_first_mapped_value_has_the_sign_of_the_tables_input(
    grey, stored, bits, first, tags, vr, sequence
):
    if sequence == "ModalityLUTSequence" and tags:
        pytest.skip("a modality table takes the place of the rescale")
    table = make_table(0, list(range(4096)), 12)
    del table.LUTDescriptor
    raw = first % 2**16
    written = raw - 2**16 if vr == "SS" and raw >= 2**15 else raw
    table.add_new("LUTDescriptor", vr, [4096, written, 12])
    image = grey(make_dicom(stored, bits, **{sequence: [table]}, **tags))
    values = stored.astype(int) + int(tags.get("RescaleIntercept", 0))
    np.testing.assert_allclose(image, np.clip(values - first, 0, 4095) / 4095, atol=1e-6)


@pytest.mark.parametrize("vr", ["US", "SS"])
def test_65536_entries_begin_at_the_lowest_signed_value(grey, vr):
    stored = np.linspace(-32_768, 32_767, 1024).astype(np.int16).reshape(32, 32)
    table = make_table(0, list(range(65_536)), 16)
    del table.LUTDescriptor
    table.add_new("LUTDescriptor", vr, [0, -32_768 if vr == "SS" else 32_768, 16])
    image = grey(make_dicom(stored, VOILUTSequence=[table]))
    np.testing.assert_allclose(image, (stored.astype(int) + 32_768) / 65_535, atol=1e-6)


@pytest.mark.parametrize(("bits", "holds"), [(16, 12), (16, 14), (16, 10), (12, 8), (8, 12)])
def test_a_table_that_holds_other_bits_than_it_says_is_white_at_its_maximum(
    grey, tmp_path, bits, holds
):
    top = 2**holds - 1
    entries = np.linspace(0, top, 4096).astype(int)
    table = make_table(0, entries.tolist(), bits)
    image = grey(make_dicom(TWELVE, 12, VOILUTSequence=[table]))
    np.testing.assert_allclose(image, entries[TWELVE] / top, atol=1e-6)
    (remark,) = dicom.read_grey(tmp_path / "image").remarks
    assert remark.startswith(f"VOILUTSequence says {bits} bits and has entries up to {top}")


def test_a_table_that_is_dark_but_uses_its_bits_stays_dark(grey, tmp_path):
    table = make_table(0, np.linspace(0, 30_000, 4096).astype(int).tolist(), 16)
    assert grey(make_dicom(TWELVE, 12, VOILUTSequence=[table])).max() < 0.5
    assert dicom.read_grey(tmp_path / "image").remarks == ()


def test_12_bits_stored_as_16_without_a_window_are_a_sliver(tmp_path):
    path = save(make_dicom(TWELVE, 16), tmp_path / "image")
    sliver = decode(path).sliver()
    assert 0.05 < sliver.used <= 1 / 16
    assert sliver.white == 4095
    expected = np.rint(TWELVE * (255 / 4095))
    assert abs(read_image(path, 32, "4095")[..., 0] - expected).max() <= 1


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 32_768, "WindowWidth": 65_536},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"RescaleSlope": 3, "RescaleIntercept": -1024},
    ],
)
def test_a_sliver_is_seen_after_every_step(tmp_path, tags):
    path = save(make_dicom(TWELVE, 16, **tags), tmp_path / "image")
    sliver = decode(path).sliver()
    assert sliver.used <= 1 / 16
    assert sliver.white == (None if "WindowWidth" in tags else 4095)
    assert decode(path, str(sliver.white or "image")).sliver() is None


def test_a_window_decides_whatever_value_range_says(grey, tmp_path):
    image = grey(make_dicom(TWELVE, 16, WindowCenter=2048, WindowWidth=4096))
    np.testing.assert_array_equal(
        read_image(tmp_path / "image", 32, "1023"), read_image(tmp_path / "image", 32)
    )
    assert image.max() == 1


@pytest.mark.parametrize("text", ["linear exact", "LINEAR-EXACT", "Linear_Exact"])
def test_a_function_is_known_by_its_letters(grey, text):
    window = {"WindowCenter": 2000, "WindowWidth": 3000}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = make_dicom(TWELVE, 12, VOILUTFunction=text, **window)
    spelt = grey(dataset)
    plain = grey(make_dicom(TWELVE, 12, VOILUTFunction="LINEAR_EXACT", **window))
    np.testing.assert_array_equal(spelt, plain)


def test_a_window_beside_all_pixels_is_no_window(tmp_path):
    path = save(make_dicom(TWELVE, 16, WindowCenter=30_000, WindowWidth=90), tmp_path / "image")
    _, check = examine(path, 32)
    assert "WindowWidth 90 with WindowCenter 30000 is not usable" in check.remarks[0]
    assert check.sliver.white == 4095
    alike = save(make_dicom(TWELVE * 0, 16, WindowCenter=9, WindowWidth=90), tmp_path / "alike")
    assert examine(alike, 32)[1].remarks == ()


def test_the_first_usable_window_counts(grey):
    both = make_dicom(TWELVE, 12, WindowCenter=[9, 1000], WindowWidth=[0, 500])
    one = make_dicom(TWELVE, 12, WindowCenter=1000, WindowWidth=500)
    np.testing.assert_array_equal(grey(both), grey(one))
