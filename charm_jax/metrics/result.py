"""The result of an evaluation, as ``metrics.json`` holds it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from charm_jax.metrics.from_json import build

Interval = tuple[float | None, float | None]
UNDEFINED: Interval = (None, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtThreshold:
    """Decisions at a threshold on the calibrated score; None without one.

    Attributes:
        threshold: scores at or above it count as positive.
        tp: true positives.
        fp: false positives.
        fn: false negatives.
        tn: true negatives.
        ppv: positive predictive value, tp / (tp + fp).
        npv: negative predictive value, tn / (tn + fn).
        more: metrics of ``classification.METRICS`` without a field of their own.
    """

    threshold: float | None = None
    tp: int | None = None
    fp: int | None = None
    fn: int | None = None
    tn: int | None = None
    sensitivity: float | None = None
    specificity: float | None = None
    ppv: float | None = None
    npv: float | None = None
    f1: float | None = None
    more: dict[str, float | None] = dataclasses.field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """Return the value of a metric of ``classification.METRICS``; None for undefined."""
        return self.more[metric] if metric in self.more else getattr(self, metric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorShift:
    """The prevalence that the scores alone tell, and the scores corrected for it.

    Attributes:
        prior: prevalence on validation, as ``calibration.fit`` has it.
        estimated: prevalence among the images whose label is known (of all images if none is), told
            by their scores alone.
        brier: Brier score of the Platt-scaled probabilities; None without known labels.
        brier_corrected: Brier score of these corrected for the estimated prevalence.
        ece: calibration error over bins of equal mass.
        ece_corrected: calibration error of the corrected ones.
    """

    prior: float
    estimated: float
    brier: float | None = None
    brier_corrected: float | None = None
    ece: float | None = None
    ece_corrected: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindingResult(AtThreshold):
    """Metrics of one finding over its known labels; None where undefined.

    Attributes:
        positives: images with the finding.
        negatives: images without it.
        unknown: images whose label is unknown.
        prevalence: share of the known labels that are positive.
        temperature: divisor that calibrates the logits, fitted on validation.
        threshold: maximises sensitivity + specificity on validation, as the fields at it.
        operating_points: decisions at the thresholds of ``calibration.OPERATING_POINTS``.
        prior_shift: None without a temperature.
    """

    positives: int
    negatives: int
    unknown: int
    prevalence: float | None = None
    prevalence_interval: Interval = UNDEFINED
    sensitivity_interval: Interval = UNDEFINED
    specificity_interval: Interval = UNDEFINED
    auroc: float | None = None
    auroc_interval: Interval = UNDEFINED
    average_precision: float | None = None
    average_precision_interval: Interval = UNDEFINED
    temperature: float | None = None
    brier: float | None = None
    ece_equal_width: float | None = None
    ece_equal_mass: float | None = None
    ece_equal_mass_interval: Interval = UNDEFINED
    operating_points: dict[str, AtThreshold] = dataclasses.field(default_factory=dict)
    prior_shift: PriorShift | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of a metric over the findings that define it.

    Attributes:
        findings: how many findings are averaged.
        undefined: names of the others.
        interval: of AUROC and average precision alone.
    """

    value: float | None
    findings: int
    undefined: tuple[str, ...]
    interval: Interval = UNDEFINED


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupResult:
    """Means over the findings of like prevalence in training; ``undefined`` lack an AUROC."""

    findings: tuple[str, ...]
    auroc: float | None
    average_precision: float | None
    undefined: tuple[str, ...]
    auroc_interval: Interval = UNDEFINED
    average_precision_interval: Interval = UNDEFINED


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubgroupResult:
    """AUROCs among the images of one view, sex or age band, by finding and on average."""

    n_images: int
    n_patients: int
    macro_auroc: float | None
    macro_auroc_interval: Interval
    findings: dict[str, float | None]
    undefined: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval over resampled patients; None where undefined."""

    value: float | None = None
    interval: Interval = UNDEFINED


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindingGaps:
    """Decisions on a finding in a group; a gap is the group minus all others."""

    tpr: Estimate
    fpr: Estimate
    tpr_gap: Estimate
    fpr_gap: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupGaps:
    """Decisions in a group of patients at the threshold, against all other groups.

    Attributes:
        tpr_gap: mean over the findings that define both gaps.
        fpr_gap: mean over these.
        underdiagnosis: share of the images with a finding that are called healthy: no finding
            reaches its threshold ``specificity_95``.
        undefined: findings without both gaps.
    """

    n_images: int
    tpr_gap: Estimate
    fpr_gap: Estimate
    underdiagnosis: Estimate
    underdiagnosis_gap: Estimate
    findings: dict[str, FindingGaps]
    undefined: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of two models on the same images, with the interval of ``value - other``."""

    value: float | None
    other: float | None
    difference: float | None = None
    interval: Interval = UNDEFINED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences from another run: metric → difference, on average and for each finding."""

    run: str
    checkpoint: str
    interval_method: dict[str, str]
    macro: dict[str, Difference]
    findings: dict[str, dict[str, Difference]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutOfDistribution:
    """How many evaluated images are out-of-distribution for the run, as ``ood`` judges it.

    Attributes:
        n_images: images with at least one reason.
        by_reason: images by reason; one may have several.
        n_reference: validation images that set the limits.
    """

    n_images: int
    by_reason: dict[str, int]
    n_reference: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnTest:
    """The run's evaluation of its own test images, for the findings that are scored here, too."""

    source: str
    simulated: bool
    split_sha256: str
    n_images: int
    n_patients: int
    patients_known: bool
    findings: dict[str, FindingResult]


@dataclasses.dataclass(frozen=True, kw_only=True)
class External:
    """An evaluation of a run on other images, labels or settings than its own.

    Attributes:
        shared: findings of the run that the source labels.
        lacking: findings of the run that the source does not label.
        unknown: findings of the source that the run does not know.
        own: None where this network was not evaluated on the run's own test images.
        command: evaluates it on these.
        ood: None without a reference.
    """

    shared: tuple[str, ...]
    lacking: tuple[str, ...]
    unknown: tuple[str, ...]
    command: str
    own: OwnTest | None = None
    ood: OutOfDistribution | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationSource:
    """The checkpoint and images that thresholds and temperatures were fitted with.

    Attributes:
        averaged: whether they are those of the members of an ensemble, averaged, because these
            share no validation split that can be read.
    """

    checkpoint: str
    split_sha256: str
    on_these_images: bool
    averaged: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class BankSource:
    """The images that filled the memory bank; None where unknown.

    Attributes:
        images_sha256: digest of their names, for a refilled bank.
        images_here: evaluated images that are in the bank or belong to its patients.
    """

    source: str | None = None
    split: str | None = None
    images_sha256: str | None = None
    patients_known: bool | None = None
    images_here: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """A run of an ensemble, and what the ensemble gains over it on the same images.

    Attributes:
        memory: label of its memory bank in place of the checkpoint's own.
        bank: None for a network without a memory bank.
        validation_auroc: macro AUROC on its own validation split; None where that cannot be read.
        best: whether that is the highest of all members; of none where they share no such split.
        compared: differences of the ensemble from this run.
    """

    run: str
    checkpoint: str
    network_sha256: str
    image_size: int
    memory: str | None
    bank: BankSource | None
    validation_auroc: float | None
    best: bool
    compared: Comparison


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindingSets:
    """Conformal sets of one finding.

    Attributes:
        absent: share of the images without the finding whose set has "absent", averaged over
            patients.
        present: share of the images with it whose set has "present", averaged over patients.
        decided: share of all images whose set has one label.
        both: share of all images whose set has both labels.
        neither: share of all images whose set is empty: unlike validation's of either label.
    """

    absent: Estimate
    present: Estimate
    decided: float
    both: float
    neither: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conformal:
    """Conformal sets at a wanted coverage; means are over the findings that define them.

    Attributes:
        decided: share of the sets of labelled findings that have one label; None without any.
    """

    coverage: float
    absent: Estimate
    present: Estimate
    decided: float | None
    findings: dict[str, FindingSets]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """All that depends on the predictions.

    Attributes:
        interval_method: of AUROC and of average precision.
        undefined: findings without an AUROC.
        macro: metric → mean over the findings.
        groups: head, medium and tail of the training prevalences; None where these are unknown.
        subgroups: attribute → value → result.
        fairness: attribute → group → gaps; of attributes with two known groups and more.
    """

    macro_auroc: float | None
    macro_auroc_interval: Interval
    interval_method: dict[str, str]
    findings: dict[str, FindingResult]
    undefined: tuple[str, ...]
    macro: dict[str, Mean]
    groups: dict[str, GroupResult] | None
    subgroups: dict[str, dict[str, SubgroupResult]]
    fairness: dict[str, dict[str, GroupGaps]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationResult(Scores):
    """The content of ``metrics.json``.

    Attributes:
        source: name of the data source.
        simulated: whether a program drew the images.
        data: settings that the data were loaded with.
        reading: what changes the scores of images beside weights and bank.
        rule: split rule.
        split: evaluated split.
        split_sha256: digest of the image names.
        cases_sha256: digest of these with patients, findings and labels.
        images_present: images of the whole table that are there.
        images_missing: images of the whole table that are not.
        refused: image files that could not be used.
        leak_images: abnormal images of patients that training or validation saw, of ``leak_of``.
        leak_of_all: images of such patients; these three are None for weights without a run.
        leak_seen: images that training or validation saw themselves.
        checkpoint: name of the checkpoint or weight file.
        refit: how the checkpoint's classifier was fitted again, as ``config.refit`` has it; None if
            it was not, or is not known.
        network_sha256: digest of weights and bank.
        trained_on_simulated: None where unknown.
        began_from: weight file that training began from.
        abnormal_only: training stages that used abnormal images alone.
        memory: label of the memory bank in place of the checkpoint's own.
        calibration: None where nothing was fitted.
        bank: None for a network without a memory bank.
        comparison: None without ``--compare``.
        members: runs whose calibrated logits are averaged; empty for a single run.
        single_view: differences from the same images unchanged; None without ``--tta``.
        conformal: None without ``--coverage``.
        external: None for the run's own images, and for weights without a run.
    """

    source: str
    simulated: bool
    data: dict[str, Any]
    reading: dict[str, Any]
    rule: str
    split: str
    split_sha256: str
    cases_sha256: str
    n_images: int
    n_patients: int
    patients_known: bool
    images_present: int
    images_missing: int
    refused: int
    leak_images: int | None
    leak_of: int
    leak_of_all: int | None
    leak_seen: int | None
    checkpoint: str
    trained_on_simulated: bool | None
    began_from: str | None
    refit: str | None = None
    network_sha256: str | None = None
    abnormal_only: tuple[str, ...] = ()
    memory: str | None = None
    calibration: CalibrationSource | None = None
    bank: BankSource | None = None
    comparison: Comparison | None = None
    members: tuple[Member, ...] = ()
    single_view: Comparison | None = None
    conformal: Conformal | None = None
    external: External | None = None

    @property
    def labelled(self) -> dict[str, FindingResult]:
        """The findings that at least one image has a label of."""
        return {name: f for name, f in self.findings.items() if f.positives + f.negatives}

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "EvaluationResult":
        """Build the result from the content of ``metrics.json``.

        Raises:
            ValueError: If a key is missing or a value is of another type; it names the key.
        """
        return build(cls, content)
