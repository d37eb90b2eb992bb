"""Map stored DICOM values to grey by the tags of an image."""

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32

if TYPE_CHECKING:
    import pydicom

_Values = Float[np.ndarray, " values"]


def grey_of_stored_values(dataset: "pydicom.Dataset") -> Float32[np.ndarray, " values"]:
    """Return the grey of every value of ``BitsStored`` bits, lowest first.

    The steps are: the modality LUT or rescale slope and intercept; the first VOI LUT, else the
    first window, else the whole range of the stored bits after the first step (not the range that
    the image uses); last, MONOCHROME1 is inverted, so that 0 is black in both.

    Source: DICOM PS3.3 C.11.1, C.11.2 and C.7.6.3.1.2.

    Differs: the presentation LUT, overlays and windows without a centre or width are ignored.
    Tables are read here, since pydicom 3.0 wraps the inputs above 255 of a VOI LUT of 8 bits.

    Args:
        dataset: with BitsStored 1..16, PixelRepresentation and PhotometricInterpretation.

    Returns:
        ``[2 ** BitsStored]`` in [0, 1], 0 is black.

    Raises:
        ValueError: the tags define no grey scale.
    """
    n_values = 2**dataset.BitsStored
    lowest = -n_values // 2 if dataset.PixelRepresentation else 0
    values = np.arange(lowest, lowest + n_values, dtype=np.float64)
    if dataset.get("ModalityLUTSequence"):
        values, top = _look_up(values, dataset.ModalityLUTSequence[0], dataset)
        limits = 0.0, top
    else:
        values = _rescale(values, dataset)
        limits = min(values[0], values[-1]), max(values[0], values[-1])
    grey = np.clip(_look(values, limits, dataset), 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return grey.astype(np.float32)


def _rescale(values: _Values, dataset: "pydicom.Dataset") -> _Values:
    slope, intercept = (
        _first(dataset, "RescaleSlope", 1.0),
        _first(dataset, "RescaleIntercept", 0.0),
    )
    if not slope or not (abs(slope) < 1e12 and abs(intercept) < 1e12):
        raise ValueError(f"its rescale is not usable (slope {slope}, intercept {intercept})")
    return values * slope + intercept


def _look(values: _Values, limits: tuple[float, float], dataset: "pydicom.Dataset") -> _Values:
    """Apply the VOI LUT, else the window, else the limits."""
    if dataset.get("VOILUTSequence"):
        values, top = _look_up(values, dataset.VOILUTSequence[0], dataset)
        return values / top
    center, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    if center is not None and width is not None:
        return _window(values, center, width, dataset.get("VOILUTFunction") or "LINEAR")
    low, high = limits
    return (values - low) / (high - low)


def _window(values: _Values, center: float, width: float, function: str) -> _Values:
    """Apply a window, to [0, 1]; DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    smallest = 1 if function == "LINEAR" else 1e-12
    if not (math.isfinite(center) and smallest <= width < math.inf):
        raise ValueError(f"its window is not usable (centre {center}, width {width}, {function})")
    if function == "LINEAR":
        offset = values - (center - 0.5)
        return np.where(offset > 0, 1.0, 0.0) if width == 1 else offset / (width - 1) + 0.5
    if function == "LINEAR_EXACT":
        return (values - center) / width + 0.5
    if function == "SIGMOID":
        # 1 / (1 + exp(-4 x)) in a form that cannot overflow.
        return 0.5 + 0.5 * np.tanh(2 * (values - center) / width)
    raise ValueError(f"its VOILUTFunction {function} is not known")


def _look_up(
    values: _Values, table: "pydicom.Dataset", dataset: "pydicom.Dataset"
) -> tuple[_Values, float]:
    """Look up values in a table; also return its largest possible entry."""
    n_entries, first, bits = (int(number) for number in table.LUTDescriptor)
    n_entries = n_entries or 2**16
    if not 8 <= bits <= 16:
        raise ValueError(f"its lookup table has {bits} bits, not 8 to 16")
    entries = table.LUTData
    if isinstance(entries, bytes):
        size = 1 if bits == 8 and len(entries) < 2 * n_entries else 2
        order = "<" if dataset.original_encoding[1] else ">"
        entries = np.frombuffer(entries[: n_entries * size], f"{order}u{size}")
    entries = np.atleast_1d(np.asarray(entries, np.int64))[:n_entries]
    if len(entries) < n_entries:
        raise ValueError(f"its lookup table has {len(entries)} entries, not {n_entries}")
    at = np.clip(np.rint(values) - first, 0, n_entries - 1).astype(np.intp)
    return entries[at].astype(np.float64), float(2**bits - 1)


def _first(dataset: "pydicom.Dataset", key: str, default: float | None = None) -> float | None:
    """Return the first of several numbers, or the default."""
    value = dataset.get(key)
    if value is None or value == "":
        return default
    if isinstance(value, int | float):
        return float(value)
    return float(value[0]) if len(value) else default
