import csv
import gzip

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
    assert table.warnings == ()


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
    grey.save(folder / "A.png")
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
_LABELS = st.lists(st.sampled_from([-1, 0, 1]), min_size=2, max_size=2)
_ROWS = st.lists(
    st.tuples(_FILE, _NAME, _LABELS, st.sampled_from(csv_folder.PARTS)),
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
        ("Image,Mass\na.png,1\n", ["no column 'image'"]),
        ("image,patient\na.png,1\n", ["no column for a finding"]),
        (",image,Mass\n0,a.png,1\n", ["column 1", "index=False"]),
        ("image,Mass,Mass\na.png,1,0\n", ["two columns 'Mass'"]),
        ("image,Patient,Mass\na.png,1,0\n", ["column 'Patient'", "'patient'"]),
        ("image,No Finding,Mass\na.png,1,0\n", ["'No Finding'", "remove it"]),
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
