"""Decode image files to grey squares, in one place for all uses."""

import contextlib
import dataclasses
import struct
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import ExifTags, Image, TiffImagePlugin

from data_pipelines.errors import InputError
from data_pipelines.images import dicom
from data_pipelines.images.decoders import TooManyPixelsError, check_size, opened, quiet_decoders

# Pillow reads more formats, and starts other programs for some.
_FORMATS = ("PNG", "JPEG", "TIFF")
# Greyscale with or without alpha, palette and colour: PIL converts each to 8 bits of luma.
_EIGHT_BIT = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"}
_SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N", "I"}
_TOP = 65535
# The others are rare ones for fax, where libtiff guesses at damage.
_TIFF_COMPRESSIONS = {"raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg"}
# Tags of TIFF; a photometric interpretation of 0 means that white is zero.
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_SAMPLE_FORMAT = 339
_SIGNED = 2
# The exceptions of PIL for damaged files have no common base class.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)
# How an image is turned upright, by its EXIF orientation.
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Values of config.data.value_range beside a number.
CONTAINER, IMAGE = "container", "image"
VALUE_RANGES = f"{CONTAINER}, {IMAGE} or a whole number from 1 to {_TOP}"
# Share of the container's range that the central 96 % of an ordinary image's pixels exceed: 1,539
# chest X-rays of ChestX-ray14 use 0.36 or more, 14 bits in a container of 16 at most 0.25.
SLIVER = 0.25
_TAIL = 2.0  # percent of the pixels at each end that do not count: burnt-in text, dead pixels
_MEASURED = 512  # pixels a side

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Sliver:
    """Describe an image whose values use little of their container's range.

    Attributes:
        used: share of the range, at most ``SLIVER``.
        white: value for ``config.data.value_range`` that would show the image in full; None where
            only the range of each image does: tags give the scale, or no value is near 0.
    """

    used: float
    white: int | None

    @property
    def advice(self) -> str:
        """Return a clause on the image and the key that helps."""
        ranges = IMAGE if self.white is None else f"{self.white} or {IMAGE}"
        return (
            f"its values use {self.used:.1%} of the range that its format allows: set "
            f"--config.data.value_range={ranges}"
        )


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Hold a decoded grey image of any size.

    Attributes:
        image: mode L, or F where values are not 8-bit integers.
        top: value of the container that is white, or black if ``inverted``; 0 is the opposite.
        inverted: whether 0 is white.
        stored_top: ``top`` on the scale of ``value_range``; None if tags give another scale.
        value_range: ``container``, ``image`` or the number that is white.
        remarks: tags that were ignored or repaired, each beginning with the tag's name.
    """

    image: Image.Image
    top: int
    inverted: bool = False
    stored_top: int | None = None
    value_range: str = CONTAINER
    remarks: tuple[str, ...] = ()

    def square(self, size: int) -> UInt8[np.ndarray, "size size 1"]:
        """Resize the image; see ``read_image``."""
        low, high = self._limits()
        if self.image.mode == "L" and (low, high) == (0, 255):
            grey = np.array(self.image.resize((size, size), Image.Resampling.BILINEAR))
        else:
            resized = self.image.convert("F").resize((size, size), Image.Resampling.BILINEAR)
            # Round once, after the resize.
            values = np.rint(
                (np.asarray(resized) - np.float32(low)) * np.float32(255 / (high - low))
            )
            grey = np.clip(values, 0, 255).astype(np.uint8)
        return (255 - grey if self.inverted else grey)[..., None]

    def view(self, longest: int) -> UInt16[np.ndarray, "height width"]:
        """Shrink the image to show it, in its own proportions; 0 is black and 65535 white.

        Args:
            longest: pixels that its longer side has at most.
        """
        low, high = self._limits()
        factor = min(1.0, longest / max(self.image.size))
        width, height = (max(round(side * factor), 1) for side in self.image.size)
        small = self.image.resize((width, height), Image.Resampling.BILINEAR).convert("F")
        shares = np.clip((np.asarray(small) - low) / (high - low), 0, 1)
        grey = np.rint(shares * _TOP).astype(np.uint16)
        return _TOP - grey if self.inverted else grey

    def sliver(self) -> Sliver | None:
        """Measure the range that the values use; None if it is large, or all values are equal."""
        values = np.asarray(self.image)
        step = [max(side // _MEASURED, 1) for side in values.shape]
        values = values[:: step[0], :: step[1]].astype(np.float32)
        low, high = self._limits()
        shares = np.clip((values - low) / (high - low), 0, 1)
        first, last = np.percentile(shares, [_TAIL, 100 - _TAIL])
        used = float(last - first)
        if used > SLIVER or values.min() == values.max():
            return None
        if self.stored_top is None or last > SLIVER:
            return Sliver(used, None)
        most = float(shares.max())
        highest = (most if most <= SLIVER else float(last)) * (high - low) + low
        scaled = round(highest * self.stored_top / self.top)
        return Sliver(used, 2 ** max(scaled.bit_length(), 1) - 1)

    def _limits(self) -> tuple[float, float]:
        if self.value_range == IMAGE:
            low, high = self.image.getextrema()
            return (float(low), float(high)) if low < high else (0.0, float(self.top))
        if self.value_range == CONTAINER or self.stored_top is None:
            return 0.0, float(self.top)
        return 0.0, min(1.0, float(self.value_range) / self.stored_top) * self.top


def valid_value_range(value_range: str) -> bool:
    """Whether a text is one of ``VALUE_RANGES``."""
    if value_range in (CONTAINER, IMAGE):
        return True
    return value_range.isascii() and value_range.isdigit() and 1 <= int(value_range) <= _TOP


@dataclasses.dataclass(frozen=True)
class Check:
    """Hold what was found out about an image.

    Attributes:
        fault: why it is unusable, without the file's name; empty if it is fine.
        remarks: see ``Decoded``.
        sliver: see ``Decoded.sliver``.
        too_large: whether the fault is that it has too many pixels.
    """

    fault: str = ""
    remarks: tuple[str, ...] = ()
    sliver: Sliver | None = None
    too_large: bool = False


def decode(path: Path, value_range: str = CONTAINER) -> Decoded:
    """Decode an image to grey at its own size.

    The content of a file decides its format, not its name. Colour becomes luma (ITU-R 601: equal
    channels keep their value; of 16-bit colour the upper 8 bits count), alpha is ignored, and EXIF
    orientation is applied. DICOM becomes grey by its own tags (``dicom_grey``).

    Args:
        path: a PNG, JPEG, TIFF or DICOM file of one image.
        value_range: which values are black and white: ``container``, all that the format allows
            (0 to 65535 for 16 bits); ``image``, the lowest and highest of each image; or a number,
            the value that is white, where the format allows more and no tag says otherwise.

    Raises:
        InputError: the file is missing, empty, truncated, too large, or not such an image.
    """
    try:
        return _decode(path, value_range)
    except DECODE_ERRORS as error:
        raise InputError(
            f"The image {path} cannot be read ({unreadable_reason(error)}): fetch it again, or "
            "remove the file and set --config.data.missing=skip."
        ) from error


def read_image(path: Path, size: int, value_range: str = CONTAINER) -> np.ndarray:
    """Decode an image to grey and resize it to a square.

    The resize comes before values are rounded to 8 bits, so nothing is rounded twice. The filter is
    PIL's BILINEAR, which widens its support when it shrinks and so does not alias; fastai's
    ``Resize``, which the reference used, has the same filter. An image that is not square is
    squeezed, not cropped: no part of the lung is lost.

    Args:
        path: see ``decode``.
        size: side of the square in pixels, at least 1.
        value_range: see ``decode``.

    Returns:
        ``[size, size, 1]`` uint8.

    Raises:
        InputError: see ``decode``.
    """
    return decode(path, value_range).square(size)


def examine(
    path: Path, size: int, value_range: str = CONTAINER
) -> tuple[UInt8[np.ndarray, "size size 1"], Check]:
    """Read an image as ``read_image`` does, after checking all of the file.

    Decoders accept damage that the checksums of a PNG show.

    Returns:
        The square, zeros where there is a fault, and the check.

    Raises:
        InputError: the packages for the format are not installed.
    """
    square, check = examine_with(path, value_range, lambda decoded: decoded.square(size))
    return np.zeros((size, size, 1), np.uint8) if square is None else square, check


def examine_with(
    source: Path | bytes, value_range: str, read: Callable[[Decoded], T]
) -> tuple[T | None, Check]:
    """Decode an image after checking all of the file.

    Args:
        source: path or content of a file.
        value_range: see ``decode``.
        read: takes from the decoded image what is wanted.

    Returns:
        What ``read`` returns, None where there is a fault, and the check.

    Raises:
        InputError: the packages for the format are not installed.
    """
    try:
        with opened(source) as file:
            if not file.read(1):
                return None, Check("empty")
        if not _is_dicom(source):
            with _opened(source) as image:
                if image.format == "PNG":
                    image.verify()
        decoded = _decode(source, value_range)
        return read(decoded), Check("", decoded.remarks, decoded.sliver())
    except DECODE_ERRORS as error:
        large = isinstance(error, TooManyPixelsError | Image.DecompressionBombError)
        return None, Check(unreadable_reason(error), too_large=large)


def check_header(path: Path, *, checksums: bool = False) -> Check:
    """Check the size and header of a file.

    Args:
        path: see ``decode``.
        checksums: whether to read all of a PNG, too, and compare its checksums.

    Raises:
        InputError: the packages for the format are not installed.
    """
    try:
        with opened(path) as file:
            if not file.read(1):
                return Check("empty")
        if _is_dicom(path):
            return Check(remarks=dicom.check_header(path))
        with _opened(path) as image:
            if checksums and image.format == "PNG":
                image.verify()
            return Check()
    except DECODE_ERRORS as error:
        return Check(unreadable_reason(error))


def unreadable_reason(error: BaseException) -> str:
    """Return a decoder's error in a few words, without the path."""
    if isinstance(error, FileNotFoundError):
        return "absent"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a PNG, JPEG, TIFF or DICOM file of a known kind"
    if isinstance(error, TypeError | LookupError):
        return "its header is damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    return textwrap.shorten(str(error), 200) or type(error).__name__


def decoded_array(image: Image.Image, value_range: str = CONTAINER) -> Decoded:
    """Take one grey channel of an image in memory as decoded.

    Raises:
        ValueError: a value outside 0..65535.
    """
    if image.mode in _EIGHT_BIT:
        return Decoded(image.convert("L"), 255, stored_top=255, value_range=value_range)
    grey = image.convert("F")
    low, high = grey.getextrema()
    if low < 0 or high > _TOP:
        raise ValueError(f"its values are {low:.0f} to {high:.0f}, not 0 to {_TOP}")
    top, inverted = _TOP, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        top = 4095 if image.tag_v2.get(_BITS_PER_SAMPLE) == (12,) else _TOP
        inverted = image.tag_v2.get(_PHOTOMETRIC, 0) == 0
    return Decoded(grey, top, inverted, top, value_range)


def _decode(source: Path | bytes, value_range: str) -> Decoded:
    if _is_dicom(source):
        grey = dicom.read_grey(source)
        image = Image.fromarray(grey.values)
        return Decoded(image, 1, grey.inverted, grey.stored_top, value_range, grey.remarks)
    with _opened(source) as image:
        image.load()
        decoded = decoded_array(image, value_range)
        # Pillow itself turns TIFF upright.
        return decoded if image.format == "TIFF" else _upright(decoded, image)


def _upright(decoded: Decoded, stored: Image.Image) -> Decoded:
    """Apply the EXIF orientation."""
    try:
        turn = _ORIENTATIONS.get(stored.getexif().get(ExifTags.Base.Orientation))
    except DECODE_ERRORS:
        return dataclasses.replace(decoded, remarks=("EXIF is damaged and ignored",))
    if turn is None:
        return decoded
    return dataclasses.replace(decoded, image=decoded.image.transpose(turn))


def _is_dicom(source: Path | bytes) -> bool:
    with opened(source) as file:
        return dicom.is_dicom(file.read(dicom.MAGIC_AT + len(dicom.MAGIC)))


@contextlib.contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    """Open an image and check its header, without decoding its pixels."""
    quiet_decoders()
    # Given a path, Pillow maps a raw file into memory, and garbles a TIFF that it turns.
    with opened(source) as file, Image.open(file, formats=_FORMATS) as image:
        check_size(*image.size)
        if image.mode not in _SIXTEEN_BIT | _EIGHT_BIT:
            raise ValueError(f"pixel format {image.mode} is not supported")
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_tiff(image)
        yield image


def _check_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    if image.n_frames > 1:
        raise ValueError(f"it has {image.n_frames} pages, not one")
    if image.info.get("compression", "raw") not in _TIFF_COMPRESSIONS:
        raise ValueError(f"TIFF compression {image.info['compression']} is not supported")
    if image.mode in _EIGHT_BIT and _SIGNED in image.tag_v2.get(_SAMPLE_FORMAT, ()):
        raise ValueError("its 8-bit values are signed")
