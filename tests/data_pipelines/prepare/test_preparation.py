import csv
import errno
import json
import sys

import numpy as np
import pytest
from dicom_files import make_dicom, save
from PIL import Image
from preparing import SOURCE, content, leftovers, prepare_nih

from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.phantom.draw import write_phantoms
from data_pipelines.prepare import preparation
from data_pipelines.prepare.claim import at_work
from data_pipelines.prepare.preparation import prepare
from data_pipelines.prepared.dataset import is_prepared
from data_pipelines.prepared.shards import Layout


def test_summary_counts_what_was_prepared(nih, out):
    nih.file(nih.names[11]).unlink()
    assert prepare_nih(nih, out, missing="skip") == []
    summary = json.loads((out / "summary.json").read_text())
    assert summary | {"sha256": ""} == {
        "source": SOURCE,
        "simulated": False,
        "size": 8,
        "rows": 12,
        "images": 11,
        "absent": 1,
        "refused": 0,
        "patients": 4,
        "findings": dict.fromkeys(summary["findings"], 0)
        | {"Mass": 4, "Cardiomegaly": 3, "Effusion": 3},
        "views": {"PA": 11},
        "sha256": "",
    }
    assert len(summary["sha256"]) == 64
    with (out / "quarantine.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["image", "reason"]]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_enough(nih, tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "refused")

    prepare_nih(nih, tmp_path / "locked")
    monkeypatch.setattr("fcntl.flock", refuse)
    prepare_nih(nih, tmp_path / "bare")
    assert content(tmp_path / "bare") == content(tmp_path / "locked")
    assert leftovers(tmp_path / "bare") == []


def test_images_that_use_little_of_their_range_are_counted(nih, tmp_path, capsys):
    for name in nih.names:
        Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(nih.file(name))
    for again in (False, True):  # a run that has nothing left to do warns, too
        prepare_nih(nih, tmp_path / "dark")
        assert "12 of 12 images use at most 6.0%" in capsys.readouterr().err, again
    prepare_nih(nih, tmp_path / "full", value_range="4095")
    assert capsys.readouterr().err == ""


def test_the_digest_is_of_pixels_and_labels(nih, tmp_path):
    digests = []
    for change in (lambda: None, lambda: Image.new("L", (8, 8), 3).save(nih.file(nih.names[5]))):
        change()
        out = tmp_path / str(len(digests))
        prepare_nih(nih, out)
        digests.append(json.loads((out / "summary.json").read_text())["sha256"])
    nih.edit_csv("No Finding,0,2", "Hernia,0,2")
    prepare_nih(nih, tmp_path / "labels")
    digests.append(json.loads((tmp_path / "labels" / "summary.json").read_text())["sha256"])
    assert len(set(digests)) == 3


def test_parts_in_any_order_and_a_join_equal_one_go(nih, tmp_path):
    nih.file(nih.names[4]).unlink()
    nih.file(nih.names[5]).unlink()  # a shard without an image
    options = {"missing": "skip"}
    prepare_nih(nih, tmp_path / "whole", **options)
    parts = tmp_path / "parts"
    for i, processes in ((2, 1), (0, 3), (1, 1)):
        prepare_nih(nih, parts, part=(i, 3), processes=processes, **options)
        assert not is_prepared(parts)
    prepare_nih(nih, parts, **options)
    assert content(parts) == content(tmp_path / "whole")


def test_a_half_written_shard_is_never_read(many, tmp_path):
    """A shard that is cut short is written again, and a draft is never taken for one."""
    out = tmp_path / "out"
    prepare_nih(many, out, size=300)
    before = content(out)
    shard = sorted(out.glob("*.array_record-*"))[2]
    shard.write_bytes(shard.read_bytes()[:100_000])
    (out / "progress" / "00002.0123.draft").write_bytes(b"half")
    prepare_nih(many, out, size=300)
    assert content(out) == before
    assert leftovers(out) == []


def test_a_flipped_byte_is_put_right(nih, out):
    prepare_nih(nih, out)
    before = content(out)
    kept, shard = sorted(out.glob("*.array_record-*"))[:2]
    time_kept, whole = kept.stat().st_mtime_ns, shard.read_bytes()
    place = whole.index(bytes([40] * 64))  # the image of row 2
    shard.write_bytes(whole[:place] + b"!" + whole[place + 1 :])
    prepare_nih(nih, out)
    assert shard.read_bytes()[place : place + 1] == bytes([40])
    assert kept.stat().st_mtime_ns == time_kept
    assert content(out) == before


def test_finished_shards_are_kept(nih, out):
    prepare_nih(nih, out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record-*")}
    prepare_nih(nih, out)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_images_that_come_later_are_added(nih, tmp_path):
    late = nih.file(nih.names[7])
    sound = late.read_bytes()
    late.unlink()
    out = tmp_path / "out"
    prepare_nih(nih, out, missing="skip")
    untouched = sorted(out.glob("*.array_record-*"))[0]
    before = untouched.stat().st_mtime_ns
    late.write_bytes(sound)
    prepare_nih(nih, out, missing="skip")
    assert untouched.stat().st_mtime_ns == before
    prepare_nih(nih, tmp_path / "whole", missing="skip")
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("change", ["size", "table", "source", "rows_per_shard"])
def test_a_folder_begun_for_something_else_is_refused_by_name(nih, out, change, monkeypatch):
    prepare_nih(nih, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    options, name = {}, SOURCE
    if change == "table":
        nih.edit_csv("No Finding,0,2", "Hernia,0,2")
    elif change == "source":
        name = "other"
        monkeypatch.setitem(sources.SOURCES, name, sources.SOURCES[SOURCE])
    else:
        options = {change: 16}
    said = "the same source and size, but the table has changed" if change == "table" else change
    with pytest.raises(InputError, match=rf"\(--out\) was begun with {said}") as caught:
        prepare(name, nih.path, out, **({"size": 8, "rows_per_shard": 2} | options))
    assert str(out) in str(caught.value)
    assert len(str(caught.value)) < len(str(out)) + 200
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_folder_with_something_else_is_refused(nih, out):
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something other than prepared images"):
        prepare_nih(nih, out)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_prepared_source_is_refused(nih, out, tmp_path):
    prepare_nih(nih, out)
    with pytest.raises(InputError, match=r"\(--source\) is prepared"):
        prepare(SOURCE, out, tmp_path / "again", size=4)
    with pytest.raises(InputError, match="--source and --out are both"):
        prepare(SOURCE, nih.path, nih.path, size=4)


@pytest.mark.parametrize("options", [{"size": 0}, {"processes": 0}])
def test_impossible_numbers_are_named(nih, out, options):
    with pytest.raises(InputError, match=f"--{next(iter(options))} is 0|--processes 0"):
        prepare_nih(nih, out, **options)
    assert not out.exists()


def test_too_little_space_is_reported_before_writing(nih, out, monkeypatch):
    usage = preparation.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(preparation.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"0\.0 GB free and 12 images at 8 pixels need"):
        prepare_nih(nih, out)
    assert not out.exists()


def _spoil(nih, i):
    path = nih.file(nih.names[i])
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("processes", [1, 2])
def test_unreadable_images_are_listed_and_left_out(nih, out, processes):
    _spoil(nih, 4)
    nih.file(nih.names[9]).write_text("<html>")
    refused = prepare_nih(nih, out, max_unreadable=0.2, processes=processes)
    assert [name for name, _ in refused] == [nih.names[4], nih.names[9]]
    store = sources.load(SOURCE, nih.path).store
    assert [reason for _, reason in refused] == [store.examine(i, 4)[1].fault for i in (4, 9)]
    with (out / "quarantine.csv").open(newline="") as file:
        assert [tuple(row) for row in csv.reader(file)] == [("image", "reason"), *refused]
    summary, names, _, _ = content(out)
    assert (summary["images"], summary["refused"]) == (10, 2)
    assert [name.decode() for name in names] == [n for n in nih.names if n not in dict(refused)]


def test_too_many_unreadable_images_stop_and_are_listed(nih, out):
    _spoil(nih, 4)
    with pytest.raises(InputError, match=rf"1 of 12 images .*{nih.names[4]}.*0\.1%.*quarantine"):
        prepare_nih(nih, out)
    assert nih.names[4] in (out / "quarantine.csv").read_text()
    assert [path.name for path in out.iterdir()] == ["quarantine.csv"]
    prepare_nih(nih, out, size=16, max_unreadable=0.2)  # the folder is free for any other call
    assert is_prepared(out)


def test_a_call_that_cannot_begin_leaves_nothing(nih, out, monkeypatch):
    save(make_dicom(), nih.file(nih.names[0]))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r'pip install "charm-jax\[dicom\]"'):
        prepare_nih(nih, out)
    assert not out.exists()


def test_without_array_record_a_sentence_says_so(nih, out, tmp_path, monkeypatch):
    prepare_nih(nih, out)
    for name in ("array_record.python.array_record_module", "fcntl"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="need the package array_record"):
        prepare_nih(nih, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match="need the package array_record"):
        sources.load(SOURCE, out)


def test_nothing_is_prepared_of_unreadable_images_alone(nih, out):
    for name in nih.names:
        nih.file(name).write_text("<html>")
    with pytest.raises(InputError, match="None of the 12 images can be read"):
        prepare_nih(nih, out, max_unreadable=1.0)
    assert [path.name for path in out.iterdir()] == ["quarantine.csv"]


def test_a_refused_call_keeps_what_an_earlier_one_finished(nih, out):
    prepare_nih(nih, out, part=(0, 2))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    _spoil(nih, 3)
    with pytest.raises(InputError, match="1 of 12 images"):
        prepare_nih(nih, out)
    (out / "quarantine.csv").unlink()
    left = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert left == before


def test_a_call_that_is_not_alone_removes_nothing_of_others(nih, out):
    prepare_nih(nih, out, part=(0, 2))
    draft = out / f"table.csv.gz.{'0' * 32}.tmp"
    draft.touch()
    _spoil(nih, 3)
    with at_work(Layout(out, SOURCE, 8, 12, 2)):
        with pytest.raises(InputError, match="1 of 12 images"):
            prepare_nih(nih, out)
        assert len(list(out.glob("*.array_record-*"))) == 4  # the refused shard is the second
        prepare_nih(nih, out, max_unreadable=0.2)
    assert leftovers(out) == [draft.name]


def test_a_fresh_draft_of_a_killed_call_is_gone_after_the_next(nih, out):
    prepare_nih(nih, out, part=(0, 2))
    for name in ("progress/00001.json", "progress/00003.json", "summary.json", "prepare.json"):
        (out / f"{name}.{'0' * 32}.tmp").write_text("{")
    (out / "progress" / "00001.0123.draft").write_text("{")
    prepare_nih(nih, out)
    assert leftovers(out) == []


def test_an_image_that_is_fetched_again_is_taken(nih, tmp_path):
    path = nih.file(nih.names[4])
    sound = path.read_bytes()
    _spoil(nih, 4)
    out = tmp_path / "out"
    assert len(prepare_nih(nih, out, max_unreadable=0.2)) == 1
    path.write_bytes(sound)
    assert prepare_nih(nih, out) == []
    prepare_nih(nih, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_absent_images_need_a_word(nih, out):
    nih.file(nih.names[4]).unlink()
    with pytest.raises(
        InputError, match=rf"1 of 12 images are absent \({nih.names[4]}.*--missing=skip"
    ):
        prepare_nih(nih, out)
    assert not out.exists()
    assert prepare_nih(nih, out, max_unreadable=0.1) == [(nih.names[4], "absent")]
    assert nih.names[4] in (out / "quarantine.csv").read_text()


def test_a_folder_without_images_is_refused(nih, out):
    for name in nih.names:
        nih.file(name).unlink()
    with pytest.raises(InputError, match="None of the 12 images"):
        prepare_nih(nih, out, missing="skip")


def test_a_simulated_source_stays_simulated(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_phantoms(
        raw,
        train_images=6,
        test_images=4,
        image_size=16,
        seed=0,
        min_test_positives=0,
        min_train_positives=0,
    )
    prepare("phantom", raw, out, size=16)
    table = sources.load("phantom", out)
    assert (table.simulated, table.source) == (True, "phantom")
    assert "SIMULATED" in json.loads((out / "dataset_info.json").read_text())["description"]
    np.testing.assert_array_equal(
        table.store.read(np.arange(10), 16),
        sources.load("phantom", raw).store.read(np.arange(10), 16),
    )
