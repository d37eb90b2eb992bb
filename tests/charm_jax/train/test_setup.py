import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import experiment_of
from tables import small_table

from charm_jax.config import build, cli, recipe, settings
from charm_jax.models.imbalance import class_counts, make_loss
from charm_jax.models.losses import LOSSES
from charm_jax.models.state import TrainState
from charm_jax.train import optim, setup
from charm_jax.train.plan import Progress
from data_pipelines.sources.merged import merge


def notebook():
    """The published run's preset with a batch an epoch, whose rates are few enough to write."""
    return experiment_of(cli.load_config("effv2s", "notebook"), {"bce": 64, "focal": 128})


# Rate and momentum of every step, of fastai 2.8.12: fine_tune(20, 2.290867705596611e-4,
# freeze_epochs=3), then fit_one_cycle(5, slice(2e-5, 8e-5)), with one parameter group.
PUBLISHED = {
    "bce_frozen": ("9.16347e-06 6.51547e-05 0.000176108", "0.95 0.924541 0.87409"),
    "bce": (
        """2.29087e-05 2.9047e-05 4.58174e-05 6.8726e-05 9.16347e-05 0.000108405 0.000114543
        0.000113107 0.000108872 0.000102049 9.29802e-05 8.21213e-05 7.00163e-05 5.72723e-05
        4.45282e-05 3.24233e-05 2.15643e-05 1.24959e-05 5.67277e-06 1.43705e-06""",
        """0.95 0.943301 0.925 0.9 0.875 0.856699 0.85 0.851254 0.854952 0.860908 0.868826 0.878306
        0.888874 0.9 0.911126 0.921694 0.931174 0.939092 0.945048 0.948746""",
    ),
    "focal": (
        "3.2e-06 7.26663e-05 7.23608e-05 4.41815e-05 1.32354e-05",
        "0.95 0.859549 0.859549 0.894774 0.933457",
    ),
}


def hyperparams_of(experiment, phase):
    """Rate and b1 of every step of a phase, and of the groups' shares of the rate."""
    plan = setup.make_plan(experiment, phase)
    keys = experiment.settings.stages[plan.stage]
    optimizer = setup.make_optimizer(experiment, plan, keys.peak_lr)
    params = {part: {"kernel": jnp.ones(1)} for part in optim.GROUPS}

    def step(state, _):
        updates, state = optimizer.update(params, state, params)
        return state, (optim.hyperparams(state), updates)

    steps = plan.epochs * plan.steps_per_epoch
    _, (values, updates) = jax.lax.scan(step, optimizer.init(params), None, length=steps)
    for part in optim.GROUPS:  # one group: all move alike
        np.testing.assert_array_equal(updates[part]["kernel"], updates["head"]["kernel"])
    return values["learning_rate"], values["b1"]


def test_the_notebook_preset_has_the_published_rates_at_every_step():
    experiment = notebook()
    assert list(experiment.settings.phases) == list(PUBLISHED)
    for phase, texts in PUBLISHED.items():
        rates, b1s = (np.array(text.split(), float) for text in texts)
        rate, b1 = hyperparams_of(experiment, phase)
        np.testing.assert_allclose(rate, rates, rtol=1e-5, err_msg=phase)
        np.testing.assert_allclose(b1, b1s, rtol=2e-6, err_msg=phase)


def test_the_notebook_preset_freezes_nothing_and_begins_from_imagenet():
    experiment = notebook()
    assert experiment.settings.model.init_from == "imagenet"
    assert not any(setup.make_plan(experiment, phase).freeze_trunk for phase in PUBLISHED)
    published = experiment_of(recipe.defaults(), {"bce": 64, "focal": 128})
    frozen = [setup.make_plan(published, phase).freeze_trunk for phase in published.settings.phases]
    assert frozen == [True, False, False]


# Validation losses that the published run printed.
PRINTED = {
    "bce": """0.257099 0.252503 0.250111 0.248552 0.247113 0.246961 0.246589 0.245976 0.250821
    0.254083 0.257040""",
    "focal": "0.027894 0.027591 0.027159 0.027115",
}


@pytest.mark.parametrize("phase", PRINTED)
def test_the_notebook_preset_stops_where_the_published_run_did(phase):
    plan, progress = setup.make_plan(notebook(), phase), Progress(phase)
    for epoch, loss in enumerate(map(float, PRINTED[phase].split()), start=1):
        assert not progress.finished
        progress = progress.after_validation(plan, epoch, {"loss": loss})
    assert progress.stopped_early


def test_the_schedules_to_choose_are_those_that_there_are():
    for stage in recipe.STAGES:
        assert set(recipe.KEYS[f"stages.{stage}.schedule"].choices) == set(optim.SCHEDULES)


def test_phases_share_a_program_unless_more_than_numbers_and_losses_differ():
    def programs(**focal):
        config = recipe.defaults()
        config.stages.focal.update({"lr_spread": 1.0} | focal)
        experiment = experiment_of(config, {"bce": 640, "focal": 1280})
        experiment.data.prevalence = (0.1,) * 14
        vars(experiment)["cases"] = None
        plans = [setup.make_plan(experiment, phase) for phase in experiment.settings.phases]
        steps = [setup.compile_train_step(experiment, plan, 1e-3) for plan in plans]
        return [step._step for step in steps], [step._numbers for step in steps]

    (frozen, bce, focal), numbers = programs()
    assert bce is focal is not frozen
    assert [int(each.stage) for each in numbers] == [0, 0, 1]
    assert int(numbers[2].steps_before) > int(numbers[1].steps_before) > 0
    for other in ({"clip_norm": 1.0}, {"accumulate": 2}, {"lr_spread": 3.0}, {"mixup": 0.2}):
        (_, bce, focal), numbers = programs(**other)
        assert bce is not focal
        assert int(numbers[2].stage) == 0


def test_fine_tune_can_be_chosen_for_a_frozen_trunk_and_depth_groups():
    config = recipe.defaults()
    config.stages.focal.schedule, config.stages.focal.frozen_epochs = "fine_tune", 2
    experiment = experiment_of(config, {"bce": 64, "focal": 256})
    frozen, rest = (setup.make_plan(experiment, phase) for phase in ("focal_frozen", "focal"))
    assert (frozen.freeze_trunk, rest.freeze_trunk) == (True, False)
    assert (frozen.peak_step, rest.peak_step) == (3, 6)  # 0.99 of 4 steps, 0.3 of 20
    optimizer = setup.make_optimizer(experiment, rest, 8e-5)
    params = {part: {"bias": jnp.ones(1)} for part in optim.GROUPS}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    moved = [-float(updates[part]["bias"][0]) for part in optim.GROUPS]
    np.testing.assert_allclose(moved, 8e-5 / 2 / 5 * np.array([0.25, 0.5, 1.0]), rtol=1e-4)


EMPTY = TrainState(jnp.zeros((), jnp.int32), {}, {}, None, None, (), jax.random.key(0))


def validated(monkeypatch, labels, logits, loss, batch_size=4):
    """The scores of a stage that are made of these logits, and its plan."""
    config = recipe.defaults()
    config.stages.focal.update(loss=loss, batch_size=batch_size, min_delta=1e-3)
    sizes = {"bce": 64, "focal": 8}
    experiment = experiment_of(config, sizes, findings=labels.shape[1], labels=labels)
    monkeypatch.setattr(setup, "predict_rows", lambda *a, **k: {"logits": logits})
    plan = setup.make_plan(experiment, "focal")
    return setup.validator(experiment, plan, print)(EMPTY), plan


LABELS = np.array([[1, 0], [0, 0], [1, 0], [0, 0], [-1, 0], [0, 0]], np.int8)
LOGITS = np.array([[2, 0], [1, 1], [0, 2], [-1, 0], [9, 3], [-2, 1]], np.float32)


def test_validation_gives_the_macro_means_of_findings_with_both_classes(monkeypatch):
    scores, _ = validated(monkeypatch, LABELS, LOGITS, "bce")
    # Known logits 2, 1, 0, -1, -2; the positives are the first and the third.
    assert scores["auroc"] == pytest.approx(5 / 6)
    assert scores["ap"] == pytest.approx((1 + 2 / 3) / 2)
    one_class, _ = validated(monkeypatch, np.zeros_like(LABELS), LOGITS, "bce")
    assert (one_class["auroc"], one_class["ap"]) == (None, None)
    assert one_class["loss"] > 0


def test_a_loss_that_is_not_finite_needs_no_other_score(monkeypatch):
    scores, _ = validated(monkeypatch, LABELS, np.full_like(LOGITS, np.nan), "bce")
    assert np.isnan(scores["loss"])


def test_a_summed_loss_is_that_of_a_batch_and_its_min_delta_too(monkeypatch):
    """However many images validate: the numbers compare with those of training."""
    once, plan = validated(monkeypatch, LABELS, LOGITS, "asymmetric")
    twice, _ = validated(
        monkeypatch, np.tile(LABELS, (2, 1)), np.tile(LOGITS, (2, 1)), "asymmetric"
    )
    assert twice["loss"] == pytest.approx(once["loss"], rel=1e-6)
    batches, _ = validated(monkeypatch, LABELS, LOGITS, "asymmetric", batch_size=2)
    assert batches["loss"] == pytest.approx(once["loss"] / 2, rel=1e-6)
    assert plan.min_delta == pytest.approx(1e-3 * 4 * 2)
    _, of_mean = validated(monkeypatch, LABELS, LOGITS, "asymmetric_reference")
    assert of_mean.min_delta == 1e-3


def test_class_counts_are_those_of_the_training_split(monkeypatch):
    """Train on eight images, two with the first finding; validate on all twelve."""
    config = recipe.defaults()
    config.stages.focal.update(loss="logit_adjusted", batch_size=4)
    labels = np.zeros((12, 2), np.int8)
    labels[[0, 1, 8, 9, 10, 11], 0] = 1
    labels[7] = -1
    experiment = experiment_of(config, {"bce": 64, "focal": 8}, findings=2, labels=labels)
    monkeypatch.setattr(setup, "predict_rows", lambda *a, **k: {"logits": np.zeros((12, 2))})
    scores = setup.validator(experiment, setup.make_plan(experiment, "focal"), print)(EMPTY)
    odds = np.log([2.5 / 5.5, 0.5 / 7.5])  # half a case of each class is added
    expected = np.logaddexp(0, np.where(labels == 1, -odds, odds))[labels >= 0].mean()
    assert scores["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_vote_has_no_shifts_but_the_weights_of_its_stage():
    counts = class_counts(LABELS)
    keys = settings.from_dict(recipe.defaults().to_dict()).stages["bce"]
    keys = dataclasses.replace(keys, loss="logit_adjusted", class_weights="positive")
    own, vote = build.build_losses(keys, counts, train=True)
    weighted = make_loss("bce", counts, weights="positive")
    given = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    assert float(vote(*given)) == float(weighted(*given))
    assert float(own(*given)) != float(vote(*given))


def test_labels_are_smoothed_and_mixed_in_training_alone():
    keys = settings.from_dict(recipe.defaults().to_dict()).stages["bce"]
    keys = dataclasses.replace(keys, loss="focal", label_smoothing=0.1, mixup=0.2)
    given = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    trained, validates = (build.build_losses(keys, None, train=train)[0] for train in (True, False))
    assert float(trained(*given)) == float(make_loss("focal", smoothing=0.1, mixed=True)(*given))
    assert validates is LOSSES["focal"]


def test_the_min_delta_of_an_auroc_is_not_that_of_a_summed_loss():
    config = recipe.defaults()
    config.stages.focal.update(loss="asymmetric", monitor="auroc")
    experiment = experiment_of(config, {"bce": 64, "focal": 128})
    assert setup.make_plan(experiment, "focal").min_delta == 1e-4


def test_a_phase_knows_the_steps_planned_before_it():
    config = recipe.defaults()
    config.stages.focal.frozen_epochs = 1
    experiment = experiment_of(config, {"bce": 2 * 64, "focal": 3 * 128})
    plans = [setup.make_plan(experiment, phase) for phase in experiment.settings.phases]
    assert [plan.steps_before for plan in plans] == [0, 6, 46, 49]
    assert [plan.steps for plan in plans] == [6, 40, 3, 30]


@pytest.mark.parametrize("equal", [False, True])
def test_merged_sets_take_turns_if_asked(equal):
    config = recipe.defaults()
    config.data.update(equal_sets=equal, resident=True)
    config.stages.focal.batch_size = 4
    experiment = experiment_of(config, {"bce": 64, "focal": 32})
    merged = merge({"large": small_table(30), "small": small_table(2)})
    object.__setattr__(experiment.data, "table", merged)
    batches = setup.training_batches(experiment, setup.make_plan(experiment, "focal"), 0)
    small = np.array([(batch["case_id"] >= 30).sum() for batch in batches])
    assert len(small) == 10 * 8  # epochs of 32 images
    assert (set(small) == {2}) == equal
    assert equal or small.sum() == 10 * 2


def test_a_stage_samples_by_the_labels_of_its_training_rows():
    config = recipe.defaults()
    config.data.resident = True
    config.stages.focal.update(batch_size=4, sampling="class_aware")
    labels = np.zeros((40, 1), np.int8)
    labels[[3, 35], 0] = 1  # the second is not in training
    experiment = experiment_of(config, {"bce": 64, "focal": 32}, findings=1, labels=labels)
    batches = setup.training_batches(experiment, setup.make_plan(experiment, "focal"), 0)
    drawn = np.stack([batch["case_id"] for batch in batches])
    assert ((drawn == 3).sum(axis=1) == 2).all()
    assert drawn.max() < 32
