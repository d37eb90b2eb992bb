"""What has to be known of an evaluation before any of its numbers is read."""

from collections.abc import Mapping
from typing import Any

DISCLAIMER = "Research software, not a medical device."


def leak(metrics: Mapping[str, Any]) -> list[str]:
    """Say how many patients training and validation had seen."""
    if metrics["trained_on_simulated"] is None:
        return ["What these weights were trained on is not known here."]
    sentences = []
    if metrics["leak_images"] or metrics["leak_of_all"]:
        sentences += [
            f"LEAK: {metrics['leak_images']:,} of the {metrics['leak_of']:,} abnormal images here "
            "are of patients that the run trained or validated on.",
            f"Of all {metrics['n_images']:,} images {metrics['leak_of_all']:,} are of such "
            f"patients, and {metrics['leak_seen']:,} were themselves seen.",
        ]
    elif not metrics["patients_known"]:
        sentences.append(
            "The source does not tell patients apart: what training saw of them is not known."
        )
    elif metrics["began_from"] is None:
        sentences.append("Training and validation saw no abnormal image of these patients.")
    if metrics["began_from"] is not None:
        sentences.append(
            f"The run began from {metrics['began_from']}; what that was trained on is not known "
            "here."
        )
    return sentences


def bank(metrics: Mapping[str, Any]) -> list[str]:
    """Say whether the memory bank holds evaluated images."""
    held = metrics["bank"]
    if not held or not held["images_here"]:
        return []
    return [
        f"BANK: {held['images_here']:,} of the {metrics['n_images']:,} images here, or others of "
        f"their patients, are in the memory bank ({held['source']}, part '{held['split']}'), which "
        "gives their labels to the other images.",
    ]


def independence(metrics: Mapping[str, Any]) -> list[str]:
    """Say what intervals assume where patients are unknown."""
    if metrics["patients_known"]:
        return []
    return [
        "Patients unknown; intervals take the images for independent and are too narrow if they "
        "are not."
    ]


def patients(count: int, metrics: Mapping[str, Any]) -> str:
    """How many patients there are, where the source tells them apart."""
    return f"{count:,} patients" if metrics["patients_known"] else "patients unknown"


def validation(metrics: Mapping[str, Any]) -> str:
    """Whose validation part fits a calibration: weights without a run have none of their own."""
    owner = "the data's" if metrics["trained_on_simulated"] is None else "the run's"
    return f"{owner} validation part"


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Everything that makes the numbers say less than they seem to, a sentence each."""
    sentences = []
    if metrics["simulated"]:
        sentences.append(
            "SIMULATED images: drawn by a program, of no patient. No number here says anything of "
            "X-rays."
        )
    elif metrics["trained_on_simulated"]:
        sentences.append("The network was trained on SIMULATED images.")
    clean = metrics["trained_on_simulated"] is not None and metrics["patients_known"]
    if not clean or metrics["leak_of_all"] or metrics["began_from"] is not None:
        sentences.append(" ".join(leak(metrics)))
    sentences += [*independence(metrics), *bank(metrics)]
    if metrics["images_missing"]:
        present, missing = metrics["images_present"], metrics["images_missing"]
        sentences.append(
            f"{missing:,} of the {present + missing:,} images of the table are missing: these are "
            f"numbers of the {metrics['n_images']:,} images of the part that are there."
        )
    if metrics["refused"]:
        sentences.append(f"{metrics['refused']:,} image files were refused and not evaluated.")
    fitted = metrics["calibration"]
    if fitted is None:
        sentences.append("Scores are not calibrated: they rank images and are no probabilities.")
    elif fitted["on_these_images"]:
        sentences.append(
            "Thresholds and temperatures were fitted on these very images: what hangs on them is "
            "too good."
        )
    return sentences
