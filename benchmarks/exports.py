"""Export every family of backbones as StableHLO and ONNX: differences, sizes and times.

    python benchmarks/exports.py efficientnet_v2_s resnet50 … [--side 224] [--baseline] [--batch 1]

The weights are random, batch norms hold the statistics of a batch of noise, and the bank is full of
noise. Prints a row of a table for each network and format, times on 2 cores.
"""

import argparse
import functools
import os
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import charm_jax
from charm_jax.export import function, verified
from charm_jax.inference.fitted import Calibrator
from charm_jax.inference.loaded import LoadedModel
from charm_jax.models.charm import Cases
from charm_jax.models.state import TrainState
from data_pipelines.loading import augment
from data_pipelines.tables.findings import NIH_FINDINGS

RUNS = 10
SETTLED = 40  # batches after which running statistics are those of the noise


def make(name: str, side: int, folder: Path, *, charm: bool) -> LoadedModel:
    """Return a network without a run."""
    net, state = charm_jax.create_model(name, charm=charm, image_size=side, seed=1)
    random = np.random.default_rng(1)
    if state.memory is not None:
        slots = len(state.memory.case_ids)
        features = random.uniform(0, 1, state.memory.features.shape)
        state = state.replace(
            memory=state.memory.replace(
                features=jnp.asarray(features, jnp.float32),
                case_ids=jnp.arange(slots, dtype=jnp.int32),
                count=jnp.asarray(slots, jnp.int32),
            )
        )
    nobody = jnp.full((8,), -1, jnp.int32)
    cases = Cases(jnp.full((8, len(NIH_FINDINGS)), -1, jnp.int8), nobody, nobody)
    images = augment.evaluation_images(jnp.asarray(verified._images(64, 8))[..., None])

    @jax.jit
    def settle(stats: dict, state: TrainState, images: jax.Array) -> dict:
        variables = {"params": state.params, "batch_stats": stats}
        _, changed = net.apply(
            variables,
            images,
            cases,
            state.momentum,
            state.memory,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return changed["batch_stats"]

    stats = state.batch_stats
    for _ in range(SETTLED):
        stats = settle(stats, state, images)
    if state.momentum is not None:
        state = state.replace(momentum=state.momentum.replace(batch_stats=stats["expansion"]))
    path = folder / f"{name}.safetensors"
    given = {"pathologies": NIH_FINDINGS, "image_size": side, "input_range": "imagenet"}
    charm_jax.save_weights(state.replace(batch_stats=stats), path, retrieval_k=5, **given)
    return charm_jax.load(path).model


def milliseconds(call) -> float:
    call()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--baseline", action="store_true")
    parser.add_argument("--formats", nargs="+", default=list(verified.FORMATS))
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, JAX {jax.__version__}, {args.side} pixels, batch {args.batch}")
    for name in args.names:
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            model = make(name, args.side, folder, charm=not args.baseline)
            images = verified._images(args.side, args.batch)
            made = function.of_model(model, Calibrator(model.pathologies, None, None))
            ours = jax.jit(made).lower(images).compile()
            native = milliseconds(lambda call=ours, x=images: jax.block_until_ready(call(x)))
            for kind in args.formats:
                path, start = folder / f"model.{kind}", time.perf_counter()
                try:
                    found = verified.write(model, path, kind)
                except Exception as error:
                    print(f"| {name} | {kind} | FAILED: {str(error)[:300]} |", flush=True)
                    continue
                seconds = time.perf_counter() - start
                call = functools.partial(program(kind, path), images)
                shown = ", ".join(f"{key} {value:.1e}" for key, value in found.items())
                print(
                    f"| {name}{' baseline' if args.baseline else ''} | {kind} | {shown} "
                    f"| {path.stat().st_size / 1e6:.1f} | {native:.1f} | {milliseconds(call):.1f} "
                    f"| {seconds:.0f} |",
                    flush=True,
                )


def program(kind: str, path: Path):
    if kind == "stablehlo":
        read = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
        return lambda images: jax.block_until_ready(read(images))
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})


if __name__ == "__main__":
    main()
