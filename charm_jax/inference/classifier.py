"""A trained model for Python: predict images, look into the network, edit its memory."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from charm_jax.inference import ensemble, fitted, loaded, records
from charm_jax.inference.ensemble import Ensemble
from charm_jax.inference.fitted import Calibrator, Validation
from charm_jax.inference.loaded import LoadedModel
from charm_jax.inference.predictor import ATTENTION, BATCH, Predictor
from charm_jax.inference.records import Record
from charm_jax.metrics import conformal
from charm_jax.models import memory_bank
from charm_jax.runs import folder, hub
from charm_jax.runs.banks import TRAINED
from charm_jax.weights import files
from data_pipelines.errors import InputError, did_you_mean
from data_pipelines.images.decode import Check, decode, decoded_array
from data_pipelines.loading import given

Images = np.ndarray | str | Path | Sequence[str | Path]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of n images.

    Attributes:
        pathologies: names of the F columns.
        files: path of each image, or its number where arrays were given.
        probs: calibrated probabilities, 0 ... 1; bare sigmoids for ``uncalibrated`` findings.
        logits: outputs of the network.
        positive: whether a probability reaches the finding's threshold and the image is not
            out-of-distribution; masked for a finding without a threshold.
        is_ood: whether an image is unlike those that the model was validated on; masked where
            nothing can be judged. ``np.ma.filled`` and ``np.ma.getmaskarray`` read the masks.
        evidence: for each image the cases that its prediction read from the memory, the most
            similar first, with their labels (None where unknown), cosine and contributions to the
            logits.
        attention: fusion maps, 0 ... 1; None for a network without fusion.
        uncalibrated: findings without a temperature.
        warnings: for each image what was ignored or repaired in its file, or that its values use
            little of the range of its format, which makes it out-of-distribution.
        sets: whether the conformal set of an image and a finding has "absent" and "present"; they
            do not hold where ``is_ood``. None if none were asked for.
    """

    pathologies: tuple[str, ...]
    files: tuple[str, ...]
    probs: Float[np.ndarray, "n findings"]
    logits: Float[np.ndarray, "n findings"]
    positive: Bool[np.ndarray, "n findings"]
    is_ood: Bool[np.ndarray, " n"]
    evidence: tuple[list[Record], ...]
    attention: Float[np.ndarray, "n h w"] | None
    uncalibrated: tuple[str, ...]
    warnings: tuple[tuple[str, ...], ...]
    sets: Bool[np.ndarray, "n findings 2"] | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return the probabilities as a table with ``is_ood`` (NA if masked), a row an image."""
        frame = pd.DataFrame(self.probs, columns=list(self.pathologies))
        is_ood = pd.array(self.is_ood.tolist(), "boolean")
        frame.insert(0, "is_ood", is_ood)
        frame.index = pd.Index(self.files, name="image")
        return frame


class Classifier:
    """A loaded model. It is immutable: editing the memory returns another classifier.

    Research software, not a medical device.

    Attributes:
        model: weights, bank and provenance.
    """

    def __init__(self, model: LoadedModel):
        self.model = model

    @property
    def pathologies(self) -> tuple[str, ...]:
        """Names of the findings, in the order of the outputs."""
        return self.model.pathologies

    @property
    def image_size(self) -> int:
        """Side of the squares that images are resized to, in pixels."""
        return self.model.settings.data.image_size

    @functools.cached_property
    def thresholds(self) -> dict[str, float | None]:
        """Thresholds on the probabilities, from validation; None where there is none."""
        return _thresholds(self._predictor.calibrator)

    @property
    def memory(self) -> "Memory":
        """The memory bank.

        Raises:
            InputError: the network has none.
        """
        if self.model.state.memory is None:
            raise InputError(f"{self.model.description} has no memory: load a model with CHARM.")
        return Memory(self.model)

    def predict(self, images: Images, *, coverage: float | None = None) -> Predictions:
        """Predict images.

        The thresholds and the out-of-distribution reference come from the validation split; they
        are fitted at the first call where the run does not keep them yet.

        Args:
            images: one or more paths of PNG, JPEG, TIFF or DICOM files, or uint8 grey levels
                ``[n, height, width]`` of any size.
            coverage: share of conformal sets that shall hold the label, above 0 and below 1; None
                for no sets.

        Raises:
            InputError: a file is missing or cannot be read, or sets are asked for and there are no
                validation images.
            ValueError: an array is not uint8 of three dimensions, or the coverage is no share.
        """
        names, whole, made = self._predicted(images)
        sets = None
        if coverage is not None:
            validation = fitted.load_validation(self.model) if self.model.run else None
            sets = _sets(whole["logits"], validation, coverage, self.model.description)
        calibrator = self._predictor.calibrator
        return _predictions(names, whole["logits"], made, calibrator, whole.get(ATTENTION), sets)

    def _predicted(
        self, images: Images
    ) -> tuple[tuple[str, ...], dict[str, np.ndarray], list[Record]]:
        """Return names, outputs and records of images."""
        names, squares, checks = self._read(images)
        ids = None
        if not isinstance(images, np.ndarray):
            # A known file must not read its own patient's cases.
            paths = tuple(Path(name) for name in names)
            named = given.GivenImages(tuple(path.name for path in paths), paths, 0)
            ids = self._predictor.match(named)
        outputs = [small for _, _, small in self._explain(squares, ids)]
        whole = {name: np.concatenate([small[name] for small in outputs]) for name in outputs[0]}
        return names, whole, self._predictor.records(whole, checks)

    def features(self, images: Images) -> Float[np.ndarray, "n dim"]:
        """Compute the fused feature q of each image; for a bare backbone the pooled features."""
        made = []
        for _, explained, outputs in self._explain(self._read(images)[1]):
            pooled = explained.get("fused")
            if pooled is None:
                pooled = self.model.network.final(explained["main"]).mean((1, 2))
            made.append(np.asarray(pooled, np.float32)[: len(outputs["logits"])])
        return np.concatenate(made)

    def grad_cam(self, images: Images, pathology: str) -> Float[np.ndarray, "n h w"]:
        """Compute Grad-CAM heat maps, 0 ... 1, of a finding.

        Raises:
            InputError: the model has no such finding.
        """
        if pathology not in self.pathologies:
            raise InputError(
                f"The model has no finding {pathology!r}: "
                f"{did_you_mean(pathology, self.pathologies)}"
            )
        finding, made = self.pathologies.index(pathology), []
        for batch, explained, outputs in self._explain(self._read(images)[1]):
            pairs = [(row, finding) for row in range(len(outputs["logits"]))]
            made += self._predictor.grad_cams(batch, explained, pairs).values()
        return np.stack(made)

    @functools.cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self.model)

    def _explain(
        self, squares: np.ndarray, ids: dict[str, np.ndarray] | None = None
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]]:
        """Yield the results of ``Predictor.explain`` for each batch."""
        for start in range(0, len(squares), BATCH):
            some = slice(start, start + BATCH)
            mine = ids and {name: values[some] for name, values in ids.items()}
            yield self._predictor.explain(squares[some], mine)

    def _read(
        self, images: Images
    ) -> tuple[tuple[str, ...], UInt8[np.ndarray, "n side side 1"], list[Check]]:
        """Return names and squares of images, and what was found out about them."""
        value_range = self.model.settings.data.value_range
        if isinstance(images, np.ndarray):
            if images.dtype != np.uint8 or images.ndim != 3:
                raise ValueError(
                    f"the images are {images.dtype} of shape {images.shape}: give uint8 grey "
                    "levels [n, height, width]"
                )
            decoded = (decoded_array(Image.fromarray(image), value_range) for image in images)
            names = tuple(map(str, range(len(images))))
        else:
            paths = [images] if isinstance(images, str | Path) else list(images)
            decoded = (decode(Path(path), value_range) for path in paths)
            names = tuple(str(path) for path in paths)
        if not names:
            raise InputError("No image is given: name at least one.")
        read = [
            (image.square(self.image_size), Check("", image.remarks, image.sliver()))
            for image in decoded
        ]
        return names, np.stack([square for square, _ in read]), [check for _, check in read]


class EnsembleClassifier:
    """Several loaded models, whose calibrated logits are averaged.

    Research software, not a medical device.

    Attributes:
        members: classifier of each run.
    """

    def __init__(self, model: Ensemble):
        self._model = model
        self.members = tuple(Classifier(member) for member in model.members)

    @property
    def pathologies(self) -> tuple[str, ...]:
        """Names of the findings, in the order of the outputs."""
        return self._model.pathologies

    @functools.cached_property
    def _calibrator(self) -> Calibrator:
        return self._model.calibrator()

    @property
    def thresholds(self) -> dict[str, float | None]:
        """Thresholds on the probabilities, from validation; None where there is none."""
        return _thresholds(self._calibrator)

    def predict(self, images: Images, *, coverage: float | None = None) -> Predictions:
        """Predict images, as ``Classifier.predict`` does.

        ``evidence`` has the cases of all members, each with ``run``; ``attention`` is None.

        Args:
            images: as ``Classifier.predict`` takes them.
            coverage: of conformal sets, if any.

        Raises:
            InputError: as ``Classifier.predict``, or sets are asked for and the members share no
                validation split.
            ValueError: as ``Classifier.predict``.
        """
        predicted = [member._predicted(images) for member in self.members]
        logits = self._model.average([whole["logits"] for _, whole, _ in predicted])
        own = dict(zip(self._model.names, (made for _, _, made in predicted), strict=True))
        made = records.combined(own, logits, self._calibrator)
        for record in made:
            record["evidence"] = [
                {"run": name, **entry}
                for name, member in record["members"].items()
                for entry in member.get("evidence", [])
            ]
        sets = None
        if coverage is not None:
            validation = self._model.validation()
            sets = _sets(logits, validation, coverage, self._model.description)
        return _predictions(predicted[0][0], logits, made, self._calibrator, None, sets)


def _thresholds(calibrator: Calibrator) -> dict[str, float | None]:
    limits = [None if np.isnan(limit) else float(limit) for limit in calibrator.thresholds()]
    return dict(zip(calibrator.findings, limits, strict=True))


def _sets(
    logits: Float[np.ndarray, "n findings"],
    validation: Validation | None,
    coverage: float,
    description: str,
) -> Bool[np.ndarray, "n findings 2"]:
    if validation is None:
        raise InputError(
            f"{description} has no validation images to fit conformal sets on: leave out coverage."
        )
    return conformal.sets(logits, conformal.fit(*validation, coverage))


def _predictions(
    names: tuple[str, ...],
    logits: Float[np.ndarray, "n findings"],
    made: Sequence[Record],
    calibrator: Calibrator,
    attention: Float[np.ndarray, "n h w"] | None,
    sets: Bool[np.ndarray, "n findings 2"] | None,
) -> Predictions:
    found = [set(record["findings"] or ()) for record in made]
    positive = [[name in names for name in calibrator.findings] for names in found]
    undecided = np.isin(calibrator.findings, calibrator.undecided())
    is_ood = [record["unfamiliar"] for record in made]
    return Predictions(
        pathologies=calibrator.findings,
        files=names,
        probs=calibrator.scores(logits),
        logits=logits,
        positive=np.ma.array(positive, bool, mask=np.tile(undecided, (len(made), 1))),
        is_ood=np.ma.array(is_ood, bool, mask=[value is None for value in is_ood]),
        evidence=tuple(record.get("evidence", []) for record in made),
        attention=attention,
        uncalibrated=tuple(calibrator.uncalibrated()),
        warnings=tuple(tuple(record["warnings"]) for record in made),
        sets=sets,
    )


class Memory:
    """The memory bank of a classifier."""

    def __init__(self, model: LoadedModel):
        self.model = model

    def __len__(self) -> int:
        """Return the number of filled slots."""
        return int(self.model.state.memory.count)

    @property
    def cases(self) -> pd.DataFrame:
        """The stored cases: ``image``, ``patient`` and ``labels`` (None if unknown) by case id."""
        bank = self.model.state.memory
        stored = records.stored_cases(bank, self.model.bank_cases())
        ids = sorted(stored.labels)
        frame = stored.cases.reindex(ids)[["image", "patient"]].copy()
        frame["labels"] = [
            records.named_labels(self.model.pathologies, stored.labels[i]) for i in ids
        ]
        return frame

    def find(self, images: Iterable[str] = (), patients: Iterable[str] = ()) -> list[int]:
        """Return the ids of named cases and of all cases of named patients.

        Raises:
            InputError: the memory has no such case, or none is named.
        """
        cases, chosen = self.cases, []
        for column, names in (("image", images), ("patient", patients)):
            for name in map(str, names):
                found = cases.index[cases[column] == name.strip()]
                if not len(found):
                    near = did_you_mean(name, sorted(set(cases[column]))).split(" (known", 1)[0]
                    raise InputError(f"The memory has no case of {column} {name!r}: {near}")
                chosen += found.tolist()
        if not chosen:
            raise InputError("No case is named: give names of stored images or patients.")
        return sorted(set(chosen))

    def forget(self, images: Iterable[str] = (), patients: Iterable[str] = ()) -> Classifier:
        """Return a classifier whose memory lacks some cases; its weights stay as they are.

        Args:
            images: names of stored images.
            patients: names of patients whose cases are all forgotten.

        Raises:
            InputError: the memory has no such case, or none is named.
        """
        ids = jnp.asarray(self.find(images, patients), jnp.int32)
        state = self.model.state
        bank = memory_bank.forget(state.memory, ids)
        return Classifier(dataclasses.replace(self.model, state=state.replace(memory=bank)))


def load(
    run: str | Path | Sequence[str | Path],
    checkpoint: str = "best",
    memory: str = TRAINED,
    *,
    pathologies: Sequence[str] | None = None,
    key: str = "",
    tta: bool = False,
) -> Classifier | EnsembleClassifier:
    """Load a trained classifier, or several as an ensemble.

    Args:
        run: folder of a run, such as ``runs/demo``, or of a portable model; ``hf://OWNER/NAME`` for
            one on the Hugging Face hub; or a weight file, which is not calibrated. Several runs
            are an ensemble, whose calibrated logits are averaged.
        checkpoint: ``best``, ``last`` or ``<stage>/<step>``, of a run.
        memory: label of a memory bank of the run; ``trained`` for the checkpoint's own.
        pathologies: names of the outputs of a weight file that does not tell them.
        key: part of the path to the network in a weight file of several, as ``load_weights`` takes.
        tta: whether to average over small shifts and sizes of each image.

    Raises:
        InputError: there is no such run, checkpoint, memory or file, it is damaged, or an argument
            does not apply to it; or several runs that cannot be averaged.
    """
    if isinstance(run, str | Path):
        return Classifier(_load(run, checkpoint, memory, pathologies, key, tta=tta))
    models = [_load(one, checkpoint, memory, pathologies, key, tta=tta) for one in run]
    if not models:
        raise InputError("No run is given: name at least one.")
    if len(models) == 1:
        return Classifier(models[0])
    return EnsembleClassifier(ensemble.combine(models, Path(models[0].settings.runs_dir)))


def _load(
    run: str | Path,
    checkpoint: str,
    memory: str,
    pathologies: Sequence[str] | None,
    key: str,
    *,
    tta: bool,
) -> LoadedModel:
    if str(run).startswith(hub.PREFIX):
        run = hub.fetch(str(run))
    run = Path(run).expanduser()
    if run.is_file() or (not run.exists() and run.suffix.casefold() in files.ENDINGS):
        if (checkpoint, memory) != ("best", TRAINED):
            raise InputError(f"{run} is a weight file: leave out checkpoint and memory.")
        model = loaded.load_alone(run, pathologies, key)
    elif pathologies or key:
        raise InputError(f"{run} is no weight file: leave out pathologies and key.")
    else:
        model = loaded.load_run(folder.find(run.parent, run.name), checkpoint, memory)
    return model.with_tta() if tta else model
