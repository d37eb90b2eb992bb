import jax.numpy as jnp
import numpy as np
import pytest

from charm_jax.inference.rows import predict_batches
from charm_jax.models.state import TrainState

STATE = TrainState(
    step=np.int32(7),
    params={"scale": np.float32(2.0)},
    batch_stats={},
    momentum=None,
    memory=None,
    opt_state=(),
    rng=None,
)


def batches(ids, size=4):
    """Consecutive batches, the last one filled up with rows that may not count."""
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        padded = np.array([*part, *[0] * (size - len(part))], np.int32)
        yield {"case_id": padded, "mask": np.arange(size) < len(part)}


def eval_step(state, batch):
    """Logits that tell the image and the state apart."""
    assert set(batch) == {"case_id"}
    ids = jnp.asarray(batch["case_id"], jnp.float32)
    return {"logits": jnp.stack([ids, state.params["scale"] * ids], axis=1), "ids": ids}


def run(ids, expected, size=4, on_batch=lambda done: None):
    outputs = predict_batches(STATE, eval_step, batches(ids, size), np.array(expected), on_batch)
    np.testing.assert_array_equal(outputs["ids"], outputs["logits"][:, 0])
    return outputs["logits"]


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 9])
def test_every_image_counts_once_and_in_order(n):
    ids = list(range(100, 100 + 2 * n, 2))[::-1]
    logits = run(ids, ids)
    np.testing.assert_array_equal(logits, np.stack([ids, 2 * np.array(ids)], 1))
    assert logits.dtype == np.float32


def test_the_size_of_the_batches_does_not_matter():
    ids = list(range(10))
    for size in (1, 3, 16):
        np.testing.assert_array_equal(run(ids, ids, size), run(ids, ids))


def test_a_mask_in_the_middle_leaves_its_row_out():
    batch = {"case_id": np.array([5, 0, 6], np.int32), "mask": np.array([True, False, True])}
    outputs = predict_batches(STATE, eval_step, [batch], np.array([5, 6]), lambda done: None)
    np.testing.assert_array_equal(outputs["logits"][:, 0], [5, 6])


@pytest.mark.parametrize(
    "evaluated",
    [
        pytest.param([1, 2, 3, 4], id="one is missing"),
        pytest.param([1, 2, 3, 4, 5, 5], id="the last is repeated"),
        pytest.param([1, 1, 3, 4, 5], id="one stands for another"),
        pytest.param([1, 2, 4, 3, 5], id="two are swapped"),
    ],
)
def test_other_images_than_those_of_the_part_are_refused(evaluated):
    with pytest.raises(RuntimeError, match="left out, repeated or out of order"):
        run(evaluated, [1, 2, 3, 4, 5])


def test_the_progress_counts_images_without_padding():
    done = []
    run(list(range(10)), list(range(10)), on_batch=done.append)
    assert done == [4, 4, 2]


def test_a_batch_is_read_while_the_next_one_is_computed():
    events = []

    class Output:
        def __init__(self, ids):
            self.ids = ids

        def __array__(self, dtype=None, copy=None):
            events.append(("read", self.ids[0]))
            return self.ids

    def step(state, batch):
        events.append(("computed", batch["case_id"][0]))
        return {"ids": Output(batch["case_id"])}

    predict_batches(STATE, step, batches([1, 2, 3], 1), np.arange(1, 4), lambda done: None)
    expected = [("computed", 1), ("computed", 2), ("read", 1), ("computed", 3), ("read", 2)]
    assert events == [*expected, ("read", 3)]
