"""Load a server with 1, 8 and 32 clients, beside the same model in a bare onnxruntime loop.

    charm-jax export demo --format onnx --out demo.onnx
    python benchmarks/serve.py runs/demo chest.png --onnx demo.onnx --requests 5000

Server, clients and loop share the machine's cores. Latencies are those of the clients. The loop
decodes and resizes the same file and runs it, in batches of 1 and of 16.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

Address = tuple[str, int]
_BOUNDARY = "boundary-of-the-benchmark"
_TYPE = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}


def form(content: bytes, name: str = "x.png") -> bytes:
    """Return the body of an upload."""
    head = f'Content-Disposition: form-data; name="image"; filename="{name}"'
    return (
        f"--{_BOUNDARY}\r\n{head}\r\n\r\n".encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()
    )


def post(address: Address, path: str, body: bytes) -> tuple[int, bytes]:
    """Send a form over a connection of its own; return status and answer."""
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=60)) as client:
        client.request("POST", path, body, _TYPE)
        answer = client.getresponse()
        return answer.status, answer.read()


class Server:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen, log: Path):
        self.process, self._log = process, log
        while not (found := re.search(r"at (http://\S+)/\.", log.read_text())):
            if process.poll() is not None:
                sys.exit(log.read_text())
            time.sleep(0.1)
        url = urlsplit(found[1])
        self.address = url.hostname, url.port
        self._announced = len(log.read_text())

    def log(self) -> str:
        """Return what was logged since the start."""
        return self._log.read_text()[self._announced :].strip()

    def memory(self) -> str:
        """Return the memory of the process and its decoders."""
        children = subprocess.run(
            ["ps", "-o", "rss=", "--pid", str(self.process.pid), "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=True,
        )
        first, *others = sorted((int(kib) // 1024 for kib in children.stdout.split()), reverse=True)
        return f"{first} MB, decoders and others {sum(others)} MB"


@contextlib.contextmanager
def started(run: str, **environment: str) -> Iterator[Server]:
    """Start a server of a run at a free port."""
    log = Path(f"serve_{os.getpid()}.log")
    with log.open("w") as file:
        command = [sys.executable, "-m", "charm_jax.serve", run, "--port", "0"]
        process = subprocess.Popen(command, stderr=file, env=os.environ | environment)
    try:
        yield Server(process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        log.unlink()


def load(address: Address, body: bytes, clients: int, requests: int) -> np.ndarray:
    """Return the seconds of each request, sent by so many clients with a connection each."""

    def client(number: int) -> list[float]:
        seconds = []
        with contextlib.closing(http.client.HTTPConnection(*address, timeout=60)) as connection:
            for _ in range(requests // clients):
                began = time.perf_counter()
                connection.request("POST", "/api/predict", body, _TYPE)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200, answer.status
                seconds.append(time.perf_counter() - began)
        return seconds

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return np.concatenate(list(pool.map(client, range(clients))))


def bare(program: Path, content: bytes, batch: int, seconds: float = 10.0) -> float:
    """Return images a second of a loop that decodes, resizes and runs."""
    import onnxruntime
    from PIL import Image

    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    images = session.get_inputs()[0]

    def square() -> np.ndarray:
        grey = Image.open(io.BytesIO(content)).convert("L")
        return np.array(grey.resize((side, side), Image.Resampling.BILINEAR))

    side = images.shape[-1]
    done, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        session.run(["scores"], {images.name: np.stack([square() for _ in range(batch)])})
        done += batch
    return done / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("image", type=Path)
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--requests", type=int, default=960)
    options = parser.parse_args()
    content = options.image.read_bytes()
    if options.onnx:
        for batch in (1, 16):
            rate = bare(options.onnx, content, batch)
            print(f"onnxruntime, batches of {batch}: {rate:.0f} images/s")
    with started(options.run) as server:
        load(server.address, form(content), 8, 64)
        print(f"server: {server.memory()}")
        for clients in (1, 8, 32):
            began = time.perf_counter()
            seconds = load(server.address, form(content), clients, options.requests)
            rate = len(seconds) / (time.perf_counter() - began)
            p50, p95 = 1000 * np.percentile(seconds, [50, 95])
            print(
                f"{clients} clients: {rate:.0f} requests/s, p50 {p50:.0f} ms, p95 {p95:.0f} ms; "
                f"{server.memory()}",
                flush=True,
            )


if __name__ == "__main__":
    main()
