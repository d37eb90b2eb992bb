"""Write a model as one program, and only if its outputs are JAX's."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import UInt8

from charm_jax import __version__
from charm_jax.distributed import device
from charm_jax.export import function
from charm_jax.export.function import Function
from charm_jax.inference import fitted
from charm_jax.inference.loaded import LoadedModel
from charm_jax.models.layers.conv import plain_forms
from charm_jax.report.provenance import DISCLAIMER
from charm_jax.runs.checkpoints import network_sha256
from charm_jax.runs.folder import write_json
from charm_jax.weights.card import beside, sha256
from data_pipelines.atomic_files import whole_path
from data_pipelines.errors import InputError

BATCHES = (1, 3, 64)
TOLERANCE = 1e-4
_PLATFORMS = ("cpu", "cuda")
_ONNX = 'onnx needs more packages: pip install "charm-jax[onnx]".'

Outputs = dict[str, np.ndarray]
Program = Callable[[UInt8[np.ndarray, "n side side"]], Outputs]


def write(model: LoadedModel, target: Path, kind: str) -> dict[str, float]:
    """Write a program and, as JSON beside it, what its numbers mean and how it was compared.

    Args:
        model: of a run or portable.
        target: new file.
        kind: key of ``FORMATS``.

    Returns:
        The largest absolute difference from JAX of each output.

    Raises:
        InputError: an output differs by more than ``TOLERANCE`` from JAX's, this process computes
            on a GPU, or a package is missing. Then there is no file.
    """
    if device.target()[0] != "cpu":
        raise InputError(
            "An export is compared with float32 on a CPU: set JAX_PLATFORMS=cpu and run it again."
        )
    calibrator = fitted.load_calibrator(model)
    made, side = function.of_model(model, calibrator), model.settings.data.image_size
    images = _images(side, max(BATCHES))
    reference = jax.device_get(jax.jit(made)(images))
    reference = {name: reference[name] for name in function.OUTPUTS if name in reference}
    with whole_path(target) as draft:
        program = FORMATS[kind](made, tuple(reference), side, draft)
        differences = {batch: _differences(reference, program(images[:batch])) for batch in BATCHES}
        for batch, by_output in differences.items():
            worst = max(by_output, key=by_output.__getitem__)
            if not by_output[worst] <= TOLERANCE:
                raise InputError(
                    f"{target} is not written, since its {worst} would differ from JAX's by "
                    f"{by_output[worst]:.2g} in a batch of {batch}, more than {TOLERANCE:g}: "
                    "choose another --format."
                )
        write_json(
            beside(target),
            _about(model, calibrator, reference)
            | {
                "format": kind,
                "sha256": sha256(draft),
                "tolerance": TOLERANCE,
                "differences": {str(batch): found for batch, found in differences.items()},
            },
        )
    return {name: max(found[name] for found in differences.values()) for name in reference}


def _about(
    model: LoadedModel, calibrator: fitted.Calibrator, outputs: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    limits = [None if np.isnan(limit) else float(limit) for limit in calibrator.thresholds()]
    return {
        "charm_jax": __version__,
        "note": DISCLAIMER,
        "trained_on_simulated": model.provenance["trained_on_simulated"],
        "checkpoint": model.checkpoint,
        "network_sha256": network_sha256(model.state),
        "findings": list(model.pathologies),
        "thresholds": dict(zip(calibrator.findings, limits, strict=True)),
        "uncalibrated": calibrator.uncalibrated(),
        "image_size": model.settings.data.image_size,
        "value_range": model.settings.data.value_range,
        "outputs": {
            name: {"shape": ["n", *value.shape[1:]], "type": str(value.dtype)}
            for name, value in outputs.items()
        },
    }


def _images(side: int, n: int) -> UInt8[np.ndarray, "n side side"]:
    """Draw images of blocks with noise."""
    random = np.random.default_rng(0)
    blocks = np.kron(random.uniform(0, 255, (n, 8, 8)), np.ones((1, side // 8 + 1, side // 8 + 1)))
    return (0.7 * blocks[:, :side, :side] + random.uniform(0, 76, (n, side, side))).astype(np.uint8)


def _differences(reference: Outputs, found: Outputs) -> dict[str, float]:
    """Return the largest absolute difference of each output; of slots, how many others are read.

    Another slot of the same similarity is as good.
    """
    made = {}
    for name, values in found.items():
        expected = reference[name][: len(values)]
        apart = np.abs(values.astype(np.float64) - expected)
        if name == "slots":
            close = np.abs(found["similarities"] - reference["similarities"][: len(values)])
            apart = (apart > 0) & ~(close <= TOLERANCE)
            made[name] = float(apart.sum())
        else:
            made[name] = float(apart.max())
    return made


def _stablehlo(made: Function, names: tuple[str, ...], side: int, path: Path) -> Program:
    """Write what ``jax.export.deserialize`` reads, with any batch size."""
    images = jax.ShapeDtypeStruct((*export.symbolic_shape("n"), side, side), jnp.uint8)
    program = export.export(jax.jit(made), platforms=_PLATFORMS)(images)
    path.write_bytes(program.serialize())
    read = export.deserialize(bytearray(path.read_bytes()))
    return lambda images: jax.device_get(read.call(images))


def _onnx(made: Function, names: tuple[str, ...], side: int, path: Path) -> Program:
    try:
        with _quiet():
            import jax2onnx
            import onnx
            import onnxruntime
    except ImportError as error:
        raise InputError(f"{error.name} is not installed, and {_ONNX}") from None

    def in_order(images: jax.Array) -> tuple[jax.Array, ...]:
        outputs = made(images)
        return tuple(outputs[name] for name in names)

    images = jax.ShapeDtypeStruct((*export.symbolic_shape("n"), side, side), jnp.uint8)
    with _quiet(), plain_forms():
        program = jax2onnx.to_onnx(
            in_order,
            [images],
            model_name="charm_jax",
            input_names=["images"],
            output_names=list(names),
        )
    onnx.save(program, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: dict(
        zip(names, session.run(list(names), {"images": images}), strict=True)
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converter's own notices to itself."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


FORMATS = {"stablehlo": _stablehlo, "onnx": _onnx}
