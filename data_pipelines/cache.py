"""Find the folder for files that can be made or fetched again."""

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """Return ``$XDG_CACHE_HOME/charm_jax``, by default below ``~/.cache``.

    None where neither ``HOME`` nor an entry of the user names a home, as in some containers.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "charm_jax") if os.path.isabs(base) else None
