"""The tables of an evaluation, and another run's read again."""

import csv
import dataclasses
import json
import os
import re
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import report_data
from hypothesis import given
from hypothesis import strategies as st
from tables import small_table

from charm_jax.config import recipe, settings
from charm_jax.eval import files
from charm_jax.inference.loaded import LoadedModel
from charm_jax.models.baseline import Baseline
from charm_jax.models.state import TrainState
from charm_jax.runs.data import Data
from data_pipelines.errors import InputError
from data_pipelines.tables import splits

FINDINGS = ("Mass", "Effusion, either side")
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def table(n=3):
    labels = np.array([[1, 0], [-1, 1], [0, -1]], np.int8)[:n]
    images = np.array(["NA", "b.png", "c.png"])[:n]  # a name that pandas takes for nothing
    return small_table(n, findings=FINDINGS, labels=labels, images=images)


def write(folder, logits, n=3, **metrics):
    out = folder / "eval" / "test"
    out.mkdir(parents=True)
    evaluated = report_data.evaluated(n=9, findings=FINDINGS)
    described = report_data.metrics(evaluated, split_sha256=sha256(n), checkpoint="x/1")
    (out / "metrics.json").write_text(json.dumps(described | metrics))
    files.write_predictions(out / "predictions.csv", table(n), np.arange(n), logits)
    return out / "predictions.csv"


def sha256(n=3):
    return splits.part_summary(table(n), np.arange(n))["sha256"]


def read(folder, n=3, findings=FINDINGS, rows=None):
    given = dataclasses.replace(table(n), findings=findings)
    rows = np.arange(n) if rows is None else rows
    return files.read_other(folder, "test", "test", given, rows)


LOGITS = np.array([[0.1, -3], [2.5, 1e-7], [40, -90]], np.float32)


def test_a_prediction_is_a_sigmoid_with_its_label_and_logit(tmp_path):
    with write(tmp_path, LOGITS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("image", "patient", "Mass", "Effusion, either side"),
        *("Mass_label", "Effusion, either side_label"),
        *("Mass_logit", "Effusion, either side_logit"),
    ]
    assert [row["image"] for row in rows] == ["NA", "b.png", "c.png"]
    assert [row["Mass_label"] for row in rows] == ["1", "", "0"]
    assert float(rows[0]["Mass"]) == pytest.approx(1 / (1 + np.exp(-0.1)), rel=1e-6)
    assert float(rows[2]["Mass"]) <= 1


@given(st.lists(FLOATS, min_size=4, max_size=4))
def test_logits_come_back_bit_for_bit(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("run")
    logits = np.array(values, np.float32).reshape(2, 2)
    write(folder, logits, n=2)
    other = read(folder, n=2, rows=np.array([1, 0]))
    np.testing.assert_array_equal(other.logits, logits[::-1])
    assert other.result.checkpoint == "x/1"
    assert other.columns == [0, 1]


def test_a_run_without_that_split_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is not evaluated on the split 'test'.*--split test"):
        read(tmp_path)


def with_columns(findings, columns):
    """The table with some label columns, -1 for one that nobody knows."""
    labels = table().labels[:, columns] * (np.array(columns) >= 0) - (np.array(columns) < 0)
    return dataclasses.replace(table(), findings=findings, labels=labels.astype(np.int8))


@pytest.mark.parametrize(
    ("findings", "columns", "shared", "theirs"),
    [
        (FINDINGS[::-1], [1, 0], [0, 1], [1, 0]),
        (("effusion,_either side",), [1], [0], [1]),
        (("Nodule", "Mass"), [-1, 0], [1], [0]),
    ],
    ids=["another order", "another spelling, fewer", "one that only we have"],
)
def test_findings_are_compared_by_name(tmp_path, findings, columns, shared, theirs):
    write(tmp_path, LOGITS)
    ours = with_columns(findings, columns)
    other = files.read_other(tmp_path, "test", "test", ours, np.arange(3))
    assert other.columns == shared
    np.testing.assert_array_equal(other.logits, LOGITS[:, theirs])


def test_without_a_common_finding_nothing_is_compared(tmp_path):
    write(tmp_path, LOGITS)
    with pytest.raises(
        InputError, match=r"findings Mass, Effusion, either side and on none that is scored"
    ):
        files.read_other(tmp_path, "x", "test", with_columns(("Nodule",), [-1]), np.arange(3))


def relabelled(row, column, label):
    labels = table().labels.copy()
    labels[row, column] = label
    return dataclasses.replace(table(), labels=labels)


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (relabelled(0, 0, 0), "another label of Mass for NA"),
        (relabelled(1, 1, 0), "another label of Effusion, either side for b.png"),
        (dataclasses.replace(table(), patients=np.array([0, 7, 2], np.int32)), "patient for b.png"),
    ],
)
def test_images_of_another_hospital_with_the_same_names_are_not_compared(tmp_path, ours, words):
    write(tmp_path, LOGITS)
    with pytest.raises(InputError, match=rf"same names with other labels or pat.*{words}"):
        files.read_other(tmp_path, "test", "test", ours, np.arange(3))


@pytest.mark.parametrize(
    "ours",
    [
        relabelled(1, 0, 1),  # unknown when the other run was evaluated
        relabelled(0, 0, -1),
        dataclasses.replace(
            table(), patients=np.arange(3, dtype=np.int32) + 1, patients_known=False
        ),
    ],
)
def test_labels_or_patients_that_one_does_not_know_are_no_contradiction(tmp_path, ours):
    write(tmp_path, LOGITS)
    other = files.read_other(tmp_path, "test", "test", ours, np.arange(3))
    np.testing.assert_array_equal(other.logits, LOGITS)


def test_the_evaluation_with_these_labels_is_chosen_and_else_the_latest(tmp_path):
    """Two folders hold images of the same names."""
    for name, shift in (("test-a-01", 1), ("test-b-02", 2)):
        out = write(tmp_path / name, LOGITS + shift).parent
        target = tmp_path / "eval" / name
        target.parent.mkdir(exist_ok=True)
        out.rename(target)
        os.utime(target / "metrics.json", (shift, shift))
    np.testing.assert_array_equal(read(tmp_path).logits, LOGITS + 2)
    path = tmp_path / "eval/test-b-02/predictions.csv"
    path.write_text(path.read_text().replace(",P1,", ",P9,").replace(",1,", ",0,"))
    np.testing.assert_array_equal(read(tmp_path).logits, LOGITS + 1)


def test_other_images_are_refused_with_both_hashes(tmp_path):
    write(tmp_path, LOGITS, split_sha256="0123456789abcdef")
    here = sha256()[:12]
    with pytest.raises(InputError, match=rf"other images .*0123456789ab, here it is {here}"):
        read(tmp_path)


def test_metrics_of_an_earlier_version_are_refused_with_the_key(tmp_path):
    path = write(tmp_path, LOGITS).parent / "metrics.json"
    content = json.loads(path.read_text())
    del content["macro"]["auroc"]["undefined"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"lacks macro\.auroc\.undefined.*evaluate it again"):
        read(tmp_path)


def test_predictions_that_contradict_their_metrics_are_refused(tmp_path):
    path = write(tmp_path, LOGITS)
    text = path.read_text()
    path.write_text(text.replace("c.png", "d.png"))
    with pytest.raises(InputError, match="other images than its metrics"):
        read(tmp_path)
    path.write_text(text.replace("2.5,", "none,"))
    with pytest.raises(InputError, match="a logit that is not a number"):
        read(tmp_path)
    path.write_text(text.replace("_logit", "_other"))  # as before logits were kept
    with pytest.raises(InputError, match=r"no readable logits.*evaluate that run again"):
        read(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"There is no .*predictions\.csv"):
        read(tmp_path)


def test_retrieval_names_what_was_read_best_first(tmp_path):
    cases = pd.DataFrame({"image": ["u.png", "v.png"], "patient": ["P1", "P2"]})
    path = tmp_path / "retrieval.csv"
    files.write_retrieval(
        path,
        np.array(["a.png", "b.png"]),
        cases,
        np.array([[1, 0, -1], [-1, 0, 0]], np.int32),
        np.array([[0.9, 0.5, 0], [0.75, 0, 0]], np.float32),
        np.array([[True, True, False], [True, False, False]]),
    )
    assert path.read_text().splitlines() == [
        "image,rank,case,patient,similarity",
        "a.png,1,v.png,P2,0.899999976",
        "a.png,2,u.png,P1,0.5",
        "b.png,1,,,0.75",  # of a weight file's bank: a stranger
    ]


def test_a_bank_that_is_never_read_leaves_a_header(tmp_path):
    cases = pd.DataFrame({"image": [], "patient": []})
    path = tmp_path / "retrieval.csv"
    none = np.zeros((1, 0), np.float32)
    files.write_retrieval(
        path, np.array(["a.png"]), cases, none.astype(np.int32), none, none.astype(bool)
    )
    assert path.read_text().splitlines() == ["image,rank,case,patient,similarity"]


SETTINGS = settings.from_dict(recipe.defaults().to_dict()).replace(data_dir="here")
ROWS = np.arange(3)


def place(changes=None, cases=None, rows=ROWS, run=Path("runs/demo"), trained=None, **keys):
    """The folder's name, for a run that was tested on the three images of `table()`."""
    own = {
        "source": "test",
        "simulated": False,
        "stages": {"focal": {"test": splits.part_summary(table(), ROWS)}},
    }
    model = LoadedModel(
        settings=SETTINGS.replace(**{f"model_{key}": value for key, value in keys.items()}),
        network=Mock(spec=Baseline),
        state=Mock(spec=TrainState),
        pathologies=FINDINGS,
        description="",
        checkpoint="focal/1",
        folder=Path("runs/demo"),
        run=run,
        trained=own | (trained or {}),
        provenance={},
    )
    given = dataclasses.replace(SETTINGS.data, **(changes or {}))
    data = Mock(spec=Data, table=cases or table(), settings=given)
    out = files.find_folder(model, data, rows, "test")
    assert out.parent == Path("runs/demo/eval")
    return out.name


def test_the_runs_own_images_have_the_split_s_folder_wherever_they_are_named_from():
    assert place() == "test"
    unread = {"missing": "skip", "max_unreadable": 1.0, "resident": True, "processes": 2}
    assert place(unread) == "test"
    assert place({"dir": str(Path("here").resolve())}) == "test"


@pytest.mark.parametrize(
    "other",
    [
        {"changes": {"dir": "elsewhere"}},
        {"changes": {"csv": "relabelled.csv"}},
        {"changes": {"split": "patient"}},
        {"changes": {"split_seed": 1}},
        {"changes": {"image_size": 128}},
        {"changes": {"value_range": "image"}},
        {"changes": {"options": {"seed": 1}}},
        {"rows": ROWS[:2]},  # the rest is missing and skipped
        {"run": None},  # a weight file
        {"trained": {"simulated": True}},
        {"trained": {"source": "another"}},
        {"cases": relabelled(0, 0, 0)},  # the table was corrected in its place
        {"cases": dataclasses.replace(table(), findings=("Mass", "Nodule"))},
    ],
    ids=str,
)
def test_anything_else_has_a_folder_of_its_own_that_names_it(other):
    name = place(**other)
    assert re.fullmatch(r"test-test-[0-9a-f]{8}", name)
    assert name == place(**other)


def test_images_of_equal_names_share_no_folder():
    """Two hospitals number their images alike; only labels, patients or folders differ."""
    elsewhere = {"dir": "elsewhere"}
    labels = 1 - table().labels
    others = [
        place(elsewhere),
        place({"dir": "third"}),
        place(elsewhere, small_table(3, findings=FINDINGS, labels=labels, images=table().images)),
        place(elsewhere, dataclasses.replace(table(), patients=np.array([0, 0, 1], np.int32))),
    ]
    assert len({"test", *others}) == 5


def test_a_weight_file_that_is_read_or_scored_otherwise_has_another_folder():
    keys = {
        "input_range": "unit",
        "channels": 1,
        "retrieval_k": 3,
        "init_key": "state_dict_ema",
        "fusion": False,
        "momentum_branch": False,
    }
    names = [place(run=None, **{key: value}) for key, value in keys.items()]
    others = [place(run=None), place({"image_size": 128}, run=None)]
    assert len({*names, *others}) == len(keys) + 2


def test_what_is_replaced_is_said_unless_it_is_the_same_evaluation(tmp_path):
    evaluated = report_data.evaluated(n=9, findings=FINDINGS)
    result = report_data.result(evaluated)
    assert files.describe_replaced(tmp_path, result) is None
    (tmp_path / "metrics.json").write_text(json.dumps(result.to_json()))
    assert files.describe_replaced(tmp_path, result) is None
    sooner = dataclasses.replace(result, data={"processes": 4, "resident": True})
    assert files.describe_replaced(tmp_path, sooner) is None
    for key, value in (
        ("checkpoint", "bce/1"),
        ("network_sha256", "00"),  # of another run, whose checkpoint has the same name
        ("split_sha256", "00"),
        ("cases_sha256", "00"),
        ("data", {"dir": "x"}),
        ("reading", {"input_range": "xrv"}),
    ):
        said = files.describe_replaced(tmp_path, dataclasses.replace(result, **{key: value}))
        assert "the evaluation of checkpoint focal/123 on 9 images of nih_chest_xray14" in said
        assert said.endswith(f"it had another {key.removesuffix('_sha256')}.")


def test_a_comparison_finds_the_same_images_wherever_the_other_run_has_them(tmp_path):
    """They are the other run's own, or in a folder with a digest."""
    out = write(tmp_path, LOGITS).parent
    out.rename(out.parent / "test-csv_folder-01234567")
    write(tmp_path, -LOGITS, split_sha256="0" * 64)  # its own images, which are others
    other = read(tmp_path)
    assert other.result.split_sha256 == sha256()
    np.testing.assert_array_equal(other.logits, LOGITS)
