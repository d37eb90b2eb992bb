"""Every backbone with and without CHARM: parameters, FLOPs, compile and step time, scanned or not.

    python benchmarks/backbones.py --out FILE.json

Compiles and runs whole train steps (stage 1, AdamW) and prints the table for RESULTS.md. Steps of
the variants of one backbone alternate, so that other load on the machine meets all of them.
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

from charm_jax import memory_bank, optim, state
from charm_jax.backbones import BACKBONES
from charm_jax.fusion import MultiScaleAttention
from charm_jax.losses import LOSSES
from charm_jax.model import Cases, Charm, Head
from charm_jax.plain import Plain
from charm_jax.steps import jit_train_step
from data_pipelines.augment import training_images

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


def network(name: str, charm: bool, scan: bool) -> Charm | Plain | None:
    """The network; None where there is nothing to scan."""
    backbone = BACKBONES[name]
    trunk = (partial(scanned.trunk_of, backbone) if scan else backbone.trunk)(drop_rate=0.2)
    if trunk is None:
        return None
    if not charm:
        return Plain(trunk, backbone.expansion(), backbone.final, FINDINGS)
    select = partial(
        memory_bank.select, rule="norm_inlier", threshold=0.2, prevalence=(0.5,) * FINDINGS
    )
    return Charm(trunk, backbone.expansion(), MultiScaleAttention(), Head(FINDINGS), 5, select)


def new_state(name: str, model: Charm | Plain, side: int) -> state.TrainState:
    bank = None
    if isinstance(model, Charm):
        bank = memory_bank.empty(512, BACKBONES[name].feature_dim, FINDINGS)
    return state.create(model, jax.random.key(0), jnp.zeros((1, side, side, 3)), bank)


def forward_gflops(name: str, model: Charm | Plain) -> float:
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


def prepared(name: str, model: Charm | Plain, args: argparse.Namespace) -> tuple[Any, Any, float]:
    """State, compiled step and the seconds that compiling took."""
    optimizer = optim.adamw_one_cycle(1e-4, 1000)
    create = jax.jit(
        lambda: state.begin_stage(new_state(name, model, args.side), optimizer, jax.random.key(1)),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    first = create()
    step = jit_train_step(
        model=model,
        optimizer=optimizer,
        loss=LOSSES["bce"],
        augment=training_images,
        momentum_decay=0.99,
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
        for scan in (False, True):
            model = network(name, charm, scan)
            if model is None:
                continue
            key = ("charm" if charm else "plain") + ("_scanned" if scan else "")
            *variants[key], compile_s = prepared(name, model, args)
            result[key] = {"compile_s": compile_s, "step_ms": []}
            if not scan:
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
    def both(key: str, number: Any) -> str:
        scan = result.get(key + "_scanned")
        return f"{number(result[key])} / {number(scan) if scan else '-'}"

    key = "charm" if charm else "plain"
    values = result[key]
    compile_s = both(key, lambda v: f"{v['compile_s']:.1f}")
    step_ms = both(key, lambda v: f"{statistics.median(v['step_ms']):.0f}")
    return (
        f"| {name} | {'yes' if charm else 'no'} | {values['parameters'] / 1e6:.2f} | "
        f"{values['forward_gflops']:.2f} | {compile_s} | {step_ms} |"
    )


def main() -> None:
    args = arguments()
    jax.config.update("jax_enable_compilation_cache", False)
    print(
        f"| backbone | CHARM | parameters, 10⁶ | forward at {FLOPS_SIDE}², GFLOPs | compile, s, "
        f"plain loop / scanned | step at {args.side}², batch {args.batch}, ms, plain loop / "
        "scanned |\n| --- | --- | --- | --- | --- | --- |",
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
