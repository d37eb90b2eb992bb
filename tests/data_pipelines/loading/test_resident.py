import jax
import numpy as np
import pytest

from data_pipelines.loading import resident
from data_pipelines.loading.loader import (
    case_id_batches,
    evaluation_batches,
    evaluation_ids,
    training_batches,
    training_ids,
)
from data_pipelines.sources.nih_chest_xray14 import load

ROWS = np.array([1, 2, 3, 5, 7, 8, 10, 11])  # not all: what is not used is not loaded


def _order(rows, **changes):
    return case_id_batches(
        rows, **({"batch_size": 3, "seed": 4, "epochs": 3} | changes), batch_key=""
    )


def _assert_same(streamed, gathered):
    assert gathered.keys() == streamed.keys()
    for key, value in streamed.items():
        assert gathered[key].dtype == value.dtype
        np.testing.assert_array_equal(gathered[key], value)


@pytest.mark.parametrize("start_step", [0, 4])
def test_training_gathers_what_would_be_streamed(nih, start_step):
    table = load(nih.path)
    cases = resident.load(table, ROWS, 8)
    gather = jax.jit(lambda cases, ids: cases.batch(ids))
    streamed = list(training_batches(table, _order(ROWS), image_size=8, start_step=start_step))
    named = list(training_ids(_order(ROWS), start_step))
    assert len(named) == len(streamed) == 6 - start_step
    for batch, ids in zip(streamed, named, strict=True):
        assert ids.keys() == {"case_id"}
        _assert_same(batch, gather(cases, ids["case_id"]))
    assert gather._cache_size() == 1


def test_evaluation_gathers_what_would_be_streamed(nih):
    table = load(nih.path)
    cases = resident.load(table, ROWS, 8)
    streamed = list(evaluation_batches(table, ROWS[::-1], image_size=8, batch_size=3))
    named = list(evaluation_ids(ROWS[::-1], batch_size=3))
    assert len(named) == len(streamed) == 3
    for batch, ids in zip(streamed, named, strict=True):
        mask = batch.pop("mask")
        np.testing.assert_array_equal(ids["mask"], mask)
        gathered = {key: value[mask] for key, value in cases.batch(ids["case_id"]).items()}
        _assert_same({key: value[mask] for key, value in batch.items()}, gathered)


def test_real_images_are_the_same_in_both_modes(nih_table):
    table = nih_table
    rows = np.flatnonzero(table.present)[100:400]
    cases = resident.load(table, rows, 32)
    order = _order(rows, batch_size=64, epochs=1)
    for batch, ids in zip(
        training_batches(table, order, image_size=32), training_ids(order), strict=True
    ):
        _assert_same(batch, cases.batch(ids["case_id"]))
