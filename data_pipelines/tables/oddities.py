"""Warn of readable images that are probably not shown as they were meant."""

from collections.abc import Iterable, Mapping

import numpy as np

from data_pipelines.images.decode import Sliver

_NAMED = 3
_WHITE = 0.95  # share of those images that the proposed key shows without clipping
_WHOLE_SET = 0.5  # share of the images from which on a key for all of them helps


def warnings_of(
    slivers: Mapping[str, Sliver], measured: int, remarks: Mapping[str, tuple[str, ...]]
) -> list[str]:
    """Return a sentence for each kind of oddity.

    Args:
        slivers: images that use little of the range of their format, by name.
        measured: number of images whose range was measured.
        remarks: remarks of images that have any, by name.
    """
    tags: dict[str, dict[str, str]] = {}
    for name, texts in remarks.items():
        for text in texts:
            tags.setdefault(text.split()[0], {})[name] = text
    sentences = [
        f"{len(images):,} images need a repair ({next(iter(images.values()))}): look at "
        f"{_named(images)}."
        for images in tags.values()
    ]
    return [*([_sliver_warning(slivers, measured)] if slivers else []), *sentences]


def _sliver_warning(slivers: Mapping[str, Sliver], measured: int) -> str:
    most = max(sliver.used for sliver in slivers.values())
    whites = [sliver.white for sliver in slivers.values() if sliver.white is not None]
    text = (
        f"{len(slivers):,} of {measured:,} images use at most {most:.1%} of the range of values "
        f"that their format allows, so the network sees next to nothing ({_named(slivers)}): "
    )
    if len(slivers) < _WHOLE_SET * measured:
        return text + "convert them to the full range, or leave them out."
    if len(whites) < len(slivers) / 2:
        return text + "set --config.data.value_range=image to show the range of each image."
    white = int(np.quantile(whites, _WHITE, method="higher"))
    return text + (
        f"set --config.data.value_range={white}, the value that is then white, or image for "
        "the range of each image."
    )


def _named(images: Iterable[str]) -> str:
    names = list(images)
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
