"""Parse the arguments of commands that work on a run."""

from pathlib import Path

from charm_jax.config import cli
from charm_jax.config.cli import Arguments, Option
from charm_jax.config.settings import Settings
from charm_jax.runs import folder, portable
from charm_jax.runs.banks import TRAINED
from charm_jax.weights.load import AUTO
from data_pipelines.errors import InputError
from data_pipelines.loading.augment import IMAGENET

SPLITS = ("train", "val", "test", "test_published")
# Options that several commands have.
RUNS = {
    "run": Option([], "name or folder of a run, by default the newest; several make an ensemble")
}
RUN = {"run": Option("", "name or folder of a run, by default the newest")}
CHECKPOINT = {"checkpoint": Option("best", "checkpoint of the run: best, last or STAGE/STEP")}
TTA = {"tta": Option(False, "test-time augmentation: average over small shifts and sizes")}
COVERAGE = {
    "coverage": Option("", "share of conformal sets that shall hold the label, such as 0.9")
}
MEMORY = {
    "memory": Option(TRAINED, "memory bank: the trained one, or one that charm-jax memory made")
}


def find_run(arguments: Arguments, name: str | None = None) -> Path:
    """Return the folder of a run, by default that in ``--run``.

    Raises:
        InputError: there is no such run.
    """
    root = arguments.overrides.get("runs_dir", "runs")
    return folder.find(Path(root), arguments.flags.run if name is None else name)


def find_runs(arguments: Arguments) -> list[Path]:
    """Return the folders of the runs in ``--run``, by default the newest alone.

    Raises:
        InputError: there is no such run.
    """
    return [find_run(arguments, name) for name in arguments.flags.run or [""]]


def read_coverage(arguments: Arguments) -> float | None:
    """Return the number in ``--coverage``; None where it is not given.

    Raises:
        InputError: it is no number between 0 and 1.
    """
    text = arguments.flags.coverage
    if not arguments.flags["coverage"].present:
        return None
    try:
        coverage = float(text)
    except ValueError:
        coverage = 0.0
    if not 0 < coverage < 1:
        raise InputError(f"--coverage is {text!r}: give a number above 0 and below 1, such as 0.9.")
    return coverage


def read_settings(run: Path, arguments: Arguments | None = None) -> Settings:
    """Read the settings that a run, or a portable model, was trained with, and apply overrides.

    Raises:
        InputError: ``config.json`` is missing or damaged.
    """
    path = run / "config.json"
    overrides = arguments.overrides if arguments else None
    changes = portable.read_about(run)["config"] if portable.is_portable(run) else None
    changes = folder.read_json(path) if changes is None else changes
    if changes.get("preset") == "":  # the published one, before it had a name
        changes["preset"] = "published"
    settings = cli.settings_from(changes, str(path), overrides)
    # A run keeps the range that it found; one of before there were others has ImageNet's.
    unknown = settings.model.input_range == AUTO
    return settings.replace(model_input_range=IMAGENET) if unknown else settings
