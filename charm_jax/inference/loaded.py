"""Load a checkpoint or a weight file with its memory bank and its provenance."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from charm_jax.config import build, cli, validate
from charm_jax.config.recipe import KEYS
from charm_jax.config.settings import DataSettings, Settings
from charm_jax.distributed import mesh
from charm_jax.distributed.compiler import CompiledStep
from charm_jax.inference import tta
from charm_jax.inference.rows import largest_batch, predict_rows
from charm_jax.inference.steps import eval_step
from charm_jax.models.create import Network
from charm_jax.models.state import TrainState
from charm_jax.models.vote import Vote
from charm_jax.runs import banks, folder, portable
from charm_jax.runs.arguments import read_settings
from charm_jax.runs.banks import TRAINED, StoredBank
from charm_jax.runs.cases import CaseMatch, known_cases, read_cases, unknown_cases
from charm_jax.runs.checkpoints import network_sha256
from charm_jax.runs.data import Data
from charm_jax.runs.records import Split
from charm_jax.weights import load
from charm_jax.weights.load import AUTO, Contents
from data_pipelines.errors import InputError, listed
from data_pipelines.loading import augment
from data_pipelines.tables import splits
from data_pipelines.tables.case_table import CaseTable

_LOG = logging.getLogger(__name__)
# Keys of ``config.model`` that no parameter shows.
_SCORING = ("channels", "input_range", "fusion", "momentum_branch", "retrieval_k", "init_key")
_VOTING = ("vote_weight", "vote_temperature")
_BANK_FACTS = ("source", "split", "images_sha256", "patients_known", "images_here")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A trained model.

    Attributes:
        settings: config of the run, or the one that names the weight file.
        state: weights and bank.
        pathologies: names of the findings, in the order of the logits.
        description: name for messages.
        checkpoint: name in ``metrics.json`` and ``calibration.json``.
        folder: holds ``calibration.json`` and ``eval``.
        run: folder of the run; None for a weight file.
        trained: ``split.json`` of the run; None for a weight file.
        provenance: entries of ``metrics.json`` on the origin of the weights.
        bank: stored bank in use; None for the checkpoint's own.
        tta: whether logits are averaged over views of an image.
        steps: compiled steps, shared with copies of the model that differ in weights or bank.
    """

    settings: Settings
    network: Network
    state: TrainState
    pathologies: tuple[str, ...]
    description: str
    checkpoint: str
    folder: Path
    run: Path | None
    trained: dict[str, Any] | None
    provenance: dict[str, Any]
    bank: StoredBank | None = None
    tta: bool = False
    steps: dict[Any, Callable] = dataclasses.field(default_factory=dict, repr=False)

    @functools.cached_property
    def network_sha256(self) -> str:
        """Digest of weights and bank."""
        return network_sha256(self.state)

    @property
    def memory(self) -> str | None:
        """Label of the memory bank; None for a network without one."""
        return None if self.state.memory is None else self.provenance.get("memory", TRAINED)

    @property
    def scoring_step(self) -> Callable:
        """Step that scores images: ``eval_step``, over views with test-time augmentation."""
        if not self.tta:
            return eval_step
        # Of a weight file it is not known whether training mirrored its images.
        return tta.views_step(mirrored=self.trained is not None and self.settings.augment.flip)

    def with_tta(self) -> "LoadedModel":
        """Return the model with test-time augmentation; its results go to ``tta`` in its folder."""
        described = f"{self.description} with test-time augmentation"
        folder = self.folder / "tta"
        return dataclasses.replace(self, tta=True, description=described, folder=folder)

    def reading(self, data: DataSettings) -> dict[str, Any]:
        """Describe what changes the scores of images beside weights and bank.

        Args:
            data: settings that the images are read with.
        """
        keys = self.settings.model
        names = _SCORING + _VOTING * isinstance(self.network, Vote)
        views = {"tta": True} if self.tta else {}
        return {
            "image_size": data.image_size,
            "value_range": data.value_range,
            "outputs": list(self.pathologies),
            "memory": self.provenance.get("memory"),
            **{name: getattr(keys, name) for name in names},
            **views,
        }

    def compile(self, step: Callable, *, shared: bool = True) -> CompiledStep:
        """Compile a step on images once; it takes ``model`` and ``prepare``.

        Args:
            step: such as ``eval_step``.
            shared: whether all devices share each batch.
        """
        if (step, shared) not in self.steps:
            keys = self.settings.model
            prepare = functools.partial(
                augment.evaluation_images, channels=keys.channels, input_range=keys.input_range
            )
            bound = functools.partial(step, model=self.network, prepare=prepare)
            self.steps[step, shared] = CompiledStep(bound, None, mesh.mesh() if shared else None)
        return self.steps[step, shared]

    def jit(self, function: Callable) -> Callable:
        """Compile a function of features once; it takes ``model``, such as ``read_step``."""
        if function not in self.steps:
            self.steps[function] = jax.jit(functools.partial(function, model=self.network))
        return self.steps[function]

    def predict_rows(
        self,
        data: Data,
        rows: np.ndarray,
        title: str,
        step: CompiledStep | None = None,
        large: Collection[str] = (),
    ) -> dict[str, np.ndarray]:
        """Run the model on rows of a data set, by default its scoring step.

        The ids of the rows are translated to those in the bank. Returns ``[n, ...]`` each; of the
        outputs in ``LARGE`` those named ``large``.
        """
        match = self.match_cases(data.table)
        step = step or self.compile(self.scoring_step)
        size = largest_batch(self.settings)
        return predict_rows(self.state, step, data, rows, size, title, match=match, large=large)

    def match_cases(self, table: CaseTable, *, copies: bool = False) -> CaseMatch:
        """Match the cases of a table with those of bank and training; see ``known_cases``."""
        if self.run is None:
            return unknown_cases(table)
        match = known_cases(self.run, table, self.trained, copies=copies)
        if self.bank is None or not self.bank.has_cases:
            return match
        stored = known_cases(self.bank.folder, table, self.bank.description, copies=copies)
        return dataclasses.replace(match, case_ids=stored.case_ids, patient_ids=stored.patient_ids)

    def bank_cases(self) -> pd.DataFrame:
        """Return ``image`` and ``patient`` of each case id that the bank may hold."""
        if self.run is None:
            return pd.DataFrame({"image": [], "patient": []})
        own = self.bank is not None and self.bank.has_cases
        return read_cases(self.bank.folder if own else self.run)

    def describe_bank(self, match: CaseMatch, rows: np.ndarray) -> dict[str, Any] | None:
        """Describe the bank for ``metrics.json``; None for a network without one.

        Returns:
            ``source``, ``split`` and ``images_sha256`` of the images that filled it and
            ``patients_known`` there, None where unknown; ``images_here`` counts the evaluated rows
            that are in the bank or belong to its patients.
        """
        memory = self.state.memory
        if memory is None:
            return None
        if self.run is None:
            return dict.fromkeys(_BANK_FACTS)
        # A bank made by `forget` still comes from training.
        made = self.trained | {"split": "train"} | (self.bank.description if self.bank else {})
        here = _held(match.case_ids[rows], memory.case_ids)
        here |= _held(match.patient_ids[rows], memory.patient_ids)
        return {key: made.get(key) for key in _BANK_FACTS} | {"images_here": int(here.sum())}


def _held(ids: np.ndarray, stored: Any) -> np.ndarray:
    return np.isin(ids, np.asarray(stored)) & (ids >= 0)


def load_run(run: Path, checkpoint: str = "best", memory: str | None = TRAINED) -> LoadedModel:
    """Load a checkpoint of a run, or a portable model.

    Args:
        checkpoint: ``best``, ``last`` or ``<stage>/<step>``.
        memory: label of a bank of the run; ``trained`` for the one that training ended with,
            or else the checkpoint's own; None for the latter.

    Raises:
        InputError: there is no such run, checkpoint or bank, or it is damaged.
    """
    settings = read_settings(run)
    trained = folder.read_record(run / "split.json", Split)
    if settings.stage_names[-1] not in trained["stages"]:
        raise folder.damaged(run / "split.json", f"it lacks stages.{settings.stage_names[-1]}")
    try:
        validate.check(settings)
    except InputError as error:
        raise InputError(f"{run / 'config.json'}: {error}") from None
    findings = tuple(trained["findings"])
    network = build.build_network(settings, len(findings), folder.prevalence(run, trained))
    shapes = build.state_shapes(network, settings)
    if portable.is_portable(run):
        model = _load_portable(run, checkpoint, settings, network, shapes, trained)
        return model if memory in (None, TRAINED) else _with_bank(model, memory)
    state, name, is_refitted = folder.restore(run, checkpoint, lambda _: shapes)
    began = run / "weights.json"
    init_from = folder.read_json(began)["init_from"] if began.exists() else "random"
    provenance = {
        "checkpoint": name,
        "refit": settings.refit if is_refitted else None,
        "trained_on_simulated": trained["simulated"],
        "began_from": None if init_from in load.NAMED else init_from,
    }
    model = LoadedModel(
        settings=settings,
        network=network,
        state=state,
        pathologies=findings,
        description=f"checkpoint {name} of {run}",
        checkpoint=name,
        folder=run,
        run=run,
        trained=trained,
        provenance=provenance,
    )
    if memory is None:
        return model
    if memory != TRAINED:
        return _with_bank(model, memory)
    bank = banks.refilled(run, state)
    if bank is None and isinstance(network, Vote):
        _LOG.warning(
            f"{name} of {run} votes with the keys that training stored last, since it has no bank "
            "that was filled after training: charm-jax memory RUN refill makes one."
        )
    return model if bank is None else dataclasses.replace(model, state=state.replace(memory=bank))


def _load_portable(
    run: Path,
    checkpoint: str,
    settings: Settings,
    network: Network,
    shapes: TrainState,
    trained: dict[str, Any],
) -> LoadedModel:
    about = portable.read_about(run)
    if checkpoint not in ("best", about["checkpoint"]):
        raise InputError(
            f"{run} is a portable model of checkpoint {about['checkpoint']} alone: leave out "
            "--checkpoint."
        )
    state = portable.read_weights(run, shapes)
    return LoadedModel(
        settings=settings,
        network=network,
        state=state,
        pathologies=tuple(trained["findings"]),
        description=f"the portable model {run}",
        checkpoint=about["checkpoint"],
        folder=run,
        run=run,
        trained=trained,
        provenance=dict.fromkeys(("refit", "trained_on_simulated", "began_from"))
        | about["provenance"],
        bank=portable.read_bank(run, state),
    )


def _with_bank(model: LoadedModel, label: str) -> LoadedModel:
    """Replace the bank; results then go to its folder."""
    if model.state.memory is None:
        raise InputError(f"The run {model.run} has no memory: leave out --memory.")
    bank = banks.read(model.run, label, model.state, model.pathologies)
    return dataclasses.replace(
        model,
        state=model.state.replace(memory=bank.memory),
        description=f"{model.description} with memory {label}",
        folder=bank.folder,
        provenance=model.provenance | {"memory": label},
        bank=bank,
    )


def file_settings(settings: Settings, file: Contents, given: Collection[str] = ()) -> Settings:
    """Return settings with what a weight file tells.

    Args:
        settings: of a config, which rank below the file.
        file: content of the file.
        given: keys of the command line, which rank above the file.

    Raises:
        InputError: the file tells an unknown value.
    """
    told, automatic = file.told, settings.model.input_range == AUTO
    names = ("backbone", "charm", "channels", "input_range", "retrieval_k", "bank_size")
    entries = {f"model.{name}": getattr(told, name) for name in names}
    entries["data.image_size"] = told.image_size
    if told.charm:  # no format holds another form
        entries |= {"model.memory": "published", "model.fusion": True}
        if settings.model.memory == "vote":  # numbers of that form do not carry over
            for key in ("model.retrieval_k", "model.bank_size"):
                entries[key] = KEYS[key].default if entries[key] is None else entries[key]
    if automatic:
        backbone = told.backbone or settings.model.backbone
        entries["model.input_range"] = told.input_range or load.usual_range(backbone)
        given = set(given) - {"model.input_range"}
    taken = {k: v for k, v in entries.items() if v is not None and k not in given}
    changed = []
    for key, value in taken.items():
        group, name = key.split(".")
        if settings.raw[group][name] not in (value, AUTO):
            changed.append(f"{key} {value}, not {settings.raw[group][name]}")
    settings = settings.replace(**{key.replace(".", "_", 1): v for key, v in taken.items()})
    try:
        validate.check(settings)
    except InputError as error:
        raise InputError(f"{file.path} tells an unusable value: {error}") from None
    if changed:
        _LOG.info(f"{file.path} is made for {listed(changed)}: the config gives way.")
    return settings


def load_alone(path: Path, findings: Sequence[str] | None = None, key: str = "") -> LoadedModel:
    """Load a weight file by what it tells of its network.

    Args:
        findings: names of the outputs, in their order, if the file does not tell them.
        key: value of ``config.model.init_key``.

    Raises:
        InputError: it cannot be read, or does not tell its backbone or its findings.
    """
    file = load.read(str(path), "")
    if file.told.backbone is None:
        raise InputError(
            f"{path} does not tell its backbone: write it to {path.name}.json beside it, such as "
            '{"backbone": "resnet50", "charm": false}.'
        )
    if findings is None and file.told.findings is None:
        raise InputError(
            f"{path} does not tell its findings: give pathologies, the names of its outputs, or "
            f"write them to {path.name}.json beside it."
        )
    told = tuple(findings or file.told.findings)
    if told != (file.told.findings or told):
        raise InputError(
            f"{path} names its outputs {listed(file.told.findings)}: leave out pathologies."
        )
    model = {"init_from": str(path), "init_key": key}
    settings = cli.settings_from({"name": "weights", "model": model}, str(path))
    return load_file(file_settings(settings, file), file, told)


def load_file(settings: Settings, contents: Contents, findings: tuple[str, ...]) -> LoadedModel:
    """Load the whole network of a weight file.

    Args:
        settings: from ``file_settings``.
        contents: content of the file.
        findings: names of the outputs, in their order, if the file does not tell them.

    Raises:
        InputError: it does not hold the whole network.
    """
    keys, findings = settings.model, contents.told.findings or findings
    network = build.build_network(settings, len(findings), (0.0,) * len(findings))
    state, file = load.fill(
        build.new_state(network, settings),
        contents,
        keys.backbone,
        findings=findings,
        with_classifier=True,
        values=settings.told_by_weights,
        key=keys.init_key,
    )
    load.log(file)
    provenance = {
        "checkpoint": file.file,
        "refit": None,
        "trained_on_simulated": None,
        "began_from": None,
    }
    # Files of other runs may have the same name.
    name = f"{Path(file.file).stem}-{file.sha256[:8]}"
    return LoadedModel(
        settings=settings,
        network=network,
        state=state.replace(average=None),  # a file has one set of weights
        pathologies=findings,
        description=f"{file.file} without its run",
        checkpoint=file.file,
        folder=Path(settings.runs_dir) / "weights" / name,
        run=None,
        trained=None,
        provenance=provenance,
    )


def check_unseen(
    match: CaseMatch,
    rows: np.ndarray,
    rule: str,
    split: str,
    model: LoadedModel,
    *,
    is_member: bool = False,
) -> None:
    """Refuse a test split that should be disjoint from training and is not.

    Args:
        is_member: whether the model is one of several whose logits are averaged.

    Raises:
        InputError: training or validation saw patients or images of the split.
    """
    seen, itself = int(match.patient_seen[rows].sum()), int(match.image_seen[rows].sum())
    if not seen or split != "test" or not splits.is_disjoint(rule):
        return
    problem = (
        f"{seen:,} of the {len(rows):,} test images under config.data.split={rule} are of patients "
        f"that the run {model.run} trained or validated on"
    )
    if is_member:
        raise InputError(
            f"{problem}: test an ensemble on patients that none of its runs saw, which folds of "
            "one data set leave in other data alone, and each fold by itself."
        )
    raise InputError(
        f"{problem}, and it saw {itself:,} of these images themselves: evaluate it with the data "
        "and split that it was trained with, or, where other patients or images only have the "
        "same names, rename them."
    )
