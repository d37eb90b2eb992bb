"""The bank is tested against a NumPy ring and against what the original code stored and read."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rings import BATCH, DIM, FIELDS, FINDINGS, SIZE, Ring, draw_rows, filled, put

from charm_jax.models import memory_bank as mb

GOLDEN = Path(__file__).parents[2] / "golden" / "memory_unit.npz"

retrieve = jax.jit(mb.retrieve, static_argnums=2)
forget = jax.jit(mb.forget)
masks = st.lists(
    st.lists(st.booleans(), min_size=BATCH, max_size=BATCH).map(np.array), min_size=1, max_size=5
)
seeds = st.integers(0, 2**32 - 1)
cases = st.lists(st.integers(-1, 12), min_size=2, max_size=2).map(
    lambda ids: jnp.asarray(ids, jnp.int32)
)
quick = settings(max_examples=40)


def no_ids(batch):
    return jnp.full((batch,), -1, jnp.int32)


def test_empty_bank_is_marked_empty():
    bank = mb.empty(SIZE, DIM, FINDINGS)
    for name in (*FIELDS, "cursor", "count"):
        np.testing.assert_array_equal(getattr(bank, name), getattr(Ring(SIZE, DIM, FINDINGS), name))
    dtypes = [getattr(bank, name).dtype for name in FIELDS]
    assert dtypes == [jnp.float32, jnp.int8, jnp.int32, jnp.int32]


@pytest.mark.parametrize("shape", [(0, 3, 2), (5, 0, 2), (5, 3, 0)])
def test_empty_refuses_a_bank_without_room(shape):
    with pytest.raises(ValueError, match="at least one slot"):
        mb.empty(*shape)


@quick
@given(seed=seeds, keeps=masks)
def test_write_equals_a_plain_ring(seed, keeps):
    bank, ring, _ = filled(seed, keeps)
    for name in (*FIELDS, "cursor", "count"):
        np.testing.assert_array_equal(getattr(bank, name), getattr(ring, name))


def test_more_rows_than_slots_leave_the_last_ones_in_ring_order():
    rows = draw_rows(np.random.default_rng(0))
    rows["case_ids"] = np.arange(BATCH, dtype=np.int32)
    bank = put(mb.empty(SIZE, DIM, FINDINGS), rows, np.ones(BATCH, bool))
    np.testing.assert_array_equal(bank.case_ids, [5, 6, 7, 3, 4])
    assert (int(bank.cursor), int(bank.count)) == (3, SIZE)


def test_nothing_selected_leaves_the_bank_as_it_was():
    bank, _, rng = filled(0, [np.arange(BATCH) < 3])
    after = put(bank, draw_rows(rng), np.zeros(BATCH, bool))
    chex.assert_trees_all_equal(after, bank)


def test_stored_features_are_constants():
    bank = mb.empty(SIZE, DIM, FINDINGS)
    rows = draw_rows(np.random.default_rng(0))

    def total(features):
        return jnp.sum(put(bank, rows | {"features": features}, np.ones(BATCH, bool)).features)

    assert total(jnp.asarray(rows["features"])) != 0
    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(rows["features"])), 0)


@quick
@given(seed=seeds, keeps=masks, k=st.sampled_from([1, 3, 9]), by_patient=st.booleans())
def test_retrieve_equals_a_plain_loop(seed, keeps, k, by_patient):
    """Covers k above the count and above the size, repeated cases, own case, own patient."""
    bank, ring, rng = filled(seed, keeps)
    rows = draw_rows(rng)
    patients = rows["patient_ids"] if by_patient else None
    got = retrieve(
        bank,
        jnp.asarray(rows["features"]),
        k,
        exclude_case_ids=jnp.asarray(rows["case_ids"]),
        exclude_patient_ids=None if patients is None else jnp.asarray(patients),
    )
    expected = ring.retrieve(rows["features"], k, rows["case_ids"], patients)
    np.testing.assert_allclose(got.features, expected, atol=3e-6)
    assert got.indices.shape == (BATCH, min(k, SIZE))

    listed = np.asarray(bank.case_ids)[got.indices]
    valid = (listed >= 0) & (listed != rows["case_ids"][:, None])
    if by_patient:
        of_patient = np.asarray(bank.patient_ids)[got.indices]
        valid &= of_patient != rows["patient_ids"][:, None]
    np.testing.assert_array_equal(got.valid, valid)
    np.testing.assert_array_equal(np.asarray(got.similarities)[~valid], 0)
    assert np.all(np.diff(np.asarray(got.similarities), axis=1) <= 1e-6)


@quick
@given(seed=seeds, keeps=masks, shift=st.integers(0, SIZE - 1))
def test_retrieved_features_do_not_depend_on_the_order_of_the_slots(seed, keeps, shift):
    bank, _, rng = filled(seed, keeps)
    turned = bank.replace(**{name: jnp.roll(getattr(bank, name), shift, 0) for name in FIELDS})
    rows = draw_rows(rng)
    queries, own = jnp.asarray(rows["features"]), jnp.asarray(rows["case_ids"])
    np.testing.assert_allclose(
        retrieve(turned, queries, 3, exclude_case_ids=own).features,
        retrieve(bank, queries, 3, exclude_case_ids=own).features,
        atol=2e-6,
    )


def bank_of(features, case_ids, patient_ids=None):
    size, dim = np.shape(features)
    bank = mb.empty(size, dim, FINDINGS)
    return bank.replace(
        features=jnp.asarray(features, jnp.float32),
        case_ids=jnp.asarray(case_ids, jnp.int32),
        patient_ids=jnp.asarray(case_ids if patient_ids is None else patient_ids, jnp.int32),
    )


def test_empty_slots_beat_negative_cosines_and_add_nothing():
    bank = bank_of([[-1.0, 0.0], [0.0, 0.0]], [4, -1])
    got = retrieve(bank, jnp.array([[2.0, 0.0]]), 1, exclude_case_ids=no_ids(1))
    np.testing.assert_array_equal(got.features, [[0.0, 0.0]])
    assert int(got.indices[0, 0]) == 1
    assert not bool(got.valid[0, 0])


def test_every_copy_of_the_own_case_counts_as_empty_but_its_twin_does_not():
    bank = bank_of([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [7, 8, 7])
    got = retrieve(bank, jnp.array([[3.0, 0.0]]), 3, exclude_case_ids=jnp.array([7]))
    np.testing.assert_allclose(got.features, [[1.0, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(got.valid, [[True, False, False]])
    assert int(got.indices[0, 0]) == 1


def test_unknown_query_ids_exclude_nothing():
    bank = bank_of([[1.0, 0.0], [0.0, 1.0]], [7, 8], patient_ids=[-1, 3])
    got = retrieve(
        bank,
        jnp.array([[1.0, 1.0]]),
        2,
        exclude_case_ids=no_ids(1),
        exclude_patient_ids=no_ids(1),
    )
    assert bool(jnp.all(got.valid))
    np.testing.assert_allclose(got.features, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)


def test_retrieve_refuses_a_negative_k():
    with pytest.raises(ValueError, match="k is -1"):
        mb.retrieve(mb.empty(2, 2, 1), jnp.ones((1, 2)), -1, exclude_case_ids=no_ids(1))


def test_retrieving_nothing_adds_nothing():
    bank = bank_of([[1.0, 0.0], [0.0, 1.0]], [7, 8])
    got = retrieve(bank, jnp.ones((3, 2)), 0, exclude_case_ids=no_ids(3))
    np.testing.assert_array_equal(got.features, np.zeros((3, 2)))
    assert got.indices.shape == (3, 0)


def test_gradient_of_retrieval_equals_finite_differences():
    rng = np.random.default_rng(3)
    bank = bank_of(rng.normal(size=(6, DIM)), [0, 1, 2, 3, -1, -1])
    queries = rng.normal(size=(4, DIM)).astype(np.float32)
    weights = rng.normal(size=(4, DIM)).astype(np.float32)
    own = jnp.array([0, 1, -1, 9])

    @jax.jit
    def objective(q):
        return jnp.sum(weights * mb.retrieve(bank, q, 3, exclude_case_ids=own).features)

    ring = Ring(6, DIM, FINDINGS)
    ring.features, ring.case_ids = np.asarray(bank.features), np.asarray(bank.case_ids)
    expected, step = np.zeros(queries.shape), 1e-5
    for position in np.ndindex(queries.shape):
        nudge = np.zeros(queries.shape)
        nudge[position] = step
        up = np.sum(weights * ring.retrieve(queries + nudge, 3, own))
        down = np.sum(weights * ring.retrieve(queries - nudge, 3, own))
        expected[position] = (up - down) / (2 * step)
    got = jax.grad(objective)(jnp.asarray(queries))
    assert np.max(np.abs(expected)) > 0.1
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_gradient_is_finite_for_a_zero_query_and_absent_for_the_bank():
    bank = bank_of(np.eye(3), [0, 1, -1])

    def total(features, queries):
        stored = bank.replace(features=features)
        return jnp.sum(mb.retrieve(stored, queries, 2, exclude_case_ids=no_ids(2)).features)

    queries = jnp.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    to_bank, to_queries = jax.jit(jax.grad(total, argnums=(0, 1)))(bank.features, queries)
    np.testing.assert_array_equal(to_bank, 0)
    assert bool(jnp.all(jnp.isfinite(to_queries)))
    assert float(jnp.max(jnp.abs(to_queries[1]))) > 0


def test_write_and_retrieve_trace_once():
    chex.clear_trace_counter()

    def step(bank, features, labels, case_ids, patient_ids, keep):
        bank = mb.write(bank, features, labels, case_ids, patient_ids, keep)
        return bank, mb.retrieve(bank, features, 2, exclude_case_ids=case_ids)

    once = jax.jit(chex.assert_max_traces(step, n=1))
    rng = np.random.default_rng(0)
    bank = mb.empty(SIZE, DIM, FINDINGS)
    for keep in (np.ones(BATCH, bool), np.zeros(BATCH, bool), np.arange(BATCH) > 4):
        rows = draw_rows(rng)
        bank, got = once(bank, *(rows[name] for name in FIELDS), keep)
    assert int(bank.cursor) == (BATCH + 3) % SIZE
    assert got.features.shape == (BATCH, DIM)


def test_vmap_equals_one_bank_at_a_time():
    pairs = [filled(seed, [np.arange(BATCH) < 4]) for seed in (1, 2)]
    banks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(bank for bank, _, _ in pairs))
    queries = jnp.asarray(np.random.default_rng(5).normal(size=(2, 4, DIM)), jnp.float32)

    def read(bank, q):
        return retrieve(bank, q, 2, exclude_case_ids=no_ids(4)).features

    together = jax.vmap(read)(banks, queries)
    for i, (bank, _, _) in enumerate(pairs):
        np.testing.assert_allclose(together[i], read(bank, queries[i]), atol=1e-6)


def test_golden_sequence():
    """As stored until the wrap, where the original loses rows; from there on against the ring.

    The original leaves out slots of cosine 1.0: the first two queries, which are the first two
    rows stored. Here those are told apart by their case ids.
    """
    golden = np.load(GOLDEN)
    queries = golden["query"]
    own = np.full(len(queries), -1, np.int32)
    own[:2] = 0, 1
    bank, ring = mb.empty(6, 4, 1), Ring(6, 4, 1)
    empty = retrieve(bank, jnp.asarray(queries), 3, exclude_case_ids=jnp.asarray(own))
    np.testing.assert_array_equal(empty.features, golden["retrieve_empty_k3"])

    first_id = 0
    for step in range(5):
        features, scores = golden[f"step{step}/features"], golden[f"step{step}/scores"]
        rows = {
            "features": features,
            "labels": np.zeros((len(features), 1), np.int8),
            "case_ids": first_id + np.arange(len(features), dtype=np.int32),
            "patient_ids": np.zeros(len(features), np.int32),
        }
        first_id += len(features)
        keep = scores < np.float32(0.2)
        bank = put(bank, rows, keep)
        ring.write(rows, keep)
        as_stored = step < 2
        memory = golden[f"step{step}/memory"] if as_stored else ring.features
        np.testing.assert_array_equal(bank.features, memory)
        assert int(bank.cursor) == (golden[f"step{step}/index"] if as_stored else ring.cursor)
        for k in (1, 3, 99):
            stored = f"step{step}/retrieve_k{k}"
            expected = ring.retrieve(queries, k, own)
            if as_stored and stored in golden:
                expected = golden[stored]
            got = retrieve(bank, jnp.asarray(queries), k, exclude_case_ids=jnp.asarray(own))
            np.testing.assert_allclose(got.features, expected, atol=2e-6)


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
def test_reading_with_a_case_masked_equals_reading_after_forgetting_it(seed, keeps, forgotten):
    bank, _, rng = filled(seed, keeps)
    queries = jnp.asarray(draw_rows(rng)["features"])
    nobody = jnp.full((BATCH,), -1, jnp.int32)
    case = jnp.asarray(forgotten, jnp.int32)
    seen = retrieve(mb.mask_case(bank, case), queries, 3, exclude_case_ids=nobody)
    known = retrieve(forget(bank, case[None]), queries, 3, exclude_case_ids=nobody)
    np.testing.assert_allclose(seen.features, known.features, atol=3e-6)
    np.testing.assert_allclose(seen.similarities, known.similarities, atol=1e-6)


def test_nothing_is_read_of_a_masked_bank():
    bank, _, rng = filled(0, [np.ones(BATCH, bool)])
    queries = jnp.asarray(draw_rows(rng)["features"])
    nobody = jnp.full((BATCH,), -1, jnp.int32)
    got = mb.retrieve(mb.mask_all(bank), queries, 3, exclude_case_ids=nobody)
    np.testing.assert_array_equal(got.features, 0)
    assert not np.any(got.valid)


def test_forget_traces_once():
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(mb.forget, n=1))
    bank, _, _ = filled(1, [np.ones(BATCH, bool)])
    for case in (-1, 3, int(bank.case_ids[0])):
        bank = once(bank, jnp.asarray([case], jnp.int32))
    assert int(bank.count) < SIZE


class Unique:
    """The plain model of ``refresh``: a ring whose cases keep their slots."""

    def __init__(self):
        self.ring = Ring(SIZE, DIM, FINDINGS)

    def refresh(self, rows):
        ring, ids = self.ring, rows["case_ids"].tolist()
        last = [i for i, case in enumerate(ids) if case >= 0 and case not in ids[i + 1 :]]
        stored = {case: slot for slot, case in enumerate(ring.case_ids.tolist()) if case >= 0}
        for i in last:
            if ids[i] in stored:
                for name in FIELDS:
                    getattr(ring, name)[stored[ids[i]]] = rows[name][i]
        new = np.zeros(len(ids), bool)
        new[[i for i in last if ids[i] not in stored]] = True
        ring.write(rows, new)


@quick
@given(seed=seeds, batches=st.integers(1, 6))
def test_refresh_equals_a_plain_ring_whose_cases_keep_their_slots(seed, batches):
    rng, bank, plain = np.random.default_rng(seed), mb.empty(SIZE, DIM, FINDINGS), Unique()
    for _ in range(batches):
        rows = draw_rows(rng)
        rows["case_ids"][rng.random(BATCH) < 0.1] = -1
        bank = jax.jit(mb.refresh)(bank, *(jnp.asarray(rows[name]) for name in FIELDS))
        plain.refresh(rows)
    for name in (*FIELDS, "cursor", "count"):
        np.testing.assert_array_equal(getattr(bank, name), getattr(plain.ring, name))
    held = np.asarray(bank.case_ids)[np.asarray(bank.case_ids) >= 0].tolist()
    assert len(held) == len(set(held))
