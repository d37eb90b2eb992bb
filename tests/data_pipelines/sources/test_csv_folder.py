import bz2
import csv
import gzip
import lzma
import os
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.errors import InputError
from data_pipelines.sources import csv_folder
from data_pipelines.tables import splits

BOTH = {"bce": "abnormal", "focal": "all"}
GOOD = """\
image,patient,Mass,My finding,split,view,sex,age
sub dir/b.PNG,7,1,,train,PA,F,57
a.png,P 1,0,-1,val,AP,male,
c.tif,007,-1.0,1.0,test,,x,130
"""


@pytest.fixture
def write(tmp_path):
    """Writes a table and gives its folder."""

    def write(text, name="labels.csv", **kwargs):
        (tmp_path / name).write_text(text, **kwargs)
        return tmp_path

    return write


def test_every_column_is_read_in_the_order_of_the_images(write):
    table = csv_folder.load(write(GOOD))
    assert table.source == "csv_folder"
    assert table.images.tolist() == ["a.png", "c.tif", "sub dir/b.PNG"]
    assert table.findings == ("Mass", "My finding")
    assert table.labels.tolist() == [[0, -1], [-1, 1], [1, -1]]
    assert table.labels.dtype == np.int8
    assert table.official_part.tolist() == ["val", "test", "train"]
    assert table.views.tolist() == ["AP", "", "PA"]
    assert table.sexes.tolist() == ["M", "", "F"]
    assert table.ages.tolist() == [-1, -1, 57]
    assert not table.simulated


def test_patients_are_ranks_of_the_sorted_texts(write):
    table = csv_folder.load(write(GOOD))
    assert table.patient_names == ("007", "7", "P 1")
    assert table.patients.tolist() == [2, 0, 1]
    assert table.patients.dtype == np.int32
    assert table.patients_known
    (warning,) = table.warnings
    assert "'007' and '7'" in warning


def test_without_patients_each_image_is_one_with_a_warning(write):
    table = csv_folder.load(write("image,Mass\nb.png,1\na.png,0\n"))
    assert table.patients.tolist() == [0, 1]
    assert not table.patients_known
    assert "labels.csv has no column 'patient'" in table.warnings[0]
    assert table.patient_name(1) == "1"


def test_images_of_any_kind_anywhere_below_are_found_as_written(write):
    folder = write(GOOD)
    (folder / "sub dir").mkdir()
    grey = Image.fromarray(np.full((8, 6), 70, np.uint8))
    grey.save(folder / "sub dir/b.PNG")
    grey.save(folder / "c.tif")
    table = csv_folder.load(folder)
    assert table.present.tolist() == [False, True, True]
    np.testing.assert_array_equal(table.store.read(np.array([2, 1]), 4), 70)


def test_the_marker_of_simulated_images_counts(write):
    folder = write(GOOD)
    (folder / "SIMULATED.txt").touch()
    assert csv_folder.load(folder).simulated


def test_another_table_is_named_by_path_or_in_the_folder(write, tmp_path):
    folder = write("image,Edema\na.png,1\n", "other.csv")
    for name in ("other.csv", str(tmp_path / "other.csv")):
        assert csv_folder.load(folder, name).findings == ("Edema",)


def test_what_other_programs_write_is_read(tmp_path):
    text = "image, Mass ,Nodule\r\n./x//a.png, 1 ,\r\n\r\nb.png,0,1\r\n,,\r\n"
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    table = csv_folder.load(tmp_path)
    assert table.images.tolist() == ["b.png", "x/a.png"]
    assert table.findings == ("Mass", "Nodule")
    assert table.labels.tolist() == [[0, 1], [1, -1]]


def test_a_compressed_table_is_read(tmp_path):
    with gzip.open(tmp_path / "mine.csv.gz", "wt") as file:
        file.write(GOOD)
    assert len(csv_folder.load(tmp_path, "mine.csv.gz").images) == 3


_NAME = st.text(st.characters(blacklist_categories=("C", "Z")), min_size=1, max_size=8)
_FILE = _NAME.filter(lambda name: "/" not in name and name not in (".", ".."))
_PATIENT = _NAME.filter(lambda name: not re.fullmatch(r"\d+\.0+", name))  # read as 12
_LABELS = st.lists(st.sampled_from([-1, 0, 1]), min_size=2, max_size=2)
_ROWS = st.lists(
    st.tuples(_FILE, _PATIENT, _LABELS, st.sampled_from(csv_folder.PARTS)),
    min_size=1,
    max_size=12,
    unique_by=lambda row: row[0],
)
_each_example_overwrites = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_each_example_overwrites
@given(rows=_ROWS)
def test_what_the_csv_module_writes_comes_back(tmp_path, rows):
    rows = [*rows, ("some/image.png", "someone", [1, 0], "train")]
    with (tmp_path / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "Mass", "Edema", "split"])
        writer.writerows((image, who, *labels, part) for image, who, labels, part in rows)
    table = csv_folder.load(tmp_path)
    rows.sort(key=lambda row: row[0])
    assert table.images.tolist() == [image for image, *_ in rows]
    assert table.labels.tolist() == [labels for _, _, labels, _ in rows]
    assert table.official_part.tolist() == [part for *_, part in rows]
    assert [table.patient_name(n) for n in table.patients] == [who for _, who, *_ in rows]


@_each_example_overwrites
@given(labels=st.lists(st.sampled_from([None, 0, 1, -1]), min_size=1, max_size=9), as_float=...)
def test_what_pandas_writes_comes_back(tmp_path, labels: list, as_float: bool):
    labels = [*labels, 1]
    images = [f"{i}.png" for i in range(len(labels))]
    kind = float if as_float else "Int64"
    frame = pd.DataFrame({"image": images, "Mass": pd.array(labels, "Int64").astype(kind)})
    frame.to_csv(tmp_path / "labels.csv", index=False, na_rep="nan" if as_float else "")
    known = [-1 if label is None else label for label in labels]
    assert csv_folder.load(tmp_path).labels[:, 0].tolist() == known


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["cannot be read", "comma-separated"]),
        ("image,Mass\n", ["no lines below its header"]),
        ("image;Mass\na.png;1\n", ["no column 'image'", "commas"]),
        ("Picture,Mass\na.png,1\n", ["no column 'image'"]),
        ("image,Image,Mass\na.png,b.png,1\n", ["two columns 'image'"]),
        ("image,Mass,mass\na.png,1,0\n", ["two columns 'Mass'"]),
        ("image,No_Finding\na.png,1\n", ["no column for a finding"]),
        ("image,Mass,Edema\na.png,1,0\nb.png,1\n", ["line 3", "2 fields where 3"]),
        ("image,patient,Mass\na.png\n", ["line 2", "1 fields where 3"]),
        (f"image,patient,Mass\na.png,{'x' * 200_000},1\n", ["cannot be read", "field limit"]),
        ("image,patient\na.png,1\n", ["no column for a finding"]),
        (",image,Mass\n0,a.png,1\n", ["column 1", "index=False"]),
        ("image,Mass,Mass\na.png,1,0\n", ["two columns 'Mass'"]),
        ("image,Mass\na.png,1,0\n", ["cannot be read", "line 2"]),
        ("image,Mass\na.png,1\n,0\n", ["line 3", "''", "below the folder"]),
        ("image,Mass\n.,1\n", ["line 2", "'.'"]),
        ("image,Mass\n../a.png,1\n", ["line 2", "'../a.png'", "leaves", "--config.data.dir"]),
        ("image,Mass\nx/../../a.png,1\n", ["line 2", "leaves"]),
        ("image,Mass\n/tmp/a.png,1\n", ["line 2", "'/tmp/a.png'", "leaves"]),
        ("image,Mass\na.png,1\nb.png,0\n./a.png,1\n", ["a.png", "second time", "line 4"]),
        ("image,Mass\na.png,1\n\nb.png,2\n", ["line 4", "b.png", "'2'", "'Mass'"]),
        ("image,Mass\na.png,yes\n", ["line 2", "'yes'", "'Mass'", "unknown"]),
        ("image,Mass,Edema\na.png,1,\nb.png,0,-1\n", ["'Edema'", "has no label"]),
        ("image,Mass,split\na.png,1,train\nb.png,1,vall\n", ["line 3", "'vall'", "'val'"]),
        ("image,Mass,patient\na.png,1,x\nb.png,1,\n", ["line 3", "names no patient"]),
    ],
)
def test_bad_tables_get_a_sentence_with_the_place(write, text, words):
    with pytest.raises(InputError) as caught:
        csv_folder.load(write(text))
    for word in ("labels.csv", *words):
        assert word in str(caught.value)


def test_text_that_is_not_utf_8_gets_a_sentence(tmp_path):
    (tmp_path / "labels.csv").write_bytes("image,Müller\na.png,1\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"labels\.csv cannot be read .*UTF-8"):
        csv_folder.load(tmp_path)


@pytest.mark.parametrize(
    ("folder", "name", "words"),
    [
        ("gone", "", ["gone does not exist", "--config.data.dir"]),
        (".", "", ["has no labels.csv", "--config.data.csv"]),
        (".", "gone.csv", ["gone.csv (config.data.csv) does not exist"]),
    ],
)
def test_an_absent_folder_or_table_gets_a_sentence(tmp_path, folder, name, words):
    with pytest.raises(InputError) as caught:
        csv_folder.load(tmp_path / folder, name)
    for word in words:
        assert word in str(caught.value)


def test_the_split_column_is_the_official_rule(write):
    split = splits.make_split(csv_folder.load(write(GOOD)), "official", BOTH, 0)
    assert {part: rows.tolist() for part, rows in split.stages["focal"].items()} == {
        "train": [2],
        "val": [0],
        "test": [1],
    }
    assert split.stages["bce"]["val"].tolist() == []


def test_without_a_split_column_the_official_rule_is_by_patient(write):
    text = "image,Mass\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(20))
    table = csv_folder.load(write(text))
    official, patient = (
        splits.make_split(table, rule, BOTH, 3) for rule in ("official", "patient")
    )
    assert official.rule == "patient"
    for part, rows in patient.stages["focal"].items():
        np.testing.assert_array_equal(official.stages["focal"][part], rows)


def test_a_split_column_with_a_gap_names_the_other_rule(write):
    text = "image,Mass,split\na.png,1,\n"
    table = csv_folder.load(write(text))
    with pytest.raises(InputError, match=r"a\.png has none.*--config\.data\.split=patient"):
        splits.make_split(table, "official", BOTH, 0)


def test_a_patient_in_two_parts_is_named_as_in_the_table(write):
    table = csv_folder.load(write(GOOD.replace("007", "P 1")))
    message = r"patient P 1 is in two splits, 'val' \(a\.png\) and 'test' \(c\.tif\)"
    with pytest.raises(InputError, match=message):
        splits.make_split(table, "official", BOTH, 0)
    assert splits.make_split(table, "patient", BOTH, 0).rule == "patient"


@pytest.mark.parametrize("patients", [3, 4, 10])
def test_a_few_patients_fill_every_part(write, patients):
    lines = [f"{i}.png,{i % patients},1\n" for i in range(2 * patients)]
    table = csv_folder.load(write("image,patient,Mass\n" + "".join(lines)))
    parts = splits.make_split(table, "patient", BOTH, 0).stages["bce"]
    sizes = [len(parts[name]) // 2 for name in ("test", "val", "train")]
    test, val = max(patients // 5, 1), max(patients // 10, 1)
    assert sizes == [test, val, patients - test - val]


@pytest.mark.parametrize("patients", [1, 2])
def test_too_few_patients_get_a_sentence(write, patients):
    lines = [f"{i}.png,{i},1\n" for i in range(patients)]
    table = csv_folder.load(write("image,patient,Mass\n" + "".join(lines)))
    split = splits.make_split(table, "patient", BOTH, 0)
    with pytest.raises(InputError, match="'train' of stage 'focal' holds no images"):
        split.rows("focal", "train")


@pytest.mark.parametrize(
    "name",
    [
        "No finding",
        "No_Finding",
        "no.finding",
        "NOFINDINGS",
        "no\u2013finding",
        "\uff2e\uff4f finding",
    ],
)
def test_a_column_of_no_finding_is_no_finding(write, name):
    table = csv_folder.load(write(f"image,Mass,{name}\na.png,0,1\nb.png,1,0\nc.png,0,0\n"))
    assert table.findings == ("Mass",)
    assert table.labels[:, 0].tolist() == [0, 1, 0]
    assert not any("Mass" in warning for warning in table.warnings)


def test_a_column_that_complements_all_others_draws_a_warning(write):
    table = csv_folder.load(write("image,Mass,Edema,Normal\na.png,0,0,1\nb.png,1,0,0\n"))
    assert "'Normal'" in table.warnings[-1]
    assert "exactly where all others are 0" in table.warnings[-1]


def test_a_complement_is_seen_beside_unknown_labels_and_named_once(write):
    table = csv_folder.load(
        write("image,patient,Mass,Edema,Normal\na.png,1,,0,1\nb.png,2,1,,0\nc.png,3,1,1,\n")
    )
    (warning,) = table.warnings
    assert "each of the columns 'Normal' is 1" in warning
    table = csv_folder.load(write("image,patient,Mass,Normal\na.png,1,0,1\nb.png,2,1,0\n"))
    (warning,) = table.warnings
    assert "each of the columns 'Mass', 'Normal' is 1" in warning


@pytest.mark.parametrize(
    "lines",
    [
        "a.png,1,1,1,0\nb.png,2,1,0,0\nc.png,3,0,1,0\n",
        "a.png,1,1,0,0\nb.png,2,1,0,0\n",  # the others are never present
        "a.png,1,1,,0\nb.png,2,,1,0\n",  # never known to be absent
        "a.png,1,0,0,0\nb.png,2,0,0,0\n",
    ],
)
def test_columns_that_are_no_complements_draw_no_warning(write, lines):
    assert csv_folder.load(write("image,patient,Mass,Edema,Rib\n" + lines)).warnings == ()


def test_no_finding_beside_a_finding_draws_a_warning(write):
    lines = "a.png,1,0,1,0\nb.png,2,1,1,0\nc.png,3,1,0,0\n"
    table = csv_folder.load(write("image,patient,Device,NO FINDING,Mass\n" + lines))
    assert table.labels[:, 0].tolist() == [0, 1, 1]
    (warning,) = table.warnings
    assert "1 images with 1 in 'NO FINDING'" in warning
    assert "b.png on line 3" in warning


@pytest.mark.parametrize(
    "header",
    [
        "Image Index,Patient ID,View Position,Patient Gender,Patient Age,Mass",
        "filename,PatientID,view_position,GENDER,patient-age,Mass",
        "path,subject.id,View,Sex,Age,Mass",
        "\uff29\uff2d\uff21\uff27\uff25,Patient\u2013No,VIEW,Patient.Sex,AGE,Mass",
        "dicom_id,MRN,ViewPosition,sex,age,Mass",
    ],
)
def test_usual_names_of_columns_are_known(write, header):
    table = csv_folder.load(write(header + "\na.png,P1,PA,F,40,1\nb.png,P2,AP,male,50,0\n"))
    assert table.findings == ("Mass",)
    assert table.images.tolist() == ["a.png", "b.png"]
    assert table.patient_names == ("P1", "P2")
    assert (table.views.tolist(), table.sexes.tolist(), table.ages.tolist()) == (
        ["PA", "AP"],
        ["F", "M"],
        [40, 50],
    )


@pytest.mark.parametrize("name", ["Subset", "partition", "SET", "sp_lit"])
def test_the_split_has_other_names_too(write, name):
    table = csv_folder.load(write(f"image,patient,{name},Mass\na.png,1,train,1\nb.png,2,test,0\n"))
    assert table.official_part.tolist() == ["train", "test"]


def test_another_name_stands_for_an_absent_column_only(write):
    with pytest.raises(InputError, match="'p1' in the column 'Patient ID'"):
        csv_folder.load(write("image,patient,Patient ID,Mass\na.png,1,p1,0\n"))


def test_column_and_split_names_are_read_in_any_spelling(write):
    table = csv_folder.load(
        write(
            "Image,PATIENT, Split ,Mass\na.png,1,Train,1\nb.png,2,VALIDATION,0\nc.png,3,test ,0\n"
        )
    )
    assert table.official_part.tolist() == ["train", "val", "test"]
    assert table.patient_names == ("1", "2", "3")


@pytest.mark.parametrize(
    ("patients", "numbers", "words"),
    [
        (["12", "12.0", "13.00"], [0, 0, 1], ""),
        (["A12.0", "A12", "B"], [1, 0, 2], ""),
        (["7", "007", "8"], [1, 0, 2], "'007' and '7'"),
        (["P-07", "p7", "q"], [0, 1, 2], "'P-07' and 'p7'"),
        (["1e3", "1000", "5"], [1, 0, 2], "'1000' and '1e3'"),
        (["1-23", "12-3", "5"], [0, 1, 2], ""),
        (["12345678901234567890", "12345678901234567891", "5"], [0, 1, 2], ""),
    ],
)
def test_one_patient_in_two_spellings_is_merged_or_warned_of(write, patients, numbers, words):
    lines = "".join(f"{i}.png,{patient},{i % 2}\n" for i, patient in enumerate(patients))
    table = csv_folder.load(write("image,patient,Mass\n" + lines))
    assert table.patients.tolist() == numbers
    if words:
        assert words in table.warnings[0]
    else:
        assert table.warnings == ()


def test_files_under_another_spelling_are_found(write):
    folder = write(
        "image,patient,Mass\nsub\\a.png,1,0\nsub/Caf\u00e9.png,2,1\nsub/B.PNG,3,0\nx.png,4,0\n"
    )
    (folder / "sub").mkdir()
    grey = Image.fromarray(np.full((8, 6), 70, np.uint8))
    for name in ("a.png", "Cafe\u0301.png", "b.png"):
        grey.save(folder / "sub" / name)
    table = csv_folder.load(folder)
    assert table.images.tolist() == ["sub/B.PNG", "sub/Caf\u00e9.png", "sub/a.png", "x.png"]
    assert table.present.tolist() == [True, True, True, False]
    assert "2 images are found under another spelling" in table.warnings[-1]
    np.testing.assert_array_equal(table.store.read(np.array([1]), 4), 70)


def test_a_pipe_counts_as_present_with_a_fault_of_its_own(write):
    folder = write("image,patient,Mass\na.png,1,0\n")
    os.mkfifo(folder / "a.png")
    table = csv_folder.load(folder)
    assert table.present.tolist() == [True]
    assert "named pipe" in table.store.examine(0, 4)[1].fault


def test_two_files_that_differ_in_case_alone_are_not_guessed_between(write):
    folder = write("image,patient,Mass\nA.png,1,0\n")
    for name in ("a.png", "a.PNG"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / name)
    assert csv_folder.load(folder).present.tolist() == [False]


def test_a_table_in_another_compression_gets_a_sentence(write):
    folder = write("")
    for name, pack in (("t.csv.xz", lzma.compress), ("t.csv.bz2", bz2.compress)):
        (folder / name).write_bytes(pack(GOOD.encode()))
        with pytest.raises(InputError, match=rf"{name} cannot be read as a csv file"):
            csv_folder.load(folder, name)


def test_blank_lines_are_no_short_lines(write):
    table = csv_folder.load(write("image,patient,Mass\na.png,1,0\n\n   \n\t\nb.png,2,1\n  "))
    assert table.images.tolist() == ["a.png", "b.png"]


def test_ages_are_read_as_dicom_writes_them(write):
    ages = ["045Y", "18M", "030W", "400D", "58", "58.0", "", "Y", "045X", "200Y"]
    lines = "".join(f"{i}.png,{i},{age},{i % 2}\n" for i, age in enumerate(ages))
    table = csv_folder.load(write("image,patient,age,Mass\n" + lines))
    assert table.ages.tolist() == [45, 1, 0, 1, 58, 58, -1, -1, -1, -1]


def test_ages_are_read_in_words(write):
    ages = ["45 years", "45yo", "45 Yrs.", "18 months", "60 weeks", "3 days", "45 male", "45 yards"]
    lines = "".join(f"{i}.png,{i},{age},{i % 2}\n" for i, age in enumerate(ages))
    table = csv_folder.load(write("image,patient,age,Mass\n" + lines))
    assert table.ages.tolist() == [45, 45, 45, 1, 1, 0, -1, -1]
