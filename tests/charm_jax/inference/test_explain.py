"""What is said of a prediction is tested against doing it: forgetting, and predicting again."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_network import BATCH, DIM, FINDINGS, SIDE, network

from charm_jax.inference import explain as evidence
from charm_jax.inference.steps import cases_of, jit_eval_step
from charm_jax.models import memory_bank, state
from charm_jax.models.baseline import Baseline
from charm_jax.models.charm import Cases, Charm
from data_pipelines.loading.augment import evaluation_images

SLOTS, K = 9, 3
PREPARE = functools.partial(evaluation_images, channels=3)


def a_bank(seed, count=SLOTS, cases=6):
    """Few cases, so that some have several slots; patients of two cases each."""
    rng = np.random.default_rng(seed)
    case_ids = rng.integers(0, cases, SLOTS).astype(np.int32)
    filled = np.arange(SLOTS) < count
    features = np.abs(rng.normal(size=(SLOTS, DIM))).astype(np.float32) * filled[:, None]
    return memory_bank.MemoryBank(
        features=jnp.asarray(features),
        labels=jnp.asarray(
            np.where(filled[:, None], rng.integers(0, 2, (SLOTS, FINDINGS)), -1), jnp.int8
        ),
        case_ids=jnp.asarray(np.where(filled, case_ids, -1), jnp.int32),
        patient_ids=jnp.asarray(np.where(filled, case_ids // 2, -1), jnp.int32),
        cursor=jnp.asarray(count % SLOTS, jnp.int32),
        count=jnp.asarray(count, jnp.int32),
    )


def a_batch(seed):
    rng = np.random.default_rng(seed)
    known = rng.integers(-1, 6, BATCH).astype(np.int32)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (BATCH, SIDE, SIDE, 1), dtype=np.uint8)),
        "labels": jnp.full((BATCH, FINDINGS), -1, jnp.int8),
        "case_id": jnp.asarray(known),
        "patient_id": jnp.asarray(np.where(known >= 0, known // 2, -1), jnp.int32),
    }


def a_state(model, bank, *, momentum_branch=True):
    images = jnp.zeros((1, SIDE, SIDE, 3))
    create = functools.partial(state.create, model, momentum_branch=momentum_branch)
    return jax.jit(create)(jax.random.key(0), images, bank)


class Network(NamedTuple):
    """What the tests share; its text is short, as Hypothesis prints it where an example fails."""

    model: Charm
    state: state.TrainState
    explain: Callable
    evaluate: Callable

    def __repr__(self):
        return "Network()"


def variant(**changes):
    return network().clone(retrieval_k=K, **changes)


@pytest.fixture(scope="module")
def charm():
    """Model, state, and the two steps, each traced once for the whole file."""
    chex.clear_trace_counter()
    model = variant()
    explain = chex.assert_max_traces(evidence.explain_step, n=1)
    step = jax.jit(functools.partial(explain, model=model, prepare=PREPARE))
    plain = jit_eval_step(model=model, prepare=PREPARE)
    return Network(model, a_state(model, a_bank(0)), step, plain)


def jitted_once(function, **arguments):
    return jax.jit(functools.partial(chex.assert_max_traces(function, n=1), **arguments))


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, SLOTS))
def test_forgetting_a_case_changes_the_logits_by_its_contribution(charm, seed, count):
    """Brute force: forget it for good, run the whole network again."""
    _, state, step, plain = charm
    state = state.replace(memory=a_bank(seed, count))
    batch = a_batch(seed)
    explained = jax.device_get(step(state, batch))
    np.testing.assert_allclose(explained["logits"], plain(state, batch)["logits"], atol=1e-5)
    for case in range(6):
        bank = memory_bank.forget(state.memory, jnp.asarray([case], jnp.int32))
        after = np.asarray(plain(state.replace(memory=bank), batch)["logits"])
        change = explained["logits"] - after
        read = explained["cases"] == case
        for row, rank in np.argwhere(read):
            np.testing.assert_allclose(
                explained["contributions"][row, rank], change[row], atol=1e-5
            )
        # An empty slot goes before a negative cosine, so there an unread case matters, too.
        unmoved = ~read.any(axis=1) & (explained["similarities"] >= 0).all(axis=1)
        np.testing.assert_allclose(change[unmoved], 0, atol=1e-5)
    assert not explained["contributions"][explained["cases"] < 0].any()


def test_the_contributions_are_not_all_nothing(charm):
    _, state, step, _ = charm
    explained = jax.device_get(step(state, a_batch(0)))
    assert np.abs(explained["contributions"]).max() > 1e-3
    assert (explained["cases"] >= 0).sum() > BATCH


def test_without_memory_is_a_network_with_an_empty_bank(charm):
    _, state, step, plain = charm
    batch = a_batch(1)
    explained = step(state, batch)
    empty = memory_bank.empty(SLOTS, DIM, FINDINGS)
    expected = plain(state.replace(memory=empty), batch)["logits"]
    np.testing.assert_allclose(explained["without_memory"], expected, atol=1e-5)
    assert np.abs(explained["without_memory"] - explained["logits"]).max() > 1e-3


def test_own_case_and_own_patient_are_no_evidence(charm):
    _, state, step, _ = charm
    batch = a_batch(2)
    cases = np.asarray(step(state, batch)["cases"])
    own = (cases >= 0) & (cases // 2 == np.asarray(batch["patient_id"])[:, None])
    assert not own.any()


def test_a_case_reads_the_same_in_a_bank_and_in_a_batch(charm):
    """A bank is refilled, and read without the images, by steps that are traced once each."""
    model, state, step, plain = charm
    read = jitted_once(evidence.read_step, model=model)
    for seed in (3, 6):
        batch, bank = a_batch(seed), a_bank(seed)
        explained = step(state.replace(memory=bank), batch)
        fused = plain(state, batch)["fused"]
        np.testing.assert_allclose(fused, explained["fused"], atol=1e-5)
        again = read(state, bank, fused, cases_of(batch))
        np.testing.assert_allclose(again["logits"], explained["logits"], atol=1e-5)
        np.testing.assert_array_equal(again["cases"], explained["cases"])


def test_an_evaluation_and_an_explanation_shrink_images_alike(charm):
    _, state, step, plain = charm
    batch = a_batch(7)
    thumbnails = plain(state, batch)["thumbnail"]
    np.testing.assert_allclose(step(state, batch)["thumbnail"], thumbnails, rtol=1e-6)
    assert thumbnails.shape == (BATCH, 32, 32)


def test_selected_rows_are_written_in_their_order_by_one_trace():
    """Rows that only fill up the batch are not written, whatever the rule says of them."""
    model = variant(select=lambda fused, labels: labels[:, 0] == 1)
    write = jitted_once(evidence.write_selected, model=model)
    bank, expected = memory_bank.empty(SLOTS, DIM, FINDINGS), []
    for seed, real in ((0, BATCH), (1, 5)):
        rng = np.random.default_rng(seed)
        fused = rng.normal(size=(BATCH, DIM)).astype(np.float32)
        labels = rng.integers(0, 2, (BATCH, FINDINGS), dtype=np.int8)
        labels[:2, 0] = 0, 1
        fresh = np.arange(BATCH) < real
        ids = np.arange(BATCH, dtype=np.int32) + 100 * seed
        cases = Cases(*(jnp.asarray(value) for value in (labels, ids, ids)))
        bank, count = write(bank, jnp.asarray(fused), cases, jnp.asarray(fresh))
        kept = fresh & (labels[:, 0] == 1)
        assert 0 < int(count) == kept.sum() < BATCH
        expected += list(ids[kept])
    assert int(bank.count) == len(expected) <= SLOTS
    np.testing.assert_array_equal(bank.case_ids[: len(expected)], expected)


def test_grad_cam_equals_its_formula_image_by_image(charm):
    model, state, step, _ = charm
    batch = a_batch(4)
    explained = step(state, batch)
    pairs = [(0, 2), (5, 1), (5, 0)]
    rows, findings = (jnp.asarray(numbers, jnp.int32) for numbers in zip(*pairs, strict=True))
    cams = jitted_once(evidence.grad_cams, model=model)
    got = cams(state, batch, explained, rows, findings)
    turned = cams(state, batch, explained, rows[::-1], findings[::-1])
    np.testing.assert_allclose(turned[::-1], got, atol=1e-5)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    everyone = cases_of(batch)

    for heat, (row, finding) in zip(np.asarray(got), pairs, strict=True):
        case = jax.tree.map(lambda leaf, row=row: leaf[row][None], everyone)
        momentum_features, main = (
            explained["momentum_features"][row][None],
            explained["main"][row][None],
        )

        @jax.jit
        def logit(main, momentum_features=momentum_features, case=case, finding=finding):
            args = (main, momentum_features, case, state.memory)
            return model.apply(variables, *args, method="classify")[0, finding]

        assert float(logit(main)) == pytest.approx(
            float(explained["logits"][row, finding]), abs=1e-5
        )
        weights = np.asarray(jax.grad(logit)(main))[0].mean((0, 1))
        expected = np.maximum(np.asarray(main)[0] @ weights, 0)
        assert expected.max() > 0
        np.testing.assert_allclose(heat, expected / expected.max(), atol=1e-3)


def test_finer_grad_cam_equals_its_formula_image_by_image(charm):
    """The last map of more than 4 x 4 places is the output of the first stage, 8 x 8."""
    model, state, step, _ = charm
    batch, findings = a_batch(4), np.arange(BATCH, dtype=np.int32) % FINDINGS
    cams = jitted_once(evidence.finer_grad_cams, model=model, prepare=PREPARE)
    got = np.asarray(cams(state, batch | {"finding": findings}))
    turned = cams(state, jax.tree.map(lambda x: x[::-1], batch) | {"finding": findings[::-1]})
    np.testing.assert_allclose(turned[::-1], got, atol=1e-4)
    assert step(state, batch)["main"].shape[1] < got.shape[1]
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    name = ("trunk", "features.1.0")

    @jax.jit
    def logits(shift):
        """The logits, where the chosen module's output is replaced by itself and a shift."""

        def shifted(call, args, kwargs, context):
            out = call(*args, **kwargs)
            return out + shift if context.module.path == name else out

        with nn.intercept_methods(shifted):
            output, kept = model.apply(
                variables,
                PREPARE(batch["image"]),
                cases_of(batch),
                state.momentum,
                state.memory,
                train=False,
                mutable=["intermediates"],
            )
        return output.logits, kept["intermediates"]["trunk"]["features.1.out"][0]

    features = np.asarray(logits(0.0)[1])
    rows, epsilon = np.arange(BATCH), 1e-2
    expected = np.zeros(got.shape)
    for channel in range(features.shape[-1]):
        # A channel shifted everywhere changes the logit by the sum of its derivatives.
        shift = jnp.zeros(features.shape).at[..., channel].set(epsilon)
        more, less = (np.asarray(logits(sign * shift)[0])[rows, findings] for sign in (1, -1))
        expected += ((more - less) / (2 * epsilon))[:, None, None] * features[..., channel]
    expected = np.maximum(expected, 0)
    expected /= np.maximum(expected.max((1, 2), keepdims=True), 1e-9)
    same = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(got, expected, strict=True)]
    assert np.mean(same) > 0.95, same


@pytest.mark.parametrize("lacking", ["fusion", "momentum", "retrieval", "everything"])
def test_a_network_gives_what_it_has(lacking):
    """Without attention, momentum branch, memory, or as a bare backbone."""
    model = {
        "fusion": variant(fusion=None),
        "momentum": variant(),
        "retrieval": variant().clone(retrieval_k=0),
        "everything": Baseline(network().trunk, network().expansion, jax.nn.identity, FINDINGS),
    }[lacking]
    bank = a_bank(0) if isinstance(model, Charm) else None
    network_state = a_state(model, bank, momentum_branch=lacking != "momentum")
    explain = functools.partial(evidence.explain_step, model=model, prepare=PREPARE)
    batch = a_batch(5)
    explained = jax.jit(explain)(network_state, batch)
    rows, findings = jnp.array([1], jnp.int32), jnp.array([0], jnp.int32)
    cams = jax.jit(functools.partial(evidence.grad_cams, model=model))
    assert cams(network_state, batch, explained, rows, findings).shape == (
        1,
        *explained["main"].shape[1:3],
    )
    finer = functools.partial(evidence.finer_grad_cams, model=model, prepare=PREPARE)
    pairs = batch | {"finding": jnp.zeros(BATCH, jnp.int32)}
    assert jax.eval_shape(finer, network_state, pairs).shape == (BATCH, SIDE // 4, SIDE // 4)
    assert ("attention" in explained) == (lacking not in ("fusion", "everything"))
    assert ("disagreement" in explained) == (lacking not in ("momentum", "everything"))
    assert ("contributions" in explained) == (lacking != "everything")
    if lacking == "retrieval":
        assert explained["cases"].shape == (BATCH, 0)
        np.testing.assert_allclose(explained["without_memory"], explained["logits"], atol=1e-6)
