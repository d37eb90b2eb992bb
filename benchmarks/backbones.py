"""Every backbone with and without CHARM: parameters, FLOPs, compile and step time.

    python benchmarks/backbones.py --out FILE.json

Compiles and runs whole train steps (stage 1, AdamW) and prints the table for RESULTS.md: as they
are, with identical blocks in a row scanned, and with the trunk frozen. Steps of the variants of one
backbone alternate, so that other load on the machine meets all of them.
"""

import argparse
import json
import math
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scanned

from charm_jax.models import memory_bank, selection, state
from charm_jax.models.attention import MultiScaleAttention
from charm_jax.models.backbones import BACKBONES
from charm_jax.models.baseline import Baseline
from charm_jax.models.charm import Cases, Charm, Head
from charm_jax.models.losses import LOSSES
from charm_jax.train import optim
from charm_jax.train.step import jit_train_step
from data_pipelines.loading.augment import training_images

FINDINGS = 14
FLOPS_SIDE = 224


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbones", nargs="*", default=list(BACKBONES))
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=15)
    return parser.parse_args()


def network(name: str, charm: bool, variant: str) -> Charm | Baseline | None:
    """Build the network; None where there is nothing to scan."""
    scan, frozen = variant == "scanned", variant == "frozen"
    backbone = BACKBONES[name]
    trunk = (partial(scanned.trunk_of, backbone) if scan else backbone.trunk)(drop_rate=0.2)
    if trunk is None:
        return None
    if not charm:
        return Baseline(trunk, backbone.expansion(), backbone.final, FINDINGS, frozen)
    select = partial(
        selection.select, rule="norm_inlier", threshold=0.2, prevalence=(0.5,) * FINDINGS
    )
    return Charm(
        trunk, backbone.expansion(), MultiScaleAttention(), Head(FINDINGS), 5, select, frozen
    )


def new_state(name: str, model: Charm | Baseline, side: int) -> state.TrainState:
    bank = None
    if isinstance(model, Charm):
        bank = memory_bank.empty(512, BACKBONES[name].feature_dim, FINDINGS)
    return state.create(model, jax.random.key(0), jnp.zeros((1, side, side, 3)), bank)


def forward_gflops(name: str, model: Charm | Baseline) -> float:
    """10⁹ multiplications and additions of one image's forward pass, by XLA's count."""
    shapes = jax.eval_shape(partial(new_state, name, model, FLOPS_SIDE))
    images = jax.ShapeDtypeStruct((1, FLOPS_SIDE, FLOPS_SIDE, 3), jnp.float32)

    def forward(network: state.TrainState, images: jax.Array) -> jax.Array:
        variables = {"params": network.params, "batch_stats": network.batch_stats}
        cases = state_cases(1)
        output = model.apply(
            variables, images, cases, network.momentum, network.memory, train=False
        )
        return output.logits

    return jax.jit(forward).lower(shapes, images).cost_analysis()["flops"] / 1e9


def state_cases(n: int) -> Cases:
    ids = jnp.arange(n, dtype=jnp.int32)
    return Cases(jnp.zeros((n, FINDINGS), jnp.int8), ids, ids)


def prepared(
    name: str, model: Charm | Baseline, args: argparse.Namespace
) -> tuple[Any, Any, float]:
    """State, compiled step and the seconds that compiling took."""
    optimizer = optim.adamw_one_cycle(optim.geometric(1e-4, 1e-4), 1000)

    def create() -> state.TrainState:
        new = new_state(name, model, args.side)
        key = jax.random.key(1)
        return state.begin_stage(new, optimizer, key, freeze_trunk=model.freeze_trunk)

    first = jax.jit(create, compiler_options={"xla_backend_optimization_level": 0})()
    step = jit_train_step(
        model=model,
        optimizer=optimizer,
        loss=LOSSES["bce"],
        augment=training_images,
        momentum_step=1 - 0.99,
    )
    start = time.perf_counter()
    compiled = step.lower(first, batch(args)).compile()
    return first, compiled, time.perf_counter() - start


def batch(args: argparse.Namespace) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (args.batch, args.side, args.side, 1)
    ids = np.arange(args.batch, dtype=np.int32)
    return {
        "image": rng.integers(0, 256, shape, np.uint8),
        "labels": (rng.random((args.batch, FINDINGS)) < 0.1).astype(np.int8),
        "case_id": ids,
        "patient_id": ids,
    }


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All variants of one backbone; their steps in turns."""
    variants, result = {}, {}
    for charm in (False, True):
        for variant in ("loop", "scanned", "frozen"):
            model = network(name, charm, variant)
            if model is None:
                continue
            key = f"{'charm' if charm else 'plain'}_{variant}"
            *variants[key], compile_s = prepared(name, model, args)
            result[key] = {"compile_s": compile_s, "step_ms": []}
            if variant == "loop":
                leaves = jax.tree.leaves(variants[key][0].params)
                result[key]["parameters"] = sum(math.prod(leaf.shape) for leaf in leaves)
                result[key]["forward_gflops"] = forward_gflops(name, model)
    data = jax.device_put(batch(args))
    for number in range(args.steps + 2):
        for key, variant in variants.items():
            start = time.perf_counter()
            variant[0], metrics = variant[1](variant[0], data)
            jax.block_until_ready(metrics["loss"])
            if number >= 2:
                result[key]["step_ms"].append(1e3 * (time.perf_counter() - start))
    return result


def row(name: str, charm: bool, result: dict[str, Any]) -> str:
    def each(number: Any, *variants: str) -> str:
        found = [result.get(f"{key}_{variant}") for variant in variants]
        return " / ".join(number(values) if values else "-" for values in found)

    key = "charm" if charm else "plain"
    values = result[f"{key}_loop"]
    compile_s = each(lambda v: f"{v['compile_s']:.1f}", "loop", "scanned")
    step_ms = each(lambda v: f"{statistics.median(v['step_ms']):.0f}", "loop", "scanned", "frozen")
    return (
        f"| {name} | {'yes' if charm else 'no'} | {values['parameters'] / 1e6:.2f} | "
        f"{values['forward_gflops']:.2f} | {compile_s} | {step_ms} |"
    )


def main() -> None:
    args = arguments()
    jax.config.update("jax_enable_compilation_cache", False)
    print(
        f"| backbone | CHARM | parameters, 10⁶ | forward at {FLOPS_SIDE}², GFLOPs | compile, s, "
        f"loop / scanned | step at {args.side}², batch {args.batch}, ms, loop / scanned / frozen "
        "trunk |\n| --- | --- | --- | --- | --- | --- |",
        flush=True,
    )
    results = {}
    for name in args.backbones:
        results[name] = measure(name, args)
        for charm in (False, True):
            print(row(name, charm, results[name]), flush=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        jax.clear_caches()


if __name__ == "__main__":
    main()
