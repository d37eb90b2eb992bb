"""Read the grey image of a DICOM file in [0, 1]."""

import contextlib
import dataclasses
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from jaxtyping import Float32, Integer

from data_pipelines.errors import InputError
from data_pipelines.images.decoders import MAX_PIXELS, check_size, opened, quiet_decoders
from data_pipelines.images.dicom_grey import grey_scale

if TYPE_CHECKING:
    import pydicom

MAGIC_AT = 128
MAGIC = b"DICM"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_DEFLATED = "1.2.840.10008.1.2.1.99"
# Tag, kind, length and value of the transfer syntax of an inflated data set.
_INFLATED = b"\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_RLE = "1.2.840.10008.1.2.5"
_RLE_HEADER = 64
_HEAD = 2**16  # bytes after the tag of PixelData that tell how it is compressed
# The available ones are tried in this order: pydicom for RLE, since pylibjpeg panics at damage;
# GDCM last, since it accepts truncated frames.
_PLUGINS = ("pydicom", "pylibjpeg", "pyjpegls", "pillow", "gdcm")
# SOF0 to SOF15 without the three markers among them that start no frame, and SOF55 of JPEG-LS.
_START_OF_FRAME = (set(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}) | {0xFFF7}
_JPEG = b"\xff\xd8"
_JPEG2000 = b"\xff\x4f\xff\x51"
_END = b"\xff\xd9"
_INSTALL = 'pip install "charm-jax[dicom]"'


@dataclasses.dataclass(frozen=True)
class DicomImage:
    """Hold the grey image of a DICOM file.

    Attributes:
        values: in [0, 1].
        inverted: whether 0 is white.
        stored_top: see ``dicom_grey.GreyScale``.
        remarks: see ``dicom_grey.GreyScale``.
    """

    values: Float32[np.ndarray, "height width"]
    inverted: bool
    stored_top: int | None
    remarks: tuple[str, ...]


def is_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes are those of DICOM, with the preamble or without."""
    return head[MAGIC_AT:].startswith(MAGIC) or head.startswith(MAGIC) or _starts_with_element(head)


def is_dicom_file(path: Path) -> bool:
    """Whether a path is a file that can be read and starts as DICOM does."""
    try:
        if not path.is_file():  # opening a pipe may wait forever
            return False
        with path.open("rb") as file:
            return is_dicom(file.read(MAGIC_AT + len(MAGIC)))
    except OSError:
        return False


def read_grey(source: Path | bytes) -> DicomImage:
    """Decode the one grey image of a DICOM file.

    Args:
        source: path or content of a DICOM file, uncompressed, deflated, RLE, JPEG, JPEG-LS or
            JPEG 2000.

    Raises:
        InputError: pydicom is not installed.
        ValueError: the file is damaged or not one grey image; the text omits its name.
    """
    pydicom = _pydicom(source)
    with _anything_as_value_error(), opened(source) as file:
        stream, repairs = _with_preamble(pydicom, file)
        _, syntax, more = _check(pydicom, stream)
        stream.seek(0)
        dataset = pydicom.dcmread(stream, force=True)
        _repair(dataset)
        dataset.file_meta.TransferSyntaxUID = syntax
        stored, decoder = _decode_all_bits(pydicom, dataset)
        # Bits above BitsStored are not grey. Signed values are counted from the lowest.
        sign = 2 ** (dataset.BitsStored - 1) if dataset.PixelRepresentation else 0
        values = (stored & (2**dataset.BitsStored - 1)) ^ sign
        scale = grey_scale(dataset, slice(values.min(), values.max() + 1))
        remarks = (*repairs, *more, *decoder, *scale.remarks)
        return DicomImage(scale.grey[values], scale.inverted, scale.stored_top, remarks)


def check_header(source: Path | bytes) -> tuple[str, ...]:
    """Check that a DICOM file holds one grey image, without decoding it.

    Args:
        source: path or content of a file that passes ``is_dicom``.

    Returns:
        The remarks on its tags.

    Raises:
        InputError: pydicom is not installed.
        ValueError: the file is damaged or not one grey image; the text omits its name.
    """
    pydicom = _pydicom(source)
    with _anything_as_value_error(), opened(source) as file:
        stream, repairs = _with_preamble(pydicom, file)
        dataset, _, more = _check(pydicom, stream)
        return (*repairs, *more, *grey_scale(dataset).remarks)


def _starts_with_element(head: bytes) -> bool:
    """Whether bytes start with a plausible element of group 2 or 8."""
    if len(head) < 8:
        return False
    group, _, length = struct.unpack("<HHI", head[:8])
    vr = head[4:6]
    return group in (2, 8) and ((vr.isalpha() and vr.isupper()) or length < 256)


def _pydicom(source: Path | bytes) -> ModuleType:
    try:
        import pydicom
    except ModuleNotFoundError:
        name = "" if isinstance(source, bytes) else f" {source}"
        raise InputError(
            f"The image{name} is a DICOM file, which needs more packages: {_INSTALL}."
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


def _with_preamble(
    pydicom: ModuleType, file: BinaryIO
) -> tuple[BinaryIO | io.BytesIO, tuple[str, ...]]:
    """Return a stream that pydicom reads, and remarks: preamble added, data set inflated."""
    if file.seek(0, 2) > 4 * MAX_PIXELS:
        raise ValueError(f"it is larger than {4 * MAX_PIXELS // 10**6} MB")
    file.seek(0)
    head, remarks = file.read(MAGIC_AT + len(MAGIC)), ()
    if not head.endswith(MAGIC):
        remarks = ("Preamble is absent",)
        if head[:2] == b"\x08\0":  # a data set alone
            file.seek(0)
            return file, remarks
        file.seek(len(MAGIC) if head.startswith(MAGIC) else 0)
        file = io.BytesIO(bytes(MAGIC_AT) + MAGIC + file.read())
        file.seek(MAGIC_AT + len(MAGIC))
    meta = pydicom.filereader.read_dataset(
        file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag >> 16 != 2
    )
    if meta.get("TransferSyntaxUID") == _DEFLATED:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = inflate.decompress(file.read(), 4 * MAX_PIXELS)
        if not inflate.eof:
            raise ValueError("its deflated data set is cut short or too large")
        file = io.BytesIO(bytes(MAGIC_AT) + MAGIC + _INFLATED + inflated)
    file.seek(0)
    return file, remarks


def _check(
    pydicom: ModuleType, file: BinaryIO | io.BytesIO
) -> tuple["pydicom.Dataset", "pydicom.uid.UID", tuple[str, ...]]:
    """Read and check the tags before the pixels; also return the transfer syntax and remarks."""
    n_bytes = file.seek(0, 2)
    file.seek(0)
    dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    tag = struct.unpack("<HH" if dataset.original_encoding[1] else ">HH", file.read(4).ljust(4))
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not isinstance(rows, int) or not isinstance(columns, int) or tag != (0x7FE0, 0x0010):
        raise ValueError(f"it holds no image ({dataset.file_meta.get('MediaStorageSOPClassUID')})")
    check_size(columns, rows)
    remarks = _repair(dataset)
    _check_kind(dataset)
    at = file.tell()
    named, pixels = dataset.file_meta.get("TransferSyntaxUID"), file.read(_HEAD)
    syntax = _true_syntax(pydicom, named, dataset, pixels)
    if syntax != named:
        remarks += (f"TransferSyntaxUID {named or 'is absent'}: read as {syntax.name}",)
        dataset.file_meta.TransferSyntaxUID = syntax
    if syntax.is_compressed:
        _plugins(pydicom, dataset)
    elif n_bytes - at < rows * columns * dataset.BitsAllocated // 8:
        left = n_bytes - at
        raise ValueError(f"it is cut short: {left} bytes are left for {rows} x {columns} pixels")
    return dataset, syntax, remarks


def _repair(dataset: "pydicom.Dataset") -> tuple[str, ...]:
    """Correct tags whose meaning is plain; return remarks."""
    remarks = []
    try:
        frames = dataset.get("NumberOfFrames")
    except (TypeError, ValueError):
        frames = "text"
    if not isinstance(frames, int | float) or frames < 1:
        if frames not in (None, ""):
            remarks.append(f"NumberOfFrames {frames} is taken for 1")
        dataset.NumberOfFrames = 1
    for tag, usual in (
        ("SamplesPerPixel", lambda: 1),
        ("BitsAllocated", lambda: 8 if dataset.BitsStored <= 8 else 16),
        ("BitsStored", lambda: dataset.get("HighBit", dataset.BitsAllocated - 1) + 1),
        ("HighBit", lambda: dataset.BitsStored - 1),
        ("PhotometricInterpretation", lambda: "MONOCHROME2"),
    ):
        if dataset.get(tag) in (None, ""):
            setattr(dataset, tag, usual())
            if tag != "HighBit":  # it says nothing more
                remarks.append(f"{tag} is absent and taken for {dataset[tag].value}")
    photometric = str(dataset.PhotometricInterpretation)
    letters = "".join(filter(str.isalnum, photometric)).upper()
    if photometric != letters and letters in _GREY:
        dataset.PhotometricInterpretation = letters
        remarks.append(f"PhotometricInterpretation {photometric!r} is taken for {letters}")
    if dataset.HighBit != dataset.BitsStored - 1:
        remarks.append(f"HighBit {dataset.HighBit} contradicts BitsStored {dataset.BitsStored}")
    return tuple(remarks)


def _decode_all_bits(
    pydicom: ModuleType, dataset: "pydicom.Dataset"
) -> tuple[Integer[np.ndarray, "height width"], tuple[str, ...]]:
    """Decode the pixels, moved down to the lowest bit; see ``_stored_values``.

    A HighBit above BitsStored - 1 is followed only where the pixels agree: they use bits above
    BitsStored, and none of those below the value.
    """
    bits = dataset.BitsStored
    below = min(dataset.HighBit, dataset.BitsAllocated - 1) + 1 - bits
    if below <= 0:
        return _stored_values(pydicom, dataset)
    dataset.BitsStored = bits + below
    stored, remarks = _stored_values(pydicom, dataset)
    dataset.BitsStored = bits
    moved = stored.max() >= 2**bits and not (stored & (2**below - 1)).any()
    return stored >> below if moved else stored, remarks


def _true_syntax(
    pydicom: ModuleType,
    named: "pydicom.uid.UID | None",
    dataset: "pydicom.Dataset",
    pixels: bytes,
) -> "pydicom.uid.UID":
    """Return the named transfer syntax, or that of the pixels if they contradict it.

    Args:
        pydicom: the package.
        named: the data set's transfer syntax.
        dataset: tags, read in the encoding that pydicom guessed.
        pixels: start of the file's bytes after the tag of PixelData.
    """
    if not named or not named.is_transfer_syntax:
        return _guess_syntax(pydicom, dataset, pixels)
    if named.is_compressed != _is_encapsulated(dataset, pixels):
        return _guess_syntax(pydicom, dataset, pixels)
    if not named.is_compressed or named in pydicom.uid.MPEGTransferSyntaxes:
        return named
    try:
        found = _guess_syntax(pydicom, dataset, pixels)
    except (ValueError, struct.error):  # a damaged frame, which is refused later
        return named
    uid = pydicom.uid
    kinds = (
        (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit),
        (uid.JPEGLossless, uid.JPEGLosslessSV1),
        uid.JPEGLSTransferSyntaxes,
        uid.JPEG2000TransferSyntaxes,
    )
    # What has no signature is taken for RLE, and may be damaged.
    kind = next((kind for kind in kinds if found in kind), (named,))
    return named if named in kind else found


def _is_encapsulated(dataset: "pydicom.Dataset", pixels: bytes) -> bool:
    at = _length_at(dataset)
    return pixels[at : at + 4] == b"\xff" * 4


def _length_at(dataset: "pydicom.Dataset") -> int:
    """Return the place of the length after the tag of PixelData."""
    implicit, _ = dataset.original_encoding
    return 0 if implicit else 4


def _guess_syntax(
    pydicom: ModuleType, dataset: "pydicom.Dataset", pixels: bytes
) -> "pydicom.uid.UID":
    """Return the transfer syntax that the pixels have; see ``_true_syntax``."""
    uid, (implicit, little) = pydicom.uid, dataset.original_encoding
    at = _length_at(dataset) + 4
    if not _is_encapsulated(dataset, pixels):
        if implicit:
            return uid.ImplicitVRLittleEndian
        return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    # An item for the offset table, then the first fragment.
    (offsets,) = struct.unpack_from("<I", pixels, at + 4)
    frame = pixels[at + 16 + offsets :]
    if _JPEG2000 in frame[:256]:
        return uid.JPEG2000
    if not frame.startswith(_JPEG):
        return uid.RLELossless
    kinds = {
        0xFFC0: uid.JPEGBaseline8Bit,
        0xFFC1: uid.JPEGExtended12Bit,
        0xFFC3: uid.JPEGLossless,
        0xFFF7: uid.JPEGLSNearLossless,
    }
    marker = _start_of_frame(frame)[0]
    if marker not in kinds:
        raise ValueError("it has no TransferSyntaxUID, and its frame is of no known kind")
    return kinds[marker]


def _check_kind(dataset: "pydicom.Dataset") -> None:
    photometric = dataset.get("PhotometricInterpretation")
    if photometric not in _GREY:
        raise ValueError(f"it is not grey (PhotometricInterpretation {photometric})")
    if dataset.SamplesPerPixel != 1:
        raise ValueError(f"it is not grey (SamplesPerPixel {dataset.SamplesPerPixel})")
    if dataset.NumberOfFrames != 1:
        raise ValueError(f"it has {dataset.NumberOfFrames} frames, not one")
    allocated, stored = dataset.get("BitsAllocated"), dataset.get("BitsStored")
    if allocated not in (8, 16) or not isinstance(stored, int) or not 1 <= stored <= allocated:
        raise ValueError(f"its pixels have {stored} of {allocated} bits, not up to 8 or 16")
    if dataset.get("PixelRepresentation") not in (0, 1):
        raise ValueError("its PixelRepresentation is neither 0 nor 1")


def _plugins(pydicom: ModuleType, dataset: "pydicom.Dataset") -> list[str]:
    """Return the decoders that may be tried, in order."""
    syntax = dataset.file_meta.TransferSyntaxUID
    available = pydicom.pixels.get_decoder(syntax).available_plugins
    plugins = [name for name in _PLUGINS if name in available]
    if not plugins:
        raise ValueError(f"no decoder for {syntax.name} is installed: {_INSTALL}")
    if syntax == _JPEG_EXTENDED and plugins[0] == "pillow" and dataset.BitsStored > 8:
        raise ValueError(
            "it is lossy JPEG of more than 8 bits: rewrite it, for example by dcmdjpeg"
        )
    # The others end the process at some damage.
    return plugins[:1] if syntax == _RLE else plugins


def _stored_values(
    pydicom: ModuleType, dataset: "pydicom.Dataset"
) -> tuple[Integer[np.ndarray, "height width"], tuple[str, ...]]:
    """Decode the pixels; also return remarks on the decoders."""
    syntax = dataset.file_meta.TransferSyntaxUID
    shape = dataset.Rows, dataset.Columns
    if not syntax.is_compressed:
        _check_length(len(dataset.PixelData), shape, dataset.BitsAllocated)
        return pydicom.pixels.pixel_array(dataset).astype(np.int32), ()
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    remarks: tuple[str, ...] = ()
    if syntax != _RLE:
        end = _check_frame(frame, *shape)
        if len(frame) > end + 1:  # one byte makes the length even
            remarks = ("PixelData has bytes after the end of its frame, which are ignored",)
            dataset.PixelData = pydicom.encaps.encapsulate([frame[:end]])
            dataset["PixelData"].is_undefined_length = True
    elif len(frame) > 2 * shape[0] * shape[1] * dataset.BitsAllocated // 8 + _RLE_HEADER:
        raise ValueError(f"its compressed frame has {len(frame)} bytes, more than its pixels")
    first = None
    for plugin in _plugins(pydicom, dataset):
        try:
            stored = pydicom.pixels.pixel_array(dataset, decoding_plugin=plugin).astype(np.int32)
        except Exception as error:  # whatever a decoder raises
            first = first or error
        else:
            if first is not None:
                remarks += (f"PixelData is read by {plugin}, since another decoder failed",)
            return stored, remarks
    raise first


def _check_length(n_bytes: int, shape: tuple[int, int], bits: int) -> None:
    """Check the length of the pixels; one byte more is padding."""
    expected = shape[0] * shape[1] * bits // 8
    if not expected <= n_bytes < max(2 * expected, expected + 2):
        raise ValueError(
            f"its PixelData has {n_bytes} bytes, but {shape[0]} x {shape[1]} pixels of {bits} bits "
            f"are {expected}"
        )


def _check_frame(frame: bytes, rows: int, columns: int) -> int:
    """Refuse a compressed frame that is truncated or has another size; return where it ends.

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
    # Within the compressed data these two bytes do not occur.
    end = frame.rfind(_END)
    if end < 0:
        raise ValueError("its compressed frame is cut short")
    return end + len(_END)


def _jpeg_size(frame: bytes) -> tuple[int, int, int]:
    """Read width, height and channels of a JPEG or JPEG-LS frame."""
    _, at = _start_of_frame(frame)
    _, height, width, channels = struct.unpack_from(">BHHB", frame, at + 4)
    return width, height, channels


def _start_of_frame(frame: bytes) -> tuple[int, int]:
    """Find the marker that starts a JPEG or JPEG-LS frame, and its place.

    Source: ITU-T T.81 B.2.2; JPEG-LS (T.87 C.2.2) has the same layout.
    """
    if not frame.startswith(_JPEG):
        raise ValueError("its compressed frame is neither JPEG, JPEG-LS nor JPEG 2000")
    at = len(_JPEG)
    while True:
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker in _START_OF_FRAME:
            return marker, at
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
