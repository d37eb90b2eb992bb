import gzip
import os
import shutil

import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.sources.nih_chest_xray14 import load, read_boxes
from data_pipelines.tables.findings import NIH_FINDINGS


def _findings(table, row):
    return {NIH_FINDINGS[i] for i in np.flatnonzero(table.labels[row])}


def test_full_table_has_the_published_counts(nih_dir):
    table = load(nih_dir)
    assert len(table.images) == 112_120
    assert len(np.unique(table.patients)) == 30_805
    assert int((~table.abnormal).sum()) == 60_361
    counts = dict(zip(table.findings, table.labels.sum(axis=0, dtype=int).tolist(), strict=True))
    assert (counts["Infiltration"], counts["Hernia"]) == (19_894, 227)
    assert len(table.store.paths) == int(table.present.sum()) == 1_000
    assert not table.simulated


def test_full_table_is_sorted_so_that_the_row_is_the_case_id(nih_table):
    table = nih_table
    assert (table.images[:-1] < table.images[1:]).all()
    assert table.images[0] == "00000001_000.png"
    assert _findings(table, 2) == {"Cardiomegaly", "Effusion"}


def test_arrays_have_the_promised_types(nih):
    table = load(nih.path)
    assert (table.patients.dtype, table.labels.dtype) == (np.int32, np.int8)
    assert table.labels.shape == (12, 14)
    assert table.images.tolist() == nih.names


@pytest.mark.parametrize("name", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"])
@pytest.mark.parametrize("original_header", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_every_variant_of_the_table_gives_the_same(make_nih, name, original_header, zipped):
    nih = make_nih(name, original_header)
    if zipped:
        packed = nih.csv.with_name(name + ".gz")
        packed.write_bytes(gzip.compress(nih.csv.read_bytes()))
        nih.csv.unlink()
    table = load(nih.path)
    assert table.images.tolist() == nih.names
    assert table.patients.tolist() == [i // 3 for i in range(12)]
    assert [_findings(table, i) for i in range(3)] == [
        set(),
        {"Mass"},
        {"Cardiomegaly", "Effusion"},
    ]


def test_rows_in_any_order_give_the_same_table(nih):
    expected = load(nih.path)
    header, *rows = nih.csv.read_text().splitlines()
    nih.csv.write_text("\n".join([header, *reversed(rows)]))
    table = load(nih.path)
    np.testing.assert_array_equal(table.images, expected.images)
    np.testing.assert_array_equal(table.labels, expected.labels)
    np.testing.assert_array_equal(table.official_part, expected.official_part)


def test_lists_give_the_official_part(nih):
    assert load(nih.path).official_part.tolist() == ["train_val"] * 9 + ["test"] * 3


def test_absent_lists_leave_the_part_empty(nih):
    (nih.path / "train_val_list.txt").unlink()
    (nih.path / "test_list.txt").unlink()
    assert set(load(nih.path).official_part) == {""}


def test_images_are_found_anywhere_below_and_through_links(nih, tmp_path):
    shutil.move(nih.path / "images_002", tmp_path / "other_disk")
    (nih.path / "images_002").symlink_to(tmp_path / "other_disk")
    (tmp_path / "other_disk" / "loop").symlink_to(nih.path)
    shutil.move(nih.file(nih.names[0]), nih.path)
    table = load(nih.path)
    assert table.present.all()
    assert [path.name for _, path in sorted(table.store.paths.items())] == nih.names
    assert all(path.is_file() for path in table.store.paths.values())


def test_absent_and_unlisted_files(nih):
    nih.file(nih.names[4]).unlink()
    (nih.path / "unlisted.png").write_bytes(b"")
    table = load(nih.path)
    assert table.present.tolist() == [i != 4 for i in range(12)]
    assert set(table.store.paths) == set(range(12)) - {4}


def test_a_file_in_another_case_counts_where_none_has_the_name(nih):
    for row in (0, 1):
        path = nih.file(nih.names[row])
        shutil.copy(path, path.with_suffix(".PNG"))
    nih.file(nih.names[0]).unlink()
    paths = load(nih.path).store.paths
    assert [paths[0].suffix, paths[1].suffix] == [".PNG", ".png"]


@pytest.mark.parametrize("name", ["images/{}", "images_001\\{}", "{}"])
@pytest.mark.parametrize("ending", [".jpg", ""])
def test_files_are_found_by_names_with_folders_and_with_other_endings(nih, name, ending):
    nih.edit_csv(nih.names[0], name.format(nih.names[0]))
    for part in ("train_val", "test"):
        (nih.path / f"{part}_list.txt").unlink()
    path = nih.file(nih.names[0])
    path.rename(path.with_suffix(ending))
    assert load(nih.path).present.all()


def test_of_two_files_with_one_name_the_first_in_sorted_order_counts(nih):
    for folder in ("a_copy", "z_copy"):
        os.makedirs(nih.path / folder)
        shutil.copy(nih.path / "images_001" / "images" / nih.names[0], nih.path / folder)
    assert load(nih.path).store.paths[0].parent.name == "a_copy"


def test_view_sex_and_age_are_read_and_may_be_absent(nih):
    nih.edit_csv(",57,M,PA,", ",058Y,F,AP,")
    nih.edit_csv(",57,M,PA,", ",411,male,PA,")
    table = load(nih.path)
    assert table.views.tolist() == ["AP", *["PA"] * 11]
    assert table.sexes.tolist() == ["F", *["M"] * 11]
    assert table.ages.tolist() == [58, -1, *[57] * 10]
    nih.edit_csv("Patient Age", "Age")
    assert (load(nih.path).ages == -1).all()


def test_sex_is_read_under_its_other_name(nih):
    nih.edit_csv("Patient Gender", "Patient Sex")
    assert set(load(nih.path).sexes.tolist()) == {"M"}


def test_marker_file_makes_the_table_simulated(nih):
    assert not load(nih.path).simulated
    (nih.path / "SIMULATED.txt").write_text("drawn")
    assert load(nih.path).simulated


@pytest.mark.parametrize("relative", [False, True])
def test_another_csv_is_read_when_named(nih, relative):
    mine = nih.path / "mine.csv"
    header, *rows = nih.csv.read_text().splitlines()
    mine.write_text("\n".join([header, *rows]).replace("Mass", "Nodule"))
    table = load(nih.path, "mine.csv" if relative else str(mine))
    assert _findings(table, 1) == {"Nodule"}


def _error(nih, *needles, csv=""):
    with pytest.raises(InputError) as caught:
        load(nih if isinstance(nih, os.PathLike) else nih.path, csv)
    for needle in needles:
        assert str(needle) in str(caught.value)


def test_missing_folder_names_the_download_page_and_the_demo(tmp_path):
    _error(
        tmp_path / "nowhere",
        tmp_path / "nowhere",
        "https://nihcc.app.box.com/v/ChestXray-NIHCC",
        "charm-jax train",
    )


def test_folder_without_table(nih):
    nih.csv.unlink()
    _error(nih, nih.path, "Data_Entry_2017")


def test_a_pipe_with_the_name_of_the_table_is_not_read(nih):
    os.mkfifo(nih.path / "Data_Entry_2017_v9.csv")
    assert load(nih.path).images.tolist() == nih.names
    nih.csv.unlink()
    with pytest.raises(InputError, match="has no Data_Entry"):
        load(nih.path)


def test_named_csv_that_does_not_exist(nih):
    _error(nih, "gone.csv", "config.data.csv", csv="gone.csv")


@pytest.mark.parametrize("column", ["Image Index", "Finding Labels", "Patient ID"])
def test_csv_without_a_needed_column(nih, column):
    nih.edit_csv(column, "Something")
    _error(nih, nih.csv, repr(column))


def test_a_row_that_lacks_a_comma_is_named(nih):
    """Its values would stand in the columns before their own."""
    nih.edit_csv(",57,M,PA,", ",57M,PA,")
    _error(nih, nih.csv, "line 2", "fields where")


def test_csv_without_rows(nih):
    nih.csv.write_text(nih.csv.read_text().splitlines()[0])
    _error(nih, nih.csv, "no rows")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x80,\n\x81"])
def test_csv_that_is_none(nih, content):
    nih.csv.write_bytes(content)
    _error(nih, nih.csv)


@pytest.mark.parametrize("damage", [slice(0, 60), slice(5, None)])
def test_damaged_gzip(nih, damage):
    packed = nih.csv.with_name("Data_Entry_2017_v2020.csv.gz")
    packed.write_bytes(gzip.compress(nih.csv.read_bytes())[damage])
    _error(nih, packed, "download it again")


def test_unknown_finding_names_line_image_and_name(nih):
    nih.edit_csv("Cardiomegaly|Effusion", "Cardiomegaly|Efusion")
    _error(nih, "line 4", nih.names[2], "'Efusion'")


def test_no_finding_beside_a_finding(nih):
    nih.edit_csv("Cardiomegaly|Effusion", "Cardiomegaly|No Finding")
    _error(nih, "line 4", "'No Finding'")


def test_empty_finding_cell(nih):
    nih.edit_csv(",Mass,", ",,")
    _error(nih, "line 3", nih.names[1], "''")


@pytest.mark.parametrize("number", ["P-1", "", "-1", "1.5", "3000000000"])
def test_patient_that_is_no_number(nih, number):
    nih.edit_csv("_001.png,Mass,1,0,", f"_001.png,Mass,1,{number},")
    _error(nih, "line 3", nih.names[1], repr(number))


def test_image_listed_twice(nih):
    lines = nih.csv.read_text().splitlines()
    nih.csv.write_text("\n".join([*lines, lines[5]]))
    _error(nih, nih.csv, nih.names[4], "line 14")


def test_list_with_a_name_that_the_table_lacks(nih):
    with (nih.path / "test_list.txt").open("a") as file:
        file.write("\n99999999_000.png\n")
    _error(nih, "test_list.txt", "99999999_000.png")


def test_image_in_both_lists(nih):
    with (nih.path / "test_list.txt").open("a") as file:
        file.write(f"\n{nih.names[0]}\n")
    _error(nih, "test_list.txt", "train_val_list.txt", nih.names[0])


BOXES = "Image Index,Finding Label,Bbox [x,y,w,h]{end}\n{image},Infiltrate,256,512.5,128,64{end}\n"


@pytest.mark.parametrize("end", ["", ",,,"])
def test_boxes_are_in_pixels_of_the_published_images(nih, end):
    text = BOXES.format(image=nih.names[3], end=end)
    (nih.path / "BBox_List_2017.csv").write_text(text)
    boxes = read_boxes(nih.path, "", load(nih.path))
    assert (boxes.rows.tolist(), boxes.findings.tolist()) == ([3], ["Infiltration"])
    np.testing.assert_allclose(boxes.fractions, [[0.25, 512.5 / 1024, 0.375, 576.5 / 1024]])


def test_boxes_are_found_beside_a_named_table(nih, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(nih.csv, other / "table.csv")
    (other / "BBox_List_2017.csv").write_text(BOXES.format(image=nih.names[0], end=""))
    csv = str(other / "table.csv")
    assert read_boxes(nih.path, csv, load(nih.path, csv)).rows.tolist() == [0]


def test_absent_boxes_say_what_to_do(nih):
    with pytest.raises(InputError, match=r"has no boxes, BBox_List_2017.csv: download it"):
        read_boxes(nih.path, "", load(nih.path))
    (nih.path / "SIMULATED.txt").write_text("SIMULATED")
    with pytest.raises(InputError, match="drawn by an earlier version, so draw it again"):
        read_boxes(nih.path, "", load(nih.path))


def test_the_published_boxes_are_read(nih_dir, nih_table):
    boxes = read_boxes(nih_dir.parent / "nih_224", "", nih_table)
    counts = dict(zip(*np.unique(boxes.findings, return_counts=True), strict=True))
    assert (len(boxes.rows), counts["Atelectasis"], counts["Nodule"]) == (984, 180, 79)
    assert len(np.unique(boxes.rows)) == 880 and boxes.warnings == ()
