"""Logits of a whole part, each image counted once."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import Array

from charm_jax.state import TrainState
from charm_jax.steps import Batch


def logits_of(
    state: TrainState,
    batches: Iterable[dict[str, np.ndarray]],
    eval_step: Callable[[TrainState, Batch], Array],
    case_ids: np.ndarray,
    on_batch: Callable[[int], None],
) -> np.ndarray:
    """Runs the network over padded batches.

    Args:
        state: of the run.
        batches: of ``evaluation_batches``, with ``mask`` False on padding.
        eval_step: jitted.
        case_ids: ``[n]`` ids of the part, in order.
        on_batch: told the number of images done in each batch.

    Returns:
        ``[n, F]`` float32 in the order of ``case_ids``.

    Raises:
        RuntimeError: an image was left out, repeated or out of order.
    """
    logits, seen = [], []
    for batch in batches:
        mask = batch["mask"]
        cases = {name: value for name, value in batch.items() if name != "mask"}
        logits.append(jax.device_get(eval_step(state, cases))[mask])
        seen.append(batch["case_id"][mask])
        on_batch(int(mask.sum()))
    if not np.array_equal(np.concatenate(seen), case_ids):
        raise RuntimeError("the images that were evaluated are not those of the part, each once")
    return np.concatenate(logits)
