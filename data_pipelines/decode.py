"""From an image file to a grey square: the one decode and resize of the whole project."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.errors import InputError

# Greyscale, with or without alpha, palette and colour: PIL turns each into 8 bits of luma.
_EIGHT_BIT = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"}
_SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N", "I"}
# What PIL raises for damaged files has no common base.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def read_image(path: Path, size: int) -> np.ndarray:
    """Decodes an image to one grey channel and resizes it to a square.

    Colour becomes luma (ITU-R 601: equal channels keep their value), alpha is ignored, 16-bit
    values 0..65535 map to 0..255 over the whole range, after the resize, so that nothing is rounded
    twice. The filter is PIL's BILINEAR, which widens its support when it shrinks and so does not
    alias; it is the filter of fastai's ``Resize``, which the reference used. An image that is not
    square is squeezed, not cropped: no part of the lung is lost.

    Args:
        path: a PNG, or another format that PIL reads.
        size: side of the square in pixels, at least 1.

    Returns:
        ``[size, size, 1]`` uint8.

    Raises:
        InputError: the file is missing, empty, truncated, or not an image.
    """
    try:
        with Image.open(path) as image:
            return to_square(image, size)
    except DECODE_ERRORS as error:
        raise InputError(
            f"The image {path} cannot be read ({unreadable_reason(error)}): fetch it again, or "
            "remove the file and set --config.data.missing=skip."
        ) from error


def fault(path: Path, *, whole: bool) -> str:
    """Why a file cannot be used as an image, in a few words; empty if it can.

    With ``whole`` every byte is read (PNG: the checksums of all chunks, which finds truncation;
    other formats are decoded), else only its size and header are.
    """
    try:
        if not path.stat().st_size:
            return "empty"
        with Image.open(path) as image:
            if whole and image.format == "PNG":
                image.verify()
            elif whole:
                image.load()
    except DECODE_ERRORS as error:
        return unreadable_reason(error)
    return ""


def unreadable_reason(error: BaseException) -> str:
    """A decoder's error in a few words, without the path."""
    if isinstance(error, FileNotFoundError):
        return "absent"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image file"
    return str(error) or type(error).__name__


def to_square(image: Image.Image, size: int) -> np.ndarray:
    """One grey channel of an image, resized to a square as ``read_image`` says.

    Returns:
        ``[size, size, 1]`` uint8.

    Raises:
        ValueError: the image's pixel format is not supported.
    """
    square = (size, size)
    if image.mode in _SIXTEEN_BIT:
        grey = image.convert("F").resize(square, Image.Resampling.BILINEAR)
        values = np.rint(np.asarray(grey) * np.float32(255 / 65535))
        return np.clip(values, 0, 255).astype(np.uint8)[..., None]
    if image.mode in _EIGHT_BIT:
        grey = image.convert("L").resize(square, Image.Resampling.BILINEAR)
        return np.array(grey)[..., None]
    raise ValueError(f"pixel format {image.mode} is not supported")
