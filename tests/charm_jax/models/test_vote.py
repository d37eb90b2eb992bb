"""The vote is tested against a plain NumPy form in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rings import FINDINGS, draw_rows
from small_network import BATCH as IMAGES
from small_network import DECAY, DIM, OPTIMIZER, SIDE, SLOTS, batch_of, voting_network
from small_network import FINDINGS as OUTPUTS

from charm_jax.inference.steps import cases_of, jit_eval_step
from charm_jax.models import memory_bank, state, vote
from charm_jax.models.charm import Cases
from charm_jax.models.losses import binary_cross_entropy
from charm_jax.train import step as steps
from data_pipelines.loading.augment import evaluation_images, training_images

SIZE, WIDTH, QUERIES, EPSILON = 9, 4, 5, 0.05
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40)
nearest = jax.jit(vote.nearest, static_argnums=(3, 4))
vote_of_all = jax.jit(vote.vote_of_all, static_argnums=3)


def draw(seed, rows=12):
    """Return a partly filled bank, and queries; some share a case or patient with the bank."""
    rng = np.random.default_rng(seed)
    stored = draw_rows(rng, int(rng.integers(0, rows)))
    features = rng.normal(1.0, 1.0, (len(stored["case_ids"]), WIDTH)).astype(np.float32)
    bank = memory_bank.refresh(
        memory_bank.empty(SIZE, WIDTH, FINDINGS),
        jnp.asarray(features),
        *(jnp.asarray(stored[name]) for name in ("labels", "case_ids", "patient_ids")),
    )
    case_ids = rng.integers(-1, 12, QUERIES, dtype=np.int32)
    cases = Cases(
        labels=jnp.full((QUERIES, FINDINGS), -1, jnp.int8),
        case_ids=jnp.asarray(case_ids),
        patient_ids=jnp.asarray(np.where(case_ids < 0, -1, case_ids // 3)),
    )
    return bank, jnp.asarray(rng.normal(1.0, 1.0, (QUERIES, WIDTH)), jnp.float32), cases


def plain_vote(bank, query, case, patient, k, temperature):
    """Return the vote of the k nearest, None where no label is known, and who voted."""
    ids, patients = np.asarray(bank.case_ids), np.asarray(bank.patient_ids)
    keys = np.asarray(bank.features, np.float64)
    mean = keys[ids >= 0].mean(axis=0) if (ids >= 0).any() else 0.0
    cosine = np.full(len(ids), -np.inf)
    for slot in np.flatnonzero(ids >= 0):
        own = (case >= 0 and ids[slot] == case) or (patient >= 0 and patients[slot] == patient)
        one, other = query - mean, keys[slot] - mean
        norms = max(np.linalg.norm(one), 1e-12) * max(np.linalg.norm(other), 1e-12)
        cosine[slot] = -np.inf if own else one @ other / norms
    chosen = [slot for slot in np.argsort(-cosine, kind="stable")[:k] if cosine[slot] > -np.inf]
    votes = []
    for column in range(FINDINGS):
        known = [s for s in chosen if bank.labels[s, column] >= 0]
        weights = np.array([np.exp(cosine[s] / temperature) for s in known])
        positive = np.array([bank.labels[s, column] == 1 for s in known])
        votes.append(weights @ positive / weights.sum() if known else None)
    return votes, chosen


@quick
@given(seed=seeds, k=st.integers(0, SIZE + 2))
def test_shares_add_up_to_a_plain_vote_of_the_nearest(seed, k):
    bank, queries, cases = draw(seed)
    retrieved, shares, voted_on = nearest(bank, queries, cases, k, 0.2)
    for row in range(QUERIES):
        ids = int(cases.case_ids[row]), int(cases.patient_ids[row])
        expected, chosen = plain_vote(bank, np.asarray(queries[row], np.float64), *ids, k, 0.2)
        valid = np.asarray(retrieved.valid[row])
        np.testing.assert_array_equal(np.asarray(retrieved.indices[row])[valid], chosen)
        known = [value is not None for value in expected]
        np.testing.assert_array_equal(voted_on[row], known)
        voted = np.asarray(shares[row].sum(axis=0))
        np.testing.assert_allclose(voted[known], [v for v in expected if v is not None], atol=1e-5)
        assert not np.asarray(shares[row])[~valid].any()


@quick
@given(seed=seeds)
def test_all_cases_vote_in_training_as_the_nearest_n_do(seed):
    bank, queries, cases = draw(seed)
    voted = np.asarray(vote_of_all(bank, queries, cases, 0.2))
    _, shares, known = nearest(bank, queries, cases, SIZE, 0.2)
    near = np.where(known, np.asarray(shares).sum(axis=1), np.asarray(vote.prevalence(bank)))
    np.testing.assert_allclose(voted, near, atol=1e-5)


@jax.jit
def gradients(bank, queries, cases):
    def total(features, queries):
        voted = vote.vote_of_all(bank.replace(features=features), queries, cases, 0.2)
        return vote.log_odds(voted, vote.prevalence(bank)).sum()

    return jax.grad(total, (0, 1))(bank.features, queries)


@quick
@given(seed=seeds)
def test_gradients_of_the_vote_reach_queries_alone_and_are_finite(seed):
    of_bank, of_queries = gradients(*draw(seed))
    assert not np.asarray(of_bank).any()
    assert np.isfinite(of_queries).all()


@quick
@given(vote_=st.floats(0, 1), prior=st.floats(0.001, 0.999))
def test_log_odds_are_those_of_a_vote_with_a_prior(vote_, prior):
    p = (vote_ + EPSILON * prior) / (1 + EPSILON)
    odds = vote.log_odds(jnp.full((1, 1), vote_), jnp.full((1, 1), prior))
    np.testing.assert_allclose(odds, np.log(p / (1 - p)), rtol=1e-3, atol=1e-4)


def test_a_vote_like_the_prevalence_moves_nothing():
    prior = jnp.asarray([[0.01, 0.2, 0.5, 0.9]])
    np.testing.assert_allclose(
        vote.log_odds(prior, prior), jnp.log(prior / (1 - prior)), rtol=1e-5, atol=1e-5
    )


def test_prevalence_counts_known_labels_of_filled_slots():
    bank = memory_bank.empty(5, WIDTH, 3)
    labels = jnp.asarray([[1, 0, -1], [1, -1, -1], [0, 0, -1]], jnp.int8)
    ids = jnp.arange(3, dtype=jnp.int32)
    bank = memory_bank.refresh(bank, jnp.ones((3, WIDTH)), labels, ids, ids)
    np.testing.assert_allclose(vote.prevalence(bank), [[2.5 / 4, 0.5 / 3, 0.5]])


# The network.


@pytest.fixture(scope="module")
def fresh():
    bank = memory_bank.empty(SLOTS, DIM, OUTPUTS)
    images = jnp.zeros((1, SIDE, SIDE, 3))
    new = jax.jit(lambda key: state.create(voting_network(), key, images, bank))(jax.random.key(0))
    return state.begin_stage(new, OPTIMIZER, jax.random.key(1))


@pytest.fixture(scope="module")
def run(fresh):
    """States and metrics of steps on two batches in turns, which are more cases than slots."""
    chex.clear_trace_counter()
    step = steps.jit_train_step(
        model=voting_network(),
        optimizer=OPTIMIZER,
        loss=binary_cross_entropy,
        augment=chex.assert_max_traces(training_images, n=1),
        momentum_step=1 - DECAY,
    )
    states, metrics = [fresh], []
    for turn in range(12):
        batch = batch_of(turn % 2, IMAGES * (turn % 2))
        after, values = step(jax.tree.map(jnp.copy, states[-1]), batch)
        states.append(after)
        metrics.append(jax.device_get(values))
    return states, metrics, step


def on_device(batch):
    return jax.tree.map(jnp.asarray, batch)


def evaluate(state, batch, **numbers):
    return jit_eval_step(model=voting_network(**numbers), prepare=evaluation_images)(state, batch)


def plain_logits(state, batch):
    return evaluate(state, batch, retrieval_k=0)["logits"]


def test_the_loss_on_the_vote_begins_when_the_bank_is_full(fresh, run):
    variables = {"params": fresh.params, "batch_stats": fresh.batch_stats}

    @jax.jit
    def output(memory, cases):
        images = jnp.ones((IMAGES, SIDE, SIDE, 3))
        return voting_network().apply(
            variables,
            images,
            cases,
            fresh.momentum,
            memory,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )[0]

    cases = cases_of(on_device(batch_of(0, first_case=50)))
    assert float(output(fresh.memory, cases).vote_loss_share) == 0
    assert float(output(run[0][2].memory, cases).vote_loss_share) == 0.5
    assert np.isfinite([values["loss"] for values in run[1]]).all()
    assert run[1][-1]["loss"] < run[1][1]["loss"]


def test_a_step_stores_each_case_once(run):
    bank = run[0][-1].memory
    ids = np.asarray(bank.case_ids)
    assert len(set(ids.tolist())) == SLOTS == int(bank.count)
    assert run[1][-1]["bank_count"] == SLOTS


def test_the_same_batch_refreshes_its_slots(run):
    state = run[0][1]
    before, after = state.memory, run[2](jax.tree.map(jnp.copy, state), batch_of(0))[0].memory
    np.testing.assert_array_equal(after.case_ids, before.case_ids)
    changed = (np.asarray(after.features) != np.asarray(before.features)).any(axis=1)
    np.testing.assert_array_equal(changed, np.asarray(before.case_ids) >= 0)


def test_without_weight_or_stored_cases_the_network_is_the_plain_one(run):
    trained, batch = run[0][-1], batch_of(3, first_case=60)
    plain = plain_logits(trained, batch)
    voted = evaluate(trained, batch)["logits"]
    assert np.abs(np.asarray(voted - plain)).max() > 0.05
    np.testing.assert_array_equal(evaluate(trained, batch, weight=0.0)["logits"], plain)
    empty = trained.replace(memory=memory_bank.empty(SLOTS, DIM, OUTPUTS))
    np.testing.assert_array_equal(evaluate(empty, batch)["logits"], plain)


def test_a_query_reads_neither_its_own_case_nor_its_own_patient(run):
    trained, batch = run[0][-1], batch_of(0)
    outputs = evaluate(trained, batch, retrieval_k=SLOTS)
    read = np.asarray(trained.memory.case_ids)[np.asarray(outputs["slots"])]
    own = (read == batch["case_id"][:, None]) & np.asarray(outputs["valid"])
    assert not own.any()
    stranger = batch | {"case_id": batch["case_id"] + 100}
    np.testing.assert_array_equal(
        evaluate(trained, stranger)["logits"], evaluate(trained, batch)["logits"]
    )


@pytest.mark.daily
def test_an_untrained_fusion_is_the_plain_mean(fresh):
    bank = memory_bank.empty(SLOTS, DIM, OUTPUTS)
    images = jax.random.normal(jax.random.key(2), (IMAGES, SIDE, SIDE, 3))
    new = state.create(voting_network(fusion=True), jax.random.key(0), images, bank)
    plain = {"params": {k: v for k, v in new.params.items() if k != "fusion"}}
    stats = {"batch_stats": new.batch_stats}
    rest = (images, cases_of(on_device(batch_of(0))), new.momentum, bank)
    one = voting_network(fusion=True).apply({"params": new.params} | stats, *rest, train=False)
    other = voting_network().apply(plain | stats, *rest, train=False)
    np.testing.assert_array_equal(one.attention, np.ones_like(one.attention))
    np.testing.assert_allclose(one.logits, other.logits, rtol=1e-6, atol=1e-6)
