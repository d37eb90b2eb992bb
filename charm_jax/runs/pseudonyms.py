"""Replace the names of images and patients by keyed digests that another table's names match."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from data_pipelines.images.search import file_key

_BYTES = 8  # of a digest; among a million names two are equal once in 40 million tables


@dataclasses.dataclass(frozen=True)
class Names:
    """Write names as a list of cases has them: as they are, or as digests.

    A digest hides a name from readers. It does not protect a name that can be guessed: whoever has
    the key can compute the digest of a candidate.

    Attributes:
        key: of the digests; empty for names as they are.
        merged: whether each name begins with that of its set, ``SET/``, which stays.
    """

    key: bytes = b""
    merged: bool = False

    def __call__(self, name: str, spelled: Callable[[str], str] = str) -> str:
        """Return a name as the list has it, in the spelling by which it is compared."""
        if not self.key:
            return spelled(name)
        own, slash, rest = name.partition("/")
        if self.merged and slash and spelled is not file_key:
            return f"{own}/{self._digest(spelled(rest))}"
        return self._digest(spelled(name))

    def _digest(self, name: str) -> str:
        text = name.encode(errors="surrogateescape")
        return hashlib.blake2b(text, key=self.key, digest_size=_BYTES).hexdigest()


def names_of(trained: Mapping[str, Any]) -> tuple[Names, Names]:
    """Return how a list of cases writes images and patients.

    Args:
        trained: ``split.json`` of a run or portable model, or the description of a bank.
    """
    key, merged = bytes.fromhex(trained.get("names_key", "")), bool(trained.get("sets"))
    images = Names() if trained.get("images_named") else Names(key, merged)
    return images, Names(key, merged)
