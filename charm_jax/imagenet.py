"""The ImageNet weights of torchvision: fetched once, checked by the digest in their name, kept."""

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from data_pipelines.errors import InputError

# The part of a name after the dash is the beginning of the file's SHA-256.
FILES = {
    "efficientnet_v2_s": "efficientnet_v2_s-dd5fe13b.pth",
    "efficientnet_v2_m": "efficientnet_v2_m-dc08266a.pth",
    "resnet50": "resnet50-11ad3fa6.pth",
    "densenet121": "densenet121-a639ec97.pth",
    "vgg16_lka": "vgg16_bn-6c64b313.pth",
}
SERVER = "https://download.pytorch.org/models"
_BLOCK = 2**20


def fetch(backbone: str, folder: Path | None = None, server: str = SERVER) -> Path:
    """Path of a backbone's ImageNet weights, downloaded on first use.

    Args:
        backbone: a key of ``FILES``.
        folder: where they are kept; ``$XDG_CACHE_HOME/charm_jax/weights`` by default.
        server: address before the file's name.

    Raises:
        InputError: there are none for that backbone, the download failed, or what came is not the
            file that its name promises.
    """
    if backbone not in FILES:
        raise InputError(
            f"There are no ImageNet weights for {backbone}: use "
            f"--config.model.init_from=random, or one of {', '.join(FILES)}."
        )
    name = FILES[backbone]
    if folder is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        folder = cache / "charm_jax" / "weights"
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{name}.{os.getpid()}.tmp")
        try:
            _download(f"{server}/{name}", draft, path)
            _check(draft, name)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    return path


def _download(address: str, draft: Path, path: Path) -> None:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer, draft.open("wb") as file:
            total = int(answer.headers.get("Content-Length", 0)) or None
            with tqdm(total=total, desc=path.name, unit="B", unit_scale=True) as bar:
                while block := answer.read(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"{address} cannot be fetched ({reason}): fetch it elsewhere and put it at {path}."
        ) from error


def _check(draft: Path, name: str) -> None:
    expected = name.removesuffix(".pth").rsplit("-", 1)[1]
    with draft.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(expected):
        raise InputError(
            f"{name} as downloaded has the SHA-256 {digest[:8]}… and not {expected}…: start "
            "again, or fetch it elsewhere."
        )
