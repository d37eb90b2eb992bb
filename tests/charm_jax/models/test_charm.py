import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import (
    FILLED,
    FOLDER,
    OTHERS,
    PUBLISHED,
    cases,
    close,
    fill,
    for_networks,
    images,
    memory,
    model,
    nchw,
    numbers,
    spec,
    variables,
)

from charm_jax.models import memory_bank, selection
from charm_jax.models.backbones import BACKBONES
from charm_jax.models.losses import select_loss
from charm_jax.weights import torch_names

LOSSES = ("bce", "focal", "asymmetric_reference")
# The others' step is compiled once in the default run; all else of theirs is slow.
one_step = for_networks(PUBLISHED, *OTHERS)
everything = for_networks(PUBLISHED)


def test_the_recipe_still_draws_the_same_numbers():
    assert fill.selfcheck() == json.loads((FOLDER / "selfcheck.json").read_text())["crc32"]


@pytest.fixture(scope="module")
def evaluation(arch):
    network, momentum = variables(arch)
    bank = memory(arch)

    @jax.jit
    def forward(network, x):
        return model(arch).apply(network, x, cases(4), momentum, bank, train=False)

    return forward(network, images(4, 128))


@everything
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
def test_evaluation_equals_the_original(evaluation, arch, name, value):
    stored = numbers("charm", arch)[f"eval128/{name}"]
    close(value(evaluation), stored, arch, f"charm/eval/{name}")


@everything
def test_evaluation_retrieves_the_same_cases(evaluation, arch):
    stored = numbers("charm", arch)
    np.testing.assert_array_equal(
        evaluation.retrieved.indices, stored["eval128/similarity_top5_index"][:, :3]
    )
    np.testing.assert_allclose(
        evaluation.retrieved.similarities, stored["eval128/similarity_top5"][:, :3], atol=1e-5
    )


@everything
def test_evaluation_changes_neither_bank_nor_momentum_branch(evaluation, arch):
    _, momentum = variables(arch)
    chex.assert_trees_all_equal(evaluation.memory, memory(arch))
    chex.assert_trees_all_equal(evaluation.momentum, momentum)
    assert not np.any(evaluation.selected)


@pytest.fixture(scope="module")
def train_pass(arch):
    """(index of the loss) -> (loss, gradients by torch name, output, statistics); compiled once."""
    network, momentum = variables(arch)
    bank, x, batch = memory(arch), images(8, 64), cases(8)
    loss = select_loss(LOSSES)

    def objective(params, index):
        output, updated = model(arch).apply(
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
        return value, torch_names.to_torch({"params": grads}, BACKBONES[arch]), output, stats

    return run


@one_step
@pytest.mark.parametrize("key", ["fused_features", "memory_features", "enhanced_features"])
def test_training_features_equal_the_original(train_pass, arch, key):
    output = train_pass(0)[2]
    value = {
        "fused_features": output.fused,
        "memory_features": output.retrieved.features,
        "enhanced_features": output.enhanced,
    }[key]
    close(value, numbers("charm", arch)[f"train64/tol/{key}"], arch, f"charm/train/tol/{key}")


@one_step
def test_training_logits_equal_the_original(train_pass, arch):
    output = train_pass(0)[2]
    stored = numbers("charm", arch)
    close(output.logits, stored["train64/tol/logits"], arch, "charm/train/tol/logits")
    close(
        nchw(output.attention),
        stored["train64/tol/attention_map"],
        arch,
        "charm/train/tol/attention_map",
    )


def reference_name(name):
    return name if name.startswith(("spatial_attention", "classifier")) else f"base_model.{name}"


@one_step
def test_loss_and_gradients_equal_the_original(train_pass, arch):
    check_loss_and_gradients(train_pass, arch, 0)


@everything
@pytest.mark.parametrize("index", [1, 2])
def test_other_losses_and_gradients_equal_the_original(train_pass, arch, index):
    check_loss_and_gradients(train_pass, arch, index)


def check_loss_and_gradients(train_pass, arch, index):
    loss = ("bce", "focal", "asymmetric")[index]
    stored, noise = numbers("charm", arch), spec(arch)["float32_vs_float64"]
    value, grads, _, _ = train_pass(index)
    key = f"train64/tol/{loss}"
    close(value, stored[f"{key}/loss"], arch, f"charm/train/tol/{loss}/loss")
    norms = {reference_name(n): np.linalg.norm(g.astype(np.float64)) for n, g in grads.items()}
    total = np.sqrt(sum(n**2 for n in norms.values()))
    close(
        total, stored[f"{key}/grad_global_norm"], arch, f"charm/train/tol/{loss}/grad_global_norm"
    )
    assert set(norms) == set(stored[f"{key}/grad_names"])
    tolerance = max(1e-5, 10 * noise[f"charm/train/tol/{loss}/grad_norms"]) * total
    for name, norm in zip(stored[f"{key}/grad_names"], stored[f"{key}/grad_norms"], strict=True):
        assert abs(norms[name] - norm) <= tolerance, name


@one_step
def test_whole_gradients_equal_the_original(train_pass, arch):
    grads = {reference_name(n): g for n, g in train_pass(0)[1].items()}
    stored = numbers("charm", arch)
    prefix = "train64/tol/bce/grad/"
    keys = [key for key in stored if key.startswith(prefix)]
    assert keys
    for key in keys:
        close(
            grads[key.removeprefix(prefix)],
            stored[key],
            arch,
            key.replace("train64", "charm/train"),
        )


@one_step
def test_training_writes_the_bank_as_the_original(train_pass, arch):
    output, stored = train_pass(0)[2], numbers("charm", arch)
    np.testing.assert_array_equal(output.selected, stored["train64/tol/rarity_keep"])
    close(
        selection.norm_deviation(output.fused),
        stored["train64/tol/rarity_scores"],
        arch,
        "charm/train/tol/rarity_scores",
    )
    cursor = int(stored["train64/tol/memory/index"])
    assert int(output.memory.cursor) == cursor
    assert cursor == FILLED + np.sum(output.selected)
    if cursor > FILLED:
        rows = stored["train64/tol/memory/new_rows"]
        written = output.memory.features[FILLED:cursor]
        close(written, rows, arch, "charm/train/tol/memory/new_rows")
    norms = np.linalg.norm(np.asarray(output.memory.features), axis=1)
    close(norms, stored["train64/tol/memory/row_norms"], arch, "charm/train/tol/memory/row_norms")


@one_step
def test_running_statistics_equal_the_original(train_pass, arch):
    _, _, output, stats = train_pass(0)
    stored = numbers("charm", arch)
    updated = torch_names.to_torch(
        {"batch_stats": stats, "momentum_batch_stats": output.momentum.batch_stats},
        BACKBONES[arch],
    )
    for key in [key for key in stored if key.startswith("train64/tol/bn/") and "/running" in key]:
        layer, statistic = key.removeprefix("train64/tol/bn/").split("/")
        value = updated[f"{layer.removeprefix('base_model.')}.{statistic}"]
        close(value, stored[key], arch, f"charm/train/tol/bn/{layer}/{statistic}")
    names, norms = stored["train64/tol/bn/names"], stored["train64/tol/bn/norms"]
    ours = {n.removeprefix("base_model."): np.linalg.norm(v) for n, v in updated.items()}
    ordered = np.array([ours[name.removeprefix("base_model.")] for name in names])
    close(ordered, norms, arch, "charm/train/tol/bn/norms")


@everything
def test_without_exclusion_it_equals_the_original_without_exclusion(arch, monkeypatch):
    """The stored mode `incl`: the step's own rows take part in the retrieval."""
    retrieve = memory_bank.retrieve

    def with_everything(bank, queries, k, *, exclude_case_ids, exclude_patient_ids):
        nothing = jnp.full_like(exclude_case_ids, -1)
        return retrieve(bank, queries, k, exclude_case_ids=nothing)

    monkeypatch.setattr(memory_bank, "retrieve", with_everything)
    network, momentum = variables(arch)
    batch = cases(8)

    @jax.jit
    def forward(network, x):
        return model(arch).apply(
            network, x, batch, momentum, memory(arch), train=True, mutable=["batch_stats"]
        )[0]

    output = forward(network, images(8, 64))
    stored = numbers("charm", arch)
    close(output.logits, stored["train64/incl/logits"], arch, "charm/train/incl/logits")
    close(
        output.retrieved.features,
        stored["train64/incl/memory_features"],
        arch,
        "charm/train/incl/memory_features",
    )
    value = select_loss(LOSSES)(jnp.int32(0), output.logits, batch.labels)
    close(value, stored["train64/incl/bce/loss"], arch, "charm/train/incl/bce/loss")
