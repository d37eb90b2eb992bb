"""Time preparing and reading a set as large as ChestX-ray14, beside decoding files.

    CHARM_TEST_DATA=DIR python benchmarks/data_engine.py --work DIR --out FILE.json

(a) A rehearsal with the true table of 112,120 rows and SIMULATED images: 300 phantoms drawn at 64
pixels, enlarged to 224 and varied into 2,000 different PNG files; each row's file is a hard link to
one of them. NIH's files have 1024 pixels and take about ten times as long to decode.
(b) Prepared records through Grain against PyTorch's DataLoader, whose 2 worker processes decode
1024-pixel PNG files with PIL and resize them to 224: real images of 512 pixels, enlarged, with
noise of one grey level, which makes their files as large as NIH's (400 kB). In turn; medians.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines import sources
from data_pipelines.images.decode import read_image
from data_pipelines.loading import loader
from data_pipelines.phantom.draw import draw_phantom
from data_pipelines.progress import progress
from data_pipelines.tables import quarantine, splits
from data_pipelines.tables.case_table import CaseTable
from data_pipelines.tables.findings import NIH_FINDINGS
from data_pipelines.tables.splits import RULES

SIZE = 224
BATCH = 64
SOURCE = "nih_chest_xray14"
STAGES = {"bce": "abnormal", "focal": "all"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for 6 GB of images")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--phantoms", type=int, default=300)
    parser.add_argument("--files", type=int, default=2000, help="different PNG files")
    parser.add_argument("--rounds", type=int, default=5, help="of ours and the peer in turn")
    return parser.parse_args()


def draw_files(folder: Path, phantoms: int, files: int) -> list[Path]:
    """Draw different PNG files of simulated images, seeded."""
    rng = np.random.default_rng(0)
    drawn = []
    for seed in progress(range(phantoms), desc="drawing phantoms", unit="images"):
        findings = [NIH_FINDINGS[seed % 15]] if seed % 15 < 14 else []
        small = Image.fromarray(draw_phantom(findings, seed, seed, 64))
        drawn.append(np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32))
    folder.mkdir(parents=True)
    paths = []
    for number in progress(range(files), desc="varying them", unit="files"):
        image = drawn[number % phantoms] * rng.uniform(0.8, 1.1) + rng.uniform(-10, 10)
        image = np.roll(image, rng.integers(-20, 20, 2), (0, 1)) + 3 * rng.standard_normal(
            (SIZE, 1)
        )
        image += 2 * rng.standard_normal(image.shape)
        paths.append(folder / f"{number:05d}.drawn")
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(paths[-1], "PNG")
    return paths


def make_set(real: Path, folder: Path, phantoms: int, files: int) -> None:
    """Make a folder in the NIH layout with the true table and a file for each row."""
    if (folder / "SIMULATED.txt").exists():
        return
    paths = draw_files(folder / "drawn", phantoms, files)
    for path in [*real.glob("Data_Entry_2017*"), *real.glob("*_list.txt")]:
        (folder / path.name).symlink_to(path)
    images = folder / "images"
    images.mkdir()
    names = sources.load(SOURCE, folder).images.tolist()
    for row, name in enumerate(progress(names, desc="linking", unit="files")):
        os.link(paths[row % files], images / name)
    (folder / "SIMULATED.txt").write_text("Every image here is SIMULATED.\n")


def family(pid: int) -> list[int]:
    """List a process and all its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *(one for child in children for one in family(int(child)))]


def resident(pid: int) -> int:
    """Return the resident bytes of a process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def run_prepare(folder: Path, out: Path) -> dict[str, float]:
    """Prepare the set; return images a second, and peak memory of all processes."""
    command = [sys.executable, "-m", "data_pipelines.prepare", SOURCE]
    command += ["--source", str(folder), "--out", str(out), "--size", str(SIZE)]
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, sum(resident(pid) for pid in family(process.pid)))
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"prepare ended with {process.returncode}")
    seconds = time.perf_counter() - start
    shards = [path.stat().st_size for path in out.glob("*.array_record-*")]
    images = json.loads((out / "summary.json").read_text())["images"]
    return {
        "images": images,
        "prepare_seconds": seconds,
        "prepare_images_per_second": images / seconds,
        "prepare_peak_memory_mb": peak / 1e6,
        "shards": len(shards),
        "shard_mb_median": statistics.median(shards) / 1e6,
        "records_gb": sum(shards) / 1e9,
    }


def stream(table: CaseTable, rows: np.ndarray, batches: int, seed: int) -> float:
    """Return images a second of shuffled training batches, from the call on."""
    start = time.perf_counter()
    case_ids = loader.case_id_batches(
        rows, batch_size=BATCH, seed=seed, epochs=1, batch_key="BATCH"
    )
    read = loader.training_batches(table, case_ids[:batches], image_size=SIZE)
    n = sum(len(batch["case_id"]) for batch in read)
    read.close()
    return n / (time.perf_counter() - start)


def rehearse_reading(prepared: Path) -> dict[str, float]:
    """Time loading, each split rule, the check of all images, and an epoch."""
    start = time.perf_counter()
    table = sources.load(SOURCE, prepared)
    result = {"load_seconds": time.perf_counter() - start}
    for rule in RULES:
        divided = splits.make_split(table, rule, STAGES, split_seed=0)
        result[f"images_used_{rule}"] = len(divided.used_rows)
    rows = splits.make_split(table, "official", STAGES, split_seed=0).rows("focal", "train")
    start = time.perf_counter()
    bad = quarantine.verify_files(table, np.arange(len(table.images))).bad
    result |= {"verify_seconds": time.perf_counter() - start, "verify_bad": len(bad)}
    start = time.perf_counter()
    stream(table, rows, 1, 0)
    result["first_batch_seconds"] = time.perf_counter() - start
    epoch = loader.steps_per_epoch(len(rows), BATCH)
    result["epoch_images"] = epoch * BATCH
    result["epoch_images_per_second"] = stream(table, rows, epoch, 1)
    return result


def enlarge(real: Path, folder: Path, copies: int = 32) -> list[Path]:
    """Write PNG files of 1024 pixels from smaller images, each with other noise."""
    folder.mkdir(exist_ok=True)
    rng, paths = np.random.default_rng(0), []
    for path in sorted(real.glob("*.png")):
        large = Image.open(path).convert("L").resize((1024, 1024), Image.Resampling.BICUBIC)
        for copy in range(copies):
            noisy = np.asarray(large, np.float32) + rng.standard_normal((1024, 1024))
            paths.append(folder / f"{copy:02d}_{path.name}")
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(paths[-1])
    return paths


class PngFiles:
    """Decode and resize in ``__getitem__``, as is usual in PyTorch."""

    def __init__(self, paths: list[Path], n: int):
        self.paths, self.n = paths, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> np.ndarray:
        return read_image(self.paths[index % len(self.paths)], SIZE)


def peer(paths: list[Path], n: int) -> float:
    """Return images a second of PyTorch's DataLoader with 2 workers."""
    from torch.utils.data import DataLoader

    start = time.perf_counter()
    batches = DataLoader(PngFiles(paths, n), batch_size=BATCH, shuffle=True, num_workers=2)
    n = sum(len(batch) for batch in batches)
    return n / (time.perf_counter() - start)


def against_peer(prepared: Path, files: list[Path], rounds: int) -> dict[str, float | list[float]]:
    """Time ours and the peer in turn, after one warm-up round of each."""
    try:
        import torch  # noqa: F401
    except ImportError:
        print("PyTorch is not installed (pip install -e '.[torch]'): no peer is measured.")
        rate_of_peer = None
    else:
        rate_of_peer = partial(peer, files, 8 * BATCH)
    table = sources.load(SOURCE, prepared)
    rows, ours, theirs = np.flatnonzero(table.present), [], []
    for seed in range(rounds + 1):
        ours.append(stream(table, rows, 200, seed))
        if rate_of_peer:
            theirs.append(rate_of_peer())
    result = {"ours": ours[1:], "ours_median": statistics.median(ours[1:])}
    if theirs:
        median = statistics.median(theirs[1:])
        times = [a / b for a, b in zip(ours[1:], theirs[1:], strict=True)]
        result |= {
            "peer": theirs[1:],
            "peer_median": median,
            "times_peer_median": statistics.median(times),
        }
    return result


def main() -> None:
    args = arguments()
    root = Path(os.environ["CHARM_TEST_DATA"])
    raw, prepared = args.work / "raw", args.work / "prepared"
    shutil.rmtree(prepared, ignore_errors=True)
    make_set(root / SOURCE, raw, args.phantoms, args.files)
    result = run_prepare(raw, prepared)
    result |= rehearse_reading(prepared)
    files = enlarge(root / "nih_fullsize", args.work / "full_size")
    result["peer_file_kb"] = statistics.mean(path.stat().st_size for path in files) / 1e3
    result |= against_peer(prepared, files, args.rounds)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print("| quantity | value |\n| --- | --- |")
    for key, value in result.items():
        values = value if isinstance(value, list) else [value]
        print(f"| {key} | {', '.join(f'{v:,.1f}'.removesuffix('.0') for v in values)} |")


if __name__ == "__main__":
    main()
