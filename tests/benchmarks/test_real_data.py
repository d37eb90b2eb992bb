"""The table of ``benchmarks/real_data.py``, from the runs that are finished."""

import argparse
import importlib
import json

import numpy as np
import pytest

FINDINGS = tuple("ABCDEFG")
FINISHED = [("plain", seed, fold) for seed in (0, 1) for fold in (0, 1)]
FINISHED += [("vote", 0, 0), ("vote", 0, 1), ("vote", 1, 1)]


@pytest.fixture
def real_data(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    return importlib.import_module("real_data")


@pytest.fixture
def cases(real_data):
    """200 images in two folds; A has too few positive images, B too few patients."""
    generator = np.random.default_rng(0)
    labels = (generator.random((200, 7)) < np.linspace(0.1, 0.5, 7)).astype(np.int8)
    labels[:, 0] = (np.arange(200) >= 20) & (np.arange(200) < 29)
    labels[:, 1] = np.arange(200) < 12
    parts = np.where(np.arange(200) % 2 == [[0], [1]], "test", "train")
    patients = np.maximum(np.arange(200) - 9, np.arange(200) % 2)  # the first two have six each
    return np.arange(200).astype(str), labels, patients, parts


@pytest.fixture
def args(real_data, cases, tmp_path):
    """Options with finished runs of plain at seeds 0 and 1, of vote at seed 0 and a fold of 1."""
    images, labels, _, parts = cases
    settings = {"epochs": 1}
    with (tmp_path / "runs.jsonl").open("w") as file:
        for number, (variant, seed, fold) in enumerate(FINISHED):
            noise = np.random.default_rng(number).normal(size=labels.shape)
            right = 8 * labels if variant == "vote" else 0
            logits = (noise + right)[parts[fold] == "test"].tolist()
            entry = {"variant": variant, "seed": seed, "fold": fold, "settings": settings}
            entry |= {"images": images[parts[fold] == "test"].tolist(), "logits": logits}
            file.write(json.dumps(entry) + "\n")
    return argparse.Namespace(
        out=tmp_path / "runs.jsonl", settings=settings, seeds=[0, 1], folds=2, variants=["vote"]
    )


def test_the_table_has_whole_seeds_alone_and_names_what_is_missing(real_data, cases, args):
    lines = list(real_data.table(args, *cases, FINDINGS))
    assert lines[0] == "MISSING: vote, seed 1: 1 of 2 folds"
    plain, vote = (line.split(" | ") for line in lines[3:5])
    assert plain[:2] == ["| plain", "2"]
    assert vote[:2] == ["| vote", "1"]
    assert vote[2] == "1.0000"
    assert all(0 < float(cell.split("[")[1].split(",")[0]) < 0.5 for cell in vote[3::2])


def test_findings_of_few_images_or_patients_do_not_count(real_data, cases, args):
    lines = "\n".join(real_data.table(args, *cases, FINDINGS)).split("\nmacro: ")[1]
    assert lines.startswith("5 findings")
    assert "A " not in lines
    assert "B " not in lines


def test_runs_with_other_settings_are_not_read(real_data, cases, args):
    args.settings = {"epochs": 2}
    assert real_data.finished(args) == {}


def test_runs_of_other_folds_are_refused(real_data, cases, args):
    images, labels, patients, parts = cases
    with pytest.raises(SystemExit, match="has other folds"):
        list(real_data.table(args, images, labels, patients, parts[::-1], FINDINGS))
