"""What a bank does on a part, and what another one changes there."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from charm_jax.inference import explain
from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics.classification import summarise
from charm_jax.models.charm import Cases
from charm_jax.models.memory_bank import MemoryBank
from charm_jax.runs.data import Data


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A part as the bank meets it.

    Attributes:
        images: ``[n]`` names.
        labels: ``[n, F]``.
        fused: ``[n, D]`` features q.
        case_ids: ``[n]`` in the bank's table; -1 for none.
        patient_ids: ``[n]`` likewise.
        findings: names of the F findings.
    """

    images: np.ndarray
    labels: np.ndarray
    fused: np.ndarray
    case_ids: np.ndarray
    patient_ids: np.ndarray
    findings: tuple[str, ...]


def embed(model: LoadedModel, data: Data, rows: np.ndarray) -> Embedded:
    """Run the heavy part of the network over some rows, once for any number of banks.

    Args:
        model: the network.
        data: that the rows are of.
        rows: ``[n]``.
    """
    match = model.match_cases(data.table)
    outputs = model.predict_rows(data, rows, "reading images", model.compile(explain.embed_step))
    return Embedded(
        images=data.table.images[rows],
        labels=data.table.labels[rows],
        fused=outputs["fused"],
        case_ids=match.case_ids[rows],
        patient_ids=match.patient_ids[rows],
        findings=data.table.findings,
    )


def read(model: LoadedModel, memory: MemoryBank, part: Embedded) -> dict[str, np.ndarray]:
    """Logits of a part with a bank; ``cases`` ``[n, k]`` are the ids that were read, -1 for none.

    Similarities are those of ``read_step``.
    """
    cases = Cases(
        labels=jnp.asarray(part.labels),
        case_ids=jnp.asarray(part.case_ids, jnp.int32),
        patient_ids=jnp.asarray(part.patient_ids, jnp.int32),
    )
    step = model.jit(explain.read_step)
    outputs = jax.device_get(step(model.state, memory, jnp.asarray(part.fused), cases))
    ids = np.asarray(memory.case_ids)[outputs["slots"]]
    return outputs | {"cases": np.where(outputs["valid"], ids, -1)}


def changes(
    before: dict[str, np.ndarray], after: dict[str, np.ndarray], part: Embedded
) -> dict[str, Any]:
    """Compare the predictions with two banks.

    Args:
        before: of ``read``.
        after: likewise, with the other bank.
        part: that both are of.

    Returns:
        Counts of images, logits' changes and AUROCs, ready for JSON.
    """
    moved = np.abs(after["logits"] - before["logits"])
    other = [
        set(a.tolist()) != set(b.tolist())
        for a, b in zip(before["cases"], after["cases"], strict=True)
    ]
    scores = [summarise(z["logits"], part.labels, part.findings) for z in (before, after)]
    return {
        "images": len(part.images),
        "images_that_read_other_cases": int(np.sum(other)),
        "largest_change_of_a_logit": float(moved.max()),
        "mean_change_of_a_logit": float(moved.mean()),
        "macro_auroc": [score["macro_auroc"] for score in scores],
        "auroc": {
            name: [score["findings"][name]["auroc"] for score in scores] for name in part.findings
        },
    }


def times_read(cases: np.ndarray) -> dict[int, int]:
    """How many images read each case.

    Args:
        cases: ``[n, k]`` of ``read``.
    """
    seen = [case for row in cases.tolist() for case in set(row) if case >= 0]
    ids, counts = np.unique(np.array(seen, np.int64), return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def text(changed: dict[str, Any], part: str, simulated: bool) -> str:
    """Format the changes as a table.

    Args:
        changed: of ``changes``.
        part: name of the part.
        simulated: whether its images are.
    """
    images = "SIMULATED images" if simulated else "images"
    lines = [
        f"On the {changed['images']:,} {images} of '{part}': "
        f"{changed['images_that_read_other_cases']:,} read other cases, logits change by "
        f"{changed['mean_change_of_a_logit']:.4f} in the mean and "
        f"{changed['largest_change_of_a_logit']:.4f} at most.",
        "",
    ]
    rows = [*changed["auroc"].items(), ("macro", changed["macro_auroc"])]
    width = max(20, *(len(name) for name, _ in rows))
    lines.append(f"{'AUROC':<{width}} {'before':>7} {'after':>7} {'change':>8}")
    return "\n".join([*lines, *(_row(name, values, width) for name, values in rows)])


def _row(name: str, values: Sequence[float | None], width: int) -> str:
    before, after = values
    if before is None or after is None:
        return f"{name:<{width}} {'-':>7} {'-':>7} {'-':>8}"
    return f"{name:<{width}} {before:>7.4f} {after:>7.4f} {after - before:>+8.4f}"
