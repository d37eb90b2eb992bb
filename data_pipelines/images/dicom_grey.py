"""Map stored DICOM values to grey by the tags of an image."""

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32

if TYPE_CHECKING:
    import pydicom

_Values = Float[np.ndarray, " values"]
# A table whose largest entry is below this share of what its bits allow has fewer bits.
_FULL_TABLE = 0.25
_FUNCTIONS = {"LINEAR": "LINEAR", "LINEAREXACT": "LINEAR_EXACT", "SIGMOID": "SIGMOID"}
_SHAPES = ("IDENTITY", "INVERSE")


@dataclasses.dataclass(frozen=True)
class GreyScale:
    """Hold the grey of every stored value.

    Attributes:
        grey: ``[2 ** BitsStored]`` in [0, 1], lowest value first, before an inversion.
        inverted: whether 0 is white.
        stored_top: the stored value whose grey is 1; None if a LUT or window decides, or values are
            signed or descend.
        remarks: tags that were ignored or repaired, each beginning with the tag's name.
    """

    grey: Float32[np.ndarray, " values"]
    inverted: bool
    stored_top: int | None
    remarks: tuple[str, ...]


def grey_scale(dataset: "pydicom.Dataset", used: slice = slice(None)) -> GreyScale:
    """Compute the grey of every value of ``BitsStored`` bits.

    The steps are: the modality LUT or rescale slope and intercept; the first VOI LUT, else the
    first window, else the whole range of the stored bits after the first step (not the range that
    the image uses); last, an inversion if PresentationLUTShape is INVERSE, or without that tag if
    the image is MONOCHROME1, so that 0 is black. A step whose tags are unusable is left out, and so
    is one that makes all values alike.

    Source: DICOM PS3.3 C.11.1, C.11.2, C.11.6 and C.7.6.3.1.2; DCMTK resolves a contradiction of
    PresentationLUTShape and PhotometricInterpretation in the same way.

    Differs: the presentation LUT sequence and overlays are ignored. A LUT whose entries use less
    than a quarter of the range of its bits, or more, is white at its own maximum. Tables are read
    here, since pydicom 3.0 wraps the inputs above 255 of a VOI LUT of 8 bits.

    Args:
        dataset: with BitsStored 1..16, PixelRepresentation and PhotometricInterpretation.
        used: the values of the pixels, as places in ``grey``; by default all.
    """
    tags = _Tags(dataset, used)
    n_values = 2**dataset.BitsStored
    lowest = -n_values // 2 if dataset.PixelRepresentation else 0
    stored = np.arange(lowest, lowest + n_values, dtype=np.float64)
    modality = _look_up(stored, tags, "ModalityLUTSequence")
    if modality is not None:
        values, top = modality
        limits = 0.0, top
    else:
        values = _rescale(stored, tags)
        limits = min(values[0], values[-1]), max(values[0], values[-1])
    plain = modality is None and lowest == 0 and values[0] < values[-1]
    seen = _look_up(values, tags, "VOILUTSequence")
    grey = _windowed(values, tags) if seen is None else seen[0] / seen[1]
    if grey is None:
        low, high = limits
        grey = (values - low) / (high - low)
    else:
        plain = False
    grey = np.clip(grey, 0, 1).astype(np.float32)
    inverted = _inverted(tags)
    return GreyScale(grey, inverted, n_values - 1 if plain else None, tuple(tags.remarks))


class _Tags:
    """Read tags of any content, and collect remarks on the unusable ones."""

    def __init__(self, dataset: "pydicom.Dataset", used: slice):
        self.dataset, self.used, self.remarks = dataset, used, []

    def alike(self, grey: _Values) -> bool:
        """Whether a step makes the values of the pixels alike, or all if the pixels are alike."""
        used = grey[self.used]
        return not np.ptp(used if len(used) > 1 else grey)

    def values(self, key: str) -> list[Any]:
        """Return the values of a tag; none if it is absent, empty or unreadable."""
        try:
            value = self.dataset.get(key)
        except Exception:  # pydicom parses when asked, and raises what the text makes it raise
            self.ignore(key, "text that is no value")
            return []
        if value is None or value == "":
            return []
        several = not isinstance(value, str | bytes) and hasattr(value, "__len__")
        return list(value) if several else [value]

    def numbers(self, key: str) -> list[float]:
        """Return the numbers of a tag; NaN for what is none."""
        found = []
        for value in self.values(key):
            try:
                found.append(float(value))
            except (TypeError, ValueError):
                found.append(math.nan)
        return found

    def word(self, key: str) -> str:
        """Return the letters and digits of the first value, in capitals."""
        return "".join(filter(str.isalnum, str(*self.values(key)[:1]))).upper()

    def remark(self, key: str, text: str) -> None:
        """Add a remark on a tag."""
        self.remarks.append(f"{key} {text}")

    def ignore(self, key: str, value: Any) -> None:
        """Add a remark that a tag's value is ignored."""
        self.remark(key, f"{value} is not usable and is ignored")


def _rescale(values: _Values, tags: _Tags) -> _Values:
    slope, intercept = (
        tags.numbers("RescaleSlope") or [1.0],
        tags.numbers("RescaleIntercept") or [0.0],
    )
    if not (slope[0] and abs(slope[0]) < 1e12):
        tags.ignore("RescaleSlope", f"{slope[0]:g}")
        return values
    if not abs(intercept[0]) < 1e12:
        tags.ignore("RescaleIntercept", f"{intercept[0]:g}")
        return values
    scaled = values * slope[0] + intercept[0]
    if tags.alike(scaled):  # the slope vanishes beside the intercept
        tags.ignore("RescaleSlope", f"{slope[0]:g}")
        return values
    return scaled


def _windowed(values: _Values, tags: _Tags) -> _Values | None:
    """Apply the first usable window, to [0, 1]; DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    numbers = tags.numbers("WindowCenter"), tags.numbers("WindowWidth")
    windows = list(itertools.zip_longest(*numbers, fillvalue=math.nan))
    if not windows:
        return None
    spelt = (tags.values("VOILUTFunction") or ["LINEAR"])[0]
    function = _FUNCTIONS.get(tags.word("VOILUTFunction") or "LINEAR", "LINEAR")
    if spelt != function:
        tags.remark("VOILUTFunction", f"{str(spelt)!r} is taken for {function}")
    smallest = 1 if function == "LINEAR" else 1e-12
    for center, width in windows:
        if abs(center) < 1e12 and smallest <= width < 1e12:
            grey = np.clip(_window(values, center, width, function), 0, 1)
            if not tags.alike(grey):
                return grey
        tags.ignore("WindowWidth", f"{width:g} with WindowCenter {center:g}")
    return None


def _window(values: _Values, center: float, width: float, function: str) -> _Values:
    if function == "LINEAR":
        offset = values - (center - 0.5)
        return np.where(offset > 0, 1.0, 0.0) if width == 1 else offset / (width - 1) + 0.5
    if function == "LINEAR_EXACT":
        return (values - center) / width + 0.5
    # 1 / (1 + exp(-4 x)) in a form that cannot overflow.
    return 0.5 + 0.5 * np.tanh(2 * (values - center) / width)


def _look_up(values: _Values, tags: _Tags, key: str) -> tuple[_Values, float] | None:
    """Look up values in the first table of a sequence; also return the entry that is white."""
    tables = tags.values(key)
    if not tables:
        return None
    if "LUTDescriptor" not in tables[0] or "LUTData" not in tables[0]:
        tags.ignore(key, "without LUTDescriptor and LUTData")
        return None
    numbers = tables[0].LUTDescriptor
    if isinstance(numbers, bytes):
        numbers = np.frombuffer(numbers, _words(tags))
    if np.size(numbers) != 3:
        tags.ignore(key, f"with the LUTDescriptor {numbers}")
        return None
    # The VR depends on the pixels or on the writer: only the 16 bits of a number count.
    n_entries, first, bits = (int(number) & 0xFFFF for number in numbers)
    n_entries = n_entries or 2**16
    if not 8 <= bits <= 16:
        tags.ignore(key, f"of {bits} bits")
        return None
    entries = _entries(tables[0], n_entries, bits, _words(tags))
    if len(entries) < n_entries:
        tags.ignore(key, f"of {len(entries)} entries, not {n_entries},")
        return None
    first = _signed_as(values, first, n_entries)
    at = np.clip(np.rint(values) - first, 0, n_entries - 1).astype(np.intp)
    found = entries[at].astype(np.float64)
    if tags.alike(found):
        tags.ignore(key, "with one entry for all pixels")
        return None
    white, most = 2**bits - 1, int(entries.max())
    if most and not _FULL_TABLE * white < most <= white:
        tags.remark(key, f"says {bits} bits and has entries up to {most}, which is shown as white")
        white = most
    return found, float(white)


def _words(tags: _Tags) -> str:
    return "<u2" if tags.dataset.original_encoding[1] else ">u2"


def _entries(table: "pydicom.Dataset", n_entries: int, bits: int, words: str) -> np.ndarray:
    entries = table.LUTData
    if isinstance(entries, bytes):
        kind = np.dtype("u1" if bits == 8 and len(entries) < 2 * n_entries else words)
        entries = np.frombuffer(entries[: len(entries) // kind.itemsize * kind.itemsize], kind)
    return np.atleast_1d(np.asarray(entries, np.int64))[:n_entries] & 0xFFFF


def _signed_as(values: _Values, first: int, n_entries: int) -> int:
    """Return the first mapped value with the sign of the table's input.

    Source: DICOM PS3.3 C.11.1.1 and C.11.2.1.1: the number has 16 bits and is signed where the
    input is. Where a rescale makes an input that fits both, the one that meets the input counts.
    """
    low, high = values.min(), values.max()
    signed = first - 2**16
    if low >= 0 or first < 2**15:
        return first
    meets_signed = signed <= high and signed + n_entries > low
    return signed if meets_signed or first > high else first


def _inverted(tags: _Tags) -> bool:
    photometric, shape = tags.word("PhotometricInterpretation"), tags.word("PresentationLUTShape")
    if tags.values("PresentationLUTSequence"):
        tags.ignore("PresentationLUTSequence", "as another table")
    if shape and shape not in _SHAPES:
        tags.ignore("PresentationLUTShape", shape)
        shape = ""
    usual = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    if shape not in ("", usual):
        tags.remark("PresentationLUTShape", f"{shape} contradicts {photometric} and is followed")
    return (shape or usual) == "INVERSE"
