import io
import sys

import pytest
from tqdm import tqdm

from data_pipelines import progress as progress_module
from data_pipelines.progress import progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_short_work_prints_nothing_without_a_terminal(capsys):
    assert list(progress(range(1000), desc="reading", unit="images")) == list(range(1000))
    with progress(total=3, desc="reading", unit="images") as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")


def test_long_work_prints_a_plain_line_a_minute_without_a_terminal(capsys, clock):
    for _ in progress(range(200), desc="reading", unit="images"):
        clock[0] += 1.0
    text = capsys.readouterr().err
    assert "\r" not in text and "\x1b" not in text
    first, second, third = text.splitlines()
    assert first == "reading: 60/200 images [01:00<02:20,  1.00 images/s]"
    assert second.startswith("reading: 120/200 images")
    assert third.startswith("reading: 180/200 images")


def test_lines_name_the_postfix_and_scale_bytes(capsys, clock):
    with progress(total=None, desc="a.pth", unit="B") as bar:
        bar.set_postfix(loss=0.5)
        clock[0] += 60.0
        bar.update(12_000_000)
    assert capsys.readouterr().err == "a.pth: 12.0MB [01:00, 200kB/s, loss=0.5]\n"


def test_a_write_beside_the_lines_adds_no_carriage_return(capsys, clock):
    with progress(total=5, desc="reading", unit="images") as bar:
        clock[0] += 60.0
        bar.update()
        tqdm.write("a result", sys.stdout)
        bar.refresh()
        bar.set_postfix(loss=1.0)
    out, err = capsys.readouterr()
    assert out == "a result\n"
    assert err.count("\n") == 1 and "\r" not in err


def test_work_counts_where_there_is_no_terminal():
    with progress(total=5, desc="reading", unit="images") as bar:
        bar.update(2)
        bar.update(3)
        assert bar.n == 5


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(progress_module, "_SECONDS_BEFORE_BAR", 0.0)
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress(range(3), desc="reading", unit="images", leave=True)) == [0, 1, 2]
    assert "\rreading: 100%" in terminal.getvalue()
    assert "3/3" in terminal.getvalue() and "images/s" in terminal.getvalue()


def test_a_process_without_stderr_works(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress(range(3), desc="reading", unit="images")) == [0, 1, 2]
