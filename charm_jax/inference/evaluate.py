"""What the network says of a whole part, each image counted once."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import Array

from charm_jax.distributed.processes import whole
from charm_jax.models.state import TrainState
from charm_jax.train.step import Batch


def evaluate(
    state: TrainState,
    batches: Iterable[dict[str, np.ndarray]],
    eval_step: Callable[[TrainState, Batch], dict[str, Array]],
    case_ids: np.ndarray,
    on_batch: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """Runs the network over padded batches.

    Args:
        state: of the run.
        batches: of ``evaluation_batches``, with ``mask`` False on padding; this process's share.
        eval_step: jitted.
        case_ids: ``[n]`` ids of the part, in order.
        on_batch: told the number of images done in each batch.

    Returns:
        The step's outputs, ``[n, ...]`` each, in the order of ``case_ids``.

    Raises:
        RuntimeError: an image was left out, repeated or out of order.
    """
    outputs, seen = [], []
    for batch in batches:
        mask = whole(batch["mask"])
        cases = {name: value for name, value in batch.items() if name != "mask"}
        output = jax.device_get(eval_step(state, cases))
        outputs.append({name: value[mask] for name, value in output.items()})
        seen.append(whole(batch["case_id"])[mask])
        on_batch(int(mask.sum()))
    if not np.array_equal(np.concatenate(seen), case_ids):
        raise RuntimeError("the images that were evaluated are not those of the part, each once")
    return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}
