"""Machines that lack what a command would like to have."""

import os

import pytest

from charm_jax import convert
from charm_jax.config import cli
from charm_jax.predict import __main__ as predict
from charm_jax.runs import banks
from data_pipelines.errors import InputError


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda path: banks.check_label(path, "mine"), "copy the run to a folder"),
        (lambda path: convert._check_target(path / "a.pth", "torch"), "choose another folder"),
        (
            lambda path: predict._check_out(path / "out", [], "name another with --out"),
            "with --out",
        ),
    ],
    ids=["memory", "convert", "predict"],
)
def test_a_read_only_folder_is_refused_before_anything_is_computed(
    check, words, tmp_path, monkeypatch
):
    check(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write to all but such disks
    with pytest.raises(InputError, match=f"{tmp_path}.* cannot be written .*{words}"):
        check(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_program_on_a_machine_without_a_home_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "cache_folder", lambda: None)
    monkeypatch.setattr("sys.argv", ["charm-jax", str(tmp_path)])
    with pytest.raises(SystemExit) as leaving:
        cli.run(lambda argv: len(argv))
    assert leaving.value.code == 1
    assert capsys.readouterr().err == ""
