"""Each run of a sweep is done once, whatever becomes of its workers."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import charm_jax.train.__main__ as train_command
from charm_jax.config import cli
from charm_jax.sweep import plan as plans
from charm_jax.sweep import queue as queue_module
from charm_jax.sweep import worker
from charm_jax.sweep.plan import Plan, Point, Row
from charm_jax.sweep.queue import Queue, RunFailed
from data_pipelines.errors import InputError

pytest.importorskip("optuna")

# A worker whose runs write their names, and wait for a file where the name says so.
WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_queue import plan_of
from charm_jax.sweep import queue as queue_module
from charm_jax.sweep.queue import Queue
folder = Path(sys.argv[2])

def run(name):
    with (folder / "begun").open("a") as file:
        file.write(name + "\\n")
    while name == "a" and not (folder / "go").exists():
        time.sleep(0.05)
    with (folder / "ended").open("a") as file:
        file.write(name + "\\n")
    return 0.5

queue_module._SILENCE = 3
queue = Queue(plan_of(folder, "abc"), sys.argv[3], heartbeat=1)
queue.fill(again=True)
queue.work(run)
"""


def plan_of(folder, names, keys=()):
    points = tuple(
        Point(name, name, 0, None, {"runs_dir": str(folder), **dict(keys)}) for name in names
    )
    rows = tuple(Row(name, {}) for name in names)
    return Plan("sweep", "demo", rows, names[0], folder, points)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def test_every_run_is_done_once_and_a_second_call_does_nothing(tmp_path):
    plan, done = plan_of(tmp_path, "abc"), []

    def run(name):
        done.append(name)
        return ord(name) / 1000

    for _ in range(2):
        queue = Queue(plan)
        queue.fill(again=True)
        queue.work(run)
    assert sorted(done) == ["a", "b", "c"]
    assert queue.scores() == {"a": 0.097, "b": 0.098, "c": 0.099}


def test_a_failed_run_does_not_stop_the_others_and_is_tried_again_by_the_next_call(tmp_path):
    plan, broken = plan_of(tmp_path, "abc"), {"b"}

    def run(name):
        if name in broken:
            raise RunFailed("the disk is full")
        return 0.5

    queue = Queue(plan)
    queue.fill(again=True)
    queue.work(run)
    assert queue.failures() == {"b": "the disk is full"}
    assert queue.scores().keys() == {"a", "c"}
    broken.clear()
    queue.fill(again=False)
    queue.work(run)
    assert queue.failures().keys() == {"b"}
    queue.fill(again=True)
    queue.work(run)
    assert queue.failures() == {}
    assert queue.scores().keys() == {"a", "b", "c"}


def test_a_run_that_was_stopped_waits_again(tmp_path):
    queue = Queue(plan_of(tmp_path, "ab"))
    queue.fill(again=True)

    def stop(name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        queue.work(stop)
    assert queue.failures() == {}
    queue.fill(again=False)
    queue.work(lambda name: 0.5)
    assert queue.scores().keys() == {"a", "b"}


def test_a_run_that_was_queued_twice_is_done_once(tmp_path):
    plan, done = plan_of(tmp_path, "ab"), []
    one, other = Queue(plan), Queue(plan)
    one.fill(again=True)
    other._study.enqueue_trial({"point": "a"})

    def run(name):
        done.append(name)
        return 0.5

    other.work(run)
    one.work(run)
    assert sorted(done) == ["a", "b"]


def test_a_worker_that_was_taken_for_dead_hands_in_its_run_all_the_same(tmp_path):
    queue = Queue(plan_of(tmp_path, "ab"))
    queue.fill(again=True)
    failed = queue._optuna.trial.TrialState.FAIL

    def pause(name):
        if name == "a":
            trial = next(t for t in queue._trials() if t.state.name == "RUNNING")
            queue._study._storage.set_trial_state_values(trial._trial_id, failed)
            queue.fill(again=False)
        return 0.5

    queue.work(pause)
    assert queue.scores() == {"a": 0.5, "b": 0.5}
    assert queue.failures() == {}


def test_a_run_that_another_worker_has_and_ends_is_left_to_it(tmp_path, monkeypatch):
    queue = Queue(plan_of(tmp_path, "ab"))
    queue.fill(again=True)
    complete, take = queue._optuna.trial.TrialState.COMPLETE, queue._take

    def taken(trial):
        if trial.number == 0:  # both workers got it, and the other was quicker
            trial.suggest_categorical("point", ["a", "b"])
            queue._study._storage.set_trial_state_values(trial._trial_id, complete, [0.7])
            raise queue._optuna.TrialPruned
        return take(trial)

    monkeypatch.setattr(queue, "_take", taken)
    queue.work(lambda name: 0.5)
    assert queue.scores() == {"a": 0.7, "b": 0.5}


def test_a_run_of_a_worker_that_died_before_its_first_sign_of_life_is_done(tmp_path, monkeypatch):
    queue = Queue(plan_of(tmp_path, "ab"), heartbeat=1)
    queue.fill(again=True)
    with pytest.warns(UserWarning, match="Heartbeat"):  # there is none, as is meant
        queue._study.ask().suggest_categorical("point", ["a", "b"])
    monkeypatch.setattr(queue_module, "_SILENCE", 0.1)
    queue.work(lambda name: 0.5)
    assert queue.scores() == {"a": 0.5, "b": 0.5}


def test_a_worker_waits_for_a_training_that_a_killed_one_left(tmp_path, monkeypatch):
    plan, busy = plan_of(tmp_path, "a"), [True, True, False]
    monkeypatch.setattr(worker.overview, "is_busy", lambda folder: busy.pop(0))
    monkeypatch.setattr(worker.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(worker, "run_commands", lambda *_: busy.append("ran"))
    with pytest.raises(FileNotFoundError):  # of the summary
        worker.do_run(plan, "a", {})
    assert busy == ["ran"]


@pytest.fixture
def postgresql():
    """URL of a database on a server of its own, which does not run as root."""
    pytest.importorskip("psycopg")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("needs PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="charm_jax_pg_"))  # the path of a socket is short
    who = {}
    if os.geteuid() == 0:
        who = {"user": "postgres", "cwd": "/"}
        shutil.chown(folder, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(program, *arguments):
        command = [found[-1] / program, "-D", folder / "data", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **who)

    run("initdb", "-A", "trust", "-U", "sweeps")
    options = f"-p {port} -h 127.0.0.1 -k {folder}"
    run("pg_ctl", "-w", "-o", options, "-l", folder / "log", "start")
    yield f"postgresql+psycopg://sweeps@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "storage",
    [pytest.param("", marks=pytest.mark.daily), pytest.param("postgresql", marks=pytest.mark.slow)],
)
def test_the_run_of_a_killed_worker_is_done_by_another(tmp_path, storage, request):
    url = request.getfixturevalue(storage) if storage else ""
    command = [sys.executable, "-c", WORKER, str(Path(__file__).parent), str(tmp_path), url]
    killed = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while "a" not in lines(tmp_path / "begun"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (tmp_path / "go").touch()
    workers = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=120) for process in workers] == [0, 0]
    assert sorted(lines(tmp_path / "ended")) == ["a", "b", "c"]
    assert Queue(plan_of(tmp_path, "abc"), url).scores().keys() == {"a", "b", "c"}
    assert (tmp_path / "sweep.db").exists() == (not url)


def test_a_sweep_of_the_same_name_with_other_rows_is_refused(tmp_path):
    Queue(plan_of(tmp_path, "ab"))
    with pytest.raises(InputError, match="was begun with other rows or keys"):
        Queue(plan_of(tmp_path, "abc"))


@pytest.mark.parametrize("url", ["postgresql://me:secret@127.0.0.1:1/x", "nonsense", "sqlite:////"])
def test_a_storage_that_cannot_be_used_is_refused_without_its_password(tmp_path, url):
    with pytest.raises(InputError, match="cannot be used") as refused:
        Queue(plan_of(tmp_path, "ab"), url)
    assert "secret" not in str(refused.value)


def python(text):
    return [sys.executable, "-c", text]


def test_commands_follow_each_other_and_their_output_is_kept(tmp_path):
    steps = [python("print('one')"), python("import os; print(os.environ['MINE'])")]
    worker.run_commands(steps, tmp_path / "runs" / "a.log", {"MINE": "two"})
    assert lines(tmp_path / "runs" / "a.log") == ["one", "two"]


def test_a_command_that_fails_gives_its_error(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("error: of another day\n")
    failing = python("import sys; print('error: no disk'); print('after'); sys.exit(2)")
    with pytest.raises(RunFailed, match=r"^no disk \(see .*a\.log\)$"):
        worker.run_commands([failing, python("print('never')")], log, {})
    assert lines(log)[-1] == "after"
    with pytest.raises(RunFailed, match="exit code 4"):
        worker.run_commands([python("raise SystemExit(4)")], tmp_path / "b.log", {})


def test_a_signal_reaches_the_command_which_can_save_its_state(tmp_path):
    saving = (
        "import signal, sys, time, pathlib\n"
        "def save(*_):\n    pathlib.Path('saved').touch()\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\npathlib.Path('ready').touch()\ntime.sleep(60)\n"
    )
    outer = (
        "from pathlib import Path\nfrom charm_jax.sweep import worker\n"
        "from data_pipelines.stopping import Stopped\nimport sys\n"
        f"step = [sys.executable, '-c', {saving!r}]\n"
        "try:\n    worker.run_commands([step], Path('a.log'), {})\n"
        "except Stopped as stopped:\n    sys.exit(128 + stopped.number)\n"
    )
    process = subprocess.Popen(python(outer), cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert (tmp_path / "saved").exists()


def test_a_run_is_trained_evaluated_and_scored_on_validation(tmp_path, monkeypatch):
    plan, ran = plan_of(tmp_path, "a", {"seed": 3}), []

    def run(steps, log, environment):
        ran.append((steps, log, environment))
        (tmp_path / "a").mkdir()
        stages = {"bce": {"best_val_macro_auroc": 0.1}, "focal": {"best_val_macro_auroc": 0.7}}
        (tmp_path / "a" / "summary.json").write_text(json.dumps({"stages": stages}))

    monkeypatch.setattr(worker, "run_commands", run)
    assert worker.do_run(plan, "a", {"CUDA_VISIBLE_DEVICES": "1"}) == 0.7
    ((train, evaluate), log, environment) = ran[0]
    assert train[2:5] == ["charm_jax.train", "--config", "demo"]
    assert "--config.seed=3" in train
    assert evaluate[2:] == ["charm_jax.eval", "--run", "a", f"--config.runs_dir={tmp_path}"]
    assert log == tmp_path / "a.log"
    assert environment == {"CUDA_VISIBLE_DEVICES": "1"}


def test_workers_share_the_visible_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert worker.gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert worker.gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", os.devnull)
    assert worker.gpus() == []


def test_the_runs_of_a_plan_are_commands_that_training_accepts():
    plan = plans.read("published_table", {"runs_dir": "elsewhere"})
    train, evaluation = worker.commands(plan, plan.points[0])
    options = cli.Command("", train_command._OPTIONS, config=True)
    parsed = cli.parse(options, train[3:])
    assert parsed.overrides == dict(plan.points[0].keys)
    assert parsed.flags.config == "demo"
    assert evaluation[2] == "charm_jax.eval"
