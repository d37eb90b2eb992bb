"""Files of PyTorch put together opcode by opcode, so that they can lie."""

import io
import pickle
import struct
import zipfile

MAGIC = 0x1950A86A20F9469CFC6C
NUMBERS = struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)


def value(content):
    """The opcodes of plain content, without frame, end and memo."""
    if isinstance(content, bytes):
        return content
    if isinstance(content, tuple):
        return b"(" + b"".join(map(value, content)) + b"t"
    if isinstance(content, dict):
        pairs = b"".join(value(k) + value(v) for k, v in content.items())
        return b"}(" + pairs + b"u"
    if isinstance(content, list):
        return b"](" + b"".join(map(value, content)) + b"e"
    return pickle.dumps(content, 2)[2:-1].split(b"q\x00")[0]


def named(full):
    module, _, name = full.rpartition(".")
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def called(full, *arguments):
    return named(full) + value(arguments) + b"R"


def storage(kind="FloatStorage", key="0", size=4, *more):
    return value(("storage", named(f"torch.{kind}"), key, "cpu", size, *more)) + b"Q"


def tensor(shape=(2, 2), strides=(2, 1), offset=0, of=None):
    place = of or storage()
    fields = (place, offset, shape, strides, False, called("collections.OrderedDict"))
    return called("torch._utils._rebuild_tensor_v2", *fields)


def pickled(content):
    return b"\x80\x02" + value(content) + b"."


def write_zip(path, content, storages=None, **parts):
    """Write an archive; ``parts`` are further ones, such as ``byteorder``."""
    storages = {"0": NUMBERS} if storages is None else storages
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled(content))
        for key, numbers in storages.items():
            file.writestr(f"archive/data/{key}", numbers)
        for name, text in parts.items():
            file.writestr(f"archive/{name}", text)


def write_legacy(path, content, storages=None, order=None, machine=None, version=1001):
    """Write pickles in a row; ``storages`` are (number of elements, bytes) by key."""
    storages = {"0": (4, NUMBERS)} if storages is None else storages
    file = io.BytesIO()
    for part in (MAGIC, version, machine or {"little_endian": True}, content):
        file.write(pickled(part))
    file.write(pickled(list(storages) if order is None else order))
    for size, numbers in storages.values():
        file.write(struct.pack("<q", size) + numbers)
    path.write_bytes(file.getvalue())
