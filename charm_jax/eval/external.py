"""Put an evaluation of other images beside the run's evaluation of its own test images."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from charm_jax.inference.ensemble import Ensemble
from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics import ood
from charm_jax.metrics.result import EvaluationResult, External, OutOfDistribution, OwnTest
from charm_jax.runs.folder import read_json
from data_pipelines.errors import InputError
from data_pipelines.tables.findings import columns_of

_COPIED = ("source", "simulated", "split_sha256", "n_images", "n_patients", "patients_known")


def describe(
    model: LoadedModel | Ensemble,
    findings: tuple[str, ...],
    outputs: Mapping[str, np.ndarray],
    reference: Mapping[str, Any] | None,
) -> External:
    """Describe an external evaluation.

    Args:
        model: evaluated model of a run, or several.
        findings: names that the source labels.
        outputs: of the evaluation, with ``thumbnail``.
        reference: result of ``ood.fit`` on validation; None where nothing was fitted.
    """
    ours = model.pathologies
    shared = tuple(name for name, c in zip(ours, columns_of(ours, findings), strict=True) if c >= 0)
    theirs = zip(findings, columns_of(findings, ours), strict=True)
    return External(
        shared=shared,
        lacking=tuple(name for name in ours if name not in shared),
        unknown=tuple(name for name, column in theirs if column < 0),
        command=_command(model),
        own=_own_test(model, shared),
        ood=None if reference is None else _count(reference, outputs),
    )


def _command(model: LoadedModel | Ensemble) -> str:
    """Return the command that evaluates a model on the run's own test images."""
    members = model.members if isinstance(model, Ensemble) else (model,)
    words = [f"--run {member.run}" for member in members]
    words += [f"--checkpoint {model.checkpoint}"] if isinstance(model, LoadedModel) else []
    memory, first = members[0].provenance.get("memory"), members[0]
    words += [f"--memory {memory}"] if memory else []
    return " ".join(["charm-jax eval", *words, *["--tta"] * first.tta])


def _own_test(model: LoadedModel | Ensemble, shared: tuple[str, ...]) -> OwnTest | None:
    """Read the evaluation of the same weights and bank on the run's own test images."""
    path = model.folder / "eval/test/metrics.json"
    try:
        own = EvaluationResult.from_json(read_json(path))
    except (InputError, ValueError):
        return None
    if own.network_sha256 != model.network_sha256:
        return None
    return OwnTest(
        **{name: getattr(own, name) for name in _COPIED},
        findings={name: own.findings[name] for name in shared},
    )


def _count(reference: Mapping[str, Any], outputs: Mapping[str, np.ndarray]) -> OutOfDistribution:
    thumbnails = outputs["thumbnail"]
    percentiles = ood.judge(reference, ood.measures(outputs), thumbnails)
    reasons = ood.beyond(percentiles, thumbnails.std(axis=(1, 2)))
    return OutOfDistribution(
        n_images=int(np.any(list(reasons.values()), axis=0).sum()),
        by_reason={name: int(found.sum()) for name, found in reasons.items()},
        n_reference=reference["n_images"],
    )
