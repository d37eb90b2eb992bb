"""Run a model over rows of a data set, each image once."""

import collections
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from charm_jax.config.settings import Settings
from charm_jax.distributed import mesh, processes
from charm_jax.inference.steps import LARGE
from charm_jax.models.state import TrainState
from charm_jax.runs.cases import CaseMatch
from charm_jax.runs.data import Data
from data_pipelines.loading import loader
from data_pipelines.progress import progress


def largest_batch(settings: Settings) -> int:
    """Return the largest batch of training, rounded up to what the devices can share.

    All evaluations of a run have it, so that one compiled program serves them.
    """
    batch = max(settings.stages[name].batch_size for name in settings.stage_names)
    return batch + -batch % jax.device_count()


def predict_rows(
    state: TrainState,
    step: Callable[[TrainState, dict[str, np.ndarray]], dict[str, Any]],
    data: Data,
    rows: np.ndarray,
    batch_size: int,
    title: str,
    *,
    match: CaseMatch | None = None,
    resident: bool = False,
    large: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Run a compiled step over rows of a data set, with a progress bar.

    Args:
        state: network and bank; the optimizer's state is left out.
        step: compiled, such as ``jit_eval_step``.
        batch_size: images in a batch over all processes, a multiple of the number of devices.
        title: text of the progress bar.
        match: ids of the table's rows in the memory bank, if they differ.
        resident: whether the images are on the device; then only their ids are sent.
        large: names of ``LARGE`` to return as well.

    Returns:
        The step's outputs, ``[n, ...]`` each, in the order of ``rows``.

    Raises:
        InputError: an image has become unreadable.
        RuntimeError: an image was left out, repeated or out of order.
    """

    def matched(state: TrainState, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        ids = batch["case_id"]
        return step(
            state,
            batch | {"case_id": match.case_ids[ids], "patient_id": match.patient_ids[ids]},
        )

    with progress(total=len(rows), desc=title, unit="images") as bar:
        return predict_batches(
            mesh.replicated(state.replace(opt_state=()), mesh.mesh()),
            step if match is None else matched,
            _batches(data, rows, batch_size, resident=resident),
            rows,
            bar.update if processes.is_first() else lambda count: None,
            large,
        )


def predict_batches(
    state: TrainState,
    step: Callable[[TrainState, dict[str, np.ndarray]], dict[str, Any]],
    batches: Iterable[dict[str, np.ndarray]],
    case_ids: np.ndarray,
    on_batch: Callable[[int], None],
    large: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Run a step over padded batches.

    Args:
        batches: this process's share, with ``mask`` False on padding.
        case_ids: ``[n]`` expected ids, in order.
        on_batch: receives the number of images in each batch.
        large: as in ``predict_rows``.

    Returns:
        The step's outputs, ``[n, ...]`` each, in the order of ``case_ids``.

    Raises:
        RuntimeError: an image was left out, repeated or out of order.
    """
    outputs, seen, pending = [], [], collections.deque()
    left = set(LARGE) - set(large)

    def settle(leave: int) -> None:
        while len(pending) > leave:
            output, mask = pending.popleft()
            read = jax.device_get({n: value for n, value in output.items() if n not in left})
            outputs.append({name: value[mask] for name, value in read.items()})
            on_batch(int(mask.sum()))

    for batch in batches:
        mask = processes.all_gather(batch["mask"])
        seen.append(processes.all_gather(batch["case_id"])[mask])
        images = {name: value for name, value in batch.items() if name != "mask"}
        pending.append((step(state, images), mask))
        settle(1)  # One batch stays in flight, so that reading the outputs never stalls the device.
    settle(0)
    if not np.array_equal(np.concatenate(seen), case_ids):
        raise RuntimeError("an image was left out, repeated or out of order in the evaluation")
    return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}


def _batches(
    data: Data, rows: np.ndarray, batch_size: int, *, resident: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Yield this process's share of each batch, padded, with ``mask`` False on padding."""
    process = {"process": jax.process_index(), "processes": jax.process_count()}
    if resident:
        return loader.evaluation_ids(rows, batch_size=batch_size, **process)
    return loader.evaluation_batches(
        data.table,
        rows,
        image_size=data.settings.image_size,
        batch_size=batch_size,
        workers=data.settings.processes,
        **process,
    )
