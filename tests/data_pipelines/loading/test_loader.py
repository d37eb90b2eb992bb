import errno
import itertools
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tables import small_table

from data_pipelines.errors import InputError
from data_pipelines.loading import loader
from data_pipelines.loading.loader import (
    case_id_batches,
    evaluation_batches,
    evaluation_ids,
    rows_by_finding,
    steps_per_epoch,
    training_batches,
)
from data_pipelines.sources.nih_chest_xray14 import load

KEY = "config.stages.bce.batch_size"


@pytest.fixture
def table(nih):
    return load(nih.path)


def _train(table, rows=None, **changes):
    rows = np.arange(len(table.images)) if rows is None else np.asarray(rows)
    order = {"batch_size": 5, "seed": 0, "epochs": 3}
    order = {name: changes.pop(name, value) for name, value in order.items()}
    case_ids = case_id_batches(rows, batch_key=KEY, **order)
    return training_batches(table, case_ids, **({"image_size": 8, "threads": 2} | changes))


def _evaluate(table, rows, **changes):
    options = {"image_size": 8, "batch_size": 5, "threads": 2}
    return evaluation_batches(table, np.asarray(rows), **(options | changes))


def _same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_training_batch_has_the_promised_arrays(table):
    batch = next(_train(table))
    assert {key: (value.dtype, value.shape) for key, value in batch.items()} == {
        "image": (np.uint8, (5, 8, 8, 1)),
        "labels": (np.int8, (5, 14)),
        "case_id": (np.int32, (5,)),
        "patient_id": (np.int32, (5,)),
    }


def test_image_labels_and_ids_of_a_row_belong_together(table):
    for batch in [*_train(table), *_evaluate(table, range(12), batch_size=4)]:
        rows = batch["case_id"]
        assert (batch["image"] == 20 * rows[:, None, None, None]).all()
        np.testing.assert_array_equal(batch["labels"], table.labels[rows])
        np.testing.assert_array_equal(batch["patient_id"], table.patients[rows])


def test_each_epoch_is_another_order_without_repeats(table):
    batches = list(_train(table, epochs=4))
    assert len(batches) == 4 * steps_per_epoch(12, 5) == 8
    epochs = [np.concatenate([b["case_id"] for b in batches[i : i + 2]]) for i in range(0, 8, 2)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 10
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    assert len({frozenset(epoch.tolist()) for epoch in epochs}) > 1  # another rest each time


def test_sets_take_turns_and_all_of_their_rows_come(table):
    sets = [np.array([0, 1, 2]), np.arange(3, 3), np.arange(3, 12)]
    options = {"batch_size": 4, "seed": 0, "epochs": 6, "batch_key": KEY, "sets": sets}
    batches = case_id_batches(np.arange(12), **options)
    drawn = np.stack([batches[step] for step in range(len(batches))])
    assert drawn.shape == (6 * 3, 4)
    assert ((drawn < 3).sum(axis=1) == 2).all()
    for own in (drawn[drawn < 3].reshape(-1, 3), drawn[drawn >= 3].reshape(-1, 9)):
        assert all(len(set(once)) == len(once) for once in own.tolist())
        assert len(set(map(tuple, own.tolist()))) > 1
    again = case_id_batches(np.arange(12), **options)[5:]
    np.testing.assert_array_equal([again[step] for step in range(len(again))], drawn[5:])


# Of 200 cases the first 4 have a rare finding, the first 100 a common one; some labels are unknown.
_RARE = np.stack([np.arange(200) < 4, np.arange(200) < 100], axis=1).astype(np.int8)
_RARE[150:, 0] = -1


def _drawn(at_random, seed=3, **share):
    rows = np.arange(200)
    return case_id_batches(
        rows,
        batch_size=30,
        seed=seed,
        epochs=5,
        batch_key=KEY,
        sets=rows_by_finding(_RARE, rows),
        at_random=at_random,
        **share,
    )


def test_a_case_is_in_the_class_of_each_of_its_findings_or_in_that_of_none():
    rare, common, none = rows_by_finding(_RARE, np.arange(200))
    assert rare.tolist() == [0, 1, 2, 3]
    assert common.tolist() == list(range(100))
    assert none.tolist() == list(range(100, 200))


@pytest.mark.parametrize("at_random", [True, False])
def test_classes_are_drawn_equally_often(at_random):
    batches = _drawn(at_random)
    assert len(batches) == 5 * 6
    drawn = np.stack([batches[step] for step in range(len(batches))])
    expected = np.array([1 / 3 + 4 / 100 / 3, 2 / 3, 1 / 3])
    seen = [(drawn < 4).mean(), (drawn < 100).mean(), (drawn >= 100).mean()]
    np.testing.assert_allclose(seen, expected, atol=0.06 if at_random else 0.01)
    times = np.bincount(drawn.ravel(), minlength=200)[100:]
    assert (times.max() - times.min() <= 1) == (not at_random)


@pytest.mark.parametrize("at_random", [True, False])
def test_the_draws_depend_on_seed_and_step_alone_and_processes_share_them(at_random):
    batches = _drawn(at_random)
    resumed = _drawn(at_random)[20:]
    np.testing.assert_array_equal(resumed[5], batches[25])
    shares = [_drawn(at_random, process=i, processes=2)[25] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(shares), batches[25])
    assert not np.array_equal(_drawn(at_random, seed=4)[25], batches[25])
    assert not np.array_equal(batches[24], batches[25])


@pytest.fixture(scope="module")
def one_image_table(tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "image.png"
    Image.new("L", (2, 2), 9).save(path)
    return small_table(40, path)


@given(
    n=st.integers(1, 30),
    batch_size=st.integers(1, 30),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 2**63),
)
@settings(max_examples=25)
def test_no_batch_holds_two_epochs(one_image_table, n, batch_size, epochs, seed):
    rows = np.arange(3, 3 + n)
    batch_size = min(batch_size, n)
    batches = list(
        _train(one_image_table, rows, batch_size=batch_size, epochs=epochs, seed=seed, threads=0)
    )
    steps = n // batch_size
    assert len(batches) == steps * epochs
    for epoch in range(epochs):
        ids = np.concatenate([b["case_id"] for b in batches[epoch * steps : (epoch + 1) * steps]])
        assert len(set(ids.tolist())) == len(ids) == steps * batch_size
        assert set(ids.tolist()) <= set(rows.tolist())


@given(n=st.integers(1, 30), batch_size=st.integers(1, 40), threads=st.sampled_from([0, 2]))
@settings(max_examples=25)
def test_evaluation_counts_each_image_once(one_image_table, n, batch_size, threads):
    rows = np.arange(n)[::-1] + 2
    batches = list(_evaluate(one_image_table, rows, batch_size=batch_size, threads=threads))
    assert all(len(batch["mask"]) == batch_size for batch in batches)
    ids = np.concatenate([batch["case_id"][batch["mask"]] for batch in batches])
    assert ids.tolist() == rows.tolist()
    assert sum(int(batch["mask"].sum()) for batch in batches) == n


@pytest.mark.parametrize("threads", [0, 4])
def test_the_number_of_threads_changes_nothing(table, threads):
    _same(list(_train(table, threads=1)), list(_train(table, threads=threads)))
    rows = range(12)
    _same(list(_evaluate(table, rows, threads=1)), list(_evaluate(table, rows, threads=threads)))


def test_real_images_come_in_one_order_for_1_and_4_threads(nih_table):
    real = nih_table
    rows = np.flatnonzero(real.present)[:200]
    options = {"image_size": 32, "batch_size": 16, "epochs": 2}
    one, four = (list(_train(real, rows, threads=threads, **options)) for threads in (1, 4))
    assert len(one) == 24
    _same(one, four)


@pytest.mark.parametrize("step", range(7))
def test_resuming_at_a_step_continues_the_stream(table, step):
    whole = list(_train(table))
    _same(list(_train(table, start_step=step)), whole[step:])


def test_worker_processes_change_nothing(table):
    _same(list(_train(table))[1:], list(_train(table, workers=2, start_step=1)))


class Failing:
    """A stream that fails at its second batch, and keeps a count of what it was asked."""

    def __init__(self, error):
        self.error, self.taken, self.closed = error, 0, False

    def __iter__(self):
        return self

    def __next__(self):
        self.taken += 1
        if self.taken > 1:
            raise self.error
        return {}

    def close(self):
        self.closed = True


DIED = "Worker process was terminated unexpectedly with exit code {}. Search the logs above."


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError(DIED.format(-signal.SIGBUS)), r"/dev/shm \(a bus error\): set --config"),
        (OSError(errno.ENOSPC, "No space"), r"/dev/shm \(No space\): .*processes=0.*--shm-size"),
        (OSError(errno.EROFS, "Read-only", "/dev/shm/pym-1"), r"/dev/shm \(Read-only\): set"),
        (RuntimeError(DIED.format(-signal.SIGKILL)), r"killed \(exit code -9\).*smaller --config"),
    ],
)
def test_what_ends_a_loader_process_is_one_sentence(error, words):
    stream = Failing(error)
    with pytest.raises(InputError, match=words):
        list(loader._from_processes(stream))
    assert stream.closed


@pytest.mark.parametrize("error", [RuntimeError("a fault"), OSError(errno.EIO, "broken", "a.png")])
def test_other_errors_of_a_loader_process_stay(error):
    with pytest.raises(type(error)) as raised:
        list(loader._from_processes(Failing(error)))
    assert raised.value is error


def test_a_stream_that_is_left_early_ends_its_processes():
    stream = Failing(None)
    batches = loader._from_processes(stream)
    next(batches)
    batches.close()
    assert stream.closed and stream.taken == 1


def test_seeds_do_not_share_epochs(table):
    # Grain seeds epoch e with seed + e: neighbouring seeds must not give shifted copies.
    steps = steps_per_epoch(12, 5)
    ids = [[b["case_id"].tolist() for b in _train(table, seed=seed)] for seed in (0, 1)]
    assert ids[0][steps : 2 * steps] != ids[1][:steps]
    assert ids[0] == [b["case_id"].tolist() for b in _train(table, seed=0)]


def test_last_evaluation_batch_is_filled_with_masked_zeros(table):
    *_, last = _evaluate(table, range(1, 8))
    assert last["mask"].tolist() == [True, True, False, False, False]
    assert last["mask"].dtype == bool
    for key in ("image", "labels", "case_id", "patient_id"):
        assert len(last[key]) == 5
        assert not last[key][2:].any()
    assert [last[key].dtype for key in ("image", "labels", "case_id")] == [
        np.uint8,
        np.int8,
        np.int32,
    ]


@pytest.mark.parametrize("batch_size", [0, 13])
def test_impossible_batch_size_names_key_and_both_numbers(table, batch_size):
    with pytest.raises(InputError, match=rf"{KEY} is {batch_size} but the split has 12 images"):
        _train(table, batch_size=batch_size)


def _drain(stream):
    return list(itertools.islice(stream, 100))


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("make", [_train, lambda table, **kw: _evaluate(table, range(12), **kw)])
def test_unreadable_image_met_on_the_way_is_named(nih, table, make, threads):
    path = nih.file(nih.names[7])
    path.write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        _drain(make(table, batch_size=2, threads=threads))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("threads", [0, 3])
def test_absent_image_is_named_with_the_remedy(nih, threads):
    nih.file(nih.names[7]).unlink()
    with pytest.raises(InputError, match=rf"{nih.names[7]}.*--config\.data\.missing=skip"):
        _drain(_train(load(nih.path), batch_size=2, threads=threads))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_every_batch_in_their_order(table, processes):
    order = {"batch_size": 4, "seed": 7, "epochs": 2, "batch_key": KEY}
    whole = list(case_id_batches(np.arange(12), **order))
    shares = [
        list(case_id_batches(np.arange(12), **order, process=i, processes=processes))
        for i in range(processes)
    ]
    for step, batch in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([share[step] for share in shares]), batch)
        assert all(len(share[step]) == 4 // processes for share in shares)


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(InputError, match=rf"{KEY} is 5 and 2 processes share it.*multiple of 2"):
        case_id_batches(np.arange(12), batch_size=5, seed=0, epochs=1, batch_key=KEY, processes=2)


@pytest.mark.parametrize("resident", [False, True])
def test_processes_share_every_batch_of_an_evaluation(resident, table):
    rows = np.arange(10)
    share = {"batch_size": 4, "processes": 2}
    if resident:
        parts = [list(evaluation_ids(rows, **share, process=i)) for i in (0, 1)]
    else:
        read = {"image_size": 8, **share}
        parts = [list(evaluation_batches(table, rows, **read, process=i)) for i in (0, 1)]
    for first, second in zip(*parts, strict=True):
        assert len(first["mask"]) == len(second["mask"]) == 2
    together = [
        batch["case_id"][batch["mask"]] for pair in zip(*parts, strict=True) for batch in pair
    ]
    np.testing.assert_array_equal(np.concatenate(together), rows)
