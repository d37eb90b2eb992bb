import json

from tables import small_table

from data_pipelines.prepare.shard_check import finished_shards
from data_pipelines.prepare.shard_writer import write_shard
from data_pipelines.prepared.shards import Layout


def _layout(tmp_path):
    layout = Layout(tmp_path / "out", "test", 4, 6, 3)
    layout.reports.mkdir(parents=True)
    return layout


def _table(nih):
    return small_table(6, nih.file(nih.names[3]))


def test_a_damaged_shard_or_report_is_found(nih, tmp_path):
    layout, table = _layout(tmp_path), _table(nih)
    for index in range(2):
        write_shard(table, layout, index, lambda: False)
    content = layout.shard(0).read_bytes()
    place = content.index(bytes([60] * 16))  # an image
    layout.shard(0).write_bytes(content[:place] + b"=" + content[place + 1 :])
    layout.report(1).write_text('{"records": 3')
    assert finished_shards(table, layout, [0, 1]) == {0: None, 1: None}


def test_a_sound_shard_of_other_records_is_found(nih, tmp_path):
    layout, table = _layout(tmp_path), _table(nih)
    report = write_shard(table, layout, 0, lambda: False)
    other = small_table(6, nih.file(nih.names[4]))
    write_shard(other, layout, 0, lambda: False)
    layout.report(0).write_text(json.dumps(report))
    assert finished_shards(table, layout, [0]) == {0: None}
