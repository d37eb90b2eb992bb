"""Lower every step for CUDA, without a GPU, and check its operations."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from small_network import DECAY, DIM, FINDINGS, OPTIMIZER, SIDE, SLOTS, batch_of, network

from charm_jax.distributed.compiler import CompiledStep
from charm_jax.inference.explain import explain_step
from charm_jax.inference.steps import jit_eval_step
from charm_jax.models import memory_bank, state
from charm_jax.models.backbones import densenet, resnet, vgg_lka
from charm_jax.models.backbones.efficientnet_v2 import ConvNormAct, Trunk
from charm_jax.models.baseline import Baseline
from charm_jax.models.layers.batch_norm import BatchNorm
from charm_jax.models.losses import LOSSES
from charm_jax.train import optim
from charm_jax.train.step import jit_train_step
from data_pipelines.loading.augment import evaluation_images, training_images
from data_pipelines.loading.resident import ResidentCases

BF16 = jnp.bfloat16
CHARM = network(BF16)
# Depth and width do not matter here: a block of every kind does.
OTHERS = {
    "resnet": (resnet.Trunk((1, 1), BF16), resnet.Layer(16, 1, 2, BF16)),
    "densenet": (densenet.Trunk((1, 1), 8, BF16), BatchNorm(dtype=BF16)),
    "vgg": (vgg_lka.Trunk(((8, 1),) * 4, BF16), vgg_lka.Block(16, 1, BF16)),
}
RESIDENT = ResidentCases(
    *(
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((20, SIDE, SIDE, 1), jnp.uint8),
            ((20, FINDINGS), jnp.int8),
            ((20,), jnp.int32),
            ((30,), jnp.int32),
        )
    )
)


def shapes(model, optimizer=OPTIMIZER, averaged=False, frozen=False):
    bank = memory_bank.empty(SLOTS, DIM, FINDINGS) if model is not None else None
    if isinstance(model, Baseline):
        bank = None

    def make(key):
        images = jnp.zeros((1, SIDE, SIDE, 3))
        new = state.create(model, key, images, bank, averaged=averaged)
        return state.begin_stage(new, optimizer, key, freeze_trunk=frozen)

    return jax.eval_shape(make, jax.random.key(0))


def train(model=CHARM, loss="bce", cases=None, optimizer=OPTIMIZER, averaged=False, frozen=False):
    step = jit_train_step(
        cases,
        model=model.clone(freeze_trunk=frozen),
        optimizer=optimizer,
        loss=LOSSES[loss],
        augment=training_images,
        momentum_step=1 - DECAY,
        average_decay=0.9 if averaged else 0.0,
    )
    return step.lower(
        shapes(model, optimizer, averaged, frozen), batch_of(0), platform="cuda"
    ).as_text()


def evaluate(model=CHARM, cases=None, averaged=False):
    step = jit_eval_step(cases, model=model, prepare=evaluation_images)
    return step.lower(shapes(model, averaged=averaged), batch_of(0), platform="cuda").as_text()


def explain():
    step = functools.partial(explain_step, model=CHARM, prepare=evaluation_images)
    return (
        CompiledStep(step, None, None).lower(shapes(CHARM), batch_of(0), platform="cuda").as_text()
    )


def baseline(trunk=None, expansion=None):
    trunk = trunk or Trunk(8, CHARM.trunk.stages, drop_rate=0.2, dtype=BF16)
    return Baseline(trunk, expansion or ConvNormAct(DIM, 1, dtype=BF16), jax.nn.relu, FINDINGS)


ALL_LINKS = optim.adamw_one_cycle(
    {"trunk": 1e-4, "expansion": 1e-3, "head": 1e-2}, 40, clip_norm=1.0, accumulate=2
)
PROGRAMS = {
    "train": train,
    "train, frozen": functools.partial(train, frozen=True),
    "train, resident": functools.partial(train, loss="focal", cases=RESIDENT),
    "train, averaged": functools.partial(train, averaged=True, optimizer=ALL_LINKS),
    "train, without fusion": functools.partial(train, CHARM.clone(fusion=None)),
    **{
        f"train, baseline, {loss}": functools.partial(train, baseline(), loss=loss)
        for loss in LOSSES
    },
    **{
        f"train, {name}": functools.partial(train, baseline(*parts))
        for name, parts in OTHERS.items()
    },
    "evaluate": evaluate,
    "evaluate, resident": functools.partial(evaluate, cases=RESIDENT),
    "evaluate, averaged": functools.partial(evaluate, averaged=True),
    "evaluate, baseline": functools.partial(evaluate, baseline()),
    "explain": explain,
}


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request):
    """The StableHLO of a step."""
    return PROGRAMS[request.param]()


def operations(program, name):
    return re.findall(rf"stablehlo\.{name}\b.*", program)


def test_it_convolves_in_bfloat16(program):
    found = [re.findall("(f16|bf16|f32)>", line) for line in operations(program, "convolution")]
    assert len(found) > 3
    assert all(types == ["bf16"] * 3 for types in found)


def test_nothing_is_float64_or_computed_in_python(program):
    assert "f64" not in program
    targets = set(re.findall(r"custom_call @([\w$.]+)", program))
    assert targets <= {"cu_threefry2x32_ffi"}


def test_no_form_for_a_cpu_is_left(program):
    """Each choice by platform is one convolution, and no batch is passed image by image."""
    assert "stablehlo.while" not in program
    choices = re.findall(r'"stablehlo\.case".*?\n    }\)', program, re.DOTALL)
    chosen = [text for text in choices if re.search("convolution|dot_general|pad|slice", text)]
    assert chosen
    assert all("stablehlo.convolution" in text and "}, {" not in text for text in chosen)


def test_no_sum_accumulates_in_bfloat16(program):
    """Windows of a pooling aside, which are of nine values at most."""
    sums = operations(program, "reduce[(].*applies stablehlo.add")
    assert sums
    assert not [line for line in sums if "bf16" in line.rpartition("->")[2]]


def test_products_in_float32_are_exact_to_its_precision(program):
    """TF32, the default from Ampere on, has ten bits: those of head and retrieval need more."""
    found = [line for line in operations(program, "dot_general") if "bf16" not in line]
    assert found
    assert not [line for line in found if "precision = [HIGHEST, HIGHEST]" not in line]


def test_the_arrays_of_a_trained_state_are_given_up_for_the_new_ones():
    signature = train().partition("@main(")[2].partition("->")[0]
    kept = [text for text in signature.split("%arg")[1:] if "tf.aliasing_output" not in text]
    kept = [re.search("<(.*?)>", text)[1] for text in kept if "tensor<i" not in text]
    assert sorted(t for t in kept if "x" in t) == ["8x32x32x1xui8", "8x3xi8", "8xi32", "8xi32"]
