"""Twenty steps of a small network on 1, 4 and 8 devices of a CPU, as JSON on standard output.

Run with ``XLA_FLAGS=--xla_force_host_platform_device_count=8``. Of the compiled steps it gives the
shapes of everything that is gathered from the devices.
"""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
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
    voting_network,
)

from charm_jax.distributed import mesh as devices
from charm_jax.inference.steps import jit_eval_step
from charm_jax.models import memory_bank, selection, state
from charm_jax.models.layers.conv import dense_conv
from charm_jax.models.losses import focal
from charm_jax.runs.checkpoints import tree_sha256
from charm_jax.train import step as steps
from data_pipelines.loading.augment import evaluation_images, training_images
from data_pipelines.loading.resident import ResidentCases

STEPS, BATCHES = 20, 3
# A rule that looks at the whole batch: the mean norm of a device's share is another one.
MODEL = network().clone(
    select=functools.partial(
        selection.select, rule="norm_inlier", threshold=0.2, prevalence=(0.1,) * FINDINGS
    )
)

VOTE = voting_network()


def fresh(model):
    bank = memory_bank.empty(SLOTS, DIM, FINDINGS)
    images = jnp.zeros((1, SIDE, SIDE, 3))
    new = jax.jit(lambda key: state.create(model, key, images, bank))(jax.random.key(0))
    return state.begin_stage(new, OPTIMIZER, jax.random.key(1))


def mesh_of(count):
    if count == 1:
        return None
    first = jax.devices()[:count]
    return jax.make_mesh((count,), (devices.AXIS,), axis_types=(AxisType.Auto,), devices=first)


def resident(mesh):
    """All batches on every device."""
    batches = [batch_of(seed, first_case=seed * BATCH) for seed in range(BATCHES)]
    images, labels, patients = (
        np.concatenate([batch[key] for batch in batches])
        for key in ("image", "labels", "patient_id")
    )
    row_of = np.arange(BATCHES * BATCH, dtype=np.int32)
    return devices.replicated(ResidentCases(images, labels, patients, row_of), mesh)


def gathered(compiled):
    """Shapes of what a compiled step gathers or exchanges between devices."""
    kinds = "all-gather|all-to-all|collective-permute"
    shapes = re.findall(rf"= \(?(\w+\[[\d,]*\])\S* (?:{kinds})(?:-start)?\(", compiled.as_text())
    return sorted(set(shapes))


def run(count, cases=False, model=MODEL):
    mesh = mesh_of(count)
    on_device = resident(mesh) if cases else None
    step = steps.jit_train_step(
        on_device,
        mesh,
        model=model,
        optimizer=OPTIMIZER,
        loss=focal,
        augment=training_images,
        momentum_step=1 - DECAY,
    )
    now = devices.replicated(fresh(model), mesh)
    shapes = gathered(step.lower(now, batch_of(0)).compile())
    metrics = []
    for i in range(STEPS):
        seed = i % BATCHES
        now, values = step(now, batch_of(seed, first_case=seed * BATCH))
        metrics.append({name: float(value) for name, value in values.items()})
    evaluate = jit_eval_step(None, mesh, model=model, prepare=evaluation_images)
    output = evaluate(now, batch_of(9, first_case=900))
    ids = {"case_ids": now.memory.case_ids, "patient_ids": now.memory.patient_ids}
    return {
        "metrics": metrics,
        "gathered": shapes,
        "bank": tree_sha256(ids | {"labels": now.memory.labels}),
        "stored": np.asarray(now.memory.features).tolist(),
        "variances": np.asarray(now.batch_stats["trunk"]["features.0"]["1"]["var"]).tolist(),
        "logits": np.asarray(output["logits"]).tolist(),
    }


def convolution_gradients(count, side, channels, features):
    """Of a convolution that no layer of the network above is like."""
    mesh = mesh_of(count)
    images = np.asarray(jax.random.normal(jax.random.key(2), (8, side, side, channels)))
    kernel = jax.random.normal(jax.random.key(3), (3, 3, channels, features))
    kernel = devices.replicated(kernel, mesh)

    @jax.jit
    def gradients(images, kernel):
        return jax.grad(lambda *args: jnp.square(dense_conv(*args, 1)).mean(), (0, 1))(
            images, kernel
        )

    if mesh is None:
        return {"gradients": [v.tolist() for v in gradients(images, kernel)]}
    with jax.set_mesh(mesh):
        images = devices.shard_batch({"image": images}, mesh)["image"]
        shapes = gathered(gradients.lower(images, kernel).compile())
        return {"gradients": [v.tolist() for v in gradients(images, kernel)], "gathered": shapes}


def convolutions(count):
    large_map, fewer_features, more_features = (36, 5, 6), (6, 16, 2), (6, 3, 12)
    return [
        convolution_gradients(count, *sizes) for sizes in (large_map, fewer_features, more_features)
    ]


if __name__ == "__main__":
    runs = {str(count): run(count) for count in (1, 4, 8)}
    runs["2 resident"] = run(2, cases=True)
    runs |= {f"vote {count}": run(count, model=VOTE) for count in (1, 4)}
    runs["convolutions"] = {str(count): convolutions(count) for count in (1, 8)}
    print(json.dumps(runs))
