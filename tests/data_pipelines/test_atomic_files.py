import pytest

from data_pipelines.atomic_files import whole_file, whole_path


def test_the_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path) as file:
        file.write("one\r\ntwo\n")
        assert not path.exists()
    assert path.read_bytes() == b"one\r\ntwo\n"


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path) as first:
        with whole_file(path) as second:
            second.write("second")
        assert path.read_text() == "second"
        first.write("first")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    with pytest.raises(RuntimeError), whole_path(path) as draft:
        draft.write_bytes(b"after")
        raise RuntimeError
    assert [(file, file.read_bytes()) for file in tmp_path.iterdir()] == [(path, b"before")]
