"""Move portable models to and from the Hugging Face hub, as data alone: no code is run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from charm_jax.runs import portable
from data_pipelines.errors import InputError

PREFIX = "hf://"
# Other files of a repository are neither sent nor fetched, such as evaluations of other data.
_FILES = (
    *(portable.FILE, "README.md", "trained_on.txt", "eval/test/metrics.json"),
    *("config.json", "split.json", "environment.json", "calibration.json", "novelty.json"),
    *("cases.csv", "patients.csv"),
    *(f"{portable.BANK}/{name}" for name in ("memory.json", "cases.csv", "patients.csv")),
    f"{portable.BANK}/trained_on.txt",
    f"{portable.THUMBNAILS}/*.png",
)


def fetch(name: str) -> Path:
    """Fetch a portable model, or find it in the hub's cache; return its folder.

    Args:
        name: ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``.

    Raises:
        InputError: huggingface_hub is not installed, the model cannot be fetched, or it is none.
    """
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    with _hub(f"{name} cannot be fetched") as hub:
        found = hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(_FILES)
        )
    folder = Path(found)
    if not portable.is_portable(folder):
        raise InputError(f"{name} has no {portable.FILE}: name what charm-jax push has sent.")
    return folder


def push(directory: Path, repository: str, *, public: bool) -> str:
    """Send a portable model to the hub, as a new commit; return its address.

    Args:
        directory: of the model.
        repository: ``OWNER/NAME``; it is created if there is none.
        public: whether everybody may read a new repository.

    Raises:
        InputError: huggingface_hub is not installed, or the hub refuses it or is out of reach.
    """
    with _hub(f"{directory} cannot be sent to {repository}") as hub:
        api = hub.HfApi()
        made = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            allow_patterns=list(_FILES),
            commit_message="Send a portable model of CHARM-JAX",
        )
    return str(made)


@contextmanager
def _hub(problem: str) -> Iterator[ModuleType]:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise InputError(
            f'{problem} without huggingface_hub: pip install "charm-jax[hub]".'
        ) from None
    try:
        yield huggingface_hub
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise InputError(
            f"{problem} ({reason}): check the name, the network and the token in HF_TOKEN."
        ) from None
