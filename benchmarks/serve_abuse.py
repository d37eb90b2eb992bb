"""Abuse a server: damaged uploads, slow clients, a 4 GB upload, 500 connections.

    python benchmarks/serve_abuse.py runs/demo chest.png --cases 2000

The server runs as a process of its own. After each abuse it must answer a sound request as before;
at the end nothing may lie in its temporary folder. Exit code 1 after a failure.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import socket
import sys
import tempfile
import time
from pathlib import Path

import fuzz_corpus
import numpy as np
from fuzz_inputs import make_case
from serve import form, post, started

_KINDS = ("png", "jpeg", "tiff", "dicom")


def damaged(address: tuple[str, int], cases: int) -> collections.Counter:
    """Send damaged files; every answer must be one of an image or a refusal."""
    corpora = {kind: getattr(fuzz_corpus, kind)() for kind in _KINDS}

    def send(number: int) -> int:
        rng = np.random.default_rng(number)
        corpus = corpora[_KINDS[number % len(_KINDS)]]
        name = "../" * (number % 3) + "<script>alert(1)</script>\\Doe^Jane.png"
        return post(address, "/api/explain", form(make_case(corpus, number, rng), name))[0]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return collections.Counter(pool.map(send, range(cases)))


def huge(address: tuple[str, int]) -> int:
    """Send 4 GB in chunks, without a length; return the status."""
    with socket.create_connection(address, timeout=60) as client:
        client.sendall(
            b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        chunk = b"%x\r\n" % 2**20 + bytes(2**20) + b"\r\n"
        with contextlib.suppress(OSError):
            for _ in range(4096):
                client.sendall(chunk)
        with contextlib.suppress(OSError):
            return int(client.recv(12)[9:12] or 0)
    return 0


def idle(address: tuple[str, int], connections: int) -> list[socket.socket]:
    """Open connections that send half a request."""
    clients = [socket.create_connection(address, timeout=30) for _ in range(connections)]
    for number, client in enumerate(clients):
        head = b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        body = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000\r\n\r\n--x"
        client.sendall(head + body * (number % 2))
    return clients


def ended(clients: list[socket.socket]) -> int:
    """Count the connections that the server has closed, waiting for up to 40 s."""
    closed, until = 0, time.monotonic() + 40
    for client in clients:
        client.settimeout(max(until - time.monotonic(), 0.01))
        with contextlib.suppress(TimeoutError):
            try:
                while client.recv(4096):
                    pass
            except ConnectionError:
                pass
            closed += 1
        client.close()
    return closed


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("image", type=Path)
    parser.add_argument("--cases", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, started(options.run, TMPDIR=folder) as server:
        sound = form(options.image.read_bytes())
        wanted, faults = post(server.address, "/api/predict", sound), []

        def check(what: str) -> None:
            began = time.perf_counter()
            same = post(server.address, "/api/predict", sound) == wanted
            seconds = time.perf_counter() - began
            print(f"{what}; then a sound request took {seconds:.2f} s; {server.memory()}")
            if not same:
                faults.append(what)

        check("before")
        check(f"{options.cases:,} damaged uploads: {dict(damaged(server.address, options.cases))}")
        check(f"4 GB: status {huge(server.address)}")
        clients = idle(server.address, 500)
        check(f"{len(clients)} connections that send half a request")
        check(f"{ended(clients)} of them were closed")
        left = [path.name for path in Path(folder).rglob("*") if path.is_file()]
        print(f"files in the temporary folder: {left or 'none'}; log: {server.log() or 'empty'}")
    return 1 if faults or left else 0


if __name__ == "__main__":
    sys.exit(main())
