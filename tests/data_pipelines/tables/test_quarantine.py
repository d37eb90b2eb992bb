import csv
import dataclasses

import numpy as np
import pytest
from dicom_files import make_dicom, save
from PIL import Image

from data_pipelines import progress, sources
from data_pipelines.errors import InputError
from data_pipelines.images.store import ImageFiles
from data_pipelines.sources.nih_chest_xray14 import load
from data_pipelines.tables import quarantine
from data_pipelines.tables.quarantine import apply_policy, verify_files, write_quarantine
from data_pipelines.tables.splits import make_split

NO_IMAGE = "not a PNG, JPEG, TIFF or DICOM file of a known kind"
RECIPE = {"bce": "abnormal", "focal": "all"}


def _split(table):
    return make_split(table, "official", RECIPE, split_seed=0)


def _damage(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.fixture
def spoilt(nih):
    """Image 1 absent, 4 empty, 7 cut short, 10 text."""
    nih.file(nih.names[1]).unlink()
    nih.file(nih.names[4]).write_bytes(b"")
    _damage(nih.file(nih.names[7]))
    nih.file(nih.names[10]).write_text("<html>Not Found</html>")
    return nih


def test_sound_files_give_no_entries(nih):
    assert verify_files(load(nih.path), np.arange(12)).bad == []


def test_every_kind_of_fault_is_found_in_the_order_of_the_rows(spoilt):
    entries = verify_files(load(spoilt.path), np.arange(12)[::-1]).bad
    assert [name for name, _ in entries] == [spoilt.names[i] for i in (10, 7, 4, 1)]
    reasons = [reason for _, reason in entries]
    assert (reasons[0], reasons[2], reasons[3]) == (NO_IMAGE, "empty", "absent")
    assert reasons[1]


def test_only_the_given_rows_are_looked_at(spoilt):
    assert verify_files(load(spoilt.path), np.array([0, 2, 3])).bad == []


@pytest.mark.parametrize(("most", "found"), [(10, {1, 4, 10}), (12, {1, 4, 7, 10})])
def test_of_many_files_the_headers_and_of_fewer_the_checksums_are_checked(
    spoilt, monkeypatch, most, found
):
    """The file that is cut short has a sound header."""
    monkeypatch.setattr(quarantine, "FULL_CHECK_ROWS", most)
    bad = {name for name, _ in verify_files(load(spoilt.path), np.arange(12), 0).bad}
    assert bad == {spoilt.names[i] for i in found}


def test_a_byte_that_changed_is_found_without_decoding(nih):
    path = nih.file(nih.names[2])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    entries = verify_files(load(nih.path), np.arange(12), 0).bad
    assert [name for name, _ in entries] == [nih.names[2]]


def test_a_damaged_jpeg_under_a_png_name_is_found(nih):
    path = nih.file(nih.names[2])
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    table = load(nih.path)
    assert verify_files(table, np.array([2])).bad == []
    path.write_bytes(path.read_bytes()[:800])
    assert [name for name, _ in verify_files(table, np.array([2])).bad] == [nih.names[2]]


def _darken(path):
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(path)


def test_a_set_of_slivers_is_counted_with_the_key_that_helps(nih):
    for name in nih.names:
        _darken(nih.file(name))
    checks = verify_files(load(nih.path), np.arange(12))
    assert (checks.bad, checks.measured, len(checks.slivers)) == ([], 12, 12)
    (warning,) = checks.warnings
    for words in ("12 of 12 images", f"{nih.names[0]}", "--config.data.value_range=4095", "image"):
        assert words in warning
    table = sources.load("nih_chest_xray14", nih.path, value_range="4095")
    assert verify_files(table, np.arange(12)).warnings == []
    assert table.store.read(np.array([0]), 64).max() == 255


def test_a_few_slivers_get_another_remedy(nih):
    _darken(nih.file(nih.names[3]))
    (warning,) = verify_files(load(nih.path), np.arange(12)).warnings
    assert "1 of 12 images use at most 6.0% of the range" in warning
    assert nih.names[3] in warning
    assert "value_range" not in warning


def test_of_many_files_some_are_decoded(nih):
    for name in nih.names:
        _darken(nih.file(name))
    checks = verify_files(load(nih.path), np.arange(12), 5)
    assert (checks.measured, len(checks.slivers)) == (5, 5)


def test_repairs_are_counted_by_tag(nih):
    for name in nih.names[:5]:
        save(make_dicom(NumberOfFrames=0, WindowCenter=1, WindowWidth=0), nih.file(name))
    checks = verify_files(load(nih.path), np.arange(12))
    assert list(checks.remarks) == nih.names[:5]
    frames, width = checks.warnings
    assert frames.startswith("5 images need a repair (NumberOfFrames 0 is taken for 1)")
    assert f"{nih.names[0]}, {nih.names[1]}, {nih.names[2]}, ..." in frames
    assert "WindowWidth 0" in width


def test_a_share_of_its_own_allows_unreadable_files(spoilt):
    table = load(spoilt.path)
    split, checks = apply_policy(table, _split(table), "skip", max_unreadable=0.3)
    assert len(checks.bad) == 4
    assert len(split.used_rows) == 8


def test_a_check_that_takes_long_says_how_far_it_is(nih, capsys, monkeypatch):
    table = load(nih.path)
    verify_files(table, np.arange(12))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    verify_files(table, np.arange(12))
    assert "checking image files: 12/12 files" in capsys.readouterr().err


def test_a_sound_folder_keeps_the_split(nih):
    table = load(nih.path)
    split, checks = apply_policy(table, _split(table), "error")
    assert checks.bad == []
    assert split.used_rows.tolist() == list(range(12))


def test_too_many_bad_images_stop_the_run_with_names_count_and_remedies(spoilt):
    table = load(spoilt.path)
    with pytest.raises(InputError) as caught:
        apply_policy(table, _split(table), "error")
    for needle in (
        "4 of 12",
        f"{spoilt.names[1]}: absent",
        f"{spoilt.names[4]}: empty",
        "0.1%",
        "--config.data.missing=skip",
    ):
        assert needle in str(caught.value)


@pytest.mark.parametrize("missing", ["error", "skip"])
def test_few_bad_images_are_dropped_and_listed(spoilt, missing):
    table = load(spoilt.path)
    split, checks = apply_policy(table, _split(table), missing, max_unreadable=0.4)
    bad = {1, 4, 7, 10}
    assert {name for name, _ in checks.bad} == {spoilt.names[i] for i in bad}
    assert split.used_rows.tolist() == sorted(set(range(12)) - bad)
    assert split.stages["focal"]["test"].tolist() == [9, 11]


def test_the_share_is_a_limit_that_may_be_reached(nih):
    nih.file(nih.names[0]).unlink()
    table = load(nih.path)
    assert len(apply_policy(table, _split(table), "error", max_unreadable=1 / 12)[1].bad) == 1
    with pytest.raises(InputError):
        apply_policy(table, _split(table), "error", max_unreadable=0.08)


def test_skip_allows_any_number_of_absent_images(nih):
    for name in nih.names[1:9]:
        nih.file(name).unlink()
    table = load(nih.path)
    split, checks = apply_policy(table, _split(table), "skip")
    assert checks.bad == [(name, "absent") for name in nih.names[1:9]]
    assert split.used_rows.tolist() == [0, 9, 10, 11]


def test_skip_does_not_allow_many_damaged_images(spoilt):
    table = load(spoilt.path)
    with pytest.raises(InputError) as caught:
        apply_policy(table, _split(table), "skip", max_unreadable=0.1)
    assert "3 of 11 image files are unreadable" in str(caught.value)
    assert "--config.data.max_unreadable" in str(caught.value)
    assert spoilt.names[4] in str(caught.value)


@pytest.mark.parametrize("missing", ["error", "skip"])
def test_a_folder_without_any_image_names_the_key(nih, missing):
    table = load(nih.path)
    table = dataclasses.replace(table, store=ImageFiles(table.images, {}))
    with pytest.raises(InputError, match=r"12 images.*in the data folder.*--config\.data\.dir"):
        apply_policy(table, _split(table), missing)


def test_unknown_policy_names_the_key(nih):
    table = load(nih.path)
    with pytest.raises(InputError, match=r"config\.data\.missing is 'ignore'"):
        apply_policy(table, _split(table), "ignore")


def test_real_subset_is_used_as_far_as_it_goes(nih_table):
    table = nih_table
    split, checks = apply_policy(table, _split(table), "skip")
    assert len(split.used_rows) == 1_000
    assert len(checks.bad) == 111_120
    assert len(split.stages["focal"]["test"]) == 310
    with pytest.raises(InputError, match=r"111120 of 112120 images"):
        apply_policy(table, _split(table), "error")


def test_written_list_is_read_back(tmp_path):
    path = tmp_path / "quarantine.csv"
    entries = [("a.png", "absent"), ("b,c.png", 'broken "chunk"')]
    write_quarantine(path, entries)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["image", "reason"], *map(list, entries)]
    write_quarantine(path, entries[:1])
    assert len(path.read_text().splitlines()) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["quarantine.csv"]


def test_a_write_that_fails_leaves_the_old_list(tmp_path):
    path = tmp_path / "quarantine.csv"
    write_quarantine(path, [("a.png", "absent")])
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_quarantine(path, [("b.png", "absent"), ("\udcff.png", "absent")])
    assert path.read_bytes() == before
