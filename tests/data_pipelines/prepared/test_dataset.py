import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.images.store import ImageStore
from data_pipelines.loading import loader
from data_pipelines.prepare.preparation import prepare
from data_pipelines.prepared.dataset import is_prepared, load, notes
from data_pipelines.tables import quarantine, splits

RECIPE = {"bce": "abnormal", "focal": "all"}
SOURCE = "nih_chest_xray14"


@pytest.fixture
def out(nih, tmp_path):
    """12 images in 3 shards."""
    prepare(SOURCE, nih.path, tmp_path / "out", size=8, rows_per_shard=5)
    return tmp_path / "out"


@pytest.fixture(scope="module")
def real(nih_dir, nih_table, tmp_path_factory):
    """The real table, and the same prepared."""
    out = tmp_path_factory.mktemp("real") / "out"
    prepare(SOURCE, nih_dir, out, size=32, missing="skip", rows_per_shard=500)
    return nih_table, sources.load(SOURCE, out), out


def _assert_same_table(one, two):
    for field in dataclasses.fields(one):
        if field.name not in ("store", "official_files"):  # which a prepared folder cannot take
            a, b = getattr(one, field.name), getattr(two, field.name)
            assert np.array_equal(a, b), field.name
    assert one.present.tolist() == two.present.tolist()


def test_a_prepared_folder_gives_the_table_of_the_raw_one(nih, out):
    _assert_same_table(sources.load(SOURCE, nih.path), sources.load(SOURCE, out))
    assert is_prepared(out)
    assert not is_prepared(nih.path)
    assert isinstance(load(out, SOURCE).store, ImageStore)


def test_own_patients_unknown_labels_and_warnings_survive(tmp_path):
    raw = tmp_path / "own"
    raw.mkdir()
    for i in range(6):
        Image.new("L", (9, 7), 40 * i).save(raw / f"{i}.jpg")
    rows = "".join(f"{i}.jpg,P {i // 2},{['', '1', '0'][i % 3]},1\n" for i in range(6))
    (raw / "labels.csv").write_text("image,patient,Mass,My finding\n" + rows)
    prepare("csv_folder", raw, tmp_path / "out", size=8)
    _assert_same_table(
        sources.load("csv_folder", raw), sources.load("csv_folder", tmp_path / "out")
    )
    (raw / "labels.csv").write_text("image,Mass\n" + "".join(f"{i}.jpg,1\n" for i in range(6)))
    prepare("csv_folder", raw, tmp_path / "unknown", size=8)
    unknown = sources.load("csv_folder", tmp_path / "unknown")
    assert not unknown.patients_known
    assert not unknown.official_known
    assert unknown.warnings == sources.load("csv_folder", raw).warnings != ()


def test_the_real_table_survives_whole(real):
    raw, prepared, _ = real
    _assert_same_table(raw, prepared)
    assert prepared.labels.dtype == np.int8
    assert prepared.patients.dtype == np.int32
    assert (len(prepared.images), int(prepared.present.sum())) == (112_120, 1_000)


def _batches(table, rule):
    """All that a training run would read, with the split hashes."""
    split = splits.make_split(table, rule, RECIPE, split_seed=0)
    if rule == "official":  # all files are read whole, which takes a while
        split, checks = quarantine.apply_policy(table, split, "skip")
        seen = [len(checks.bad)]
    else:
        split, seen = splits.keep_rows(table, split, table.present), []
    for stage, parts in split.stages.items():
        seen += [splits.part_summary(table, rows) for rows in parts.values()]
        case_ids = loader.case_id_batches(
            parts["train"], batch_size=16, seed=3, epochs=1, batch_key=stage
        )
        seen += list(loader.training_batches(table, case_ids[:5], image_size=32))
        seen += list(
            loader.evaluation_batches(table, parts["val"][:20], image_size=32, batch_size=16)
        )
    return seen


@pytest.mark.parametrize("rule", splits.RULES)
def test_raw_and_prepared_give_identical_parts_and_batches(real, rule):
    raw, prepared, _ = real
    one, two = _batches(raw, rule), _batches(prepared, rule)
    assert len(one) == len(two) >= 20
    for a, b in zip(one, two, strict=True):
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            assert all(np.array_equal(a[key], b[key]) for key in a)
        else:
            assert a == b


def test_tfds_reads_it_without_tensorflow(real):
    raw, _, out = real
    script = (
        "import json, sys, tensorflow_datasets as tfds\n"
        f"builder = tfds.builder_from_directory({str(out)!r})\n"
        "data = builder.as_data_source('all')\n"
        "image = data[999].pop('image')\n"
        "last = {k: v.decode() if isinstance(v, bytes) else v for k, v in data[999].items()}\n"
        "last |= {'image': image.tolist(), 'labels': last['labels'].tolist()}\n"
        "info = builder.info\n"
        "print(json.dumps([len(data), last, list(info.splits), info.citation, info.homepage,"
        " info.description, 'tensorflow' in sys.modules]))\n"
    )
    made = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    n, last, split_names, citation, homepage, description, tensorflow = json.loads(made.stdout)
    row = int(np.flatnonzero(raw.present)[-1])
    assert (n, split_names, tensorflow) == (1_000, ["full"], False)
    assert last == {
        "image": raw.store.read(np.array([row]), 32)[0].tolist(),
        "name": raw.images[row],
        "patient": raw.patients[row],
        "labels": raw.labels[row].tolist(),
        "view": raw.views[row],
        "sex": raw.sexes[row],
        "age": raw.ages[row],
        "case_id": row,
    }
    assert "CVPR 2017" in citation
    assert homepage.startswith("https://")
    assert "1000 images of 264 patients" in description
    assert "NIH Clinical Center" in description


@given(ids=st.lists(st.integers(0, 999), min_size=1, max_size=50))
@settings(max_examples=20, deadline=None)  # the first one imports TFDS
def test_any_ids_in_any_order_give_their_images(real, ids):
    raw, prepared, _ = real
    case_ids = np.flatnonzero(raw.present)[ids]
    got = prepared.store.read(case_ids, 32)
    np.testing.assert_array_equal(got, raw.store.read(case_ids, 32))


def test_many_threads_share_a_store(real):
    raw, prepared, _ = real
    rows = np.flatnonzero(raw.present)
    expected = raw.store.read(rows, 32)
    with ThreadPoolExecutor(8) as pool:
        for start, got in enumerate(
            pool.map(lambda i: prepared.store.read(rows[i::7], 32), range(7))
        ):
            np.testing.assert_array_equal(got, expected[start::7])


def test_a_store_goes_to_worker_processes(out):
    table = load(out, SOURCE)
    before = table.store.read(np.arange(12), 8)
    again = pickle.loads(pickle.dumps(table.store))
    np.testing.assert_array_equal(again.read(np.arange(12), 8), before)
    case_ids = loader.case_id_batches(
        np.arange(12), batch_size=4, seed=0, epochs=1, batch_key="batch_size"
    )
    batches = loader.training_batches(table, case_ids, image_size=8, workers=1)
    for batch in batches:
        np.testing.assert_array_equal(batch["image"], before[batch["case_id"]])


def test_a_record_does_not_tell_the_white_of_its_source(nih, tmp_path):
    for name in nih.names:
        Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(nih.file(name))
    prepare("nih_chest_xray14", nih.path, tmp_path / "out", size=64)
    sliver = sources.load("nih_chest_xray14", tmp_path / "out").store.examine(0, 8)[1].sliver
    assert sliver.used < 1 / 15
    assert sliver.white is None


def test_another_size_is_refused_before_anything_is_read(out):
    with pytest.raises(InputError, match=r"config\.data\.image_size is 16 .* at 8: set"):
        load(out, SOURCE).store.check_size(16)
    load(out, SOURCE).store.check_size(8)


def test_another_size_names_the_key_and_both_sizes(out):
    with pytest.raises(InputError, match=r"config\.data\.image_size is 16 .* at 8: set") as caught:
        load(out, SOURCE).store.read(np.array([0]), 16)
    assert str(out) in str(caught.value)


def test_another_source_is_refused_by_name(out):
    with pytest.raises(InputError, match=r"'phantom' but .* prepared from 'nih_chest_xray14'"):
        sources.load("phantom", out)


def test_a_csv_beside_a_prepared_folder_is_refused(out):
    with pytest.raises(InputError, match=r"config\.data\.csv is 'mine\.csv' but .* is prepared"):
        sources.load(SOURCE, out, "mine.csv")


def test_an_absent_image_is_named_with_the_remedy(nih, tmp_path):
    nih.file(nih.names[7]).unlink()
    prepare(SOURCE, nih.path, tmp_path / "out", size=8, missing="skip")
    table = load(tmp_path / "out", SOURCE)
    assert np.flatnonzero(~table.present).tolist() == [7]
    with pytest.raises(InputError, match=rf"{nih.names[7]}.*--config\.data\.missing=skip"):
        table.store.read(np.array([6, 7, 8]), 8)


def _shards(out):
    return sorted(out.glob("*.array_record-*"))


@pytest.mark.parametrize("spoil", ["remove", "empty", "cut"])
def test_a_missing_or_short_shard_is_named_and_repaired(nih, out, spoil):
    shard = _shards(out)[1]
    content = shard.read_bytes()
    shard.unlink() if spoil == "remove" else shard.write_bytes(
        b"" if spoil == "empty" else content[: len(content) // 2]
    )
    with pytest.raises(InputError, match=r"missing or damaged.*charm-jax prepare") as caught:
        load(out, SOURCE)
    assert str(shard) in str(caught.value)
    prepare(SOURCE, nih.path, out, size=8, rows_per_shard=5)
    assert load(out, SOURCE).present.all()


def _flip(shard):
    """Changes a byte of the pixels."""
    content = bytearray(shard.read_bytes())
    place = content.find(bytes([20] * 64))  # the image of row 1
    assert place > 0
    content[place + 5] ^= 1
    shard.write_bytes(content)


def test_a_flipped_byte_is_found_when_it_is_read(out):
    _flip(_shards(out)[0])
    store = load(out, SOURCE).store
    assert store.check_header(1).fault == ""
    assert store.examine(0, 4)[1].fault == ""
    assert _shards(out)[0].name in store.examine(1, 4)[1].fault
    with pytest.raises(InputError, match=rf"{_shards(out)[0].name} cannot be read"):
        store.read(np.array([1]), 8)


def test_shards_that_changed_places_are_found(out):
    first, second, _ = _shards(out)
    shutil.move(first, out / "aside")
    shutil.move(second, first)
    shutil.move(out / "aside", second)
    with pytest.raises(InputError, match=rf"{second.name} cannot be read .*another image"):
        load(out, SOURCE).store.read(np.array([6]), 8)


@pytest.mark.parametrize("spoil", ["remove", "cut", "rows"])
def test_a_missing_or_damaged_table_is_named(out, spoil):
    path = out / "table.csv.gz"
    content = path.read_bytes()
    if spoil == "remove":
        path.unlink()
    elif spoil == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        identity = json.loads((out / "prepare.json").read_text())
        (out / "prepare.json").write_text(json.dumps(identity | {"rows": 13}))
    with pytest.raises(InputError, match=r"table\.csv\.gz"):
        load(out, SOURCE)


def test_a_foreign_tfds_folder_is_refused(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(InputError, match=r"no readable prepare\.json.*charm-jax prepare"):
        sources.load(SOURCE, tmp_path)


def test_a_folder_begun_before_has_the_same_notes(nih):
    # A new note would make the identity of every folder that is already prepared another one.
    assert set(notes(sources.load(SOURCE, nih.path))) == {
        "official_known",
        "patients_known",
        "patient_names",
        "warnings",
    }
