import errno
import os

import pytest

from data_pipelines.atomic_files import check_writable, whole_file, whole_files, whole_path
from data_pipelines.errors import InputError


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


def test_a_full_disk_names_the_file(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(OSError) as raised, whole_file(path):
        raise OSError(errno.ENOSPC, "No space left on device")  # as `write` does
    assert raised.value.filename == str(path)


def test_a_read_only_disk_names_the_file_and_no_draft(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    monkeypatch.setattr("pathlib.Path.unlink", refuse)  # even of what is not there
    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(OSError) as raised, whole_file(tmp_path / "a.txt"):
        pass
    assert raised.value.filename == str(tmp_path / "a.txt")
    with pytest.raises(OSError) as raised, whole_files(tmp_path):
        pass
    assert raised.value.filename == str(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "deep", "choose another")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/deep cannot be written .*: choose another\."):
        check_writable(tmp_path / "file" / "deep", "choose another")
    # Root may write everywhere but to a read-only disk.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=rf"\({tmp_path} is read-only\): choose another\."):
        check_writable(tmp_path / "new", "choose another")
