"""What a run keeps of its validation part for predictions: calibration and familiarity."""

import json
from functools import partial
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from charm_jax.config.cli import say
from charm_jax.distributed import mesh
from charm_jax.inference import explain, stored_calibration
from charm_jax.inference.loaded import Subject
from charm_jax.inference.rows import part_outputs
from charm_jax.metrics import ood
from charm_jax.models.baseline import Plain
from charm_jax.models.charm import Charm
from charm_jax.runs import data as run_data
from charm_jax.train.step import CompiledStep
from data_pipelines.atomic_files import whole_file
from data_pipelines.errors import InputError
from data_pipelines.loading import augment

FILE = "novelty.json"
Reference = dict[str, Any]


def load_or_fit(
    subject: Subject, own: ConfigDict, model: Charm | Plain
) -> tuple[Reference | None, Reference | None]:
    """The content of ``calibration.json`` and ``novelty.json``, of this network.

    What is missing or of another network or part is fitted, both on one pass over the validation
    part of the run's data. Where these are not there any more or cannot be read, nothing can be
    fitted, which is said.

    Args:
        subject: the network.
        own: the run's config.
        model: the network's module.

    Returns:
        Both, or None for what there is none of.
    """
    of_this = stored_calibration.identity(subject, own)
    calibrated, familiar = (
        stored_calibration.read_stored(subject.folder / name, of_this)
        for name in ("calibration.json", FILE)
    )
    if calibrated is not None and familiar is not None:
        return calibrated, familiar
    try:
        data, rows = stored_calibration.validation_part(subject, own)
        outputs = _outputs(subject, own, model, data, rows)
    except InputError as error:
        say(
            "warning: without the validation part scores are not calibrated or nothing is known to "
            f"be unfamiliar: {error}"
        )
        return calibrated, familiar
    familiar = of_this | ood.fit(ood.measures(outputs), outputs["thumbnail"])
    with whole_file(subject.folder / FILE) as file:
        # No line a number: there are some ten thousand.
        file.write(json.dumps(familiar, allow_nan=False) + "\n")
    calibrated = stored_calibration.load_or_fit(subject, own, data, lambda *_: outputs["logits"])
    return calibrated, familiar


def _outputs(
    subject: Subject, own: ConfigDict, model: Charm | Plain, data: run_data.Data, rows: np.ndarray
) -> dict[str, np.ndarray]:
    """What the network says of the validation images."""
    prepare = partial(augment.evaluation_images, channels=own.model.channels)
    step = CompiledStep(
        partial(explain.familiar_step, model=model, prepare=prepare), None, mesh.mesh()
    )
    known = subject.known(data.table)
    return part_outputs(subject.state, step, known, own, data, rows, "looking at validation")
