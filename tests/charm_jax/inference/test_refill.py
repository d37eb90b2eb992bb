import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from charm_jax.inference.refill import balanced


@given(seed=st.integers(0, 2**32 - 1), slots=st.integers(1, 60), images=st.integers(1, 80))
def test_a_bank_takes_all_that_fits_or_as_many_of_each_finding(seed, slots, images):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((images, 4)) < [0.02, 0.1, 0.3, 0.5], 1, rng.integers(-1, 1))
    labels = labels.astype(np.int8)
    chosen = balanced(labels, slots)
    assert len(chosen) == len(set(chosen.tolist())) == min(slots, images)
    share = slots // 5
    for column in range(4):
        stored = np.count_nonzero(labels[chosen, column] == 1)
        assert stored >= min(share, np.count_nonzero(labels[:, column] == 1))
    healthy = (labels != 1).all(axis=1)
    assert np.count_nonzero(healthy[chosen]) >= min(share, np.count_nonzero(healthy))
