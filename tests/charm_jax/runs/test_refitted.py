import jax
import numpy as np
import pytest

from charm_jax.models.state import TrainState
from charm_jax.runs import refitted
from data_pipelines.errors import InputError

NEW = {"kernel": np.full((3, 2), 7, np.float32), "bias": np.full(2, 8, np.float32)}


def weights(path):
    layer = {"kernel": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)}
    params = {"trunk": {"kernel": np.ones(4, np.float32)}}
    return params | ({"head": {"logits": layer, "norm": {}}} if path == "head" else {path: layer})


def a_state(path, averaged=False):
    params = weights(path)
    return TrainState(
        step=np.int32(1),
        params=params,
        batch_stats={},
        momentum=None,
        memory=None,
        opt_state=(),
        rng=None,
        average={"params": weights(path), "batch_stats": {}} if averaged else None,
    )


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("path", ["classifier", "head"])
def test_the_layer_of_its_checkpoint_alone_is_replaced(path, averaged, tmp_path):
    state = a_state(path, averaged)
    assert refitted.replace_layer(tmp_path, "focal/9", state) is state
    refitted.write(tmp_path, "focal/9", state, NEW)
    replaced = refitted.replace_layer(tmp_path, "focal/9", state)
    jax.tree.map(np.testing.assert_array_equal, refitted.layer_of(replaced), NEW)
    # An average is what is evaluated: the weights that training goes on from stay.
    assert averaged == (replaced.params is state.params)
    np.testing.assert_array_equal(replaced.params["trunk"]["kernel"], np.ones(4))
    assert refitted.replace_layer(tmp_path, "focal/8", state) is state
    # A layer that has been replaced, as one that was trained again, is another one.
    assert refitted.replace_layer(tmp_path, "focal/9", replaced) is replaced


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / refitted.FILE).write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"classifier\.safetensors cannot be read .* delete it"):
        refitted.replace_layer(tmp_path, "focal/9", a_state("head"))
