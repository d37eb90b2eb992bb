"""What a compressed DICOM frame claims to be, asked before a decoder takes memory for it."""

import struct

# SOF0 to SOF15 without the three markers among them that start no frame, and JPEG-LS' SOF55.
_START_OF_FRAME = (set(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}) | {0xFFF7}
_JPEG = b"\xff\xd8"
_JPEG2000 = b"\xff\x4f\xff\x51"
_END = b"\xff\xd9"


def check_frame(frame: bytes, rows: int, columns: int) -> None:
    """Refuses a JPEG, JPEG-LS or JPEG 2000 frame that is cut short or not of the object's size.

    Args:
        frame: one frame, its fragments joined.
        rows: of the DICOM object.
        columns: of the DICOM object.

    Raises:
        ValueError: the frame is not whole, of another size, or of several channels.
        struct.error: the frame ends within its header.
    """
    width, height, channels = _jpeg2000_size(frame) if _JPEG2000 in frame[:256] else _size(frame)
    if (height, width) != (rows, columns):
        raise ValueError(
            f"its compressed frame is {height} x {width}, but its Rows x Columns are "
            f"{rows} x {columns}"
        )
    if channels != 1:
        raise ValueError(f"its compressed frame has {channels} channels, not one")
    if not frame.rstrip(b"\0").endswith(_END):
        raise ValueError("its compressed frame is cut short")


def _size(frame: bytes) -> tuple[int, int, int]:
    """ITU-T T.81 B.2.2; JPEG-LS (T.87 C.2.2) has the same layout."""
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
    """ITU-T T.800 A.5.1: the size is the grid's end less the image's offset in it."""
    at = frame.index(_JPEG2000) + len(_JPEG2000) + 4
    right, bottom, left, top = struct.unpack_from(">4I", frame, at)
    (channels,) = struct.unpack_from(">H", frame, at + 32)
    return right - left, bottom - top, channels
