import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from charm_jax.config import recipe, settings
from charm_jax.eval import page
from charm_jax.inference.loaded import LoadedModel
from charm_jax.models import memory_bank
from charm_jax.runs.cases import CaseMatch
from charm_jax.runs.data import Data

CONFIG = settings.from_dict(recipe.defaults().to_dict())
FOREIGN = 2**30  # ids of a bank that came from a file are beyond those of any table


@pytest.fixture
def written(monkeypatch):
    """What the report would be made of, for a table of five images, a to e."""
    table = Mock(
        findings=("Mass",),
        images=np.array(list("abcde")),
        labels=np.array([[0], [1], [0], [1], [-1]], np.int8),
        present=np.array([True, True, True, False, True]),
    )
    data = Mock(spec=Data, table=table, quarantined=[("c", "truncated")])
    parts = {}
    monkeypatch.setattr(page.page, "write", lambda path, **rest: parts.update(rest))

    def write(model, known, patients_known=True):
        metrics = {"bank": {"patients_known": patients_known}}
        rows = np.array([0, 1])
        outputs = {"logits": np.zeros((2, 1), np.float32)}
        page.write(Path(), metrics, CONFIG, data, rows, outputs, model, known)
        return parts

    return write


def _known(case_ids):
    nothing = np.zeros(5, bool)
    ids = np.array(case_ids, np.int32)
    return CaseMatch(ids, ids, nothing, nothing)


def _memory(case_ids):
    bank = memory_bank.empty(len(case_ids), 2, 1)
    return bank.replace(case_ids=np.array(case_ids, np.int32))


def _model(memory, cases, run=None):
    return Mock(spec=LoadedModel, state=Mock(memory=memory), run=run, bank_cases=lambda: cases)


def test_stored_cases_are_found_by_the_ids_of_their_run(written):
    cases = pd.DataFrame({"image": ["x", "e", "c", "d", "a"], "patient": list("54321")})
    model = _model(_memory([4, 1, 0, 2, 3, -1]), cases)
    bank = written(model, _known([4, -1, 2, 3, 1]))["bank"]
    assert bank.images[:5].tolist() == ["a", "e", "x", "c", "d"]
    assert bank.patients.tolist() == ["1", "4", "5", "3", "2", ""]
    assert bank.filled.tolist() == [True] * 5 + [False]
    # x is in no table, c is refused, d is missing.
    assert bank.rows.tolist() == [0, 4, -1, -1, -1, -1]


def test_stored_patients_who_are_not_told_apart_have_no_name(written):
    cases = pd.DataFrame({"image": ["x", "e"], "patient": list("54")})
    model = _model(_memory([1, 0]), cases)
    bank = written(model, _known([-1] * 5), patients_known=False)["bank"]
    assert bank.images.tolist() == ["e", "x"]
    assert bank.patients.tolist() == ["", ""]


def test_the_bank_of_a_file_has_slots_without_names(written):
    cases = pd.DataFrame({"image": [], "patient": []})
    memory = _memory([FOREIGN, FOREIGN + 1, -1])
    bank = written(_model(memory, cases), _known([-1] * 5))["bank"]
    assert bank.images[:2].tolist() == ["slot 0", "slot 1"]
    assert bank.patients.tolist() == ["", "", ""]
    assert bank.rows.tolist() == [-1, -1, -1]


def test_weights_without_a_run_have_neither_summary_nor_log(written):
    parts = written(_model(None, None), _known([-1] * 5))
    assert parts["bank"] is None
    assert parts["summary"] is None
    assert parts["log"] == []
    assert list(parts["environments"]) == ["Evaluated"]


def test_an_unfinished_run_has_a_log_but_no_summary(written, tmp_path):
    (tmp_path / "environment.json").write_text(json.dumps({"commit": "c0ffee"}))
    (tmp_path / "metrics.jsonl").write_text('{"stage": "bce", "step": 1}\n{"stage": "b')
    parts = written(_model(None, None, tmp_path), _known([-1] * 5))
    assert parts["summary"] is None
    assert parts["log"] == [{"stage": "bce", "step": 1}]
    assert parts["environments"]["Trained"] == {"commit": "c0ffee"}


def test_the_part_is_given_row_by_row(written):
    evaluated = written(_model(None, None), _known([-1] * 5))["evaluated"]
    assert evaluated.images.tolist() == ["a", "b"]
    assert evaluated.labels.tolist() == [[0], [1]]
    assert evaluated.attention is None
