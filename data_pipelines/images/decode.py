"""Decode image files to grey squares, in one place for all uses."""

import contextlib
import struct
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from data_pipelines.errors import InputError
from data_pipelines.images import dicom
from data_pipelines.images.decoders import check_size, quiet_decoders

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


def read_image(path: Path, size: int) -> np.ndarray:
    """Decode an image to grey and resize it to a square.

    The content of a file decides its format, not its name. Colour becomes luma (ITU-R 601: equal
    channels keep their value; of 16-bit colour the upper 8 bits count), alpha is ignored, and
    16-bit values 0..65535 map to 0..255 over the whole range, after the resize, so nothing is
    rounded twice. DICOM becomes grey in [0, 1] by its own tags (``dicom_grey``) and is then resized
    in the same way. The filter is PIL's BILINEAR, which widens its support when it shrinks and so
    does not alias; fastai's ``Resize``, which the reference used, has the same filter. An image
    that is not square is squeezed, not cropped: no part of the lung is lost.

    Args:
        path: a PNG, JPEG, TIFF or DICOM file of one image.
        size: side of the square in pixels, at least 1.

    Returns:
        ``[size, size, 1]`` uint8.

    Raises:
        InputError: the file is missing, empty, truncated, too large, or not such an image.
    """
    try:
        if _is_dicom(path):
            return _rounded_square(Image.fromarray(dicom.read_grey(path)), size, 1)
        with _opened(path) as image:
            return to_square(image, size)
    except DECODE_ERRORS as error:
        raise InputError(
            f"The image {path} cannot be read ({unreadable_reason(error)}): fetch it again, or "
            "remove the file and set --config.data.missing=skip."
        ) from error


def fault(path: Path, whole: bool) -> str:
    """Say briefly why a file is unusable; empty if it is fine.

    Args:
        path: the file.
        whole: read all of it (PNG: the checksums of all chunks, which finds truncation; other
            formats are decoded); otherwise only its size and header.

    Returns:
        The reason without the file's name, or an empty string.

    Raises:
        InputError: the packages for the format are not installed.
    """
    try:
        if not path.stat().st_size:
            return "empty"
        if _is_dicom(path):
            dicom.read_grey(path) if whole else dicom.check_header(path)
            return ""
        with _opened(path) as image:
            if whole and image.format == "PNG":
                image.verify()
            elif whole:
                to_square(image, 1)
    except DECODE_ERRORS as error:
        return unreadable_reason(error)
    return ""


def unreadable_reason(error: BaseException) -> str:
    """Return a decoder's error in a few words, without the path."""
    if isinstance(error, FileNotFoundError):
        return "absent"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a PNG, JPEG, TIFF or DICOM file of a known kind"
    if isinstance(error, TypeError | LookupError):
        return "its header is damaged"
    return textwrap.shorten(str(error), 200) or type(error).__name__


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return dicom.is_dicom(file.read(dicom.MAGIC_AT + len(dicom.MAGIC)))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image and check its header, without decoding its pixels."""
    quiet_decoders()
    with Image.open(path, formats=_FORMATS) as image:
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


def to_square(image: Image.Image, size: int) -> np.ndarray:
    """Resize one grey channel of an image to a square; see ``read_image``.

    Returns:
        ``[size, size, 1]`` uint8.

    Raises:
        ValueError: a value outside 0..65535.
    """
    if image.mode in _EIGHT_BIT:
        grey = image.convert("L").resize((size, size), Image.Resampling.BILINEAR)
        return np.array(grey)[..., None]
    grey = image.convert("F")
    low, high = grey.getextrema()
    if low < 0 or high > _TOP:
        raise ValueError(f"its values are {low:.0f} to {high:.0f}, not 0 to {_TOP}")
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return _rounded_square(grey, size, _TOP)
    top = 4095 if image.tag_v2.get(_BITS_PER_SAMPLE) == (12,) else _TOP
    square = _rounded_square(grey, size, top)
    return 255 - square if image.tag_v2.get(_PHOTOMETRIC, 0) == 0 else square


def _rounded_square(grey: Image.Image, size: int, top: int) -> np.ndarray:
    """Resize in float and round once; ``top`` is white."""
    square = grey.resize((size, size), Image.Resampling.BILINEAR)
    values = np.rint(np.asarray(square) * np.float32(255 / top))
    return np.clip(values, 0, 255).astype(np.uint8)[..., None]
