"""Read the grey image of a DICOM file in [0, 1]."""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from jaxtyping import Float32, Integer

from data_pipelines.errors import InputError
from data_pipelines.images.decoders import MAX_PIXELS, check_size, quiet_decoders
from data_pipelines.images.dicom_grey import grey_of_stored_values

if TYPE_CHECKING:
    import pydicom

MAGIC_AT = 128
MAGIC = b"DICM"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_RLE = "1.2.840.10008.1.2.5"
_RLE_HEADER = 64
# The first available one decodes: pydicom for RLE, since pylibjpeg panics at damage; GDCM last,
# since it accepts truncated frames.
_PLUGINS = ("pydicom", "pylibjpeg", "pyjpegls", "pillow", "gdcm")
# SOF0 to SOF15 without the three markers among them that start no frame, and SOF55 of JPEG-LS.
_START_OF_FRAME = (set(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}) | {0xFFF7}
_JPEG = b"\xff\xd8"
_JPEG2000 = b"\xff\x4f\xff\x51"
_END = b"\xff\xd9"
_INSTALL = 'pip install "charm-jax[dicom]"'


def is_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes have the preamble and ``DICM``.

    Raises:
        ValueError: it is DICOM without that preamble, so its encoding is unknown.
    """
    if head[MAGIC_AT:].startswith(MAGIC):
        return True
    if head.startswith(MAGIC) or _starts_with_element(head):
        raise ValueError(
            "it is DICOM without the 128-byte preamble: rewrite it, for example with dcmconv"
        )
    return False


def read_grey(path: Path) -> Float32[np.ndarray, "height width"]:
    """Decode the one grey image of a DICOM file.

    Args:
        path: DICOM Part 10, uncompressed, RLE, JPEG, JPEG-LS or JPEG 2000.

    Returns:
        ``[height, width]`` in [0, 1], 0 is black; see ``grey_of_stored_values``.

    Raises:
        InputError: pydicom is not installed.
        ValueError: the file is damaged or not one grey image; the text omits its name.
    """
    pydicom = _pydicom(path)
    with _anything_as_value_error(), path.open("rb") as file:
        _check(pydicom, file)
        file.seek(0)
        dataset = pydicom.dcmread(file)
        stored = _stored_values(pydicom, dataset)
        # Bits above BitsStored are not grey. Signed values are counted from the lowest.
        sign = 2 ** (dataset.BitsStored - 1) if dataset.PixelRepresentation else 0
        return grey_of_stored_values(dataset)[(stored & (2**dataset.BitsStored - 1)) ^ sign]


def check_header(path: Path) -> None:
    """Check that a DICOM file holds one grey image, without decoding it.

    Args:
        path: a file that passes ``is_dicom``.

    Raises:
        InputError: pydicom is not installed.
        ValueError: the file is damaged or not one grey image; the text omits its name.
    """
    pydicom = _pydicom(path)
    with _anything_as_value_error(), path.open("rb") as file:
        grey_of_stored_values(_check(pydicom, file))


def _starts_with_element(head: bytes) -> bool:
    """Whether bytes start with a plausible element of group 2 or 8."""
    if len(head) < 8:
        return False
    group, _, length = struct.unpack("<HHI", head[:8])
    vr = head[4:6]
    return group in (2, 8) and ((vr.isalpha() and vr.isupper()) or length < 256)


def _pydicom(path: Path) -> ModuleType:
    try:
        import pydicom
    except ModuleNotFoundError:
        raise InputError(
            f"The image {path} is a DICOM file, which needs more packages: {_INSTALL}."
        ) from None
    quiet_decoders()
    return pydicom


@contextlib.contextmanager
def _anything_as_value_error() -> Iterator[None]:
    """Raise any error of pydicom and its plugins as ``ValueError``."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{error}" or type(error).__name__) from error


def _check(pydicom: ModuleType, file: BinaryIO) -> "pydicom.Dataset":
    """Read and check the tags before the pixels."""
    n_bytes = file.seek(0, 2)
    file.seek(0)
    if n_bytes > 4 * MAX_PIXELS:
        raise ValueError(f"it is larger than {4 * MAX_PIXELS // 10**6} MB")
    syntax = pydicom.filereader.read_file_meta_info(file.name).get("TransferSyntaxUID")
    if not syntax:
        raise ValueError("it has no TransferSyntaxUID")
    if syntax == _DEFLATED:
        raise ValueError("it is deflated as a whole: rewrite it, for example with dcmconv")
    dataset = pydicom.dcmread(file, stop_before_pixels=True)
    tag = struct.unpack("<HH" if dataset.original_encoding[1] else ">HH", file.read(4).ljust(4))
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not isinstance(rows, int) or not isinstance(columns, int) or tag != (0x7FE0, 0x0010):
        raise ValueError(f"it holds no image ({dataset.file_meta.get('MediaStorageSOPClassUID')})")
    check_size(columns, rows)
    _check_kind(dataset)
    if syntax.is_compressed:
        _plugin(pydicom, dataset)
    left = n_bytes - file.tell()
    if not syntax.is_compressed and left < rows * columns * dataset.BitsAllocated // 8:
        raise ValueError(f"it is cut short: {left} bytes are left for {rows} x {columns} pixels")
    return dataset


def _check_kind(dataset: "pydicom.Dataset") -> None:
    photometric = dataset.get("PhotometricInterpretation")
    if dataset.get("SamplesPerPixel", 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"it is not grey (PhotometricInterpretation {photometric})")
    if dataset.get("NumberOfFrames") not in (None, "", 1):
        raise ValueError(f"it has {dataset.NumberOfFrames} frames, not one")
    allocated, stored = dataset.get("BitsAllocated"), dataset.get("BitsStored")
    if allocated not in (8, 16) or not isinstance(stored, int) or not 1 <= stored <= allocated:
        raise ValueError(f"its pixels have {stored} of {allocated} bits, not up to 8 or 16")
    if dataset.get("HighBit", stored - 1) != stored - 1:
        raise ValueError(f"its HighBit is {dataset.HighBit}, not BitsStored - 1 = {stored - 1}")
    if dataset.get("PixelRepresentation") not in (0, 1):
        raise ValueError("its PixelRepresentation is neither 0 nor 1")


def _plugin(pydicom: ModuleType, dataset: "pydicom.Dataset") -> str:
    syntax = dataset.file_meta.TransferSyntaxUID
    available = pydicom.pixels.get_decoder(syntax).available_plugins
    plugin = next((name for name in _PLUGINS if name in available), None)
    if plugin is None:
        raise ValueError(f"no decoder for {syntax.name} is installed: {_INSTALL}")
    if syntax == _JPEG_EXTENDED and plugin == "pillow" and dataset.BitsStored > 8:
        raise ValueError(
            "it is lossy JPEG of more than 8 bits: rewrite it, for example by dcmdjpeg"
        )
    return plugin


def _stored_values(
    pydicom: ModuleType, dataset: "pydicom.Dataset"
) -> Integer[np.ndarray, "height width"]:
    syntax = dataset.file_meta.TransferSyntaxUID
    shape = dataset.Rows, dataset.Columns
    if not syntax.is_compressed:
        _check_length(len(dataset.PixelData), shape, dataset.BitsAllocated)
        return pydicom.pixels.pixel_array(dataset).astype(np.int32)
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    if syntax != _RLE:
        _check_frame(frame, *shape)
    elif len(frame) > 2 * shape[0] * shape[1] * dataset.BitsAllocated // 8 + _RLE_HEADER:
        raise ValueError(f"its compressed frame has {len(frame)} bytes, more than its pixels")
    plugin = _plugin(pydicom, dataset)
    return pydicom.pixels.pixel_array(dataset, decoding_plugin=plugin).astype(np.int32)


def _check_length(n_bytes: int, shape: tuple[int, int], bits: int) -> None:
    """Check the length of the pixels; one byte more is padding."""
    expected = shape[0] * shape[1] * bits // 8
    if not expected <= n_bytes < max(2 * expected, expected + 2):
        raise ValueError(
            f"its PixelData has {n_bytes} bytes, but {shape[0]} x {shape[1]} pixels of {bits} bits "
            f"are {expected}"
        )


def _check_frame(frame: bytes, rows: int, columns: int) -> None:
    """Refuse a compressed frame that is truncated or has another size.

    The header is checked before a decoder allocates memory for it.

    Args:
        frame: one JPEG, JPEG-LS or JPEG 2000 frame, its fragments joined.
        rows: height of the DICOM object.
        columns: width of the DICOM object.

    Raises:
        ValueError: the frame is truncated, of another size, or of several channels.
        struct.error: the frame ends within its header.
    """
    width, height, channels = (
        _jpeg2000_size(frame) if _JPEG2000 in frame[:256] else _jpeg_size(frame)
    )
    if (height, width) != (rows, columns):
        raise ValueError(
            f"its compressed frame is {height} x {width}, but its Rows x Columns are "
            f"{rows} x {columns}"
        )
    if channels != 1:
        raise ValueError(f"its compressed frame has {channels} channels, not one")
    if not frame.rstrip(b"\0").endswith(_END):
        raise ValueError("its compressed frame is cut short")


def _jpeg_size(frame: bytes) -> tuple[int, int, int]:
    """Read width, height and channels of a JPEG or JPEG-LS frame.

    Source: ITU-T T.81 B.2.2; JPEG-LS (T.87 C.2.2) has the same layout.
    """
    if not frame.startswith(_JPEG):
        raise ValueError("its compressed frame is neither JPEG, JPEG-LS nor JPEG 2000")
    at = len(_JPEG)
    while True:
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker in _START_OF_FRAME:
            _, height, width, channels = struct.unpack_from(">BHHB", frame, at + 4)
            return width, height, channels
        if marker < 0xFF00:
            raise ValueError("the header of its compressed frame is damaged")
        at += 1 if marker == 0xFFFF else 2 + length


def _jpeg2000_size(frame: bytes) -> tuple[int, int, int]:
    """Read width, height and channels of a JPEG 2000 frame.

    Source: ITU-T T.800 A.5.1; the size is the grid's end less the image's offset.
    """
    at = frame.index(_JPEG2000) + len(_JPEG2000) + 4
    right, bottom, left, top = struct.unpack_from(">4I", frame, at)
    (channels,) = struct.unpack_from(">H", frame, at + 32)
    return right - left, bottom - top, channels
