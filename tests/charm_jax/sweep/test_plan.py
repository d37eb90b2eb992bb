"""Read sweep files and refuse bad ones."""

import textwrap

import pytest

from charm_jax.sweep import plan as plans
from data_pipelines.errors import InputError


@pytest.fixture
def sweep(tmp_path):
    """Writes a sweep file that returns the dict of this text."""

    def write(text, name="mine"):
        path = tmp_path / f"{name}.py"
        path.write_text(f"def get_sweep():\n    return {textwrap.dedent(text).strip()}\n")
        return str(path)

    return write


def test_axes_are_multiplied_and_every_seed_and_fold_is_a_run(sweep):
    plan = plans.read(
        sweep(
            """{"config": "demo", "axes": {"model.momentum": [0.9, 0.99], "model.retrieval_k": [3]},
            "rows": [{"title": "plain", "keys": {"model.charm": False}}], "seeds": [4, 5],
            "folds": 3, "baseline": "momentum 0.9, retrieval_k 3"}"""
        ),
        {"runs_dir": "elsewhere"},
    )
    assert [row.title for row in plan.rows] == [
        "plain",
        "momentum 0.9, retrieval_k 3",
        "momentum 0.99, retrieval_k 3",
    ]
    assert len(plan.points) == len({point.name for point in plan.points}) == 3 * 2 * 3
    last = plan.points[-1]
    assert last.name == "momentum_0.99_retrieval_k_3-seed5-fold2"
    assert str(plan.folder) == "elsewhere/mine"
    assert last.keys == {
        "runs_dir": "elsewhere/mine",
        "name": last.name,
        "seed": 5,
        "data.split": "kfold:2/3",
        "model.momentum": 0.99,
        "model.retrieval_k": 3,
    }


def test_the_published_table_is_whole():
    plan = plans.read("published_table", {})
    published = [row.published for row in plan.rows]
    assert len(plan.rows) == 26
    assert (max(published), plan.rows[0].published) == (0.8752, 0.8752)
    assert round(sum(published) / 26, 4) == 0.8572
    assert len(plan.points) == 52


def test_the_other_packaged_tables_are_sweeps():
    assert len(plans.read("ablation", {}).rows) == 12
    tail, folds = plans.read("tail", {}), plans.read("tail_folds", {})
    assert len(tail.rows) == 14
    assert folds.rows == tail.rows[:9]
    assert len(folds.points) == 5 * 9


def test_other_rows_keys_and_options_have_another_digest(sweep):
    text = '{"config": "demo", "rows": [{"title": "a", "keys": {"model.momentum": %s}}]}'
    one, other = (plans.read(sweep(text % value), {}) for value in (0.9, 0.99))
    assert one.digest == plans.read(sweep(text % 0.9), {}).digest
    assert one.digest != other.digest
    assert one.digest != plans.read(sweep(text % 0.9), {"log.every_steps": 7}).digest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{'rows': [{'title': 'a'}]}", "names no config"),
        ("{'config': 'demo'}", "has no rows"),
        ("{'config': 'demo', 'rows': []}", "'rows' is []"),
        ("{'config': 'demo', 'row': [{'title': 'a'}]}", "no part 'row': did you mean 'rows'"),
        ("{'config': 'demo', 'rows': [{'keys': {}}]}", "row 0 has no title"),
        ("{'config': 'demo', 'rows': ['a']}", "row 0: str in place of a dict"),
        ("{'config': 'demo', 'folds': 2.5, 'rows': [{'title': 'a'}]}", "'folds' is 2.5"),
        ("{'config': 'dmo', 'rows': [{'title': 'a'}]}", "no config 'dmo'"),
        (
            "{'config': 'demo', 'axes': {'model.momentun': [0.9]}}",
            "no key config.model.momentun: did you mean config.model.momentum",
        ),
        ("{'config': 'demo', 'axes': {'model.momentum': ['x']}}", "config.model.momentum is 'x'"),
        ("{'config': 'demo', 'axes': {'model.momentum': [2.0]}}", "config.model.momentum is 2.0"),
        ("{'config': 'demo', 'axes': {'seed': [1]}}", "rows cannot set seed"),
        ("{'config': 'demo', 'rows': [{'title': 'a'}, {'title': 'a'}]}", "two rows are called 'a'"),
        (
            "{'config': 'demo', 'rows': [{'title': 'a b'}, {'title': 'a_b'}]}",
            "would share the folder a_b-seed0",
        ),
        ("{'config': 'demo', 'rows': [{'title': 'a'}], 'baseline': 'b'}", "baseline 'b'"),
        ("1 / 0", "is no sweep (ZeroDivisionError"),
    ],
)
def test_a_bad_file_is_refused(sweep, text, words):
    with pytest.raises(InputError) as refused:
        plans.read(sweep(text), {})
    assert words in str(refused.value)


def test_an_option_cannot_set_what_the_rows_differ_in(sweep):
    path = sweep("{'config': 'demo', 'axes': {'model.momentum': [0.9]}}")
    with pytest.raises(InputError, match=r"--config.model.momentum is what the rows"):
        plans.read(path, {"model.momentum": 0.5})


@pytest.mark.parametrize("name", ["publishd_table", "no/such.py"])
def test_an_unknown_sweep_is_refused(name):
    with pytest.raises(InputError, match="There is no sweep"):
        plans.read(name, {})
