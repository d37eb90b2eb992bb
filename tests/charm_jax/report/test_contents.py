import json
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from charm_jax.config import recipe, settings
from charm_jax.inference.loaded import LoadedModel
from charm_jax.models import memory_bank
from charm_jax.report import contents
from charm_jax.runs import folder
from charm_jax.runs.cases import CaseMatch
from charm_jax.runs.data import Data

CONFIG = settings.from_dict(recipe.defaults().to_dict())
FOREIGN = 2**30  # ids of a bank that came from a file are beyond those of any table


@pytest.fixture
def collect():
    """Collect the contents for a table of five images, a to e; the first two are evaluated."""
    table = Mock(
        findings=("Mass",),
        images=np.array(list("abcde")),
        labels=np.array([[0], [1], [0], [1], [-1]], np.int8),
        present=np.array([True, True, True, False, True]),
    )
    data = Mock(spec=Data, table=table, quarantined=[("c", "truncated")])

    def collected(model, known):
        outputs = {"logits": np.zeros((2, 1), np.float32), "gates": np.ones(2)}  # not shown
        return contents.collect(model, CONFIG, data, np.array([0, 1]), outputs, known)

    return collected


def _known(case_ids):
    nothing = np.zeros(5, bool)
    ids = np.array(case_ids, np.int32)
    return CaseMatch(ids, ids, nothing, nothing)


def _memory(case_ids):
    bank = memory_bank.empty(len(case_ids), 2, 1)
    return bank.replace(case_ids=np.array(case_ids, np.int32))


def _model(memory, cases, run=None, patients_known=True):
    return Mock(
        spec=LoadedModel,
        state=Mock(memory=memory),
        run=run,
        bank_cases=lambda: cases,
        describe_bank=lambda *_: {"patients_known": patients_known},
    )


def test_stored_cases_are_found_by_the_ids_of_their_run(collect):
    cases = pd.DataFrame({"image": ["x", "e", "c", "d", "a"], "patient": list("54321")})
    model = _model(_memory([4, 1, 0, 2, 3, -1]), cases)
    bank = collect(model, _known([4, -1, 2, 3, 1])).bank
    assert bank.images[:5].tolist() == ["a", "e", "x", "c", "d"]
    assert bank.patients.tolist() == ["1", "4", "5", "3", "2", ""]
    assert bank.filled.tolist() == [True] * 5 + [False]
    # x is in no table, c is refused, d is missing.
    assert bank.rows.tolist() == [0, 4, -1, -1, -1, -1]


def test_stored_patients_who_are_not_told_apart_have_no_name(collect):
    cases = pd.DataFrame({"image": ["x", "e"], "patient": list("54")})
    model = _model(_memory([1, 0]), cases, patients_known=False)
    bank = collect(model, _known([-1] * 5)).bank
    assert bank.images.tolist() == ["e", "x"]
    assert bank.patients.tolist() == ["", ""]


def test_the_bank_of_a_file_has_slots_without_names(collect):
    cases = pd.DataFrame({"image": [], "patient": []})
    memory = _memory([FOREIGN, FOREIGN + 1, -1])
    bank = collect(_model(memory, cases), _known([-1] * 5)).bank
    assert bank.images[:2].tolist() == ["slot 0", "slot 1"]
    assert bank.patients.tolist() == ["", "", ""]
    assert bank.rows.tolist() == [-1, -1, -1]


def test_weights_without_a_run_have_neither_summary_nor_log(collect):
    parts = collect(_model(None, None), _known([-1] * 5))
    assert parts.bank is None
    assert parts.summary is None
    assert parts.log == []
    assert list(parts.environments) == ["Evaluated"]


def test_an_unfinished_run_has_a_log_but_no_summary(collect, tmp_path):
    environment = folder.environment() | {"commit": "c0ffee"}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    (tmp_path / "metrics.jsonl").write_text('{"stage": "bce", "step": 1}\n{"stage": "b')
    parts = collect(_model(None, None, tmp_path), _known([-1] * 5))
    assert parts.summary is None
    assert parts.log == [{"stage": "bce", "step": 1}]
    assert parts.environments["Trained"] == environment


def test_the_split_is_given_row_by_row(collect):
    evaluated = collect(_model(None, None), _known([-1] * 5)).evaluated
    assert evaluated.images.tolist() == ["a", "b"]
    assert evaluated.labels.tolist() == [[0], [1]]
    assert evaluated.attention is None
