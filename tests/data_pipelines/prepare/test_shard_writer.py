import numpy as np
import pytest
from tables import small_table

from data_pipelines.prepare import shard_writer
from data_pipelines.prepare.shard_check import finished_shards
from data_pipelines.prepare.shard_writer import write_shard
from data_pipelines.prepared.shards import Layout, features, holds, open_shard


def _layout(tmp_path):
    layout = Layout(tmp_path / "out", "test", 4, 6, 3)
    layout.reports.mkdir(parents=True)
    return layout


def _table(nih):
    return small_table(6, nih.file(nih.names[3]))


def test_a_shard_is_for_random_access_and_holds_what_it_says(nih, tmp_path):
    layout = _layout(tmp_path)
    report = write_shard(_table(nih), layout, 1, lambda: False)
    assert (report["records"], report["refused"]) == (3, [])
    assert holds(layout.shard(1), 3)
    assert not holds(layout.shard(1), 2)
    assert not holds(layout.shard(0), 0)
    reader = open_shard(layout.shard(1))
    assert "group_size:1," in reader.writer_options_string()
    assert finished_shards(_table(nih), layout, [0, 1]) == {0: None, 1: report}


def test_an_abandoned_shard_leaves_nothing(nih, tmp_path):
    layout, images = _layout(tmp_path), iter([False, True])
    assert write_shard(_table(nih), layout, 0, lambda: next(images)) is None
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["progress"]


def test_the_draft_of_a_living_process_is_not_removed(nih, tmp_path):
    layout = _layout(tmp_path)
    (layout.reports / "00000.stale.draft").write_bytes(b"")

    def step():
        shard_writer.remove_stale_drafts(layout, range(2))
        assert len(list(layout.reports.glob("*.draft"))) == 1
        return False

    assert write_shard(_table(nih), layout, 0, step)["records"] == 3


@pytest.mark.parametrize("call", range(2))
def test_shard_and_report_are_drafts_that_a_living_process_locks(nih, tmp_path, monkeypatch, call):
    layout, seen = _layout(tmp_path), []
    replace = shard_writer.os.replace

    def look(draft, path):
        shard_writer.remove_stale_drafts(layout, range(2))
        seen.append((draft.suffix, draft.exists()))
        if len(seen) > call:
            raise KeyboardInterrupt  # nothing is left of what has no name yet
        replace(draft, path)

    monkeypatch.setattr(shard_writer.os, "replace", look)
    with pytest.raises(KeyboardInterrupt):
        write_shard(_table(nih), layout, 0, lambda: False)
    assert seen == [(".draft", True)] * (call + 1)
    assert not any(layout.reports.iterdir())


def test_the_drafts_of_other_shares_are_left_alone(tmp_path):
    layout = _layout(tmp_path)
    for index in range(2):
        (layout.reports / f"{index:05d}.stale.draft").write_bytes(b"")
    shard_writer.remove_stale_drafts(layout, [1])
    assert [path.name for path in layout.reports.iterdir()] == ["00000.stale.draft"]


def test_a_record_keeps_every_column(nih, tmp_path):
    table = small_table(
        6,
        nih.file(nih.names[3]),
        labels=np.array([[-1], [0], [1]] * 2, np.int8),
        views=np.array(["PA", "", "AP"] * 2),
        sexes=np.array(["F", "M", ""] * 2),
        ages=np.array([-1, 0, 120] * 2, np.int16),
    )
    layout = _layout(tmp_path)
    write_shard(table, layout, 1, lambda: False)
    parse = features(4, 1).deserialize_example_np
    for row, record in enumerate(open_shard(layout.shard(1)).read([0, 1, 2]), 3):
        record = parse(record)
        assert (record.pop("image") == 60).all()
        assert record.pop("labels").tolist() == table.labels[row].tolist()
        assert record == {
            "name": table.images[row].encode(),
            "patient": row,
            "view": table.views[row].encode(),
            "sex": table.sexes[row].encode(),
            "age": table.ages[row],
            "case_id": row,
        }
