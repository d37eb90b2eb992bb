import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.phantom.draw import write_phantoms
from data_pipelines.prepare import __main__ as prepare_module
from data_pipelines.prepare.__main__ import main, prepare
from data_pipelines.prepared.dataset import is_prepared

SOURCE = "nih_chest_xray14"
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(prepare_module.__file__)))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def _prepare(nih, out, **changes):
    return prepare(SOURCE, nih.path, out, **({"size": 8, "rows_per_shard": 2} | changes))


def _content(out):
    """Digest, names in order, and pixels; all by our own reader and by TFDS."""
    import tensorflow_datasets as tfds

    records = list(tfds.builder_from_directory(out).as_data_source("all"))
    table = sources.load(SOURCE, out)
    rows = np.flatnonzero(table.present)
    size = json.loads((out / "summary.json").read_text())["size"]
    images = table.store.read(rows, size)
    assert [record["case_id"] for record in records] == rows.tolist()
    assert all(
        (record["image"] == image).all() for record, image in zip(records, images, strict=True)
    )
    return (
        json.loads((out / "summary.json").read_text()),
        [record["name"] for record in records],
        images.tobytes(),
        (out / "table.csv.gz").read_bytes(),
    )


def _leftovers(out):
    return [path.name for path in out.rglob("*") if path.suffix in (".draft", ".tmp")]


def test_summary_counts_what_was_prepared(nih, out):
    nih.file(nih.names[11]).unlink()
    assert _prepare(nih, out, missing="skip") == []
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


def test_the_digest_is_of_pixels_and_labels(nih, tmp_path):
    digests = []
    for change in (lambda: None, lambda: Image.new("L", (8, 8), 3).save(nih.file(nih.names[5]))):
        change()
        out = tmp_path / str(len(digests))
        _prepare(nih, out)
        digests.append(json.loads((out / "summary.json").read_text())["sha256"])
    nih.edit_csv("No Finding,0,2", "Hernia,0,2")
    _prepare(nih, tmp_path / "labels")
    digests.append(json.loads((tmp_path / "labels" / "summary.json").read_text())["sha256"])
    assert len(set(digests)) == 3


@pytest.mark.parametrize("processes", [1, 3])
def test_parts_in_any_order_and_a_join_equal_one_go(nih, tmp_path, processes):
    nih.file(nih.names[4]).unlink()
    nih.file(nih.names[5]).unlink()  # a shard without an image
    options = {"missing": "skip"}
    _prepare(nih, tmp_path / "whole", **options)
    parts = tmp_path / "parts"
    for i in (2, 0, 1):
        _prepare(nih, parts, part=(i, 3), processes=processes, **options)
        assert not is_prepared(parts)
    _prepare(nih, parts, **options)
    assert _content(parts) == _content(tmp_path / "whole")


def test_processes_change_nothing(nih, tmp_path):
    for processes in (1, 2):
        _prepare(nih, tmp_path / str(processes), processes=processes)
    assert _content(tmp_path / "1") == _content(tmp_path / "2")


@pytest.fixture
def many(nih):
    """Enough images for a kill to fall into the middle: 12 patients' worth of noise."""
    rng = np.random.default_rng(0)
    for name in nih.names:
        Image.fromarray(rng.integers(0, 256, (900, 900), np.uint8)).save(nih.file(name))
    return nih


def _start(many, out, **options):
    script = (
        "from pathlib import Path; from data_pipelines.prepare import prepare\n"
        "if __name__ == '__main__':\n"
        f"    prepare({SOURCE!r}, Path({str(many.path)!r}), Path({str(out)!r}), size=300,"
        " rows_per_shard=2, processes=2)\n"
    )
    file = out.parent / "script.py"
    file.write_text(script)
    return subprocess.Popen(
        [sys.executable, file], env=os.environ | {"PYTHONPATH": _ROOT}, **options
    )


def _wait_for(process, condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_a_killed_run_is_continued_to_the_same_records(many, tmp_path, shards):
    out = tmp_path / "killed"
    process = _start(many, out)
    progress = out / "progress"
    _wait_for(
        process,
        lambda: len(list(progress.glob("*.json"))) >= shards and list(progress.glob("*.draft")),
    )
    process.kill()
    process.wait()
    assert not is_prepared(out)
    finished = {path: path.stat().st_mtime_ns for path in progress.glob("*.json")}
    assert len(finished) >= shards
    _wait_until_unlocked(progress)
    _prepare(many, out, size=300)
    assert {path: path.stat().st_mtime_ns for path in finished}.items() >= finished.items()
    assert _leftovers(out) == []
    _prepare(many, tmp_path / "whole", size=300)
    assert _content(out) == _content(tmp_path / "whole")


def _wait_until_unlocked(progress):
    """The workers follow their parent."""
    deadline = time.monotonic() + 60
    for draft in progress.glob("*.draft"):
        while True:
            assert time.monotonic() < deadline, "a worker outlived its parent"
            try:
                with draft.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except FileNotFoundError:
                break


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(many, tmp_path):
    _prepare(many, tmp_path / "whole", size=300)
    moments = np.random.default_rng(0)
    for run in range(6):
        out = tmp_path / f"killed{run}"
        for _ in range(4):
            process = _start(many, out)
            try:
                process.wait(moments.uniform(1, 6))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        _wait_until_unlocked(out / "progress")
        _prepare(many, out, size=300)
        assert _content(out) == _content(tmp_path / "whole")
        assert [name for name in _leftovers(out) if name.endswith(".draft")] == []


def test_a_killed_worker_is_one_sentence(many, tmp_path):
    out = tmp_path / "out"
    process = _start(many, out, stderr=subprocess.PIPE)
    _wait_for(process, lambda: list((out / "progress").glob("*.draft")))
    tasks = f"/proc/{process.pid}/task"
    for task in os.listdir(tasks):
        with open(f"{tasks}/{task}/children") as file:
            for child in map(int, file.read().split()):
                with open(f"/proc/{child}/cmdline") as command:
                    if "spawn_main" in command.read():
                        os.kill(child, signal.SIGKILL)
    assert b"was killed, perhaps for want of memory" in process.communicate()[1]
    assert process.returncode == 1
    assert not is_prepared(out)


def test_two_processes_on_the_same_share_do_no_harm(many, tmp_path):
    out = tmp_path / "shared"
    processes = [_start(many, out) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert _leftovers(out) == []
    _prepare(many, tmp_path / "whole", size=300)
    assert _content(out) == _content(tmp_path / "whole")


def test_a_half_written_shard_is_never_read(many, tmp_path):
    """A shard that is cut short is written again, and a draft is never taken for one."""
    out = tmp_path / "out"
    _prepare(many, out, size=300)
    before = _content(out)
    shard = sorted(out.glob("*.array_record-*"))[2]
    shard.write_bytes(shard.read_bytes()[:100_000])
    (out / "progress" / "00002.0123.draft").write_bytes(b"half")
    _prepare(many, out, size=300)
    assert _content(out) == before
    assert _leftovers(out) == []


def test_a_flipped_byte_is_put_right(nih, out):
    _prepare(nih, out)
    before = _content(out)
    kept, shard = sorted(out.glob("*.array_record-*"))[:2]
    time_kept, content = kept.stat().st_mtime_ns, shard.read_bytes()
    place = content.index(bytes([40] * 64))  # the image of row 2
    shard.write_bytes(content[:place] + b"!" + content[place + 1 :])
    _prepare(nih, out)
    assert shard.read_bytes()[place : place + 1] == bytes([40])
    assert kept.stat().st_mtime_ns == time_kept
    assert _content(out) == before


def test_finished_shards_are_kept(nih, out):
    _prepare(nih, out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record-*")}
    _prepare(nih, out)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_images_that_come_later_are_added(nih, tmp_path):
    late = nih.file(nih.names[7])
    content = late.read_bytes()
    late.unlink()
    out = tmp_path / "out"
    _prepare(nih, out, missing="skip")
    untouched = sorted(out.glob("*.array_record-*"))[0]
    before = untouched.stat().st_mtime_ns
    late.write_bytes(content)
    _prepare(nih, out, missing="skip")
    assert untouched.stat().st_mtime_ns == before
    _prepare(nih, tmp_path / "whole", missing="skip")
    assert _content(out) == _content(tmp_path / "whole")


@pytest.mark.parametrize("change", ["size", "table", "source", "rows_per_shard"])
def test_a_folder_begun_for_something_else_is_refused_by_name(nih, out, change, monkeypatch):
    _prepare(nih, out)
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
        _prepare(nih, out)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_prepared_source_is_refused(nih, out, tmp_path):
    _prepare(nih, out)
    with pytest.raises(InputError, match=r"\(--source\) is prepared"):
        prepare(SOURCE, out, tmp_path / "again", size=4)
    with pytest.raises(InputError, match="--source and --out are both"):
        prepare(SOURCE, nih.path, nih.path, size=4)


@pytest.mark.parametrize("options", [{"size": 0}, {"processes": 0}])
def test_impossible_numbers_are_named(nih, out, options):
    with pytest.raises(InputError, match=f"--{next(iter(options))} is 0|--processes 0"):
        _prepare(nih, out, **options)
    assert not out.exists()


def test_too_little_space_is_said_before_anything_is_written(nih, out, monkeypatch):
    usage = prepare_module.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"0\.0 GB free and 12 images at 8 pixels need"):
        _prepare(nih, out)
    assert not out.exists()


def _spoil(nih, i):
    path = nih.file(nih.names[i])
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("processes", [1, 2])
def test_unreadable_images_are_listed_and_left_out(nih, out, processes):
    _spoil(nih, 4)
    nih.file(nih.names[9]).write_text("<html>")
    refused = _prepare(nih, out, max_share=0.2, processes=processes)
    assert [name for name, _ in refused] == [nih.names[4], nih.names[9]]
    store = sources.load(SOURCE, nih.path).store
    assert [reason for _, reason in refused] == [store.fault(i, whole=True) for i in (4, 9)]
    with (out / "quarantine.csv").open(newline="") as file:
        assert [tuple(row) for row in csv.reader(file)] == [("image", "reason"), *refused]
    summary, names, _, _ = _content(out)
    assert (summary["images"], summary["refused"]) == (10, 2)
    assert [name.decode() for name in names] == [n for n in nih.names if n not in dict(refused)]


def test_too_many_unreadable_images_stop_and_are_listed(nih, out):
    _spoil(nih, 4)
    with pytest.raises(InputError, match=rf"1 of 12 images .*{nih.names[4]}.*0\.1%.*quarantine"):
        _prepare(nih, out)
    assert nih.names[4] in (out / "quarantine.csv").read_text()
    assert not is_prepared(out)


def test_an_image_that_is_fetched_again_is_taken(nih, tmp_path):
    path = nih.file(nih.names[4])
    sound = path.read_bytes()
    _spoil(nih, 4)
    out = tmp_path / "out"
    assert len(_prepare(nih, out, max_share=0.2)) == 1
    path.write_bytes(sound)
    assert _prepare(nih, out) == []
    _prepare(nih, tmp_path / "whole")
    assert _content(out) == _content(tmp_path / "whole")


def test_absent_images_need_a_word(nih, out):
    nih.file(nih.names[4]).unlink()
    with pytest.raises(
        InputError, match=rf"1 of 12 images are absent \({nih.names[4]}.*--missing=skip"
    ):
        _prepare(nih, out)
    assert not out.exists()
    assert _prepare(nih, out, max_share=0.1) == [(nih.names[4], "absent")]
    assert nih.names[4] in (out / "quarantine.csv").read_text()


def test_a_folder_without_images_is_refused(nih, out):
    for name in nih.names:
        nih.file(name).unlink()
    with pytest.raises(InputError, match="Not one of the 12 images"):
        _prepare(nih, out, missing="skip")


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


def _command(source, out, *rest):
    return main([SOURCE, "--source", str(source), "--out", str(out), "--processes", "1", *rest])


def test_exit_codes_of_real_images(nih_dir, tmp_path, capsys):
    """0 as they are; 1 with one of 1,000 damaged; 2 with two."""
    assert _command(nih_dir, tmp_path / "out", "--size", "16") == 2
    assert "111120 of 112120 images are absent" in capsys.readouterr().err
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in nih_dir.iterdir():
        (raw / path.name).symlink_to(path)
    images = sorted((nih_dir / "images").glob("*.png"))
    (raw / "images").unlink()
    (raw / "images").mkdir()
    for path in images:
        (raw / "images" / path.name).symlink_to(path)
    options = ("--size", "16", "--missing=skip")
    assert _command(raw, tmp_path / "out", *options) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["images"] == 1_000
    for spoilt, code in ((images[3], 1), (images[500], 2)):
        (raw / "images" / spoilt.name).unlink()
        (raw / "images" / spoilt.name).write_bytes(spoilt.read_bytes()[:300])
        assert _command(raw, tmp_path / f"out{code}", *options) == code
    assert images[500].name in (tmp_path / "out2" / "quarantine.csv").read_text()
    assert "error: 2 of 1000 images are absent or unreadable" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["3/3", "1", "a/b", "-1/2", "1/0"])
def test_a_wrong_part_is_named(nih, out, capsys, part):
    assert _command(nih.path, out, f"--part={part}") == 2
    assert f"--part is {part!r}" in capsys.readouterr().err
    assert not out.exists()


def test_the_command_says_what_it_did(nih, out, capsys):
    assert _command(nih.path, out, "--size=8", "--part=0/1") == 0
    assert not is_prepared(out)
    assert _command(nih.path, out, "--size=8") == 0
    assert is_prepared(out)
    captured = capsys.readouterr()
    assert "preparing images" in captured.err
    assert captured.out.splitlines() == [
        "part 0/1: prepared, 0 images refused",
        f"{out}: prepared, 0 images refused",
    ]


def test_what_is_to_be_known_of_the_data_is_said_once(tmp_path, capsys):
    raw = tmp_path / "own"
    raw.mkdir()
    for i in range(4):
        Image.new("L", (8, 8), i).save(raw / f"{i}.png")
    (raw / "labels.csv").write_text("image,Mass\n" + "".join(f"{i}.png,1\n" for i in range(4)))
    options = ["--size=8", "--processes=1"]
    assert main(["csv_folder", f"--source={raw}", f"--out={tmp_path / 'out'}", *options]) == 0
    (warning,) = sources.load("csv_folder", raw).warnings
    assert capsys.readouterr().err.count(f"warning: {warning}\n") == 1


def test_a_folder_that_may_not_be_written_is_one_sentence(nih, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert _command(nih.path, tmp_path / "file" / "out", "--size=8") == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'file'}")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_full_disk_is_one_sentence(many, out, processes):
    """A limit on the size of a file stands in for the disk's end."""
    command = ["-m", "data_pipelines.prepare", SOURCE, f"--source={many.path}", f"--out={out}"]
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"
    run = "import os, sys; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    made = subprocess.run(
        [sys.executable, "-c", f"{limit}; {run}", *command, f"--processes={processes}"],
        env=os.environ | {"PYTHONPATH": _ROOT},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 2
    assert "Traceback" not in made.stderr
    assert "full.array_record-00000-of-00001 cannot be written (" in made.stderr
    assert _leftovers(out) == []
    assert not list(out.glob("*.array_record-*"))


def test_workers_import_neither_jax_nor_tensorflow(nih, out):
    script = (
        "import sys; from data_pipelines.prepare import main; code = main(sys.argv[1:]);"
        "sys.exit(code or len({'jax', 'tensorflow', 'torch'} & set(sys.modules)))"
    )
    arguments = [SOURCE, f"--source={nih.path}", f"--out={out}", "--size=8", "--processes=1"]
    subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": _ROOT},
        check=True,
    )


def test_interrupted_by_hand_it_leaves_no_worker(many, tmp_path):
    out = tmp_path / "out"
    process = _start(many, out)
    _wait_for(process, lambda: list((out / "progress").glob("*.draft")))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert _leftovers(out) == []
    assert not is_prepared(out)
