"""How large an image may be, for every format: asked of the header, before memory is taken."""

# The largest detectors give about 20 megapixels. Pillow's own limit is above and only warns.
MAX_PIXELS = 80_000_000


def check_size(width: int, height: int) -> None:
    """Refuses an image that claims more than ``MAX_PIXELS``, or none.

    Args:
        width: in pixels, as the header has it.
        height: in pixels, as the header has it.

    Raises:
        ValueError: the size is not usable; the text says why, without a file's name.
    """
    if width < 1 or height < 1:
        raise ValueError(f"its header claims {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"its header claims {width} x {height} pixels, more than the "
            f"{MAX_PIXELS // 1_000_000} million allowed"
        )
