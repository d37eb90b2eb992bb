"""Sentences on what limits an evaluation: leakage, unknown patients, uncalibrated scores."""

from charm_jax.metrics.result import EvaluationResult

DISCLAIMER = "Research software, not a medical device."


def leak(result: EvaluationResult) -> list[str]:
    """Return how many of the patients training and validation saw."""
    if result.trained_on_simulated is None:
        return ["It is not known what these weights were trained on."]
    sentences = []
    if result.leak_images or result.leak_of_all:
        sentences += [
            f"LEAK: {result.leak_images:,} of the {result.leak_of:,} abnormal images here are of "
            "patients that the run trained or validated on.",
            f"Of all {result.n_images:,} images {result.leak_of_all:,} are of such patients, and "
            f"{result.leak_seen:,} were themselves seen.",
        ]
    elif not result.patients_known:
        sentences.append(
            "The source does not tell patients apart, so it is not known whether training saw them."
        )
    elif result.began_from is None:
        sentences.append("Training and validation saw no image of these patients.")
    if result.abnormal_only:
        stages = " and ".join(result.abnormal_only)
        sentences.append(
            f"Stage {stages} trained on abnormal images alone, so it saw no normal image of anyone."
        )
    if result.began_from is not None:
        sentences.append(
            f"The run began from {result.began_from}; it is not known here what that was trained "
            "on."
        )
    return sentences


def bank(result: EvaluationResult) -> list[str]:
    """Return whether the memory bank holds evaluated images."""
    banks = {"the memory bank": result.bank}
    banks |= {f"the memory bank of {member.run}": member.bank for member in result.members}
    return [
        f"BANK: {held.images_here:,} of the {result.n_images:,} images here, or others of their "
        f"patients, are in {name} ({held.source}, split '{held.split}'), which gives their labels "
        "to the other images."
        for name, held in banks.items()
        if held is not None and held.images_here
    ]


def independence(result: EvaluationResult) -> list[str]:
    """Return what intervals assume where patients are unknown."""
    if result.patients_known:
        return []
    return [
        "Patients unknown: intervals assume independent images and are too narrow if they are not."
    ]


def patients(result: EvaluationResult) -> str:
    """Return the number of patients, where the source tells them apart."""
    return f"{result.n_patients:,} patients" if result.patients_known else "patients unknown"


def validation(result: EvaluationResult) -> str:
    """Return whose validation split was fitted on: weights without a run have none of their own."""
    if result.trained_on_simulated is None:
        return "the data's validation split"
    return "the runs' validation split" if result.members else "the run's validation split"


def external(result: EvaluationResult) -> list[str]:
    """Return what an external evaluation scores, and how unlike the run's validation it looks."""
    around = result.external
    if around is None:
        return []
    sentences = [
        f"Not the run's own images, labels and settings: {len(around.shared)} of its "
        f"{len(result.findings)} findings are labelled here and scored."
    ]
    if around.lacking:
        sentences.append(f"Not labelled here: {', '.join(around.lacking)}.")
    if around.unknown:
        sentences.append(f"Unknown to the run: {', '.join(around.unknown)}.")
    if around.ood is None:
        return [*sentences, "It is not known how many of these images are out-of-distribution."]
    counts = ", ".join(f"{reason} {n:,}" for reason, n in around.ood.by_reason.items() if n)
    sentences.append(
        f"{around.ood.n_images:,} of {result.n_images:,} images "
        f"({100 * around.ood.n_images / result.n_images:.1f} %) are out-of-distribution for the run"
        f"{f' ({counts})' if counts else ''}, against 0.5 % of its validation images in each "
        "measure."
    )
    return sentences


def notices(result: EvaluationResult) -> list[str]:
    """Return the notices above the results, a sentence or two each."""
    sentences = []
    if result.simulated:
        sentences.append(
            "SIMULATED images: drawn by a program, of no patient. The numbers do not carry over to "
            "X-rays."
        )
    elif result.trained_on_simulated:
        sentences.append("The network was trained on SIMULATED images.")
    clean = result.trained_on_simulated is not None and result.patients_known
    if not clean or result.leak_of_all or result.began_from is not None:
        sentences.append(" ".join(leak(result)))
    if result.external is not None:
        sentences.append(" ".join(external(result)))
    sentences += [*independence(result), *bank(result)]
    if result.images_missing:
        total = result.images_present + result.images_missing
        sentences.append(
            f"{result.images_missing:,} of the {total:,} images of the table are missing: the "
            f"numbers are of the {result.n_images:,} images of the split that are there."
        )
    if result.refused:
        sentences.append(f"{result.refused:,} image files were refused and not evaluated.")
    if result.calibration is None:
        sentences.append("Scores are not calibrated: they rank images and are not probabilities.")
    elif result.calibration.on_these_images:
        sentences.append(
            "Thresholds and temperatures were fitted on these images: threshold metrics are "
            "optimistic."
        )
    return sentences
