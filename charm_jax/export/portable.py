"""Write a portable model: a folder that works without its run."""

import copy
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Int32
from PIL import Image

from charm_jax import __version__
from charm_jax.config.recipe import KEYS
from charm_jax.export import model_card
from charm_jax.inference import fitted, loaded
from charm_jax.inference.fitted import CALIBRATION, REFERENCE, Calibrator
from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics.result import EvaluationResult
from charm_jax.models.charm import Charm
from charm_jax.models.state import TrainState, averaged
from charm_jax.runs import cases as run_cases
from charm_jax.runs import data as run_data
from charm_jax.runs import folder, portable
from charm_jax.runs.checkpoints import network_sha256
from charm_jax.runs.pseudonyms import Names, names_of
from charm_jax.runs.records import Environment
from charm_jax.weights import load
from data_pipelines.atomic_files import draft_of
from data_pipelines.errors import InputError
from data_pipelines.loading import augment
from data_pipelines.loading.loader import evaluation_batches

_LOG = logging.getLogger(__name__)
_SIDE = 96  # of a thumbnail, in pixels
_BATCH = 16
# Of a bank's description; the rest may name cases.
_BANK_KEYS = (
    *("checkpoint", "findings", "source", "simulated", "sets", "split", "images_sha256"),
    "patients_known",
)


def write(model: LoadedModel, target: Path, *, thumbnails: bool, keep_names: bool) -> None:
    """Write a portable model; its folder appears whole or not at all.

    Args:
        model: of a run.
        target: new folder.
        thumbnails: whether to add small pictures of the stored cases.
        keep_names: whether images keep their names; those of patients never do.

    Raises:
        InputError: the model is portable already, or a stored case has no image for its thumbnail.
    """
    if portable.is_portable(model.run):
        raise InputError(f"{model.run} is a portable model already: copy the folder.")
    calibrator = fitted.load_calibrator(model)
    # A key of the network's own: models of the same cases do not show which they share.
    key = network_sha256(model.state)[:32]
    about_names = {"names_key": key} | ({"images_named": True} if keep_names else {})
    draft = draft_of(target)
    draft.mkdir(parents=True)
    try:
        state = _write_cases(draft, model, about_names)
        _write_settings(draft, model, about_names)
        portable.write_weights(draft, state, _card(model, state))
        made = loaded.load_run(draft)
        _write_fitted(draft, made, calibrator, about_names)
        evaluations = _evaluations(model)
        if "test" in evaluations:
            test = evaluations["test"].to_json()
            test["network_sha256"] = network_sha256(made.state)
            test["data"] |= {"dir": "", "csv": ""}
            (draft / "eval/test").mkdir(parents=True)
            folder.write_json(draft / "eval/test/metrics.json", test)
        else:
            _LOG.warning(
                f"the model card has no metrics, since {model.description} is not evaluated: run "
                "charm-jax eval before the export."
            )
        if thumbnails:
            _write_thumbnails(draft, model, made)
        text = model_card.render(target.name, made, calibrator, evaluations, draft)
        (draft / "README.md").write_text(text, encoding="utf-8")
        os.rename(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_cases(directory: Path, model: LoadedModel, about_names: Mapping[str, Any]) -> TrainState:
    """Write the cases of the run, and of the bank if it has others; return the state to write.

    Cases and patients get new numbers, since those of the run tell a row of the table or a patient.
    """
    state = averaged(model.state).replace(average=None, opt_state=())
    own, coded = _coded(model.run, directory, dict(model.trained) | about_names)
    if model.bank is not None:
        bank = directory / portable.BANK
        bank.mkdir()
        described = model.bank.description
        kept = {name: described[name] for name in _BANK_KEYS if name in described}
        folder.write_json(bank / "memory.json", kept | dict(about_names))
        if model.bank.has_cases:
            own, coded = _coded(model.bank.folder, bank, kept | about_names)
    if state.memory is None:
        return state
    ids = pd.Series(coded.index, index=own.index)
    patients = pd.Series(coded["number"].to_numpy(), index=own["number"].to_numpy())
    patients = patients[~patients.index.duplicated()]
    return state.replace(
        memory=state.memory.replace(
            case_ids=_renumbered(state.memory.case_ids, ids),
            patient_ids=_renumbered(state.memory.patient_ids, patients),
        )
    )


def _coded(
    source: Path, target: Path, trained: Mapping[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write the cases of a folder with digests for names; return them with old and new numbers."""
    own, (images, patients) = run_cases.read_cases(source), names_of(trained)
    coded = own.copy()
    # The order of digests tells nothing of that of the names.
    digests = Names(patients.key)
    for column, name in (("id", "image"), ("number", "patient")):
        ranks = own[name].map(digests).rank(method="dense").astype(np.int32) - 1
        coded[column] = ranks.to_numpy()
    coded = coded.set_index("id")
    run_cases.write_coded(
        target, coded.sort_index(), run_cases.trained_on(source), images, patients
    )
    return own, coded


def _renumbered(ids: Int32[Array, " slots"], new: pd.Series) -> Int32[Array, " slots"]:
    return jnp.asarray(new.reindex(np.asarray(ids)).fillna(-1).to_numpy(np.int32))


def _write_settings(directory: Path, model: LoadedModel, about_names: Mapping[str, Any]) -> None:
    keys = model.settings.model
    raw = copy.deepcopy(dict(model.settings.raw))
    raw["runs_dir"], raw["resume"] = KEYS["runs_dir"].default, KEYS["resume"].default
    # Paths tell users and computers.
    raw["data"] = {**raw["data"], "dir": f"data/{raw['data']['source']}", "csv": ""}
    began = model.provenance["began_from"]
    if keys.init_from not in load.NAMED:
        raw["model"] = {**raw["model"], "init_from": "random"}
    limits = jnp.array([0.0, 255.0]).reshape(2, 1, 1, 1)
    black, white = augment.normalise(limits, keys.channels, keys.input_range)[:, 0, 0].tolist()
    about = {
        "charm_jax": __version__,
        "format": portable.FORMAT,
        "architecture": {
            "backbone": keys.backbone,
            "charm": keys.charm,
            "memory": keys.memory if keys.charm else None,
            "fusion": keys.charm and keys.fusion,
            "momentum_branch": model.state.momentum is not None,
            "retrieval_k": keys.retrieval_k if keys.charm else None,
            "bank_size": keys.bank_size if keys.charm else None,
        },
        "findings": list(model.pathologies),
        "image_size": model.settings.data.image_size,
        "channels": keys.channels,
        "normalisation": {
            "input_range": keys.input_range,
            "black": [round(value, 6) for value in black],
            "white": [round(value, 6) for value in white],
        },
        "checkpoint": model.checkpoint,
        "provenance": model.provenance
        | {"began_from": None if began is None else Path(began).name},
        "config": raw,
    }
    folder.write_json(directory / "config.json", about)
    folder.write_json(directory / "split.json", dict(model.trained) | dict(about_names))
    trained = folder.read_record(model.run / "environment.json", Environment)
    folder.write_json(directory / "environment.json", trained | {"restarts": []})


def _card(model: LoadedModel, state: TrainState) -> load.Card:
    keys = model.settings.model
    return load.card(
        state,
        keys.backbone,
        model.pathologies,
        image_size=model.settings.data.image_size,
        channels=keys.channels,
        input_range=keys.input_range,
        retrieval_k=keys.retrieval_k if isinstance(model.network, Charm) else None,
    )


def _write_fitted(
    directory: Path, made: LoadedModel, calibrator: Calibrator, about_names: Mapping[str, Any]
) -> None:
    """Write calibration and out-of-distribution reference as those of the portable model."""
    own, (images, _) = fitted.identity(made), names_of(made.trained | about_names)
    if calibrator.calibration is not None:
        named = sorted(map(images, calibrator.calibration["images"]))
        folder.write_json(
            directory / CALIBRATION, dict(calibrator.calibration) | own | {"images": named}
        )
    if calibrator.reference is not None:
        text = json.dumps(dict(calibrator.reference) | own, allow_nan=False)
        (directory / REFERENCE).write_text(f"{text}\n", encoding="utf-8")


def _evaluations(model: LoadedModel) -> dict[str, EvaluationResult]:
    """Read the evaluations of these very weights and bank, by the name of their folder."""
    found = {}
    for path in sorted((model.folder / "eval").glob("*/metrics.json")):
        try:
            result = EvaluationResult.from_json(folder.read_json(path))
        except (InputError, ValueError):
            continue
        if result.network_sha256 == network_sha256(model.state):
            found[path.parent.name] = result
    return found


def _write_thumbnails(directory: Path, model: LoadedModel, made: LoadedModel) -> None:
    """Draw the stored cases small, as files named after the digests of their names."""
    if model.state.memory is None:
        raise InputError(f"{model.description} has no memory: leave out --thumbnails.")
    data = run_data.load_data(model.settings)
    stored = np.asarray(model.state.memory.case_ids)
    known = pd.Series(np.arange(len(data.table.images)), model.match_cases(data.table).case_ids)
    known = known[(known.index >= 0) & data.table.present]
    rows = known.reindex(stored[stored >= 0])
    if rows.isna().any():
        raise InputError(
            f"{int(rows.isna().sum()):,} stored cases have no image in {model.settings.data.dir}: "
            "leave out --thumbnails."
        )
    names = made.bank_cases()["image"].loc[np.asarray(made.state.memory.case_ids)[stored >= 0]]
    (directory / portable.THUMBNAILS).mkdir()
    batches = evaluation_batches(
        data.table, rows.to_numpy(int), image_size=data.settings.image_size, batch_size=_BATCH
    )
    drawn = (image for batch in batches for image in batch["image"][batch["mask"]])
    for name, image in zip(names, drawn, strict=True):
        small = Image.fromarray(image[..., 0])
        small.thumbnail((_SIDE, _SIDE))
        small.save(portable.thumbnail_path(directory, name))
