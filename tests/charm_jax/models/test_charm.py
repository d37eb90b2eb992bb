import functools
import json
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden import (
    FILLED,
    FOLDER,
    OTHERS,
    PUBLISHED,
    cases,
    close,
    fill,
    for_networks,
    for_steps,
    images,
    in_precision,
    memory,
    model,
    nchw,
    noise,
    numbers,
    rms,
    shapes,
    variables,
    with_terms,
)

from charm_jax.models import losses, memory_bank, selection
from charm_jax.models.backbones import BACKBONES
from charm_jax.models.charm import Output
from charm_jax.weights import torch_names

LOSSES = ("bce", "focal", "asymmetric_reference")
# Where the numbers of a pass in either precision are stored, and where their noise is.
STORED = {"float32": "train64/tol", "float64": "train64_float64/tol"}
NOISE = {"float32": "charm/train/tol", "float64": "none"}
everything = for_networks(PUBLISHED)
# Every network's step is compared in float64, where processors agree; the published one's in
# float32, too. All else is slow.
_exact = [(arch, "float64") for arch in (PUBLISHED, *OTHERS)]
one_step = for_steps((PUBLISHED, "float32"), *_exact)
other_losses = for_steps((PUBLISHED, "float32"), (PUBLISHED, "float64"))


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


class TrainPass(NamedTuple):
    """What a forward and backward pass gives, in NumPy; gradients and their terms by torch name."""

    loss: np.ndarray
    grads: dict[str, np.ndarray]
    terms: dict[str, float]
    output: Output
    rarity: np.ndarray
    stats: dict


def whole_gradients(arch):
    """Torch name to path of the parameters whose whole gradients are stored."""
    prefix = "train64/tol/bce/grad/"
    stored = {key.removeprefix(prefix) for key in numbers("charm", arch) if key.startswith(prefix)}
    names = torch_names.leaf_names({"params": shapes(arch)["params"]}, BACKBONES[arch])
    return {
        reference_name(name): path[1:]
        for path, name in names.items()
        if reference_name(name) in stored
    }


@pytest.fixture(scope="module")
def train_pass(arch, precision):
    """(index of the loss) -> TrainPass; compiled once."""
    with jax.enable_x64(precision == "float64"):
        network, momentum, bank, x = in_precision(
            (*variables(arch), memory(arch), images(8, 64)), precision
        )
        batch, paths = cases(8), whole_gradients(arch)
        carriers = {}
        for *layer, leaf in paths.values():
            like = flatten_dict(network["params"])[*layer, leaf]
            carriers.setdefault(tuple(layer), {})[leaf] = jnp.zeros_like(like)
    branches = [losses.LOSSES[name] for name in LOSSES]

    def objective(params, carriers, index):
        with with_terms(carriers):
            output, updated = model(arch, dtype=precision).apply(
                {"params": params, "batch_stats": network["batch_stats"]},
                x,
                batch,
                momentum,
                bank,
                train=True,
                mutable=["batch_stats"],
            )
        value = jax.lax.switch(index, branches, output.logits, batch.labels)
        return value, (output, updated["batch_stats"])

    # The exact pass runs once or thrice: it is not worth optimising.
    options = {"xla_backend_optimization_level": 0} if precision == "float64" else {}

    @functools.partial(jax.jit, compiler_options=options)
    @chex.assert_max_traces(n=1)
    def step(params, index):
        results = jax.value_and_grad(objective, (0, 1), has_aux=True)(params, carriers, index)
        return results, selection.norm_deviation(results[0][1][0].fused)

    chex.clear_trace_counter()

    @functools.cache
    def run(index):
        with jax.enable_x64(precision == "float64"):
            results, rarity = jax.device_get(step(network["params"], jnp.int32(index)))
        (value, (output, stats)), (grads, squares) = results
        terms = {
            name: rms(np.sqrt(squares[tuple(layer)][leaf]))
            for name, (*layer, leaf) in paths.items()
        }
        grads = torch_names.to_torch({"params": grads}, BACKBONES[arch])
        grads = {reference_name(name): grad for name, grad in grads.items()}
        return TrainPass(value, grads, terms, output, rarity, stats)

    return run


@one_step
@pytest.mark.parametrize("key", ["fused_features", "memory_features", "enhanced_features"])
def test_training_features_equal_the_original(train_pass, arch, key):
    output = train_pass(0).output
    value = {
        "fused_features": output.fused,
        "memory_features": output.retrieved.features,
        "enhanced_features": output.enhanced,
    }[key]
    close(value, numbers("charm", arch)[f"train64/tol/{key}"], arch, f"charm/train/tol/{key}")


@one_step
def test_training_logits_equal_the_original(train_pass, arch, precision):
    output = train_pass(0).output
    stored = numbers("charm", arch)
    expected = stored[f"{STORED[precision]}/logits"]
    close(output.logits, expected, arch, f"{NOISE[precision]}/logits")
    close(
        nchw(output.attention),
        stored["train64/tol/attention_map"],
        arch,
        "charm/train/tol/attention_map",
    )


def reference_name(name):
    return name if name.startswith(("spatial_attention", "classifier")) else f"base_model.{name}"


@one_step
def test_loss_and_gradients_equal_the_original(train_pass, arch, precision):
    check_loss_and_gradients(train_pass, arch, precision, 0)


@other_losses
@pytest.mark.parametrize("index", [1, 2])
def test_other_losses_and_gradients_equal_the_original(train_pass, arch, precision, index):
    check_loss_and_gradients(train_pass, arch, precision, index)


def check_loss_and_gradients(train_pass, arch, precision, index):
    loss = ("bce", "focal", "asymmetric")[index]
    stored, ours = numbers("charm", arch), train_pass(index)
    key, described = f"{STORED[precision]}/{loss}", f"{NOISE[precision]}/{loss}"
    close(ours.loss, stored[f"{key}/loss"], arch, f"{described}/loss")
    norms = {name: np.linalg.norm(g.astype(np.float64)) for name, g in ours.grads.items()}
    total = np.sqrt(sum(n**2 for n in norms.values()))
    close(
        total.astype(precision),
        stored[f"{key}/grad_global_norm"],
        arch,
        f"{described}/grad_global_norm",
    )
    key, described = f"train64/tol/{loss}", f"charm/train/tol/{loss}"
    names, expected = stored[f"{key}/grad_names"], stored[f"{key}/grad_norms"]
    assert set(norms) == set(names)
    ordered = np.array([norms[name] for name in names])
    if precision == "float64":
        close(ordered, expected, arch, f"{described}/grad_norms")
        return
    tolerance = max(1e-5, 10 * noise(arch, f"{described}/grad_norms")) * total
    np.testing.assert_allclose(ordered, expected, rtol=0, atol=tolerance)


@one_step
def test_whole_gradients_equal_the_original(train_pass, arch):
    ours, stored = train_pass(0), numbers("charm", arch)
    assert len(ours.terms) > 4
    for name, terms in ours.terms.items():
        key = f"train64/tol/bce/grad/{name}"
        described = key.replace("train64", "charm/train")
        close(ours.grads[name], stored[key], arch, described, terms)


@one_step
def test_training_writes_the_bank_as_the_original(train_pass, arch):
    output, stored = train_pass(0).output, numbers("charm", arch)
    np.testing.assert_array_equal(output.selected, stored["train64/tol/rarity_keep"])
    close(
        train_pass(0).rarity,
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
    norms = np.linalg.norm(output.memory.features, axis=1)
    close(norms, stored["train64/tol/memory/row_norms"], arch, "charm/train/tol/memory/row_norms")


@one_step
def test_running_statistics_equal_the_original(train_pass, arch):
    output, stats = train_pass(0).output, train_pass(0).stats
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


@pytest.mark.daily
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
    value = losses.LOSSES[LOSSES[0]](output.logits, batch.labels)
    close(value, stored["train64/incl/bce/loss"], arch, "charm/train/incl/bce/loss")
