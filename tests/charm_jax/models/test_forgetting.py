"""Forgetting is tested against a ring that never saw the forgotten rows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rings import BATCH, DIM, FIELDS, FINDINGS, SIZE, Ring, draw_rows, filled, put

from charm_jax.models import forgetting
from charm_jax.models import memory_bank as mb

forget = jax.jit(forgetting.forget)
masks = st.lists(
    st.lists(st.booleans(), min_size=BATCH, max_size=BATCH).map(np.array), min_size=1, max_size=4
)
seeds = st.integers(0, 2**32 - 1)
cases = st.lists(st.integers(-1, 12), min_size=2, max_size=2).map(
    lambda ids: jnp.asarray(ids, jnp.int32)
)
quick = settings(max_examples=40)


def replayed(ring, forgotten):
    """A ring into which only what remains of another was written, the oldest first."""
    order = (np.arange(SIZE) + ring.cursor) % SIZE
    keep = (ring.case_ids[order] >= 0) & ~np.isin(ring.case_ids[order], forgotten)
    new = Ring(SIZE, DIM, FINDINGS)
    new.write({name: getattr(ring, name)[order] for name in FIELDS}, keep)
    return new


def assert_equal(bank, ring):
    for name in (*FIELDS, "cursor", "count"):
        np.testing.assert_array_equal(getattr(bank, name), getattr(ring, name))


@quick
@given(seed=seeds, keeps=masks, forgotten=cases)
def test_a_bank_that_forgot_is_one_that_never_knew(seed, keeps, forgotten):
    bank, ring, _ = filled(seed, keeps)
    assert_equal(forget(bank, forgotten), replayed(ring, forgotten))


@quick
@given(seed=seeds, keeps=masks, forgotten=cases, later=masks)
def test_later_writes_fill_the_gaps_before_they_replace_the_oldest(seed, keeps, forgotten, later):
    bank, ring, rng = filled(seed, keeps)
    bank, ring = forget(bank, forgotten), replayed(ring, forgotten)
    for keep in later:
        rows = draw_rows(rng)
        bank = put(bank, rows, keep)
        ring.write(rows, keep)
        assert_equal(bank, ring)


@quick
@given(seed=seeds, keeps=masks, forgotten=st.integers(-1, 12))
def test_overlooking_reads_as_forgetting_does(seed, keeps, forgotten):
    bank, _, rng = filled(seed, keeps)
    queries = jnp.asarray(draw_rows(rng)["features"])
    nobody = jnp.full((BATCH,), -1, jnp.int32)
    case = jnp.asarray(forgotten, jnp.int32)
    read = jax.jit(mb.retrieve, static_argnums=2)
    seen = read(forgetting.overlook(bank, case), queries, 3, exclude_case_ids=nobody)
    known = read(forget(bank, case[None]), queries, 3, exclude_case_ids=nobody)
    np.testing.assert_allclose(seen.features, known.features, atol=3e-6)
    np.testing.assert_allclose(seen.similarities, known.similarities, atol=1e-6)


def test_nothing_is_read_of_a_bank_that_is_overlooked():
    bank, _, rng = filled(0, [np.ones(BATCH, bool)])
    queries = jnp.asarray(draw_rows(rng)["features"])
    nobody = jnp.full((BATCH,), -1, jnp.int32)
    got = mb.retrieve(forgetting.overlook_all(bank), queries, 3, exclude_case_ids=nobody)
    np.testing.assert_array_equal(got.features, 0)
    assert not np.any(got.valid)


def test_forget_traces_once():
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(forgetting.forget, n=1))
    bank, _, _ = filled(1, [np.ones(BATCH, bool)])
    for case in (-1, 3, int(bank.case_ids[0])):
        bank = once(bank, jnp.asarray([case], jnp.int32))
    assert int(bank.count) < SIZE
