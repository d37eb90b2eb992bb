"""Parse the arguments of commands that work on a run."""

from pathlib import Path

from charm_jax.config import cli
from charm_jax.config.cli import Arguments, Option
from charm_jax.config.settings import Settings
from charm_jax.runs import folder
from charm_jax.runs.banks import TRAINED
from charm_jax.weights.load import AUTO
from data_pipelines.loading.augment import IMAGENET

SPLITS = ("train", "val", "test", "test_published")
# Options that several commands have.
RUN = {"run": Option("", "name or folder of a run, by default the newest")}
CHECKPOINT = {"checkpoint": Option("best", "checkpoint of the run: best, last or STAGE/STEP")}
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


def read_settings(run: Path, arguments: Arguments | None = None) -> Settings:
    """Read the settings that a run was trained with, and apply overrides.

    Raises:
        InputError: ``config.json`` is missing or damaged.
    """
    path = run / "config.json"
    overrides = arguments.overrides if arguments else None
    changes = folder.read_json(path)
    if changes.get("preset") == "":  # the published one, before it had a name
        changes["preset"] = "published"
    settings = cli.settings_from(changes, str(path), overrides)
    # A run keeps the range that it found; one of before there were others has ImageNet's.
    unknown = settings.model.input_range == AUTO
    return settings.replace(model_input_range=IMAGENET) if unknown else settings
