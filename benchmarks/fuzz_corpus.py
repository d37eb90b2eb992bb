"""Make the small sound files and decompression bombs for ``fuzz_inputs.py``."""

import gzip
import io
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder

SIDE = 40
_GREY = (np.indices((SIDE, SIDE)).sum(axis=0) * 5 + np.random.default_rng(0).integers(9)).astype(
    np.uint8
)


def png() -> list[bytes]:
    images = [Image.fromarray(_GREY).convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
    sound = [_saved(image, "PNG") for image in [*images, _sixteen()]]
    claims = [_resized_png(sound[1], side) for side in (8_900, 9_000, 60_000, 2**31 - 1)]
    zeros = zlib.compress(bytes(50_000_000), 9)
    text = _chunk(b"zTXt", b"Comment\0\0" + zeros)
    profile = _chunk(b"iCCP", b"profile\0\0" + zeros)
    hidden = [sound[1][:33] + chunk + sound[1][33:] for chunk in (text, profile)]
    return [*sound, *claims, *hidden, _saved(Image.new("1", (8_000, 8_000)), "PNG")]


def jpeg() -> list[bytes]:
    grey, colour = Image.fromarray(_GREY), Image.fromarray(_GREY).convert("RGB")
    sound = [_saved(image, "JPEG") for image in (grey, colour, colour.convert("CMYK"))]
    sound += [_saved(grey, "JPEG", progressive=True), _saved(grey, "MPO", save_all=True)]
    sound.append(_saved(grey, "JPEG", exif=b"Exif\0\0" + _saved(grey, "TIFF")))
    return [*sound, _resized_jpeg(sound[0], 8_000), _resized_jpeg(sound[3], 65_500)]


def tiff() -> list[bytes]:
    grey = Image.fromarray(_GREY)
    sound = [_saved(image, "TIFF") for image in (grey, grey.convert("RGB"), _sixteen())]
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        sound.append(_saved(grey, "TIFF", compression=compression))
    sound.append(_saved(_sixteen(), "TIFF", compression="tiff_lzw"))
    sound.append(_saved(grey.convert("1"), "TIFF", compression="group4"))
    pages = _saved(grey, "TIFF", save_all=True, append_images=[grey])
    side, claimed = struct.pack("<HHIH", 256, 4, 1, SIDE), struct.pack("<HHIH", 256, 4, 1, 60_000)
    return [*sound, pages, sound[0].replace(side, claimed), sound[3].replace(side, claimed)]


def dicom() -> list[bytes]:
    twelve = _GREY.astype(np.uint16) * 16
    sound = [_dicom(_GREY), _dicom(twelve), _dicom(_GREY, PhotometricInterpretation="MONOCHROME1")]
    sound.append(_dicom(twelve, RescaleSlope=2, RescaleIntercept=-9, WindowCenter=9, WindowWidth=5))
    sound.append(_dicom(twelve, VOILUTSequence=[_table()], ModalityLUTSequence=[_table()]))
    lossless = (uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless)
    for syntax in (syntax for syntax in lossless if get_encoder(syntax).is_available):
        sound += [_dicom(_GREY, syntax), _dicom(twelve, syntax)]
    sound += [_lossless_jpeg(sound[0]), _lossless_jpeg(sound[1])]
    jpeg_frame = _saved(Image.fromarray(_GREY), "JPEG")
    sound.append(_framed(jpeg_frame, uid.JPEGBaseline8Bit))
    absurd = [_dicom(_GREY, Rows=rows, Columns=rows) for rows in (8_900, 65_535)]
    frame = _resized_jpeg(jpeg_frame, 65_500)
    absurd += [_framed(frame, uid.JPEGBaseline8Bit), _framed(frame, uid.JPEGLosslessSV1)]
    return [*sound, *absurd, _deflated(sound[0], bytes(50_000_000))]


def repaired(data: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks, so that damage gets past them."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        parts.append(_chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"".join(parts)


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _sixteen() -> Image.Image:
    return Image.fromarray(_GREY.astype(np.uint16) * 257)


def _chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def _resized_png(data: bytes, side: int) -> bytes:
    return repaired(data[:16] + struct.pack(">II", side, side) + data[24:])


def _resized_jpeg(data: bytes, side: int) -> bytes:
    return data.replace(struct.pack(">HH", SIDE, SIDE), struct.pack(">HH", side, side), 1)


def _table() -> pydicom.Dataset:
    table = pydicom.Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.LUTData = np.arange(0, 65_536, 256, dtype="<u2").tobytes()
    return table


def _dicom(stored: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, **tags) -> bytes:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.DigitalXRayImageStorageForPresentation, "1.2"
    bits = 8 if stored.dtype == np.uint8 else 12
    dataset.set_pixel_data(stored, "MONOCHROME2", bits)
    if syntax != uid.ExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    for name, value in tags.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _framed(frame: bytes, syntax: str) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(_dicom(_GREY)))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def _lossless_jpeg(data: bytes) -> bytes:
    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(data)
        reader.SetFileName(str(path))
        reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(path))
        writer.Write()
        return path.read_bytes()


def _deflated(data: bytes, tail: bytes) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    dataset.PixelData = tail
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def nih_csv() -> list[bytes]:
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender"
    labels = ("No Finding", "Mass", "Cardiomegaly|Effusion", "Hernia")
    rows = [f"{i:08d}_000.png,{labels[i % 4]},0,{i},05{i}Y,M,PA" for i in range(8)]
    plain = "\n".join([f"{header},View Position", *rows]).encode()
    return [plain, plain.replace(b"\n", b",\r\n"), b"\xef\xbb\xbf" + plain, gzip.compress(plain)]


def labels_csv() -> list[bytes]:
    rows = [f"ward {i % 2}/{i}.png,P{i // 2},{i % 3 - 1},,{i % 2}.0" for i in range(8)]
    plain = "\n".join(["image,patient,Mass,Edema,Rib fracture", *rows]).encode()
    quoted = plain.replace(b"ward 0", b'"ward, ""0"""')
    return [plain, quoted, b"image,Mass\na.png,1\nb.png,0\n"]


def npz() -> list[bytes]:
    parts = {"train": 6, "val": 2, "test": 3}
    arrays = {f"{part}_images": np.full((n, 28, 28), 9, np.uint8) for part, n in parts.items()}
    arrays |= {f"{part}_labels": np.ones((n, 1), np.uint8) for part, n in parts.items()}
    files = []
    for write in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        write(buffer, **arrays)
        files.append(buffer.getvalue())
    claim = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        claim, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 224, 224)}
    )
    huge = io.BytesIO()
    with zipfile.ZipFile(huge, "w") as archive:
        for name, value in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, value)
            content = claim.getvalue() if name == "train_images" else member.getvalue()
            archive.writestr(f"{name}.npy", content)
    return [*files, huge.getvalue()]
