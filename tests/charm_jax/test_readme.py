"""The README's Python runs as written, and its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from charm_jax.config import cli, validate
from charm_jax.train import __main__ as train_command

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _read(path):
    return path.read_text(encoding="utf-8")


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_python_examples_run(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished[0])
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    assert "Pleural_Thickening" in capsys.readouterr().out
    assert len(names["fewer"].memory) < len(names["model"].memory)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_every_training_shown_is_valid_and_freezes_no_random_weights():
    """Training warns of a frozen trunk of random weights, so no page may tell users to do so."""
    configs = [_read(path) for path in sorted((ROOT / "configs").glob("*.py"))]
    pattern = r"charm-jax train(?! *\|| --help| --config=list)[^\n`|&]*"
    shown = re.findall(pattern, "\n".join([*map(_read, PAGES), *configs]))
    shown = [line for line in shown if "mine.py" not in line]  # test_docs.py makes that file
    assert sum("--config effv2s" in line for line in shown) >= 8
    command = cli.Command("", train_command._OPTIONS, config=True)
    for line in dict.fromkeys(shown):
        arguments = cli.parse(command, shlex.split(line, comments=True)[2:])
        settings = cli.load_settings(arguments, arguments.flags.config or "demo")
        validate.check(settings)
        assert train_command._random_and_frozen(settings, "") == [], line
