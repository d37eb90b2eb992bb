"""The one command that leads to all others."""

import contextlib
import subprocess
import sys
from importlib import metadata

import pytest

import charm_jax
from charm_jax import __main__ as charm


def call(monkeypatch, capsys, *arguments):
    """The exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["charm-jax", *arguments])
    code = 0
    try:
        charm.main()
    except SystemExit as leaving:
        code = leaving.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_every_command_is_listed(monkeypatch, capsys, arguments):
    code, out, _ = call(monkeypatch, capsys, *arguments)
    assert code == 0
    for command in charm._COMMANDS:
        assert f"\n  {command} " in out
    assert "not a medical device" in out


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    version = charm_jax.__version__
    assert call(monkeypatch, capsys, "--version") == (0, f"charm-jax {version}\n", "")
    with contextlib.suppress(metadata.PackageNotFoundError):  # not installed
        assert metadata.version("charm-jax") == version


@pytest.mark.parametrize(
    ("name", "words"), [("trian", "did you mean 'train'"), ("x", "choose one of train, eval")]
)
def test_an_unknown_command_is_an_error(monkeypatch, capsys, name, words):
    code, out, err = call(monkeypatch, capsys, name)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: There is no command {name!r}")
    assert words in err


def test_commands_run_and_keep_their_exit_codes(monkeypatch, capsys, tmp_path):
    code, _, err = call(monkeypatch, capsys, "eval", f"--config.runs_dir={tmp_path}")
    assert code == 2
    assert "There is no run with a checkpoint" in err
    code, out, _ = call(monkeypatch, capsys, "phantom", "--help")
    assert code == 0
    assert "usage: charm-jax phantom" in out


def test_help_works_without_the_modules_of_unix(tmp_path):
    code = (
        "import contextlib, sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from charm_jax import __main__ as charm\n"
        "for command in charm._COMMANDS:\n"
        "    sys.argv = ['charm-jax', command, '--help']\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        charm.main()\n"
        "assert 'charm_jax.train.trainer' in sys.modules and 'fcntl' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for command in charm._COMMANDS:
        assert f"usage: charm-jax {command}" in result.stdout


def test_listing_the_commands_does_not_import_jax():
    code = (
        "import sys; sys.argv = ['charm-jax']; from charm_jax.__main__ import main; main()\n"
        "assert 'jax' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
