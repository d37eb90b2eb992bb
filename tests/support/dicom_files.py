"""Small DICOM files for tests."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder

# Every value of 8 bits, of its own place.
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
# A quarter of the values of 12 bits.
TWELVE = np.linspace(0, 4095, 1024).astype(np.uint16).reshape(32, 32)
LOSSLESS = [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless]


def make_dicom(stored: np.ndarray = RAMP, bits: int = 0, **tags) -> pydicom.Dataset:
    """Uncompressed, MONOCHROME2, as many bits as the type has unless ``bits`` says fewer."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.DigitalXRayImageStorageForPresentation, "1.2"
    dataset.set_pixel_data(stored, "MONOCHROME2", bits or stored.dtype.itemsize * 8)
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def compress(dataset: pydicom.Dataset, syntax: str) -> None:
    """Compress the pixels; pyjpegls, which alone encodes JPEG-LS, is not there for Python 3.14."""
    if not get_encoder(syntax).is_available:
        pytest.skip(f"there is no encoder of {uid.UID(syntax).name}")
    dataset.compress(syntax, generate_instance_uid=False)


def make_compressed(frame: bytes, syntax: str, dataset: pydicom.Dataset) -> pydicom.Dataset:
    """The object with its pixels replaced by one compressed frame."""
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    return dataset


def make_table(first: int, entries: list[int], bits: int) -> pydicom.Dataset:
    """A lookup table of 16-bit words."""
    table = pydicom.Dataset()
    descriptor = [len(entries) % 2**16, first, bits]
    table.add_new("LUTDescriptor", "SS" if first < 0 else "US", descriptor)
    table.LUTData = np.array(entries, "<u2").tobytes()
    return table


def save(dataset: pydicom.Dataset, path: Path) -> Path:
    """Writes the object as a Part 10 file."""
    dataset.save_as(path, enforce_file_format=True)
    return path
