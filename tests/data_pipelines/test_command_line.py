import errno
import importlib
import logging
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image
from preparing import ROOT

from data_pipelines.command_line import guarded
from data_pipelines.prepared.shards import ROWS_PER_SHARD

COMMANDS = ("prepare", "inspect", "phantom")


def _main(command):
    return importlib.import_module(f"data_pipelines.{command}.__main__").main


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_a_sentence_an_example_and_every_option(command, capsys):
    with pytest.raises(SystemExit) as ended:
        _main(command)(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: charm-jax {command}" in text
    assert f"example:\n  charm-jax {command} " in text
    assert "-q, --quiet" in text and "-v, --verbose" in text
    assert "exit codes: 0 done" in text
    parser = importlib.import_module(f"data_pipelines.{command}.__main__")._parser()
    for action in parser._actions:
        assert action.help
        assert (
            action.dest == "help"
            or action.required
            or action.const
            or ("(default:" in action.help or action.dest in ("out", "contact_sheet"))
        )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_the_help_is_understood(command, capsys):
    parser = importlib.import_module(f"data_pipelines.{command}.__main__")._parser()
    example = parser.epilog.splitlines()[1].split(f"charm-jax {command} ")[1]
    parser.parse_args(example.split())


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("prepare", ["nih", "--source=a", "--out=b", "--sizes=8"], "There is no option --sizes"),
        ("inspect", ["a", "--samples", "3"], "did you mean '--sample'?"),
        ("phantom", ["--out=a", "--zzzzzzzz=3"], "no option --zzzzzzzz: choose one of --help"),
        ("prepare", ["nih", "b", "--source=a", "--out=b"], "Unexpected argument 'b'"),
        ("prepare", ["nih", "--out=b"], "arguments are required: --source"),
        ("prepare", ["nih", "--source=a", "--out=b", "--size=x"], "invalid int value: 'x'"),
        ("prepare", ["nih", "--source=a", "--out=b", "--missing=no"], "invalid choice: 'no'"),
        ("phantom", [], "--out --contact_sheet is required"),
        ("phantom", ["--out=a", "--contact_sheet=b"], "not allowed with"),
        ("inspect", [], "required: DIR"),
        ("phantom", ["--out=a", "-q", "-v"], "not allowed with argument -q/--quiet"),
        ("phantom", ["--contact_sheet=no/folder.png"], "no/folder.png: No such file"),
    ],
)
def test_wrong_options_are_one_sentence(command, arguments, words, capsys, tmp_path):
    assert _main(command)(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and words in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reverse", [False, True])
def test_options_come_in_any_order(nih, tmp_path, reverse):
    arguments = ["nih_chest_xray14", f"--source={nih.path}", "--out=made", "--size=8"]
    arguments.append("--processes=1")
    assert _main("prepare")(arguments[:: -1 if reverse else 1]) == 0
    assert (tmp_path / "made" / "summary.json").is_file()


def test_quiet_hides_progress_and_verbose_says_where_an_error_is_raised(capsys):
    wrong = ["--out=a", "--seed=-1"]
    assert _main("phantom")([*wrong, "-v"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert _main("phantom")([*wrong, "-q"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not logging.getLogger("data_pipelines.progress").isEnabledFor(logging.WARNING)
    assert _main("phantom")(wrong) == 2
    assert logging.getLogger("data_pipelines.progress").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "full", "runs/a"), "runs/a: no space is left on the disk: free"),
        (OSError(errno.EDQUOT, "quota"), "error: no space is left on the disk: free"),
        (OSError(errno.EROFS, "Read-only", "runs/a"), "runs/a: Read-only: change its permissions"),
        (OSError(errno.EACCES, "denied", "a.png"), "a.png: denied: change its permissions"),
        (OSError(errno.EMFILE, "many files", "a.png"), "a.png: many files: raise the limit"),
        (OSError(errno.EIO, "broken", "a.png"), "a.png: broken: fix this"),
        (OSError(errno.ENOMEM, "no memory"), "The memory is used up: end other programs"),
        (MemoryError(), "The memory is used up: end other programs"),
        (RuntimeError("can't start new thread"), "No thread can be started: raise the limits"),
    ],
)
def test_a_machine_that_refuses_is_one_sentence(error, words, capsys):
    def work():
        raise error

    assert guarded(work) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("about no file"), ZeroDivisionError])
def test_a_signal_counts_whatever_a_library_makes_of_it_and_a_fault_keeps_its_traceback(
    error, capsys
):
    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise error from None

    def fault():
        raise error

    assert guarded(work) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM: start the same command again.\n"
    if error is KeyboardInterrupt:
        assert guarded(fault) == 130
    else:
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            guarded(fault)


def test_readers_that_have_read_enough_end_a_command_silently(capsys):
    def work():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    out = sys.stdout
    assert guarded(work) == 141
    sys.stdout = out
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def two_shards(tmp_path):
    """A folder whose table fills more than a shard, with one image in each of two."""
    folder = tmp_path / "own"
    folder.mkdir()
    names = [f"{i:04d}.png" for i in range(ROWS_PER_SHARD + 2)]
    lines = "".join(f"{name},{i % 2}\n" for i, name in enumerate(names))
    (folder / "labels.csv").write_text("image,Mass\n" + lines)
    for name in (names[0], names[-1]):
        Image.new("L", (16, 16), 90).save(folder / name)


def test_each_command_runs_as_a_module_without_carriage_returns(two_shards, tmp_path):
    """Through a pipe, and with worker processes, which must not run the command again."""
    small = "--train_images=8 --test_images=4 --image_size=16"
    for command in (
        f"phantom --out=set {small} --min_test_positives=0 --min_train_positives=0",
        "prepare csv_folder --source=own --out=made --size=16 --processes=2 --missing=skip",
        "inspect made --out=seen",
    ):
        made = subprocess.run(
            [sys.executable, "-m", f"data_pipelines.{command.split()[0]}", *command.split()[1:]],
            env=os.environ | {"PYTHONPATH": ROOT},
            capture_output=True,
        )
        assert made.returncode == 0, made.stderr
        assert b"\r" not in made.stdout + made.stderr
        assert all(line.startswith(b"warning: ") for line in made.stderr.splitlines())
        assert made.stdout.count(b": prepared, 0 images refused") == command.startswith("prepare")
    assert len(list((tmp_path / "made").glob("*.array_record-*"))) == 2
    assert (tmp_path / "set" / "SIMULATED.txt").is_file()
    assert (tmp_path / "seen" / "summary.json").is_file()
