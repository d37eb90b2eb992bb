import json
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier

import pytest
from tables import small_table

from data_pipelines.errors import InputError
from data_pipelines.prepare import claim as prepare_claim
from data_pipelines.prepare.claim import (
    at_work,
    check_claim,
    claim,
    identity,
    is_alone,
    remove_leftovers,
    withdraw,
)
from data_pipelines.prepared.shards import Layout

_DRAFT = f"prepare.json.{'0' * 32}.tmp"
_WHOLE = ("table.csv.gz", "summary.json", "quarantine.csv", "progress/00001.json")


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "out", "test", 4, 6, 3)


def _claim(layout, n=6):
    claim(layout, identity(layout, small_table(n)))


def test_a_folder_of_a_process_that_died_as_it_began_is_taken(layout):
    layout.reports.mkdir(parents=True)
    (layout.directory / _DRAFT).write_text("{")
    _claim(layout)
    assert json.loads((layout.directory / "prepare.json").read_text())["size"] == 4


@pytest.mark.parametrize("name", ["thesis.tmp", "progress.txt", "dataset_info.json"])
def test_a_file_of_the_user_is_never_taken_for_ours(layout, name):
    layout.reports.mkdir(parents=True)
    (layout.directory / name).write_text("")
    with pytest.raises(InputError, match="holds something other"):
        _claim(layout)
    assert not (layout.directory / "prepare.json").exists()


def test_of_many_calls_at_once_all_succeed(layout):
    jobs = 8
    for attempt in range(20):
        one = Layout(layout.directory / str(attempt), "test", 4, 6, 3)
        start = Barrier(jobs)

        def job(_, one=one, start=start):
            start.wait()
            _claim(one)
            (one.directory / "test-full.array_record-00000-of-00002").touch()

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(job, range(jobs)))
        assert not list(one.directory.glob("*.tmp"))


def test_of_two_calls_that_differ_the_first_has_the_folder(layout):
    _claim(layout)
    before = (layout.directory / "prepare.json").read_text()
    with pytest.raises(InputError, match="the table has changed since"):
        _claim(layout, 5)
    assert (layout.directory / "prepare.json").read_text() == before


def test_a_disk_without_hard_links_will_do(layout, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(prepare_claim.os, "link", refuse)
    _claim(layout)
    _claim(layout)


def test_to_check_writes_nothing(layout):
    check_claim(layout, identity(layout, small_table(6)))
    assert not layout.directory.exists()


def _half_written(layout):
    """Leave, just now, what a call killed at any moment may leave."""
    names = [_DRAFT, ".tfds-new", *(f"{name}.{'2' * 32}.tmp" for name in _WHOLE)]
    for name in names:
        path = layout.directory / name
        path.mkdir() if ".tfds" in name else path.write_text("")
    return names


def test_half_written_files_go_whatever_their_age(layout):
    _claim(layout)
    _half_written(layout)
    (layout.directory / "thesis.tmp").write_text("")
    remove_leftovers(layout)
    assert {path.name for path in layout.directory.rglob("*")} == {
        *("prepare.json", "progress", "thesis.tmp"),
    }


def test_a_call_knows_whether_another_is_at_work(layout):
    _claim(layout)
    with at_work(layout) as first:
        with at_work(layout) as second:
            assert not is_alone(first)
            assert not is_alone(second)
        assert is_alone(first)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(lambda: at_work(layout).__enter__().close())
            assert not wait([waiting], 0.2).done
            first.close()
            waiting.result()


def test_shards_of_other_shares_keep_the_claim(layout):
    _claim(layout)
    for index in range(2):
        layout.shard(index).touch()
        layout.report(index).touch()
    withdraw(layout, [1])
    kept = {layout.shard(0), layout.report(0), layout.reports, layout.directory / "prepare.json"}
    assert set(layout.directory.rglob("*")) == kept
    withdraw(layout, [0])
    assert not layout.directory.exists()
