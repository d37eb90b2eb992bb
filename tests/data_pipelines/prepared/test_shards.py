from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.prepared.shards import Layout


@given(n=st.integers(1, 300), rows_per_shard=st.integers(1, 400))
def test_each_row_is_in_one_shard_in_order(n, rows_per_shard):
    layout = Layout(Path("out"), "test", 8, n, rows_per_shard)
    rows = np.concatenate([layout.rows(index) for index in range(layout.n_shards)])
    assert rows.tolist() == list(range(n))
    assert len({layout.shard(index) for index in range(layout.n_shards)}) == layout.n_shards
