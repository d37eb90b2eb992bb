"""Read a split with one memory bank or another, and compare the predictions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from charm_jax.inference import explain
from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics.classification import summarise
from charm_jax.models.charm import Cases
from charm_jax.models.memory_bank import MemoryBank
from charm_jax.runs.data import Data


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Hold the features of a split, with which any bank can be read.

    Attributes:
        images: names.
        fused: features q, ``[n, D]``.
        stored: what a bank keeps of each image, ``[n, D]``.
        cases: labels, and ids in the bank's table; -1 for none.
    """

    images: np.ndarray
    findings: tuple[str, ...]
    fused: jax.Array
    stored: jax.Array
    cases: Cases


def describe(model: LoadedModel, command: str) -> dict[str, Any]:
    """Describe a new bank: what made it, and the checkpoint and findings it belongs to."""
    findings = list(model.pathologies)
    return {"made_by": command, "checkpoint": model.checkpoint, "findings": findings}


def embed(model: LoadedModel, data: Data, rows: np.ndarray) -> Embedded:
    """Compute the features of some rows: the expensive part, shared by all banks."""
    match = model.match_cases(data.table)
    outputs = model.predict_rows(data, rows, "reading images", large=("fused", "stored"))
    return Embedded(
        images=data.table.images[rows],
        findings=data.table.findings,
        fused=jnp.asarray(outputs["fused"]),
        stored=jnp.asarray(outputs["stored"]),
        cases=Cases(
            labels=jnp.asarray(data.table.labels[rows]),
            case_ids=jnp.asarray(match.case_ids[rows]),
            patient_ids=jnp.asarray(match.patient_ids[rows]),
        ),
    )


def read(model: LoadedModel, memory: MemoryBank, split: Embedded) -> dict[str, np.ndarray]:
    """Compute what ``read_step`` returns for a split, on the host."""
    step = model.jit(explain.read_step)
    return jax.device_get(step(model.state, memory, split.fused, split.cases))


def times_read(cases: np.ndarray) -> dict[int, int]:
    """Count the images that read each case, from the ``cases`` ``[n, k]`` of ``read``."""
    seen = [case for row in cases.tolist() for case in set(row) if case >= 0]
    return pd.Series(seen, dtype=np.int64).value_counts().to_dict()


def compare(
    before: dict[str, np.ndarray], after: dict[str, np.ndarray], split: Embedded, title: str
) -> str:
    """Describe how the predictions differ between two results of ``read``.

    Args:
        title: description of the images.
    """
    moved = np.abs(after["logits"] - before["logits"])
    pairs = zip(before["cases"].tolist(), after["cases"].tolist(), strict=True)
    others = sum(set(one) != set(two) for one, two in pairs)
    labels = np.asarray(split.cases.labels)
    scores = [summarise(outputs["logits"], labels, split.findings) for outputs in (before, after)]
    aurocs = {name: [s["findings"][name]["auroc"] for s in scores] for name in split.findings}
    aurocs["macro"] = [score["macro_auroc"] for score in scores]
    table = pd.DataFrame.from_dict(aurocs, "index", dtype=float, columns=["before", "after"])
    table["change"] = table["after"] - table["before"]
    shown = table.rename_axis(columns="AUROC").to_string(
        na_rep="-", float_format="{:.4f}".format, formatters={"change": "{:+.4f}".format}
    )
    return (
        f"On {len(split.images):,} {title}: {others:,} read other cases; logits change by "
        f"{moved.mean():.4f} on average and by {moved.max():.4f} at most.\n\n{shown}"
    )
