import json
import os
import subprocess
import sys

import pytest
from PIL import Image
from preparing import ROOT, SOURCE, leftovers

from data_pipelines import sources
from data_pipelines.prepare.__main__ import main
from data_pipelines.prepared.dataset import is_prepared


def _command(source, out, *rest):
    return main([SOURCE, "--source", str(source), "--out", str(out), "--processes", "1", *rest])


def test_images_that_are_not_there_end_in_code_2(nih_dir, tmp_path, capsys):
    assert _command(nih_dir, tmp_path / "out", "--size", "16") == 2
    assert "111120 of 112120 images are absent" in capsys.readouterr().err


def test_exit_codes(tmp_path, capsys):
    """0 as they are; 1 with one of 1,000 damaged; 2 with two."""
    raw = tmp_path / "raw"
    raw.mkdir()
    names = [f"{i:04d}.png" for i in range(1_000)]
    for i, name in enumerate(names):
        Image.new("L", (8, 8), i % 256).save(raw / name)
    (raw / "labels.csv").write_text("image,Mass\n" + "".join(f"{name},1\n" for name in names))

    def command(out):
        options = (f"--source={raw}", f"--out={tmp_path / out}", "--size=8", "--processes=1")
        return main(["csv_folder", *options])

    assert command("out") == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["images"] == 1_000
    for spoilt, code in ((names[3], 1), (names[500], 2)):
        (raw / spoilt).write_bytes((raw / spoilt).read_bytes()[:60])
        assert command(f"out{code}") == code
    assert names[500] in (tmp_path / "out2" / "quarantine.csv").read_text()
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
    assert captured.err == ""
    assert captured.out.splitlines() == [
        "part 0/1: prepared, 0 images refused",
        f"{out}: prepared, 0 images refused",
    ]


def test_warnings_of_the_source_are_printed_once(tmp_path, capsys):
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
        env=os.environ | {"PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 2
    assert "Traceback" not in made.stderr
    assert "full.array_record-00000-of-00001 cannot be written (" in made.stderr
    assert leftovers(out) == []
    assert not list(out.glob("*.array_record-*"))


def test_workers_import_neither_jax_nor_tensorflow(nih, out):
    script = (
        "import sys; from data_pipelines.prepare.__main__ import main; code = main(sys.argv[1:]);"
        "sys.exit(code or len({'jax', 'tensorflow', 'torch'} & set(sys.modules)))"
    )
    arguments = [SOURCE, f"--source={nih.path}", f"--out={out}", "--size=8", "--processes=1"]
    subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": ROOT},
        check=True,
    )
