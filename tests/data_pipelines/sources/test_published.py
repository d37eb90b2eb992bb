import os
import zipfile

import pytest

from data_pipelines.errors import InputError
from data_pipelines.sources.published import find_files, find_table, read_labels, read_rows


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_are_found_by_their_last_parts_with_any_ending_of_an_image(tmp_path):
    touch(tmp_path, "x/p1/s1/a.PNG", "y/p1/s2/a.jpg", "p2/s1/b.jpg", "deep/p2/s1/b.jpg", "c.txt")
    names = ["files/p1/s1/a.jpg", "files/p1/s2/a.jpg", "p2/s1/b.jpg", "files/c.jpg"]
    found = find_files(tmp_path, names, depth=3)
    assert {row: os.path.relpath(path, tmp_path) for row, path in found.items()} == {
        0: "x/p1/s1/a.PNG",
        1: "y/p1/s2/a.jpg",
        2: "p2/s1/b.jpg",
    }


def test_a_uid_with_dots_has_no_ending(tmp_path):
    touch(tmp_path, "1.2.840.7.dcm", "1.2.840.dcm")
    found = find_files(tmp_path, ["1.2.840.7", "1.2.840", "1.2"])
    assert {row: os.path.basename(path) for row, path in found.items()} == {
        0: "1.2.840.7.dcm",
        1: "1.2.840.dcm",
    }


def test_the_last_of_several_tables_counts_and_a_folder_of_that_name_does_not(tmp_path):
    touch(tmp_path, "set-2.0.csv.gz", "set-2.1.csv", "below/other.csv.zip")
    (tmp_path / "set-2.2.csv").mkdir()
    assert find_table(tmp_path, ("set-2.*.csv",)) == tmp_path / "set-2.1.csv"
    assert find_table(tmp_path, ("none.csv", "other.csv")) == tmp_path / "below/other.csv.zip"
    assert find_table(tmp_path, ("none.csv",)) is None


def test_columns_are_read_as_text_in_any_spelling(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\ufeffPatient_ID, view,more\n007,NA,x\n")
    rows = read_rows(path, ("View", "patient id"), ("sex",))
    assert rows.to_dict("list") == {"View": ["NA"], "patient id": ["007"], "sex": [""]}
    assert rows.index.tolist() == [2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,b\n", "has no rows"),
        (b"", "cannot be read as a csv file"),
        (b"a,c\n1,2\n", "has no column 'b': its first line must name a, b"),
        (b"a,b\n1,2\n3\n", "line 3, has 1 fields where 2 are expected"),
        (b"a,b\n1,\xff\n", "cannot be read as a csv file"),
    ],
)
def test_a_wrong_table_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        read_rows(path, ("a", "b"))
    assert str(path) in str(error.value)


def test_a_damaged_archive_is_one_sentence(tmp_path):
    path = tmp_path / "t.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("t.csv", "a,b\n1,2\n")
    assert len(read_rows(path, ("a", "b"))) == 1
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot be read as a csv file"):
        read_rows(path, ("a", "b"))


def test_a_word_outside_the_vocabulary_is_named_with_its_row(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,0\n0,yes\n")
    rows = read_rows(path, ("a", "b"))
    with pytest.raises(InputError, match=r"row 3, has 'yes' in the column 'b': .* '1', '0'"):
        read_labels(rows, {"1": 1, "0": 0}, path)
