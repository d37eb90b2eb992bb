"""Runs that are killed, asked to end, damaged or run out of space."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from running import SMALL, copy_data, read, train, train_here

from charm_jax.train import __main__ as train_command

MACHINE = ("images_per_second", "memory_gib")  # of clock and machine


def params(folder):
    return read(folder / "runs/demo/summary.json")["params_sha256"]


def metric_lines(folder, run="demo"):
    """The log without what differs between machines."""
    lines = (folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in MACHINE} for line in lines]


def wait_for_steps(folder, process, steps):
    """Waits until the run has written that many lines of its log."""
    path = folder / "runs/demo/metrics.jsonl"
    while process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) >= steps:
            return
        time.sleep(0.02)


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "charm_jax.train", *SMALL],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_that_is_killed_ends_with_the_same_parameters(finished, tmp_path):
    copy_data(finished, tmp_path)
    for lines in (1, 3, 8):  # one in each stage, the frozen one among them
        process = start(tmp_path)
        wait_for_steps(tmp_path, process, lines)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    result = train(cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"Continuing runs/demo from step \d+ of stage", result.stderr)
    assert params(tmp_path) == params(finished[0])
    assert metric_lines(tmp_path) == metric_lines(finished[0])
    log = (tmp_path / "runs/demo/run.log").read_text()
    assert log.count("Started: charm-jax train") == 4
    assert "Done in" in log.splitlines()[-1]


def test_sigterm_saves_and_says_so(finished, tmp_path):
    copy_data(finished, tmp_path)
    process = start(tmp_path)
    wait_for_steps(tmp_path, process, 1)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 143, messages
    assert "The last good checkpoint is runs/demo/checkpoints/bce_frozen/" in messages
    stages = tmp_path / "runs/demo/checkpoints/bce_frozen"
    assert any(path.name.isdigit() for path in stages.iterdir())


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.daily
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy")
    folder = tmp_path / "copy"
    (folder / "runs/demo/summary.json").unlink()
    steps = sorted(
        int(p.name) for p in (folder / "runs/demo/checkpoints/focal").iterdir() if p.name.isdigit()
    )
    newest = folder / "runs/demo/checkpoints/focal" / str(steps[-1])
    files = sorted(
        (p for p in (newest / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    damage(files[-1])
    result = train(cwd=folder)
    assert result.returncode == 0, result.stderr
    assert f"focal/{steps[-1]} is damaged" in result.stderr
    assert f"from step {steps[-2]} of stage focal" in result.stderr
    assert params(folder) == params(finished[0])


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(finished, tmp_path, refused):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "runs/demo/summary.json").unlink()
    states = list((folder / "runs/demo/checkpoints").glob("*/*/state"))
    for state in states:
        shutil.rmtree(state)
    words = ["No checkpoint of runs/demo can be read", "move the folder away", "--config.name"]
    refused(train_command.main, SMALL, *words, cwd=folder)
    assert len(list((folder / "runs/demo/checkpoints").glob("*/*"))) == len(states)


def test_a_full_disk_gets_one_sentence(finished, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    try:
        result = train(f"--config.runs_dir={disk}", cwd=finished[0])
        assert result.returncode == 2, result.stderr
        assert "Traceback" not in result.stderr
        assert "no space" in result.stderr.splitlines()[-1]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.daily
def test_a_loss_that_is_not_finite_stops_the_run(finished, tmp_path):
    copy_data(finished, tmp_path)
    result = train(
        "--config.stages.bce.peak_lr=1e38", "--config.checkpoint.every_steps=1", cwd=tmp_path
    )
    assert result.returncode == 3, result.stderr
    message = result.stderr.strip().splitlines()[-1]
    assert "step" in message
    assert "case ids" in message
    assert "--config.stages.bce.clip_norm=1 --config.resume=force" in message
    assert "--config.name=demo-2 --from demo:bce_frozen/" in message
    assert "Traceback" not in result.stderr


def test_a_resume_with_other_images_is_refused(finished, tmp_path, refused):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "runs/demo/summary.json").unlink()
    next(iter(sorted((folder / "data/phantom/images").iterdir()))).unlink()
    arguments = [*SMALL, "--config.data.missing=skip", "--config.resume=force"]
    refused(train_command.main, arguments, "The images of", "runs/demo", cwd=folder)


def test_a_resume_with_other_labels_is_refused(finished, tmp_path, refused):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "runs/demo/summary.json").unlink()
    table = folder / "data/phantom/Data_Entry_2017_v2020.csv"
    names = (folder / "runs/demo/trained_on.txt").read_text().split()
    lines = [line.split(",") for line in table.read_text().splitlines()]
    own = next(line for line in lines if line[0] in names and line[1] != "No Finding")
    own[1] = "Nodule" if own[1] == "Mass" else "Mass"
    table.write_text("".join(",".join(line) + "\n" for line in lines))
    words = ["The labels of", "/train", "runs/demo", "--config.resume=force"]
    refused(train_command.main, SMALL, *words, cwd=folder)


@pytest.mark.daily
def test_a_damaged_best_checkpoint_of_the_first_stage_is_replaced(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "runs/demo/summary.json").unlink()
    best = read(finished[0] / "runs/demo/summary.json")["stages"]["bce"]["best_step"]
    shutil.rmtree(folder / "runs/demo/checkpoints/focal")
    shutil.rmtree(folder / f"runs/demo/checkpoints/bce/{best}/state")
    result = train(cwd=folder)
    assert "Traceback" not in result.stderr
    assert result.returncode == 0, result.stderr
    assert f"bce/{best} is damaged" in result.stderr


def copy_run(finished, folder, *, dropped=0):
    """A copy of the run `demo`, cut off before the last `dropped` checkpoints."""
    shutil.copytree(finished[0], folder)
    if dropped:
        (folder / "runs/demo/summary.json").unlink()
        steps = (folder / "runs/demo/checkpoints/focal").iterdir()
        for path in sorted(steps, key=lambda path: int(path.name))[-dropped:]:
            shutil.rmtree(path)


@pytest.mark.daily
def test_a_finished_run_goes_on_with_more_epochs(finished, tmp_path, refused):
    folder = tmp_path / "copy"
    copy_run(finished, folder)
    before = metric_lines(folder)
    longer = ["--config.stages.focal.epochs=3"]
    refused(train_command.main, [*SMALL, *longer], "--config.resume=force", cwd=folder)
    result = train_here(*longer, "--config.resume=force", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "Stage focal goes on to 3 epochs" in result.stderr
    assert read(folder / "runs/demo/summary.json")["stages"]["focal"]["epochs"] == 3
    assert metric_lines(folder)[: len(before)] == before
    assert "is finished" in train_here(*longer, cwd=folder).stderr
    for earlier in ("bce.epochs=9", "focal.frozen_epochs=1"):
        arguments = [f"--config.stages.{earlier}", *longer, "--config.resume=force"]
        words = f"config.stages.{earlier.split('=')[0]} is", "--from"
        refused(train_command.main, [*SMALL, *arguments], *words, cwd=folder)
    assert read(folder / "runs/demo/config.json")["stages"]["focal"]["frozen_epochs"] == 0


def test_a_run_from_before_a_key_existed_goes_on(finished, tmp_path, refused):
    folder = tmp_path / "copy"
    copy_run(finished, folder, dropped=1)
    path = folder / "runs/demo/config.json"
    config = read(path)
    for group, key in (("model", "average"), ("model", "input_range"), ("data", "value_range")):
        del config[group][key]
    path.write_text(json.dumps(config))
    result = train_here("--dry_run", cwd=folder)
    assert result.returncode == 0, result.stderr
    words = "model.average: 0.0 -> 0.5"
    refused(train_command.main, [*SMALL, "--config.model.average=0.5"], words, cwd=folder)


@pytest.mark.daily
def test_another_optimizer_goes_on_from_the_same_network(finished, tmp_path):
    folder = tmp_path / "copy"
    copy_run(finished, folder, dropped=1)
    changed = ["--config.stages.focal.accumulate=2", "--config.resume=force"]
    result = train_here(*changed, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "its moments restart from zero, its schedule goes on" in result.stderr


@pytest.mark.daily
def test_a_new_run_starts_from_a_checkpoint_of_another(finished, tmp_path, refused, traces):
    folder = tmp_path / "copy"
    copy_run(finished, folder)
    new = [
        "--config.name=new",
        "--config.stages.bce.frozen_epochs=0",
        "--config.stages.bce.epochs=1",
    ]
    new += ["--config.stages.focal.epochs=0", "--config.stages.bce.peak_lr=1e-6"]
    for dry in ([], ["--dry_run", "--config.model.init_from=gone.pth"]):
        unknown = [*SMALL, *new, "--from=demo:focal/9999", *dry]
        refused(train_command.main, unknown, "focal/9999", cwd=folder)
    other = [*SMALL, *new, "--from=demo", "--config.model.bank_size=64"]
    refused(train_command.main, other, "another architecture", cwd=folder)
    assert not (folder / "runs/new").exists()
    left = folder / "runs/new"  # by a run that never began
    left.mkdir()
    leftovers = ("environment.json", "patients.csv", "quarantine.csv", "range_test_bce.json")
    for name in leftovers:
        (left / name).write_text("{}")
    traces.clear()  # a refused command may have created a network, too
    result = train_here(*new, "--from=demo:last", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert re.search(r"runs/demo saw \d+ other images", result.stderr)  # those of stage focal
    steps = "phase_step", "eval_step", "jit(create)"
    assert {step: traces[step] for step in steps} == dict.fromkeys(steps, 1)
    assert "compiled while training" not in result.stderr
    assert "restarts" in read(left / "environment.json")
    assert not any((left / name).exists() for name in leftovers[1:])
    weights = read(folder / "runs/new/weights.json")
    assert weights["init_from"] == "demo:last"
    assert weights["file"].startswith("runs/demo/checkpoints/focal/")
    # At so small a rate the first losses are those of the trained network.
    (epoch,) = (line for line in metric_lines(folder, "new") if line["kind"] == "epoch")
    trained = read(folder / "runs/demo/summary.json")["stages"]["bce"]["best_val_loss"]
    assert epoch["val_loss"] < trained + 0.1
