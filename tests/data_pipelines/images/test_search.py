"""Test which files of a folder are images, and which file a name means."""

import os
import socket

import numpy as np
import pytest
from dicom_files import make_dicom, save
from PIL import Image

from data_pipelines.images import search
from data_pipelines.images.decode import check_header


def picture(path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 5), 80, np.uint8)).save(path, **options)
    return path


def names_in(folder):
    return [path.relative_to(folder).as_posix() for path in search.find_images(folder).images]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a//B.PNG", "a/b"),
        ("./a/b.dcm", "a/b"),
        ("a\\b.jpeg", "a/b"),
        ("/a/b/", "/a/b"),
        ("1.2.840.7", "1.2.840.7"),
        ("e\N{COMBINING ACUTE ACCENT}.tif", "\N{LATIN SMALL LETTER E WITH ACUTE}"),
    ],
)
def test_names_are_compared_in_one_spelling(name, key):
    assert search.spelling_key(name) == key


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_pictures_are_known_by_content(tmp_path, kind):
    picture(tmp_path / "00000001", format=kind)
    picture(tmp_path / "scan.bak", format=kind)
    (tmp_path / "notes.txt").write_text("image,patient\n")
    (tmp_path / "empty").write_bytes(b"")
    assert names_in(tmp_path) == ["00000001", "scan.bak"]
    assert search.find_images(tmp_path).others == 2


def test_big_tiff_is_known_by_content(tmp_path):
    picture(tmp_path / "scan", format="TIFF", big_tiff=True)
    assert names_in(tmp_path) == ["scan"]
    assert check_header(tmp_path / "scan").fault == ""


def test_hidden_files_and_folders_do_not_count(tmp_path):
    for name in (".a.png", ".ipynb_checkpoints/b.png", "c/.thumbs/d.png", "c/e.png"):
        picture(tmp_path / ".root" / name)
    assert names_in(tmp_path / ".root") == ["c/e.png"]


@pytest.mark.parametrize("start", [bytes(128) + b"DICM", b"DICM", b""])
def test_dicom_named_by_uid_is_known_by_content(tmp_path, start):
    whole = save(make_dicom(), tmp_path / "1.2.826.0.1.3680043.8.498.1").read_bytes()
    (tmp_path / "1.2.826.0.1.3680043.8.498.1").write_bytes(start + whole[132:])
    assert names_in(tmp_path) == ["1.2.826.0.1.3680043.8.498.1"]


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir", "DICOMDIR.dcm", "INDEX"])
def test_a_list_of_dicom_files_is_no_image(tmp_path, name):
    save(make_dicom(SOPClassUID="1.2.840.10008.1.3.10"), tmp_path / name)
    picture(tmp_path / "a.png")
    assert names_in(tmp_path) == ["a.png"]


def test_linked_folders_are_followed_once(tmp_path):
    picture(tmp_path / "disk/deep/a.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "far").symlink_to(tmp_path / "disk")
    (root / "twice").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/up").symlink_to(root)
    assert names_in(root) == ["far/deep/a.png"]


def test_what_cannot_be_opened_is_listed_with_its_own_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as listener:
        where = os.open(tmp_path, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{where}/socket")
        os.close(where)
    faults = {path.name: check_header(path).fault for path in search.find_images(tmp_path).images}
    assert faults == {
        "gone.png": "it is a link to a file that does not exist",
        "loop": "too many levels of symbolic links",
        "pipe": "it is a named pipe, not a file",
        "socket": "it is a socket, not a file",
    }


def test_a_folder_that_cannot_be_read_is_listed(tmp_path, monkeypatch):
    picture(tmp_path / "a.png")
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def refuse(path="."):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert names_in(tmp_path) == ["a.png", "locked"]
    assert check_header(tmp_path / "locked").fault == "permission denied"


@pytest.mark.parametrize(
    ("written", "on_disk"),
    [
        ("sub/a.png", "sub\\a.png"),
        ("caf\u00e9/a.png", "cafe\u0301/a.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
        ("Sub/A.PNG", "sub/a.png"),
        ("STRASSE.png", "stra\u00dfe.png"),
        ("1.2.826.0.1", "1.2.826.0.1.dcm"),
        ("sub\\A", "sub/a.dicom"),
        ("00000001", "00000001.PNG"),
    ],
)
def test_a_file_is_found_under_another_spelling(tmp_path, written, on_disk):
    path = picture(tmp_path / on_disk, format="PNG")
    picture(tmp_path / "other.png")
    files, twins = search.match_names(tmp_path, [written, "other.png", "absent.png"])
    assert twins == {written: path}
    assert files == {written: path, "other.png": tmp_path / "other.png"}


def test_no_file_is_guessed_or_given_to_two_names(tmp_path):
    for name in ("a.png", "B.png", "b.PNG", "c.png", "d.png", "d.jpg", "e.txt"):
        picture(tmp_path / name, format="PNG")
    names = ["a.png", "A.png", "b.png", "C.png", "c.PNG", "a", "d", "e", "d.dcm"]
    files, twins = search.match_names(tmp_path, names)
    assert files == {"a.png": tmp_path / "a.png"}
    assert not twins
