import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import FOLDER, cases, close, fill, images, memory, model, nchw, numbers, spec, variables

from charm_jax import memory_bank, pretrained
from charm_jax.backbones import BACKBONES
from charm_jax.losses import select_loss

ARCH = "efficientnet_v2_s"
LOSSES = ("bce", "focal", "asymmetric_reference")


def test_the_recipe_still_draws_the_same_numbers():
    assert fill.selfcheck() == json.loads((FOLDER / "selfcheck.json").read_text())["crc32"]


@pytest.fixture(scope="module")
def evaluation():
    network, momentum = variables(ARCH)
    bank = memory(ARCH)

    @jax.jit
    def forward(network, x):
        return model(ARCH).apply(network, x, cases(4), momentum, bank, train=False)

    return forward(network, images(4, 128))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("main_features", lambda o: nchw(o.main[:2])),
        ("momentum_features", lambda o: nchw(o.momentum_features[:2])),
        ("attention_map", lambda o: nchw(o.attention)),
        ("fused_features", lambda o: o.fused),
        ("memory_features", lambda o: o.retrieved.features),
        ("enhanced_features", lambda o: o.enhanced),
        ("logits", lambda o: o.logits),
    ],
)
def test_evaluation_equals_the_original(evaluation, name, value):
    stored = numbers("charm", ARCH)[f"eval128/{name}"]
    close(value(evaluation), stored, ARCH, f"charm/eval/{name}")


def test_evaluation_retrieves_the_same_cases(evaluation):
    stored = numbers("charm", ARCH)
    np.testing.assert_array_equal(
        evaluation.retrieved.indices, stored["eval128/similarity_top5_index"][:, :3]
    )
    np.testing.assert_allclose(
        evaluation.retrieved.similarities, stored["eval128/similarity_top5"][:, :3], atol=1e-5
    )


def test_evaluation_changes_neither_bank_nor_momentum_branch(evaluation):
    _, momentum = variables(ARCH)
    chex.assert_trees_all_equal(evaluation.memory, memory(ARCH))
    chex.assert_trees_all_equal(evaluation.momentum, momentum)
    assert not np.any(evaluation.selected)


@pytest.fixture(scope="module")
def train_pass():
    """(index of the loss) -> (loss, gradients by torch name, output, statistics); compiled once."""
    network, momentum = variables(ARCH)
    bank, x, batch = memory(ARCH), images(8, 64), cases(8)
    loss = select_loss(LOSSES)

    def objective(params, index):
        output, updated = model(ARCH).apply(
            {"params": params, "batch_stats": network["batch_stats"]},
            x,
            batch,
            momentum,
            bank,
            train=True,
            mutable=["batch_stats"],
        )
        return loss(index, output.logits, batch.labels), (output, updated["batch_stats"])

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, index):
        return jax.value_and_grad(objective, has_aux=True)(params, index)

    chex.clear_trace_counter()

    @functools.cache
    def run(index):
        (value, (output, stats)), grads = step(network["params"], jnp.int32(index))
        return value, pretrained.to_torch({"params": grads}, BACKBONES[ARCH]), output, stats

    return run


@pytest.mark.parametrize("key", ["fused_features", "memory_features", "enhanced_features"])
def test_training_features_equal_the_original(train_pass, key):
    output = train_pass(0)[2]
    value = {
        "fused_features": output.fused,
        "memory_features": output.retrieved.features,
        "enhanced_features": output.enhanced,
    }[key]
    close(value, numbers("charm", ARCH)[f"train64/tol/{key}"], ARCH, f"charm/train/tol/{key}")


def test_training_logits_equal_the_original(train_pass):
    output = train_pass(0)[2]
    stored = numbers("charm", ARCH)
    close(output.logits, stored["train64/tol/logits"], ARCH, "charm/train/tol/logits")
    close(
        nchw(output.attention), stored["train64/tol/attention_map"], ARCH, "charm/train/attention"
    )


def reference_name(name):
    return name if name.startswith(("spatial_attention", "classifier")) else f"base_model.{name}"


@pytest.mark.parametrize("index", range(3))
def test_losses_and_gradients_equal_the_original(train_pass, index):
    loss = ("bce", "focal", "asymmetric")[index]
    stored, noise = numbers("charm", ARCH), spec(ARCH)["float32_vs_float64"]
    value, grads, _, _ = train_pass(index)
    key = f"train64/tol/{loss}"
    close(value, stored[f"{key}/loss"], ARCH, f"charm/train/tol/{loss}/loss")
    norms = {reference_name(n): np.linalg.norm(g.astype(np.float64)) for n, g in grads.items()}
    total = np.sqrt(sum(n**2 for n in norms.values()))
    close(
        total, stored[f"{key}/grad_global_norm"], ARCH, f"charm/train/tol/{loss}/grad_global_norm"
    )
    assert set(norms) == set(stored[f"{key}/grad_names"])
    tolerance = max(1e-5, 10 * noise[f"charm/train/tol/{loss}/grad_norms"]) * total
    for name, norm in zip(stored[f"{key}/grad_names"], stored[f"{key}/grad_norms"], strict=True):
        assert abs(norms[name] - norm) <= tolerance, name


@pytest.mark.parametrize(
    "name",
    [
        "base_model.features.0.0.weight",
        "spatial_attention.conv1.bias",
        "spatial_attention.spatial_att.0.weight",
        "classifier.0.weight",
        "classifier.4.weight",
        "classifier.4.bias",
    ],
)
def test_whole_gradients_equal_the_original(train_pass, name):
    grads = {reference_name(n): g for n, g in train_pass(0)[1].items()}
    stored = numbers("charm", ARCH)[f"train64/tol/bce/grad/{name}"]
    close(grads[name], stored, ARCH, f"charm/train/tol/bce/grad/{name}")


def test_training_writes_the_bank_as_the_original(train_pass):
    output, stored = train_pass(0)[2], numbers("charm", ARCH)
    np.testing.assert_array_equal(output.selected, stored["train64/tol/rarity_keep"])
    close(
        memory_bank.norm_deviation(output.fused),
        stored["train64/tol/rarity_scores"],
        ARCH,
        "charm/train/tol/rarity_scores",
    )
    cursor = int(stored["train64/tol/memory/index"])
    assert int(output.memory.cursor) == cursor
    rows = stored["train64/tol/memory/new_rows"]
    written = output.memory.features[cursor - len(rows) : cursor]
    close(written, rows, ARCH, "charm/train/tol/memory/new_rows")
    norms = np.linalg.norm(np.asarray(output.memory.features), axis=1)
    close(norms, stored["train64/tol/memory/row_norms"], ARCH, "charm/train/tol/memory/row_norms")


def test_running_statistics_equal_the_original(train_pass):
    _, _, output, stats = train_pass(0)
    stored = numbers("charm", ARCH)
    updated = pretrained.to_torch(
        {"batch_stats": stats, "momentum_batch_stats": output.momentum.batch_stats},
        BACKBONES[ARCH],
    )
    for key in [key for key in stored if key.startswith("train64/tol/bn/") and "/running" in key]:
        layer, statistic = key.removeprefix("train64/tol/bn/").split("/")
        value = updated[f"{layer.removeprefix('base_model.')}.{statistic}"]
        close(value, stored[key], ARCH, f"charm/train/tol/bn/{layer}/{statistic}")
    names, norms = stored["train64/tol/bn/names"], stored["train64/tol/bn/norms"]
    ours = {n.removeprefix("base_model."): np.linalg.norm(v) for n, v in updated.items()}
    ordered = np.array([ours[name.removeprefix("base_model.")] for name in names])
    close(ordered, norms, ARCH, "charm/train/tol/bn/norms")


def test_without_exclusion_it_equals_the_original_without_exclusion(monkeypatch):
    """The stored mode `incl`: the step's own rows take part in the retrieval."""
    retrieve = memory_bank.retrieve

    def with_everything(bank, queries, k, *, exclude_case_ids, exclude_patient_ids):
        nothing = jnp.full_like(exclude_case_ids, -1)
        return retrieve(bank, queries, k, exclude_case_ids=nothing)

    monkeypatch.setattr(memory_bank, "retrieve", with_everything)
    network, momentum = variables(ARCH)
    batch = cases(8)

    @jax.jit
    def forward(network, x):
        return model(ARCH).apply(
            network, x, batch, momentum, memory(ARCH), train=True, mutable=["batch_stats"]
        )[0]

    output = forward(network, images(8, 64))
    stored = numbers("charm", ARCH)
    close(output.logits, stored["train64/incl/logits"], ARCH, "charm/train/incl/logits")
    close(
        output.retrieved.features,
        stored["train64/incl/memory_features"],
        ARCH,
        "charm/train/incl/memory_features",
    )
    value = select_loss(LOSSES)(jnp.int32(0), output.logits, batch.labels)
    close(value, stored["train64/incl/bce/loss"], ARCH, "charm/train/incl/bce/loss")
