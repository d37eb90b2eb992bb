"""Evaluate the members of an ensemble, and what their mean gains over each of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from charm_jax.inference import fitted, loaded, overlap
from charm_jax.inference.ensemble import Ensemble
from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics import classification, intervals
from charm_jax.metrics.intervals import ConfidenceIntervals, EvalSet
from charm_jax.metrics.result import BankSource, Comparison, Member
from charm_jax.runs.cases import CaseMatch
from charm_jax.runs.data import Data
from data_pipelines.errors import InputError

Outputs = dict[str, np.ndarray]


def match_unseen(
    model: LoadedModel | Ensemble, data: Data, rows: Int[np.ndarray, " n"], split: str
) -> list[CaseMatch]:
    """Match the images with the cases of the model, or of each member.

    Raises:
        InputError: one of them saw patients of a test split that should be disjoint from training.
    """
    members = model.members if isinstance(model, Ensemble) else (model,)
    matches = []
    for member in members:
        match = overlap.by_pixels(member, data, rows, member.match_cases(data.table))
        is_member = len(members) > 1
        loaded.check_unseen(match, rows, data.split.rule, split, member, is_member=is_member)
        matches.append(match)
    return matches


def any_seen(matches: Sequence[CaseMatch]) -> CaseMatch:
    """Return the first match, with what any of them saw as seen."""
    first = matches[0]
    return CaseMatch(
        case_ids=first.case_ids,
        patient_ids=first.patient_ids,
        patient_seen=np.any([match.patient_seen for match in matches], axis=0),
        image_seen=np.any([match.image_seen for match in matches], axis=0),
    )


def predict(
    model: LoadedModel | Ensemble,
    data: Data,
    rows: Int[np.ndarray, " n"],
    title: str,
    large: Sequence[str] = (),
) -> tuple[Outputs, list[Outputs]]:
    """Run a model on rows of a data set.

    Returns:
        Its outputs, which are mean logits alone for an ensemble, and those of each member.
    """
    if isinstance(model, LoadedModel):
        outputs = model.predict_rows(data, rows, title, large=large)
        return outputs, [outputs]
    triples = zip(model.members, model.names, model.data_of(data), strict=True)
    each = [member.predict_rows(own, rows, f"{title}, {name}") for member, name, own in triples]
    names = ("logits", "single_view") if "single_view" in each[0] else ("logits",)
    return {name: model.average([outputs[name] for outputs in each]) for name in names}, each


def compare(
    model: LoadedModel | Ensemble,
    evaluated: EvalSet,
    each: Sequence[Mapping[str, np.ndarray]],
    matches: Sequence[CaseMatch],
    rows: Int[np.ndarray, " n"],
    method: dict[str, str],
) -> dict[str, Any]:
    """Describe the members of an ensemble, with its differences from each.

    Args:
        evaluated: mean logits and labels.
        each: outputs of the members.
        matches: cases of the table as the members know them.
        rows: evaluated rows.
        method: of the intervals, by metric.

    Returns:
        ``members`` of the result; nothing for a single model.
    """
    if isinstance(model, LoadedModel):
        return {}
    drawn = ConfidenceIntervals(evaluated, method["auroc"])
    scores = [_validation_auroc(member) for member in model.members]
    known = [score for score in scores if score is not None]
    # Scores on different images do not tell which run is best.
    best = max(known, default=None) if model.shares_validation else None
    found = []
    for member, outputs, match, score, size in zip(
        model.members, each, matches, scores, model.sizes, strict=True
    ):
        held, run = member.describe_bank(match, rows), member.run.as_posix()
        found.append(
            Member(
                run=run,
                checkpoint=member.checkpoint,
                network_sha256=member.network_sha256,
                image_size=size,
                memory=member.memory,
                bank=None if held is None else BankSource(**held),
                validation_auroc=score,
                best=score is not None and score == best,
                compared=_difference(
                    evaluated, outputs["logits"], run, member.checkpoint, method, drawn
                ),
            )
        )
    return {"members": tuple(found)}


def _validation_auroc(member: LoadedModel) -> float | None:
    """Return the macro AUROC on a member's own validation split; None where it cannot be read."""
    try:
        own = fitted.load_validation(member)
    except InputError:
        return None
    return classification.summarise(own.logits, own.labels, member.pathologies)["macro_auroc"]


def compare_views(
    evaluated: EvalSet,
    outputs: Mapping[str, np.ndarray],
    checkpoint: str,
    method: dict[str, str],
) -> Comparison:
    """Compute the differences of test-time augmentation from the images as they are.

    Args:
        evaluated: mean logits over the views, and labels.
        outputs: with ``single_view``, the logits of the images as they are.
        checkpoint: of the model.
        method: of the intervals, by metric.
    """
    single = outputs["single_view"]
    return _difference(evaluated, single, "the single view", checkpoint, method, None)


def _difference(
    ours: EvalSet,
    theirs: Float[np.ndarray, "n findings"],
    name: str,
    checkpoint: str,
    method: dict[str, str],
    drawn: ConfidenceIntervals | None,
) -> Comparison:
    macro, findings = intervals.compare(ours, theirs, method["auroc"], drawn)
    return Comparison(
        run=name, checkpoint=checkpoint, interval_method=method, macro=macro, findings=findings
    )
