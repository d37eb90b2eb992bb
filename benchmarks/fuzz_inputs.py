"""Damage input files in many ways; each must be read or refused with a sentence.

    python -W error benchmarks/fuzz_inputs.py --cases 5000 --out DIR

Each case is read in a worker process that has 5 seconds and 4 GiB: anything but a sound result or
an InputError is a failure. Files that are read while a C library complains count as "aloud".
Failing inputs are kept in DIR; the same seed makes the same cases. Exit code 1 after a failure.
"""

import argparse
import collections
import multiprocessing
import os
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fuzz_corpus
import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.images.decode import check_header, examine, read_image
from data_pipelines.progress import progress
from data_pipelines.sources import csv_folder, medmnist, nih_chest_xray14
from data_pipelines.tables.case_table import CaseTable

SECONDS = 5
MEMORY = 4 * 2**30
SOUND = ("read", "aloud", "refused")
_SIDE = 16


def read_square(path: Path) -> None:
    """Read an image as training does, and check shape and type."""
    assert "\n" not in check_header(path).fault + examine(path, 8)[1].fault
    image = read_image(path, _SIDE)
    assert image.shape == (_SIDE, _SIDE, 1), image.shape
    assert image.dtype == np.uint8, image.dtype


def read_table(load: Callable[[Path, str], CaseTable], path: Path) -> None:
    """Read a table, and check its order and types."""
    table = load(path.parent, str(path))
    n = len(table.images)
    assert n, "no rows"
    assert list(table.images) == sorted(set(table.images.tolist())), "not sorted"
    assert table.labels.shape == (n, len(table.findings)), table.labels.shape
    assert table.labels.dtype == np.int8, table.labels.dtype
    assert np.isin(table.labels, (-1, 0, 1)).all(), "labels"
    assert (table.patients >= 0).all(), "patients"
    if table.present.any():
        images = table.store.read(np.flatnonzero(table.present)[:4], _SIDE)
        assert images.shape[1:] == (_SIDE, _SIDE, 1), images.shape
        assert images.dtype == np.uint8, images.dtype


# Kind -> what makes the files to start from, and what reads one: it may raise InputError only.
KINDS: dict[str, tuple[Callable[[], list[bytes]], Callable[[Path], None]]] = {
    "png": (fuzz_corpus.png, read_square),
    "jpeg": (fuzz_corpus.jpeg, read_square),
    "tiff": (fuzz_corpus.tiff, read_square),
    "dicom": (fuzz_corpus.dicom, read_square),
    "nih_csv": (fuzz_corpus.nih_csv, partial(read_table, nih_chest_xray14.load)),
    "labels_csv": (fuzz_corpus.labels_csv, partial(read_table, csv_folder.load)),
    "npz": (fuzz_corpus.npz, partial(read_table, medmnist.load_pneumoniamnist)),
}


def flip(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    for at in rng.integers(len(data), size=rng.integers(1, 9)):
        data[at] ^= 1 << rng.integers(8)


def flip_header(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    for at in rng.integers(min(len(data), 700), size=rng.integers(1, 4)):
        data[at] = rng.integers(256)


def set_field(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    width = int(rng.choice([2, 4]))
    at = int(rng.integers(len(data)))
    if rng.random() < 0.7:
        at = int(rng.integers(min(len(data), 700)))
    value = int(rng.choice([0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE]))
    data[at : at + width] = (value % 256**width).to_bytes(width, rng.choice(["little", "big"]))


def cut_off(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    del data[rng.integers(len(data)) :]


def cut_out(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    at = rng.integers(len(data))
    del data[at : at + rng.integers(1, 64)]


def splice(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    start, at = rng.integers(len(other)), rng.integers(len(data))
    length = rng.integers(1, 200)
    data[at : at + (length if rng.random() < 0.5 else 0)] = other[start : start + length]


_DAMAGES = (flip, flip_header, set_field, cut_off, cut_out, splice)


def make_case(corpus: list[bytes], number: int, rng: np.random.Generator) -> bytes:
    """Make a case: the corpus itself first, then files with one to three damages."""
    if number < len(corpus):
        return corpus[number]
    # The bombs are long, and most of what could be damaged in them is zeros.
    short = [data for data in corpus if len(data) < 20_000]
    data, other = bytearray(short[rng.integers(len(short))]), short[rng.integers(len(short))]
    for _ in range(rng.integers(1, 4)):
        if data:
            _DAMAGES[rng.integers(len(_DAMAGES))](data, other, rng)
    if data.startswith(b"\x89PNG\r\n\x1a\n") and rng.random() < 0.7:
        return fuzz_corpus.repaired(bytes(data))
    return bytes(data)


def work(connection, kind: str, noise: Path) -> None:
    """Read the files named through a connection, and answer with the outcomes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.dup2(os.open(noise, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    reader = KINDS[kind][1]
    while path := connection.recv():
        said = noise.stat().st_size
        try:
            reader(path)
            outcome = "read" if noise.stat().st_size == said else "aloud"
        except InputError as error:
            outcome = "refused" if "\n" not in str(error) else "SENTENCE of several lines"
        except BaseException as error:
            outcome = f"RAISED {type(error).__name__}: {traceback.format_exc()[-600:]}"
        connection.send((outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


class Worker:
    """Read files in a process, which is replaced when it dies or hangs."""

    def __init__(self, kind: str, folder: Path):
        self.args = (kind, folder / "stderr")
        self.path = folder / "input"
        self.process = None

    def start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *self.args), daemon=True)
        self.process.start()
        theirs.close()

    def outcome(self, data: bytes) -> tuple[str, int]:
        """Return the outcome of a file, and the process's peak memory in KiB."""
        if self.process is None:
            self.start()
            self.path.write_bytes(b"")
            self.ask(60)  # for the imports
        self.path.write_bytes(data)
        return self.ask(SECONDS)

    def ask(self, seconds: float) -> tuple[str, int]:
        self.connection.send(self.path)
        try:
            if self.connection.poll(seconds):
                return self.connection.recv()
            outcome = "HANG"
        except EOFError:
            self.process.join()
            outcome = f"CRASH with code {self.process.exitcode}"
        self.process.kill()
        self.process.join()
        self.process = None
        return outcome, 0

    def stop(self) -> None:
        if self.process is not None:
            self.connection.send(None)
            self.process.join()


def fuzz(kind: str, cases: int, seed: int, out: Path | None) -> int:
    """Print the counts and failures of one kind; return the number of failures."""
    corpus, counts, memory = KINDS[kind][0](), collections.Counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(kind, Path(folder))
        for number in progress(range(cases), desc=kind, unit="files"):
            rng = np.random.default_rng([seed, list(KINDS).index(kind), number])
            data = make_case(corpus, number, rng)
            outcome, used = worker.outcome(data)
            memory = max(memory, used)
            counts[outcome.split()[0]] += 1
            if outcome not in SOUND:
                print(f"{kind} {number}: {outcome}", file=sys.stderr)
                if out:
                    (out / f"{kind}_{number}").write_bytes(data)
        worker.stop()
    shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    print(f"{kind}: {cases} cases: {shown}; at most {memory // 1024} MiB", flush=True)
    return cases - sum(counts[outcome] for outcome in SOUND)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=5_000, help="cases of each kind (5000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, help="folder that keeps the inputs that fail")
    args = parser.parse_args()
    # Workers are forked from a clean process that has done the slow imports once.
    multiprocessing.set_forkserver_preload(["data_pipelines.sources", "pydicom.pixels"])
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    failures = [fuzz(kind, args.cases, args.seed, args.out) for kind in args.kinds]
    sys.exit(any(failures))


if __name__ == "__main__":
    main()
