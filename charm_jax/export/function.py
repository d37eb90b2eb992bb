"""Make one function of a trained model: grey images in, scores and what they rest on out."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from charm_jax.inference.fitted import Calibrator
from charm_jax.inference.loaded import LoadedModel
from charm_jax.inference.steps import variables_of
from charm_jax.models.charm import Cases
from data_pipelines.loading import augment

OUTPUTS = ("scores", "logits", "attention", "slots", "similarities")
Function = Callable[[Array], dict[str, Array]]


def of_model(model: LoadedModel, calibrator: Calibrator) -> Function:
    """Return a pure function of uint8 images ``[n, side, side]`` with the weights and bank inside.

    Returns:
        A function that returns ``scores`` ``[n, F]``, calibrated as ``Calibrator.scores`` has them,
        and ``logits`` ``[n, F]``; of a network with fusion ``attention`` ``[n, h, w]``; of one with
        a bank ``slots`` ``[n, k]``, those that were read, the best match first and -1 for none, and
        their ``similarities`` ``[n, k]``.
    """
    keys, state = model.settings.model, model.state
    variables = variables_of(state)
    temperatures = jnp.asarray(_temperatures(calibrator))

    def predict(images: UInt8[Array, "n side side"]) -> dict[str, Array]:
        pixels = augment.evaluation_images(images[..., None], keys.channels, keys.input_range)
        # Nobody's: no stored case is left out.
        unknown = jnp.zeros(images.shape[:1], jnp.int32) - 1
        labels = jnp.zeros((images.shape[0], len(model.pathologies)), jnp.int8) - 1
        cases = Cases(labels, unknown, unknown)
        output = model.network.apply(
            variables, pixels, cases, state.momentum, state.memory, train=False
        )
        made = {
            "scores": jax.nn.sigmoid(output.logits / temperatures.reshape(1, -1)),
            "logits": output.logits,
        }
        if output.attention is not None:
            made["attention"] = output.attention[..., 0]
        if output.retrieved is not None and output.retrieved.indices.shape[1]:
            read = output.retrieved
            made["slots"] = jnp.where(read.valid, read.indices, -1)
            made["similarities"] = read.similarities
        return made

    return predict


def _temperatures(calibrator: Calibrator) -> np.ndarray:
    """Return the divisor of each logit; 1 for a finding without a temperature."""
    entries: Mapping = {} if calibrator.calibration is None else calibrator.calibration["findings"]
    found = [entries.get(name, {}).get("temperature") for name in calibrator.findings]
    return np.array([1.0 if value is None else value for value in found], np.float32)
