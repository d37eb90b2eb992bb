import json

import pytest

from data_pipelines import sources
from data_pipelines.inspect.__main__ import main
from data_pipelines.prepare.preparation import prepare


def _inspect(films, out, *more):
    return main([str(films.path), "--out", str(out), "--size", "32", *more])


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["--size", "8"], "--size is 8: give 16 or more"),
        (["--sample", "-1"], "--sample is -1: give 0 or more"),
        (["--split", "patients"], "did you mean 'patient'"),
        (["--source", "nih"], "not a known source"),
        (["--source", "phantom"], "holds no simulated images"),
        (["--csv", "gone.csv"], "gone.csv"),
    ],
)
def test_wrong_input_is_one_sentence(films, tmp_path, capsys, arguments, needle):
    assert _inspect(films, tmp_path / "out", *arguments) == 2
    assert needle in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_and_one_of_broken_images(films, tmp_path, capsys):
    for name in films.names:
        films.file(name).write_bytes(b"")
    assert _inspect(films, tmp_path / "out") == 2
    assert f"({films.names[0]}: empty)" in capsys.readouterr().err
    for name in films.names:
        films.file(name).unlink()
    assert _inspect(films, tmp_path / "out") == 2
    assert "None of the 12 images of the table" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_named(films, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert _inspect(films, tmp_path / "file") == 2
    assert "cannot be written to" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("no_pictures")
def test_the_warnings_of_a_source_are_printed(films, tmp_path, capsys):
    lines = [f"{path.relative_to(films.path)},1" for path in films.path.rglob("*.png")]
    (films.path / "labels.csv").write_text("\n".join(["image,Mass", *lines]) + "\n")
    arguments = ("--source", "csv_folder", "--split", "patient")
    assert _inspect(films, tmp_path / "out", *arguments) == 0
    printed = capsys.readouterr()
    assert "warning: The table" in printed.err
    assert "terms:" not in printed.out


@pytest.mark.usefixtures("no_pictures")
def test_merged_sets_are_counted_with_their_terms(films, tmp_path, capsys):
    both = tmp_path / "both"
    both.mkdir()
    (both / "labels.csv").write_text("image,Mass\na.png,1\nb.png,\n")
    rows = [f"nih,nih_chest_xray14,{films.path}", "ours,csv_folder,."]
    (both / "sets.csv").write_text("\n".join(["name,source,dir", *rows]) + "\n")
    options = ("--source", "merged", "--split", "patient", "--size", "32")
    assert main([str(both), "--out", str(tmp_path / "out"), *options]) == 0
    text = capsys.readouterr().out
    assert "nih is nih_chest_xray14, 12 images\nterms: The NIH Clinical Center" in text
    assert "ours is csv_folder, 2 images\n\n" in text
    found = json.loads((tmp_path / "out/summary.json").read_text())["sets"]["ours"]
    assert found["findings"]["Mass"]["unknown"] == 1


@pytest.mark.usefixtures("no_pictures")
def test_a_prepared_folder_is_read_as_what_and_at_the_size_that_it_was_prepared(films, tmp_path):
    prepare("nih_chest_xray14", films.path, tmp_path / "prepared", size=24)
    assert main([str(tmp_path / "prepared"), "--out", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["pixels"]["size"] == 24
    assert summary["source"] == "nih_chest_xray14"
    text = (tmp_path / "out/summary.txt").read_text()
    assert "terms: The NIH Clinical Center places no restriction" in text
    assert "to cite: X. Wang" in text


def test_another_size_than_the_prepared_one_is_refused_at_once(films, tmp_path, capsys):
    prepare("nih_chest_xray14", films.path, tmp_path / "prepared", size=24)
    assert main([str(tmp_path / "prepared"), "--size", "32", "--out", str(tmp_path / "out")]) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("error: config.data.image_size is 32")
    )
    assert not (tmp_path / "out").exists()


def test_a_folder_is_read_with_the_range_that_it_was_prepared_with(films, tmp_path):
    prepare("nih_chest_xray14", films.path, tmp_path / "prepared", size=24, value_range="4095")
    assert main([str(tmp_path / "prepared"), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.usefixtures("no_pictures")
def test_policy_and_views_reach_the_source(films, tmp_path, monkeypatch):
    chosen = []
    load = sources.load

    def note(*arguments):
        chosen.append(arguments[-2:])
        return load(*arguments)

    monkeypatch.setattr(sources, "load", note)
    assert _inspect(films, tmp_path / "out", "--uncertain", "ones", "--views", "all") == 0
    assert _inspect(films, tmp_path / "out") == 0
    assert chosen == [("ones", "all"), ("ignore", "frontal")]
