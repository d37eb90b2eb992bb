"""Depthwise convolutions in two forms, forward and both gradients, on the device that is there.

    python benchmarks/depthwise.py --out FILE.json [--batch 64]

The grouped convolution is what a GPU runs (cuDNN's), the sum of shifted products what a CPU runs.
Shapes are those of EfficientNetV2-S at 224 pixels.
"""

import argparse
import json
import timeit
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from charm_jax.distributed import device
from charm_jax.models.create import compute_type
from charm_jax.models.layers import conv_cpu

# Side of the input, channels, strides.
SHAPES = ((28, 256, 2), (14, 512, 1), (14, 768, 1), (14, 960, 2), (7, 1536, 1))


def milliseconds(form: str, batch: int, side: int, channels: int, strides: int) -> float:
    """Return the best time of ten for output and gradients."""
    dtype = compute_type(*device.target())
    forms = {
        "grouped": partial(conv_cpu.native, strides=strides, groups=channels),
        "shifted": partial(conv_cpu.depthwise, strides=strides, dilation=1),
    }

    @jax.jit
    def run(x: jax.Array, kernel: jax.Array) -> object:
        y, back = jax.vjp(forms[form], x, kernel)
        return y, back(jnp.ones_like(y))

    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (batch, side, side, channels), dtype)
    kernel = jax.random.normal(keys[1], (3, 3, 1, channels), dtype)

    def once() -> None:
        jax.block_until_ready(run(x, kernel))

    once()
    return 1e3 * min(timeit.repeat(once, number=1, repeat=10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of them")
    args = parser.parse_args()
    rows = []
    for shape in SHAPES[: args.shapes]:
        row = {"side": shape[0], "channels": shape[1], "strides": shape[2]}
        for form in ("grouped", "shifted"):
            row[form] = milliseconds(form, args.batch, *shape)
        rows.append(row)
        print(json.dumps(row), flush=True)
    result = {"device": jax.devices()[0].device_kind, "batch": args.batch, "milliseconds": rows}
    args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
