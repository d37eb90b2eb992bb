"""The lock files serve the declared dependencies, and a built package holds what it needs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import charm_jax

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def declared():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(text):
    """The lines of a lock file without hashes, and whether each has some."""
    entries = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(entry.partition(" --hash")[0].strip(), "--hash=sha256:" in entry) for entry in entries]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_file_serves_every_declared_dependency(python):
    requirements = pytest.importorskip("packaging.requirements")
    where = {"python_version": python, "python_full_version": f"{python}.1"}

    def used(requirement):
        return requirement.marker is None or requirement.marker.evaluate(where)

    locked = {}
    for line, hashed in pins((ROOT / "requirements.txt").read_text(encoding="utf-8")):
        assert hashed, line
        requirement = requirements.Requirement(line)
        if used(requirement):
            assert requirement.name not in locked, line
            [locked[requirement.name]] = (one.version for one in requirement.specifier)
    for line in declared()["dependencies"]:
        requirement = requirements.Requirement(line)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if used(requirement):
            assert name in locked, f"{line}: make requirements.txt again"
            assert requirement.specifier.contains(locked[name]), f"{line}: {locked[name]}"


@pytest.mark.parametrize(
    ("name", "extras"),
    [("requirements.txt", ["dicom", "web"]), ("requirements-cuda.txt", ["cuda", "dicom", "web"])],
)
def test_the_containers_get_the_same_versions_and_their_extras(name, extras):
    requirements = pytest.importorskip("packaging.requirements")
    where = {"python_version": "3.11", "python_full_version": "3.11.2", "sys_platform": "linux"}

    def locked(path):
        found = {}
        for line, hashed in pins(path.read_text(encoding="utf-8")):
            assert hashed, line
            requirement = requirements.Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(where):
                [found[requirement.name]] = (one.version for one in requirement.specifier)
        return found

    ours, root = locked(ROOT / "docker" / name), locked(ROOT / "requirements.txt")
    assert root.items() <= ours.items(), f"make docker/{name} again"
    optional = declared()["optional-dependencies"]
    for line in [line for extra in extras for line in optional[extra]]:
        requirement = requirements.Requirement(line)
        package = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert requirement.specifier.contains(ours[package]), f"{line}: {ours[package]}"


def test_the_lock_files_name_no_index():
    for path in (ROOT / "requirements.txt", *(ROOT / "docker").glob("*.txt")):
        assert "://" not in path.read_text(encoding="utf-8")


def test_the_version_is_the_same_everywhere():
    version = re.escape(charm_jax.__version__)
    for name, line in {
        "CITATION.cff": f"^version: {version}$",
        "CHANGELOG.md": rf"\A.*\n\n## {version} ",
    }.items():
        assert re.search(line, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE), name


@pytest.mark.daily
def test_the_configs_are_built_into_the_package(tmp_path):
    pytest.importorskip("setuptools")
    source, built = tmp_path / "source", tmp_path / "built"
    no_bytecode = shutil.ignore_patterns("__pycache__")
    for name in ("charm_jax", "configs", "data_pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=no_bytecode)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", built]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in built.iterdir()} == {"charm_jax", "data_pipelines"}
    code = (
        "import charm_jax.sweep.plan as plan; from charm_jax.config import cli\n"
        "print(cli.CONFIGS, *sorted(cli._packaged()), plan._find('ablation'))"
    )
    listed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(built)},
        capture_output=True,
        text=True,
    )
    configs = built / "charm_jax" / "configs"
    names = sorted(path.stem for path in (ROOT / "configs").glob("[!_]*.py"))
    shown = [str(configs), *names, str(configs / "sweeps" / "ablation.py")]
    assert listed.stdout.split() == shown, listed.stderr
