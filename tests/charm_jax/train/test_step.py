import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import (
    BATCH,
    DECAY,
    DIM,
    FINDINGS,
    OPTIMIZER,
    SIDE,
    SLOTS,
    batch_of,
    network,
)

from charm_jax.inference.steps import jit_eval_step
from charm_jax.models import memory_bank, state
from charm_jax.models import momentum as momentum_branch
from charm_jax.models.backbones.efficientnet_v2 import ConvNormAct, Stage, Trunk
from charm_jax.models.baseline import Baseline
from charm_jax.models.charm import Charm, Output
from charm_jax.models.imbalance import class_counts, make_loss
from charm_jax.models.losses import binary_cross_entropy, focal
from charm_jax.models.memory_bank import Retrieved
from charm_jax.train import optim
from charm_jax.train import step as steps
from data_pipelines.loading.augment import Augmentation, evaluation_images, training_images
from data_pipelines.loading.resident import ResidentCases

METRICS = {"loss", "grad_norm", "selected", "bank_count", "similarity", "rate", "b1"}


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """Each step runs a few times; trained runs and golden files test the optimized programs."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def jitted(model):
    chex.clear_trace_counter()
    return steps.jit_train_step(
        model=model,
        optimizer=OPTIMIZER,
        loss=binary_cross_entropy,
        augment=chex.assert_max_traces(training_images, n=1),
        momentum_step=1 - DECAY,
    )


@pytest.fixture(scope="module")
def train_step():
    """Compiled once for the whole file; a second trace is an error. It keeps the state it gets."""
    step = jitted(network())
    return lambda state, batch: step(copied(state), batch)


@pytest.fixture(scope="module")
def eval_step():
    prepare = chex.assert_max_traces(evaluation_images, n=1)
    return jit_eval_step(model=network(), prepare=prepare)


def copied(tree):
    """A step is given its state for good."""
    return jax.tree.map(lambda leaf: leaf.copy(), tree)


@pytest.fixture(scope="module")
def fresh():
    bank = memory_bank.empty(SLOTS, DIM, FINDINGS)
    images = jnp.zeros((1, SIDE, SIDE, 3))
    new = jax.jit(lambda key: state.create(network(), key, images, bank))(jax.random.key(0))
    return state.begin_stage(new, OPTIMIZER, jax.random.key(1))


@pytest.fixture(scope="module")
def run(train_step, fresh):
    """States and metrics of 20 steps on one batch."""
    states, metrics = [fresh], []
    for _ in range(20):
        after, values = train_step(states[-1], batch_of(0))
        states.append(after)
        metrics.append(jax.device_get(values))
    return states, metrics


def plain(state):
    return state.replace(rng=jax.random.key_data(state.rng))


def changed(one, other):
    """Which leaves differ."""
    return [
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    ]


def test_the_loss_of_a_repeated_batch_falls(run):
    losses = [values["loss"] for values in run[1]]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def test_a_step_is_a_pure_function(train_step, run):
    before, after = run[0][3:5]
    again, metrics = train_step(before, batch_of(0))
    chex.assert_trees_all_equal(plain(again), plain(after))
    chex.assert_trees_all_equal(jax.device_get(metrics), run[1][3])


def test_the_metrics_are_finite_scalars_of_their_names(run):
    for values in run[1]:
        assert set(values) == METRICS
        assert all(value.shape == () and np.isfinite(value) for value in values.values())


def test_the_metrics_follow_the_schedule(run):
    schedule = optim.one_cycle(2e-3, 40, optim.Cycle())
    for i, values in enumerate(run[1]):
        np.testing.assert_allclose(values["rate"], schedule.rate(i), rtol=1e-5)
        np.testing.assert_allclose(values["b1"], schedule.b1(i), rtol=1e-5)


def test_the_step_counts_and_the_key_stays(run):
    assert [int(state.step) for state in run[0]] == list(range(21))
    assert all(state.rng == run[0][0].rng for state in run[0])


def test_every_parameter_learns(run):
    assert all(changed(run[0][0].params, run[0][20].params))


def test_the_momentum_branch_averages_the_parameters_before_their_update(run):
    before, after = run[0][9:11]

    def average(params):
        return jax.tree.map(
            lambda old, new: DECAY * old + (1 - DECAY) * new, before.momentum.params, params
        )

    expected = average(before.params["expansion"])
    chex.assert_trees_all_close(after.momentum.params, expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(AssertionError):
        late = average(after.params["expansion"])
        chex.assert_trees_all_close(after.momentum.params, late, rtol=1e-5, atol=1e-7)


def test_both_branches_keep_statistics_of_their_own(run):
    before, after = run[0][9:11]
    assert all(changed(before.batch_stats, after.batch_stats))
    assert all(changed(before.momentum.batch_stats, after.momentum.batch_stats))
    assert all(changed(after.batch_stats["expansion"], after.momentum.batch_stats))


def test_the_bank_takes_the_selected_rows_in_order(train_step, run):
    now, cursor, count = run[0][1], 4, 4
    expected = list(batch_of(0)["case_id"][batch_of(0)["labels"][:, 0] == 1])
    for seed in (1, 2, 3):
        batch = batch_of(seed, first_case=100 * seed)
        chosen = batch["labels"][:, 0] == 1
        now, metrics = train_step(now, batch)
        cursor, count = (cursor + chosen.sum()) % SLOTS, min(SLOTS, count + chosen.sum())
        assert (int(now.memory.cursor), int(now.memory.count)) == (cursor, count)
        assert float(metrics["selected"]) == chosen.mean()
        assert float(metrics["bank_count"]) == count
        expected += list(batch["case_id"][chosen])
    # 16 rows went into 12 slots: the first four were written over.
    order = [*expected[SLOTS:], *expected[len(expected) - SLOTS : SLOTS]]
    np.testing.assert_array_equal(now.memory.case_ids, order)
    np.testing.assert_array_equal(now.memory.patient_ids, np.array(order) + 500)
    chex.assert_tree_all_finite(now.memory.features)


def test_the_number_of_the_step_changes_the_draws(train_step, run):
    before = run[0][3]
    _, later = train_step(before.replace(step=before.step + 1), batch_of(0))
    assert float(later["loss"]) != run[1][3]["loss"]
    _, other_key = train_step(before.replace(rng=jax.random.key(2)), batch_of(0))
    assert float(other_key["loss"]) != run[1][3]["loss"]


def test_augmentation_and_dropout_draw_anew_in_every_step(monkeypatch):
    drawn = []

    def note(key):
        drawn.append(tuple(np.asarray(jax.random.key_data(key))))

    def apply(self, variables, images, cases, momentum, memory, *, train, mutable, rngs):
        """Stands for the network: logits that depend on one parameter."""
        note(rngs["dropout"])
        rows = len(images)
        fused = jnp.zeros((rows, DIM))
        nearest = jnp.zeros((rows, 1))
        output = Output(
            logits=variables["params"]["expansion"]["kernel"] * jnp.ones((rows, FINDINGS)),
            main=images,
            momentum_features=images,
            attention=images,
            fused=fused,
            retrieved=Retrieved(fused, nearest.astype(jnp.int32), nearest, nearest > 0),
            enhanced=fused,
            selected=jnp.zeros(rows, bool),
            memory=memory,
            momentum=momentum,
        )
        return output, {"batch_stats": variables["batch_stats"]}

    def augment(key, images):
        note(key)
        return evaluation_images(images)

    monkeypatch.setattr(Charm, "apply", apply)
    params = {"expansion": {"kernel": jnp.zeros((1, 1))}}
    now = state.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats={},
        momentum=momentum_branch.copy_of(params["expansion"], {}),
        memory=memory_bank.empty(2, DIM, FINDINGS),
        opt_state=OPTIMIZER.init(params),
        rng=jax.random.key(0),
    )
    for _ in range(2):
        now, _ = steps.train_step(
            now,
            jax.tree.map(jnp.asarray, batch_of(0)),
            model=network(),
            optimizer=OPTIMIZER,
            loss=binary_cross_entropy,
            augment=augment,
            momentum_step=1 - DECAY,
        )
    assert len(drawn) == len(set(drawn)) == 4


def test_every_remedy_for_rare_findings_is_one_program(fresh):
    chex.clear_trace_counter()
    counts = class_counts(np.asarray(batch_of(0)["labels"]))
    changes = Augmentation(scale=0.1, translate=0.1, brightness=0.1, noise=0.02, erase=0.5)
    step = steps.jit_train_step(
        model=network(),
        optimizer=OPTIMIZER,
        loss=make_loss("ldam", counts, weights="effective", smoothing=0.1, mixed=True),
        augment=functools.partial(chex.assert_max_traces(training_images, n=1), changes=changes),
        mixup_alpha=0.4,
        momentum_step=1 - DECAY,
    )
    now = copied(fresh)
    for _ in range(2):
        now, metrics = step(now, batch_of(0))
        assert all(np.isfinite(value) for value in metrics.values())
    stored = np.asarray(now.memory.case_ids)
    labels = dict(zip(batch_of(0)["case_id"].tolist(), batch_of(0)["labels"].tolist(), strict=True))
    for case, kept in zip(stored, np.asarray(now.memory.labels), strict=True):
        assert case < 0 or labels[case] == kept.tolist()  # none is mixed


# Evaluation


def bank_with(run, *ids):
    """The last state with a bank of two slots for each (case, patient).

    The two hold opposite features, so that every query is similar to one of them.
    """
    rows = 2 * len(ids)
    features = 3 * np.random.default_rng(0).standard_normal((len(ids), DIM))
    case_ids, patient_ids = (np.repeat(column, 2) for column in zip(*ids, strict=True))
    bank = memory_bank.empty(SLOTS, DIM, FINDINGS)
    bank = bank.replace(
        features=bank.features.at[:rows].set(np.stack([features, -features], 1).reshape(rows, DIM)),
        case_ids=bank.case_ids.at[:rows].set(case_ids),
        patient_ids=bank.patient_ids.at[:rows].set(patient_ids),
        count=jnp.int32(rows),
    )
    return run[0][20].replace(memory=bank)


def test_evaluation_changes_nothing(eval_step, run):
    now = run[0][20]
    before = copied(plain(now))
    outputs = eval_step(now, batch_of(0))
    assert outputs["logits"].shape == (BATCH, FINDINGS)
    chex.assert_trees_all_equal(plain(now), before)
    chex.assert_trees_all_equal(eval_step(now, batch_of(0)), outputs)


def test_evaluation_says_what_was_read_and_where_the_network_looked(eval_step, run):
    outputs = eval_step(bank_with(run, (900, 9000), (901, 9001)), batch_of(0))
    assert outputs["attention"].shape[0] == BATCH
    assert np.all((outputs["attention"] > 0) & (outputs["attention"] < 1))
    assert np.all(outputs["valid"].sum(1) == 2)
    assert outputs["slots"].max() < 4
    assert np.all(np.abs(outputs["similarities"]) <= 1 + 1e-6)
    assert np.all((outputs["disagreement"] >= -1e-6) & (outputs["disagreement"] <= 2))


def test_a_momentum_branch_that_equals_the_main_one_agrees_with_it(eval_step, fresh):
    np.testing.assert_allclose(eval_step(fresh, batch_of(0))["disagreement"], 0, atol=1e-6)


def test_padding_does_not_reach_the_other_rows(eval_step, run):
    real, other = batch_of(4), batch_of(5, first_case=50)
    expected = eval_step(run[0][20], real)["logits"][:5]
    for filling in (other, {name: np.zeros_like(value) for name, value in other.items()}):
        padded = {name: np.concatenate([real[name][:5], filling[name][5:]]) for name in real}
        logits = eval_step(run[0][20], padded)["logits"]
        np.testing.assert_allclose(logits[:5], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("own", ["case", "patient"])
def test_an_image_reads_neither_its_own_case_nor_its_patient(eval_step, run, own):
    batch = batch_of(0)
    query = 2
    stranger, acquaintance = (900, 9000), (901, 9001)
    known = {
        "case": (batch["case_id"][query], 9001),
        "patient": (901, batch["patient_id"][query]),
    }[own]
    with_own = eval_step(bank_with(run, stranger, known), batch)["logits"]
    without = eval_step(bank_with(run, stranger), batch)["logits"]
    read_by_all = eval_step(bank_with(run, stranger, acquaintance), batch)["logits"]
    np.testing.assert_allclose(with_own[query], without[query], rtol=1e-5, atol=1e-6)
    assert not np.allclose(with_own[query], read_by_all[query], rtol=1e-3, atol=1e-3)
    others = np.arange(BATCH) != query
    np.testing.assert_allclose(with_own[others], read_by_all[others], rtol=1e-5, atol=1e-6)
    assert not np.allclose(with_own[others], without[others], rtol=1e-3, atol=1e-3)


# bfloat16


@pytest.fixture(scope="module")
def in_bfloat16(run):
    """The step after 20 others, computed in bfloat16; its state and metrics."""
    return jitted(network(jnp.bfloat16))(copied(run[0][20]), batch_of(0))


def test_bfloat16_leaves_the_state_in_float32(in_bfloat16, run):
    after, metrics = in_bfloat16
    expected = jax.tree.map(lambda leaf: leaf.dtype, run[0][20])
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == expected
    floating = (after.params, after.batch_stats, after.momentum, after.memory.features)
    assert {leaf.dtype for leaf in jax.tree.leaves(floating)} == {jnp.dtype(jnp.float32)}
    chex.assert_tree_all_finite((floating, metrics))


def test_bfloat16_gives_nearly_the_loss_of_float32(train_step, in_bfloat16, run):
    _, exact = train_step(run[0][20], batch_of(0))
    loss = float(in_bfloat16[1]["loss"])
    np.testing.assert_allclose(loss, float(exact["loss"]), rtol=0.03)
    assert loss != float(exact["loss"])


def test_the_losses_of_bfloat16_follow_those_of_float32(run):
    """Twenty steps from the same start on the same batch; both fall, and at first side by side."""
    step, now = jitted(network(jnp.bfloat16)), run[0][0]
    losses = []
    for _ in range(20):
        now, metrics = step(copied(now), batch_of(0))
        losses.append(float(metrics["loss"]))
    exact = [float(values["loss"]) for values in run[1]]
    assert exact[-1] < 0.8 * exact[0]
    assert losses[-1] < 0.8 * losses[0]
    np.testing.assert_allclose(losses[:15], exact[:15], rtol=0.05, atol=0.01)
    assert losses != exact


def test_bfloat16_gives_float32_logits(eval_step, run):
    step = jit_eval_step(model=network(jnp.bfloat16), prepare=evaluation_images)
    logits = step(run[0][20], batch_of(0))["logits"]
    assert logits.dtype == jnp.float32
    chex.assert_tree_all_finite(logits)
    exact = eval_step(run[0][20], batch_of(0))["logits"]
    np.testing.assert_allclose(logits, exact, rtol=0.1, atol=0.1)


def test_the_gradient_norm_is_that_before_the_optimizer(run):
    """Adam's first moment after the first step is (1 - b1) times the gradient."""
    moments = jax.tree.leaves(optax.tree.get(run[0][1].opt_state, "mu"))
    norm = np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in moments)) / (1 - 0.95)
    np.testing.assert_allclose(run[1][0]["grad_norm"], norm, rtol=1e-4)


def test_a_plain_network_trains_without_bank_and_momentum_branch():
    network = Baseline(
        Trunk(8, (Stage(True, 1, 2, 8, 1),), drop_rate=0.0), ConvNormAct(DIM, 1), nn.relu, FINDINGS
    )
    images = jnp.zeros((1, SIDE, SIDE, 3))
    new = jax.jit(lambda key: state.create(network, key, images, None))(jax.random.key(0))
    before = state.begin_stage(new, OPTIMIZER, jax.random.key(1))
    assert before.memory is None
    assert before.momentum is None
    step = steps.jit_train_step(
        model=network,
        optimizer=OPTIMIZER,
        loss=binary_cross_entropy,
        augment=training_images,
        momentum_step=1 - 0.9,
    )
    after, losses, batch = before, [], batch_of(0)
    for _ in range(12):
        after, metrics = step(after, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert "bank_count" not in metrics
    outputs = jit_eval_step(model=network, prepare=evaluation_images)(after, batch)
    assert outputs["logits"].shape == (BATCH, FINDINGS)
    assert set(outputs) == {"logits", "thumbnail"}


def test_a_batch_on_the_device_is_gathered_within_the_step(train_step, fresh):
    whole = batch_of(seed=5)
    shuffled = np.random.default_rng(0).permutation(BATCH)
    row_of = np.full(int(max(whole["case_id"])) + 1, -1, np.int32)
    row_of[np.asarray(whole["case_id"])[shuffled]] = np.arange(BATCH)
    cases = ResidentCases(
        images=jnp.asarray(whole["image"])[shuffled],
        labels=jnp.asarray(whole["labels"])[shuffled],
        patient_ids=jnp.asarray(whole["patient_id"])[shuffled],
        row_of=jnp.asarray(row_of),
    )
    chex.clear_trace_counter()
    step = steps.jit_train_step(
        cases,
        model=network(),
        optimizer=OPTIMIZER,
        loss=binary_cross_entropy,
        augment=chex.assert_max_traces(training_images, n=1),
        momentum_step=1 - DECAY,
    )
    for _ in range(2):
        gathered, metrics = step(copied(fresh), {"case_id": whole["case_id"]})
    streamed, expected = train_step(fresh, whole)
    chex.assert_trees_all_close(metrics, expected, rtol=1e-4)
    chex.assert_trees_all_close(gathered.memory, streamed.memory, rtol=1e-4)


def test_a_batch_without_any_known_label_has_no_loss_and_no_gradient(train_step, fresh):
    batch = batch_of(0)
    batch["labels"] = np.full_like(batch["labels"], -1)
    new, metrics = train_step(fresh, batch)
    assert metrics["loss"] == 0
    assert metrics["grad_norm"] == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(new.params))


def frozen_step(fresh):
    """A compiled step that leaves the trunk alone, and a state for it."""
    begun = state.begin_stage(fresh, OPTIMIZER, jax.random.key(1), freeze_trunk=True)
    step = jitted(network().clone(freeze_trunk=True))
    return step.lower(begun, batch_of(0)).compile(), begun


def test_a_frozen_trunk_stays_and_costs_no_backward_pass(fresh):
    step, begun = frozen_step(fresh)
    after, _ = step(copied(begun), batch_of(0))
    for before, now in ((begun.params, after.params), (begun.batch_stats, after.batch_stats)):
        chex.assert_trees_all_equal(now["trunk"], before["trunk"])
        for part in now.keys() - {"trunk"}:
            moved = jax.tree.map(lambda a, b: bool((a != b).any()), now[part], before[part])
            assert any(jax.tree.leaves(moved)), part
    whole = jitted(network()).lower(fresh, batch_of(0)).compile()
    flops = {name: s.cost_analysis()["flops"] for name, s in (("frozen", step), ("whole", whole))}
    assert flops["frozen"] < 0.6 * flops["whole"]


@pytest.fixture(scope="module")
def shared():
    """The program of two stages, which may be traced once."""
    chex.clear_trace_counter()
    schedule = optim.one_cycle(2e-3, 40, optim.Cycle())  # of OPTIMIZER
    step = steps.jit_phase_step(
        model=network(),
        make_optimizer=lambda given: optim.adamw(
            given.rate, given.b1, share=dict.fromkeys(optim.GROUPS, 1.0)
        ),
        losses=[(binary_cross_entropy,) * 2, (focal,) * 2],
        augment=chex.assert_max_traces(training_images, n=1),
        average_decay=0.75,
    )

    def of_phase(stage=0, before=0, over=1.0, decay=DECAY, threshold=0.02):
        cycle = optim.OneCycle(*[over * rate for rate in schedule[:3]], *schedule[3:])
        numbers = steps.PhaseNumbers(cycle, stage, before, 1 - decay, threshold)
        return steps.PhaseStep(step, numbers)

    return of_phase


@pytest.fixture(scope="module")
def begun(fresh):
    """A state that averages all its weights."""
    new = fresh.replace(average={"params": {}, "batch_stats": {}})
    return state.begin_stage(new, OPTIMIZER, jax.random.key(1))


@pytest.mark.parametrize(("averaged_steps", "decay"), [(0, 0.1), (8, 0.5), (1000, 0.75)])
def test_the_average_of_all_weights_follows_them_and_is_evaluated(
    begun, shared, eval_step, averaged_steps, decay
):
    chex.assert_trees_all_equal(begun.average["params"], begun.params)
    after, _ = shared(before=averaged_steps)(copied(begun), batch_of(0))
    for name, now, before in (
        ("params", after.params, begun.params),
        ("batch_stats", after.batch_stats, begun.batch_stats),
    ):
        expected = jax.tree.map(lambda a, b: decay * b + (1 - decay) * a, now, before)
        chex.assert_trees_all_close(after.average[name], expected, rtol=1e-5, atol=1e-7)
    logits = eval_step(after, batch_of(3))["logits"]
    swapped = after.replace(average=None, **after.average)
    np.testing.assert_allclose(logits, eval_step_of(swapped, batch_of(3)), rtol=1e-5, atol=1e-6)
    assert np.abs(logits - eval_step_of(after.replace(average=None), batch_of(3))).max() > 1e-4


def test_stages_with_one_program_differ_in_loss_and_rate(begun, shared, train_step):
    after, metrics = shared()(copied(begun), batch_of(0))
    expected, values = train_step(begun.replace(average=None), batch_of(0))
    chex.assert_trees_all_close(after.params, expected.params, rtol=1e-5, atol=1e-7)
    assert metrics.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    other, values = shared(stage=1, over=0.5)(copied(begun), batch_of(0))
    np.testing.assert_allclose(values["rate"], metrics["rate"] / 2, rtol=1e-5)
    np.testing.assert_allclose(values["b1"], metrics["b1"], rtol=1e-5)
    assert values["loss"] < 0.8 * metrics["loss"]
    assert all(changed(other.params, after.params))


def test_runs_that_differ_in_momentum_and_threshold_share_a_program(begun, shared, train_step):
    expected, _ = train_step(begun.replace(average=None), batch_of(0))
    for decay, threshold, written in ((DECAY, 0.02, 4), (0.0, 0.02, 4), (1.0, 0.0, 0)):
        after, metrics = shared(decay=decay, threshold=threshold)(copied(begun), batch_of(0))
        assert metrics["bank_count"] == written
        copy = {0.0: begun.params["expansion"], 1.0: begun.momentum.params}
        momentum = copy.get(decay, expected.momentum.params)
        chex.assert_trees_all_close(after.momentum.params, momentum, rtol=1e-6)


def eval_step_of(network_state, batch):
    step = jit_eval_step(model=network(), prepare=evaluation_images)
    return step(network_state, batch)["logits"]


@pytest.mark.parametrize("lacks", ["fusion", "momentum_branch", "memory"])
def test_a_network_without_one_of_its_parts_trains(lacks):
    parts = {"fusion": {"fusion": None}, "memory": {"retrieval_k": 0}}
    model = network().clone(**parts.get(lacks, {}))
    bank = memory_bank.empty(SLOTS, DIM, FINDINGS)
    images = jnp.zeros((1, SIDE, SIDE, 3))
    make = functools.partial(state.create, model, momentum_branch=lacks != "momentum_branch")
    new = jax.jit(lambda key: make(key, images, bank))(jax.random.key(0))
    before = state.begin_stage(new, OPTIMIZER, jax.random.key(1))
    after, metrics = jitted(model)(copied(before), batch_of(0))
    assert np.isfinite(metrics["loss"])
    outputs = jit_eval_step(model=model, prepare=evaluation_images)(after, batch_of(1))
    assert ("fusion" in after.params) == ("attention" in outputs) == (lacks != "fusion")
    assert ("disagreement" in outputs) == (lacks != "momentum_branch")
    assert (after.momentum is None) == (lacks == "momentum_branch")
    if lacks == "memory":
        emptied = after.replace(memory=memory_bank.empty(SLOTS, DIM, FINDINGS))
        without = jit_eval_step(model=model, prepare=evaluation_images)(emptied, batch_of(1))
        np.testing.assert_array_equal(outputs["logits"], without["logits"])
