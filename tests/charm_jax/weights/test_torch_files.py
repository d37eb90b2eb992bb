"""Honest and hostile files of PyTorch, read without it."""

import io
import pickletools
import struct
import sys
import zipfile

import numpy as np
import pytest
from torch_archives import (
    NUMBERS,
    called,
    named,
    pickled,
    storage,
    tensor,
    value,
    write_legacy,
    write_zip,
)
from weight_tensors import refusal

from charm_jax.weights import files, torch_pickle

# What PyTorch writes; POP, DUP and the like it does not.
OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1"),
    *("BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"),
    *("TUPLE1", "TUPLE2", "TUPLE3", "TUPLE", "APPEND", "APPENDS", "ADDITEMS", "SETITEM"),
    *("SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL"),
    *("STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
}
OTHER_OPCODES = [op for op in pickletools.opcodes if op.name not in OPCODES]
FOREIGN = [
    *("os.system", "posix.system", "builtins.eval", "builtins.getattr", "__builtin__.exec"),
    *("subprocess.Popen", "torch.load", "torch.hub.load", "torch._utils._import_dotted_name"),
    *("torch.nn.modules.linear.Linear", "torch.storage._load_from_bytes", "pickle.loads"),
    *("numpy.core.multiarray.scalar.__class__", "collections.OrderedDict.__init__", "numpy.load"),
    *("torch.float32.x", "torch.Storage.y", "xtorch.FloatStorage", "argparse.Namespace2"),
]
# A tuple of 30 lists; each list repeats the previous one ten times.
LAUGHS = (
    b"(]q\x00" + b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(30)) + b"t"
)
for_each_writer = pytest.mark.parametrize("write", [write_zip, write_legacy])


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    return tmp_path / "weights.pth"


@for_each_writer
def test_a_state_dict_is_read_without_pytorch(path, write):
    turned = tensor((2, 2), (1, 2))
    row = called("torch._utils._rebuild_parameter", tensor((2,), (1,), 2), True, {})
    scalar, empty = tensor((), (), 3), tensor((0, 5), (5, 1))
    nest = {"net": {"a": tensor(), "b": turned}, "list": [row, 1, None], "c": scalar, "d": empty}
    write(path, called("collections.OrderedDict", [(k, v) for k, v in nest.items()]))
    read = files.read(path)
    assert {name: v.tolist() for name, v in read.items()} == {
        "net.a": [[1, 2], [3, 4]],
        "net.b": [[1, 3], [2, 4]],
        "list.0": [3, 4],
        "c": 4,
        "d": [],
    }
    assert read["d"].shape == (0, 5)
    assert np.shares_memory(read["net.a"], read["list.0"])


def of_storages(write, path, kind, numbers, size):
    content = {"w": tensor((size,), (1,), 0, storage(kind, "0", size))}
    write(path, content, {"0": numbers if write is write_zip else (size, numbers)})


@for_each_writer
@pytest.mark.parametrize(
    ("kind", "numbers", "expected"),
    [
        ("DoubleStorage", struct.pack("<2d", 0.5, -2), np.float32([0.5, -2])),
        ("HalfStorage", struct.pack("<2e", 0.5, -2), np.float32([0.5, -2])),
        ("BFloat16Storage", b"\x00\x3f\x00\xc0", np.float32([0.5, -2])),
        ("LongStorage", struct.pack("<2q", 2**40, -2), np.array([2**40, -2])),
        ("IntStorage", struct.pack("<2i", 7, -2), np.int32([7, -2])),
        ("ShortStorage", struct.pack("<2h", 7, -2), np.int16([7, -2])),
        ("CharStorage", b"\x07\xfe", np.int8([7, -2])),
        ("ByteStorage", b"\x07\xfe", np.uint8([7, 254])),
        ("BoolStorage", b"\x01\x00", np.array([True, False])),
    ],
)
def test_each_kind_of_numbers_is_read(path, write, kind, numbers, expected):
    of_storages(write, path, kind, numbers, 2)
    read = files.read(path)["w"]
    assert read.dtype == expected.dtype
    np.testing.assert_array_equal(read, expected)


def test_numbers_beyond_float32_become_infinite_without_a_warning(path):
    of_storages(write_zip, path, "DoubleStorage", struct.pack("<d", 1e300), 1)
    assert np.isinf(files.read(path)["w"]).all()


def beside(content):
    """A state dict with something beside its tensor."""
    return {"w": tensor(), "beside": content}


@pytest.mark.parametrize(
    "content",
    [
        called("argparse.Namespace") + value({"lr": 0.1}) + b"b",
        called("pathlib.PosixPath", "runs", "a"),
        called("pytorch_lightning.utilities.parsing.AttributeDict") + b"(" + value("lr") + b"Nu",
        called("numpy.core.multiarray.scalar", called("numpy.dtype", "f8"), "bytes"),
        called("_codecs.encode", "bytes", "latin1"),
        called("torch.device", "cpu"),
        named("torch.float32"),
        called("torch.Size", (2, 3)),
        called("builtins.set", [1]),
        b"\x8f(K\x01\x90",  # a set
        named("argparse.Namespace") + b")\x81",
    ],
)
def test_what_lies_beside_weights_is_passed_over(path, content):
    write_zip(path, beside(content))
    assert files.read(path).keys() == {"w"}


@for_each_writer
@pytest.mark.parametrize("full", FOREIGN)
@pytest.mark.parametrize("use", ["named", "called", "in two texts", "made"])
def test_every_other_class_or_function_is_refused_by_name(path, write, full, use):
    module, _, name = full.rpartition(".")
    opcodes = {
        "named": named(full),
        "called": called(full, "touch x"),
        "in two texts": value(module) + value(name) + b"\x93",
        "made": named(full) + b")\x81",
    }
    write(path, beside(opcodes[use]))
    message = refusal(path)
    assert "holds more than weights" in message
    assert full in message


@pytest.mark.parametrize("opcode", OTHER_OPCODES, ids=lambda opcode: opcode.name)
def test_every_other_opcode_is_refused(path, opcode):
    arguments = {
        **dict.fromkeys(("stringnl", "stringnl_noescape"), b"'a'\n"),
        "stringnl_noescape_pair": b"os\nsystem\n",
        **dict.fromkeys(("decimalnl_short", "decimalnl_long", "floatnl"), b"1\n"),
        "unicodestringnl": b"a\n",
    }
    argument = opcode.arg and arguments.get(opcode.arg.name, bytes(8))
    write_zip(path, beside(b"(K\x01K\x02" + opcode.code.encode("latin1") + (argument or b"")))
    assert opcode.name in refusal(path)


def test_all_opcodes_are_known_to_be_one_or_the_other():
    assert len(OTHER_OPCODES) + len(OPCODES) == len(pickletools.opcodes)


@for_each_writer
@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (tensor((3, 2), (2, 1)), "larger than its storage"),
        (tensor((2, 2), (3, 1)), "larger than its storage"),
        (tensor((2, 2), (2, 1), 1), "larger than its storage"),
        (tensor((4,), (1,), 2**70), "larger than its storage"),
        (tensor((10**12,), (0,)), "larger than its storage"),  # one element, repeated
        (tensor((2**62, 2**62), (0, 0)), "larger than its storage"),
        (tensor((2,), (-1,), 3), "no numbers from 0 up"),
        (tensor((-1,), (1,)), "no numbers from 0 up"),
        (tensor((2, 2), (2, 1), -1), "no numbers from 0 up"),
        (tensor((True,), (1,)), "no numbers from 0 up"),
        (tensor((2.0,), (1,)), "no numbers from 0 up"),
        (tensor((2, 2), (1,)), "no strides"),
        (tensor((1,) * 33, (1,) * 33), "no strides"),
        (tensor((0, 2**70), (1, 1)), "w: "),
        (tensor([2, 2], (2, 1)), "no shape"),
        (tensor(of=b"N"), "storage"),
        (tensor(of=named("torch.FloatStorage")), "storage"),
        (tensor(of=storage(size=5)), "storage '0'"),
        (tensor(of=storage(size=3)), "storage '0'"),
        (tensor(of=storage(size=2**61)), "storage '0'"),
        (tensor(of=storage(size=-4)), "size of a storage"),
        (tensor(of=storage(size=4.0)), "size of a storage"),
        (tensor(of=storage(size=True)), "size of a storage"),
        (tensor(of=storage(key=0)), "key or size"),
        (tensor(of=storage(kind="DoubleStorage")), "storage '0'"),
        (tensor(of=storage(kind="QInt8Storage")), "'QInt8Storage' is of no type"),
        (tensor(of=storage("FloatStorage", "0", 4, ("1", 0, 2))), "part of one"),
        (tensor(of=value(("module", named("torch.Size"), "0", "cpu", 4)) + b"Q"), "no storage"),
        (tensor(of=value("storage") + b"Q"), "cannot be read"),
        (b"X\xff\xff\xff\xffabc", "cannot be read"),  # 4 GB of text
        (b"B\xff\xff\xff\x7fabc", "cannot be read"),
        (b"\x95\xff\xff\xff\xff\xff\xff\xff\xff" + b"h\x63", "cannot be read"),  # frame, memo
        (b"u", "cannot be read"),  # no mark
        (b"\x85" * 99 + b"\x87", "cannot be read"),
        (b"]}\x86R", "is called"),
        (called("torch.Size", 5), "cannot be read"),
        (called("collections.OrderedDict", [1]), "cannot be read"),
        (called("torch._utils._rebuild_tensor", 1), "cannot be read"),
        (called("torch._tensor._rebuild_from_type_v2", "eval", None, ("1",), None), "is called"),
        (value(1) + b"N" + b"b", "gets attributes"),
        (named("torch.Size") + value({"a": 1}) + b"b", "gets attributes"),
        (tensor() + value({"a": 1}) + b"b", "gets attributes"),
        (value("a") + b"K\x01a", "is extended"),
        (b")" + b"K\x01K\x02s", "gets items"),
        (b"K\x01K\x02\x93", "a name is no text"),
    ],
)
def test_every_lie_is_refused_in_one_sentence(path, write, lie, said):
    write(path, {"w": lie})
    assert said in refusal(path)


@pytest.mark.parametrize("kind", ["QInt8Storage", "UntypedStorage"])
def test_a_tensor_that_is_no_array_is_named(path, kind):
    tensors = called("torch._utils._rebuild_qtensor", 1), called("torch._utils._rebuild_tensor_v3")
    write_zip(path, {"w": tensor(), "q.weight": tensors[kind == "UntypedStorage"]})
    assert "q.weight is no plain array but of torch._utils._rebuild_" in refusal(path)


@for_each_writer
@pytest.mark.parametrize("other", [storage("IntStorage"), storage(size=2)])
def test_one_storage_has_one_size_and_one_type(path, write, other):
    write(path, {"a": tensor(), "b": tensor((1,), (1,), 0, other)})
    assert "storage '0' is described in two ways" in refusal(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"]q\x00h\x00a", "holds a list"),
        ({"a": b"]q\x00h\x00a"}, "nests too many"),  # a list that holds itself
        ({"a": b"}q\x00X\x01\x00\x00\x00bh\x00s"}, "nests too many"),
        ({"a": LAUGHS}, "nests too many"),
        ({"a" * 600: {"b" * 600: tensor()}}, "too long names"),
        ({"a" * 900: b"](" + b"N" * 120_000 + b"e"}, "too long names"),
        ({"a": b"}" + b")" + b"\x85" * 50_000 + b"Ns"}, "a tuple is a key"),
        ({"a": b"}" + b"}" + b"Ns"}, "a dict is a key"),
        ({"a": b"}" + tensor() + b"Ns"}, "a Tensor is a key"),
        ({"a": called("collections.OrderedDict", [((1, 2), 3)])}, "a tuple is a key"),
        ({"a": b")" + b"\x85" * 50_000 + b"\x85\x93"}, "cannot be read"),
    ],
    ids=range(11),
)
def test_nests_without_end_are_refused_at_once(path, content, said):
    write_zip(path, content)
    assert said in refusal(path)


def repeated(long, function, use):
    """Opcodes that use something long a thousand times, from the memo."""
    kept = function + b"q\x01" if function else b""
    once = b"h\x01h\x00" if function else b"h\x00"
    return b"](" + long + b"q\x00" + kept + (once + use) * 1000 + b"e"


MANY = b"N" * 1000
REFERENCE = value(("storage", named("torch.FloatStorage"), "0", "cpu", 4))[:-1] + MANY + b"t"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (repeated(b"](" + MANY + b"e\x85", named("torch.Size"), b"R"), "a size is no tuple"),
        (repeated(b"(" + MANY + b"t", named("torch.Size"), b"R"), "has 1000 arguments"),
        (repeated(value("a" * 1000 + "Storage"), value("torch"), b"\x93"), "too long"),
        (repeated(REFERENCE, b"", b"Q"), "has 1005 parts"),
    ],
)
def test_a_short_file_cannot_repeat_what_is_long(path, content, said):
    write_zip(path, beside(content))
    assert said in refusal(path)


@pytest.mark.parametrize("name", ["\x1b[2Jw", "w\n", "\ud800w"])
def test_names_that_no_terminal_should_print_are_escaped_and_refused(path, name):
    text = name.encode("utf-8", "surrogatepass")
    write_zip(path, b"}X" + struct.pack("<I", len(text)) + text + tensor() + b"s")
    assert f"it has a tensor named {name!a}" in refusal(path)


def test_the_pairs_of_a_dict_serve_once(path):
    dicts = repeated(
        value(([[i, None] for i in range(1000)],)), named("collections.OrderedDict"), b"R"
    )
    content, _ = torch_pickle.unpickle(io.BytesIO(pickled(dicts)))
    assert sum(len(entry) for entry in content if isinstance(entry, dict)) == 1000


@for_each_writer
def test_a_file_that_ends_too_soon_is_refused(path, write):
    write(path, beside("text"))
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, 5):
        path.write_bytes(whole[:size])
        assert "cannot be read" in refusal(path)


def test_a_file_with_any_byte_changed_is_read_or_refused_in_one_sentence(path):
    write_legacy(path, beside("text"))
    whole = path.read_bytes()
    for at in range(1, len(whole)):  # the first byte tells that it is a pickle
        for byte in (0, ord("R"), 0xFF):
            path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            try:
                read = files.read(path)
            except files.InputError as error:
                assert str(path) in str(error)
                assert "\n" not in str(error)
            else:
                assert sum(v.nbytes for v in read.values()) <= 2 * len(whole)


def compressed(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickled({"w": tensor()}))
        file.writestr("archive/data/0", NUMBERS)


def overlapping(path):
    """Two names for the bytes of one part."""
    write_zip(path, {"w": tensor((9000,), (1,), 0, storage(size=9000))}, {"0": bytes(36000)})
    whole = path.read_bytes()
    first = whole.index(b"PK\x01\x02", 36000)
    end = whole.index(b"PK\x05\x06")
    entry = whole[whole.index(b"PK\x01\x02", first + 4) : end]
    more = [entry.replace(b"archive/data/0", b"archive/data/%d" % i) for i in range(1, 6)]
    counts = struct.pack("<HHI", 7, 7, end - first + sum(map(len, more)))
    tail = whole[end : end + 8] + counts + whole[end + 16 :]
    path.write_bytes(whole[:end] + b"".join(more) + tail)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (compressed, "it is compressed"),
        (overlapping, "larger than the whole"),
        (lambda path: write_zip(path, {"w": tensor()}, {}), "no item named 'archive/data/0'"),
        (lambda path: write_zip(path, {"w": tensor()}, byteorder="big"), "big-endian"),
        (lambda path: write_zip(path, {"w": tensor()}, **{"constants.pkl": b"."}), "TorchScript"),
        (
            lambda path: write_legacy(path, {"w": tensor()}, machine={"little_endian": False}),
            "no known version",
        ),
        (lambda path: write_legacy(path, {"w": tensor()}, version=1000), "no known version"),
        (lambda path: write_legacy(path, {"w": tensor()}, order=[]), "other storages"),
        (lambda path: write_legacy(path, {"w": tensor()}, order=["0", "0"]), "other storages"),
        (lambda path: write_legacy(path, {"w": tensor()}, {"0": (2**60, NUMBERS)}), "elements"),
        (lambda path: path.write_bytes(b"hello, I am no weight file"), "does not begin"),
        (lambda path: path.write_bytes(b""), "does not begin"),
    ],
)
def test_an_archive_that_lies_is_refused(path, write, said):
    write(path)
    assert said in refusal(path)
