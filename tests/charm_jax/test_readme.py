"""The README's Python runs as written, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _read(path):
    return path.read_text(encoding="utf-8")


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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


def test_no_command_shown_trains_a_frozen_trunk_of_random_weights():
    """Training warns of it, so the pages must not tell users to do so."""
    shown = re.findall(r"^charm-jax train .*--config effv2s.*$", "\n".join(map(_read, PAGES)), re.M)
    assert shown
    for line in shown:
        assert "--config.model.init_from=" in line, line
