"""Compile the steps for GPUs that this machine lacks, and count what the programs do.

    pip install -e . "jax[cuda12]"      # the wheels alone, 2 GB: no GPU and no driver
    python benchmarks/compiles_for_gpu.py                   # print the table
    python benchmarks/compiles_for_gpu.py --check           # compare it with compiled.json
    python benchmarks/compiles_for_gpu.py --write           # after a change that is meant to be

XLA takes the device from a description in ``gpus/``. What needs the device is left out: algorithms
and tile sizes are XLA's defaults and not the fastest of those tried. Network, batch and stage are
those of the published recipe. Each case takes one to five minutes on two cores.
"""

import argparse
import functools
import json
import math
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # else the plugin looks for a driver

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from charm_jax.config import recipe
from charm_jax.inference.steps import eval_step
from charm_jax.models import state
from charm_jax.models.create import Voting, compute_type, create_network, empty_bank
from charm_jax.models.losses import LOSSES
from charm_jax.train import optim
from charm_jax.train.step import train_step
from data_pipelines.loading import augment

HERE = Path(__file__).parent
GOLDEN = HERE / "compiled.json"
FINDINGS = 14
GROWTH = 1.2  # of bytes or kernels, which --check accepts
LAUNCH = 4e-6  # seconds between the starts of two kernels, where nothing hides them

# Dense FLOP/s of the matrix units in bfloat16 (of older ones in float32), by the data sheets.
FLOPS = {"h100": 989e12, "a100": 312e12, "t4": 8.1e12, "v100": 15.7e12, "p100": 10.6e12}

# What the compiler leaves in a program as one start of a kernel or more.
KERNELS = ("fusion", "custom-call", "copy", "sort", "scatter", "reduce", "transpose", "broadcast")

# Name: device, number of them, kind of step, network.
CASES = {
    "train, H100": ("h100", 1, "bce", "efficientnet_v2_s"),
    "train frozen, H100": ("h100", 1, "frozen", "efficientnet_v2_s"),
    "train without memory, H100": ("h100", 1, "none", "efficientnet_v2_s"),
    "train vote of 2,048, H100": ("h100", 1, "vote 2048", "efficientnet_v2_s"),
    "train vote of 75,966, H100": ("h100", 1, "vote 75966", "efficientnet_v2_s"),
    "evaluate, H100": ("h100", 1, "eval", "efficientnet_v2_s"),
    "train, A100": ("a100", 1, "bce", "efficientnet_v2_s"),
    "train, 4 H100": ("h100", 4, "bce", "efficientnet_v2_s"),
    "train nano, H100": ("h100", 1, "bce", "efficientnet_v2_nano"),
    "train nano, 4 H100": ("h100", 4, "bce", "efficientnet_v2_nano"),
    "train nano, T4": ("t4", 1, "bce", "efficientnet_v2_nano"),
    "train nano, V100": ("v100", 1, "bce", "efficientnet_v2_nano"),
    "train nano, P100": ("p100", 1, "bce", "efficientnet_v2_nano"),
}


def lowered(name: str) -> tuple[Any, str]:
    """Lower a case; return it with the text of its device's description."""
    gpu, count, kind, backbone = CASES[name]
    description = (HERE / "gpus" / f"{gpu}.txtpb").read_text()
    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        topology=f"1x1x{count}",
        target_config=re.sub("#.*\n", "", description),
    )
    major = re.search(r"major: (\d+)(?: minor: (\d+))? }\n  reg", description)
    keys = recipe.defaults()
    votes = kind.startswith("vote")
    slots = int(kind.removeprefix("vote")) if votes else keys.model.bank_size
    model = create_network(
        backbone,
        num_classes=FINDINGS,
        charm=kind != "none",
        fusion=not votes,
        voting=Voting() if votes else None,
        dtype=compute_type("cuda", f"{major[1]}.{major[2] or 0}"),
    ).clone(freeze_trunk=kind == "frozen")
    stage = keys.stages.bce
    rates = optim.geometric(stage.peak_lr / stage.lr_spread, stage.peak_lr)
    optimizer = optim.adamw_one_cycle(rates, 10_000)
    side, n = keys.data.image_size, stage.batch_size

    def make(key: jax.Array) -> state.TrainState:
        bank = empty_bank(model, backbone, slots)
        new = state.create(model, key, jnp.zeros((1, side, side, 3)), bank)
        return state.begin_stage(new, optimizer, key, freeze_trunk=model.freeze_trunk)

    now = jax.eval_shape(make, jax.random.key(0))
    batch = {
        "image": jax.ShapeDtypeStruct((n, side, side, 1), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((n, FINDINGS), jnp.int8),
        "case_id": jax.ShapeDtypeStruct((n,), jnp.int32),
        "patient_id": jax.ShapeDtypeStruct((n,), jnp.int32),
    }
    train = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        loss=LOSSES[stage.loss],
        augment=augment.training_images,
        momentum_step=1 - keys.model.momentum,
    )
    evaluate = partial(eval_step, model=model, prepare=augment.evaluation_images)
    step, donated = (evaluate, ()) if kind == "eval" else (train, 0)
    if count == 1:
        here = SingleDeviceSharding(topology.devices[0])
        return jax.jit(step, donate_argnums=donated).lower(put(now, here), put(batch, here)), gpu
    mesh = Mesh(topology.devices, ("data",), axis_types=(AxisType.Auto,))
    whole, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    jitted = jax.jit(step, donate_argnums=donated, out_shardings=whole)
    with jax.set_mesh(mesh):
        return jitted.lower(put(now, whole), put(batch, rows)), gpu


def put(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding), tree)


def facts(name: str, dump: Path | None) -> dict[str, Any]:
    """Compile a case and count what its program does."""
    program, gpu = lowered(name)
    # Optimising the code within kernels takes most of the time and changes no count.
    compiled = program.compile({"xla_backend_optimization_level": 0})
    text = compiled.as_text()
    if dump is not None:
        (dump / f"{name.replace(', ', '_').replace(' ', '_')}.hlo").write_text(text)
    kernels, collectives, moved = traffic(text)
    memory = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    description = (HERE / "gpus" / f"{gpu}.txtpb").read_text()
    bandwidth = int(re.search(r"memory_bandwidth: (\d+)", description)[1])
    work = flop(program.as_text()) / CASES[name][1]
    images, least = (
        recipe.defaults().stages.bce.batch_size,
        max(work / FLOPS[gpu], moved / bandwidth),
    )
    return {
        "kernels": kernels,
        "gigabytes": round(moved / 1e9, 2),
        "gigaflop": round(work / 1e9, 1),
        "temporary_mib": memory.temp_size_in_bytes >> 20,
        "peak_mib": (kept + memory.temp_size_in_bytes) >> 20,
        "collectives": collectives,
        "images_s": round(images / least),
        "images_s_launched": round(images / (least + LAUNCH * kernels)),
    }


class Operation(NamedTuple):
    """An operation of compiled HLO."""

    shape: str
    kind: str
    operands: list[str]
    calls: str


def computations(text: str) -> dict[str, dict[str, Operation]]:
    """Return the operations of each computation by name; the main one is ``ENTRY``."""
    found: dict[str, dict[str, Operation]] = {}
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line):
            current = found.setdefault("ENTRY" if head[1] else head[2], {})
        elif part := re.match(r"\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", line):
            name, shape, kind, rest = part.groups()
            inside, _, attributes = rest.partition(")")
            called = re.search(r"calls=%([\w.-]+)", attributes)
            operands = [inside] if kind == "parameter" else re.findall(r"%([\w.-]+)", inside)
            current[name] = Operation(shape, kind, operands, called[1] if called else "")
    return found


def traffic(text: str) -> tuple[int, int, int]:
    """Count kernels, collectives and the bytes that they read and write, of compiled HLO."""
    all_of = computations(text)
    main = all_of["ENTRY"]
    kernels, collectives, moved = 0, 0, 0
    for operation in main.values():
        exchanges = re.match("(all-|reduce-scatter|collective)", operation.kind)
        if operation.kind.endswith("-done"):
            continue
        if operation.kind.removesuffix("-start") in KERNELS or exchanges:
            kernels += 1
            collectives += bool(exchanges)
            shares = shares_read(all_of.get(operation.calls, {}))
            moved += bytes_of(written(operation))
            for i, operand in enumerate(operation.operands):
                moved += round(shares.get(i, 1.0) * bytes_of(written(main[operand])))
    return kernels, collectives, moved


def written(operation: Operation) -> str:
    """Return the shape of a result without the library's own memory."""
    if operation.kind == "custom-call" and operation.shape.startswith("("):
        return operation.shape.rpartition(", ")[0]
    return operation.shape


def shares_read(inside: dict[str, Operation]) -> dict[int, float]:
    """Return the share of each parameter that a fusion reads: less than 1 if it takes a slice."""
    users: dict[str, list[str]] = {}
    for name, operation in inside.items():
        for operand in operation.operands:
            users.setdefault(operand, []).append(name)

    @functools.cache
    def share(name: str) -> float:
        return min(1.0, sum(of_user(name, user) for user in users.get(name, []))) or 1.0

    def of_user(name: str, user: str) -> float:
        operation = inside[user]
        if operation.kind in ("slice", "dynamic-slice", "gather"):
            whole = bytes_of(inside[name].shape)
            return bytes_of(operation.shape) / whole if operation.operands[0] == name else 1.0
        return share(user) if operation.kind in ("convert", "bitcast", "reshape") else 1.0

    parameters = {name: op for name, op in inside.items() if op.kind == "parameter"}
    return {int(op.operands[0]): share(name) for name, op in parameters.items()}


def bytes_of(shape: str) -> int:
    """Return the bytes of an array or a tuple, such as ``(bf16[8,4]{1,0}, f32[])``."""
    total = 0
    for kind, bits, sides in re.findall(r"\b(pred|[a-z]+?)(\d*)\[([\d,]*)\]", shape):
        width = 1 if kind == "pred" else int(bits) // 8
        total += width * math.prod(int(side) for side in sides.split(",") if side)
    return total


def flop(text: str) -> int:
    """Count the operations of the convolutions and matrix products of StableHLO."""
    functions = re.split(r"\n  func\.func ", text)[1:]
    bodies = {re.search(r"@([\w.]+)", body)[1]: body for body in functions}

    @functools.cache
    def total(name: str) -> int:
        body = bodies[name]
        lines = body.splitlines()
        own = sum(of_convolution(line) for line in lines if "stablehlo.convolution" in line)
        own += sum(of_product(line) for line in lines if "stablehlo.dot_general" in line)
        return own + sum(total(called) for called in re.findall(r"call @([\w.]+)", body))

    return total("main")


def shapes_of(line: str) -> list[list[int]]:
    types = re.findall(r"tensor<((?:\d+x)*)\w+>", line.rpartition(" : ")[2])
    return [[int(side) for side in sides.split("x")[:-1]] for sides in types]


def of_convolution(line: str) -> int:
    _, kernel, result = shapes_of(line)
    labels = re.search(r"\]x\[(.*?)\]->", line)[1].split(", ")
    read = [side for label, side in zip(labels, kernel, strict=True) if label != "o"]
    dilated = [int(n) for n in re.search(r"lhs_dilate = \[(.*?)\]", line)[1].split(", ")]
    return 2 * math.prod(result) * math.prod(read) // math.prod(dilated)


def of_product(line: str) -> int:
    left, _, result = shapes_of(line)
    summed = re.search(r"contracting_dims = \[(.*?)\]", line)[1].split(", ")
    return 2 * math.prod(result) * math.prod(left[int(axis)] for axis in summed)


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| step (compiled, not run) | kernels | GB moved | GFLOP | temporary, MiB | peak, MiB | "
        "collectives | images/s at most, and with 4 µs a kernel |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, r in results.items():
        lines.append(
            f"| {name} | {r['kernels']:,} | {r['gigabytes']:.1f} | {r['gigaflop']:,.0f} | "
            f"{r['temporary_mib']:,} | {r['peak_mib']:,} | {r['collectives']} | "
            f"{r['images_s']:,}, {r['images_s_launched']:,} |"
        )
    return "\n".join(lines)


def growth(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Return what grew by more than is accepted."""
    return [
        f"{key} {then[key]} -> {now[key]}"
        for key in ("kernels", "gigabytes", "collectives")
        if now[key] > GROWTH * then[key]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--out", type=Path, help="JSON file to add the results to")
    parser.add_argument("--dump", type=Path, help="folder for the compiled programs")
    parser.add_argument("--check", action="store_true", help="fail where something grew by 20 %%")
    parser.add_argument("--write", action="store_true", help="store the results as those to keep")
    args = parser.parse_args()
    out = GOLDEN if args.write else args.out
    golden = json.loads(GOLDEN.read_text()) if args.check else {}
    results = json.loads(out.read_text()) if out is not None and out.exists() else {}
    grown = []
    for name in args.only:
        results[name] = facts(name, args.dump)
        print(name, json.dumps(results[name]), flush=True)
        grown += [
            f"{name}: {text}" for text in growth(results[name], golden.get(name, results[name]))
        ]
        if out is not None:
            out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    print("\n".join(grown), file=sys.stderr)
    return bool(grown)


if __name__ == "__main__":
    raise SystemExit(main())
