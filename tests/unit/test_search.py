"""The plan of a search: its trials, what continues it, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
from student_shop import make_shop

from distill.runtime.artifacts import read
from distill.runtime.errors import UserError
from student.search_config import Config
from student.trial_plan import INPUTS, PLAN, TrialPlan

SPACE = {"gamma": {"low": 0.01, "high": 1.0, "log": True}, "candidates": {"low": 2, "high": 16}}
GRID = {"gamma": {"choices": [0.1, 0.2]}, "scope": {"choices": ["level", "all"]}}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp("shop")
    make_shop(root, [4] * 6)
    return root


@pytest.fixture
def config(shop, tmp_path):
    student = tmp_path / "student.yaml"
    student.write_text("gamma: 0.1\ncandidates: 4\n")
    return Config(run=shop, student=student, space=SPACE, trials=8, output=tmp_path / "search")


def value(params):
    """A validation result with its best at gamma .3."""
    return 1 - abs(params["gamma"] - 0.3)


def finish(plan, most=100):
    """Run trials until none is left, or so many; their settings, in order."""
    settings = []
    while len(settings) < most and (trial := plan.next_trial()) is not None:
        settings.append(trial.params)
        plan.study.tell(trial.number, value(trial.params))
    return settings


def test_the_first_trial_is_the_settings_as_they_are(config):
    settings = finish(TrialPlan(config))
    assert settings[0] == {"gamma": 0.1, "candidates": 4} and len(settings) == 8
    assert all(0.01 <= row["gamma"] <= 1 and row["candidates"] in range(2, 17) for row in settings)
    assert len({row["gamma"] for row in settings}) == 8


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("random", marks=pytest.mark.long)])
def test_broken_off_at_any_trial_it_ends_with_the_same_trials(config, sampler, tmp_path):
    config = replace(config, sampler=sampler)
    whole = finish(TrialPlan(config))
    broken = replace(config, output=tmp_path / "broken")
    settings = []
    for _ in range(8):
        killed = TrialPlan(broken).next_trial()  # its training is killed
        plan = TrialPlan(broken)
        assert plan.next_trial().params == killed.params
        settings += finish(plan, most=1)
    assert settings == whole and TrialPlan(broken).next_trial() is None


def test_killed_while_values_are_chosen(config, tmp_path):
    whole = finish(TrialPlan(config))
    plan = TrialPlan(replace(config, output=tmp_path / "broken"))
    settings = finish(plan, most=3)
    plan.study.ask({})  # a trial without values
    settings += finish(TrialPlan(plan.config))
    assert settings == whole


def test_killed_before_the_first_trial_starts(config):
    plan = TrialPlan(config)
    plan.study.enqueue_trial(plan.planned[0])
    assert finish(TrialPlan(config))[:1] == [{"gamma": 0.1, "candidates": 4}]
    assert len(plan.study.trials) == 8


def test_more_trials_continue(config):
    first = finish(TrialPlan(replace(config, sampler="random", trials=3)))
    assert len(first) == 3
    more = finish(TrialPlan(replace(config, sampler="random", trials=5)))
    assert len(more) == 2 and not any(row in first for row in more)


def test_a_grid_is_every_combination_once(config):
    plan = TrialPlan(replace(config, space=GRID, sampler="grid"))
    settings = finish(plan)
    assert settings[0] == {"gamma": 0.1, "scope": "level"} and plan.n_trials == 4
    expected = [(gamma, scope) for gamma in (0.1, 0.2) for scope in ("level", "all")]
    assert sorted((row["gamma"], row["scope"]) for row in settings) == sorted(expected)


def test_another_plan_in_the_folder_is_refused(config):
    finish(TrialPlan(config), most=1)
    with pytest.raises(UserError, match="another variant: dwr, now dtr"):
        TrialPlan(replace(config, variant="dtr"))


def test_trials_on_other_inputs_are_refused(config, tmp_path):
    """Labels made again of the same data set and semantic IDs; the journal knows those that it began with."""
    config = replace(config, run=tmp_path / "run")
    make_shop(config.run, [4] * 6)
    finish(TrialPlan(config), most=1)
    make_shop(config.run, [4] * 6, shards=2)
    with pytest.raises(UserError, match=r"trials that read other inputs than new ones would: soft_labels changed\."):
        TrialPlan(config)
    make_shop(config.run, [4] * 6)
    assert len(finish(TrialPlan(config))) == 7


def test_a_journal_without_inputs_goes_on_once(config, tmp_path):
    """As of earlier versions: its trials are taken to be of the present inputs, which it then names."""
    config = replace(config, run=tmp_path / "run")
    make_shop(config.run, [4] * 6)
    plan = TrialPlan(config)
    finish(plan, most=1)
    before = plan.study.user_attrs[PLAN]
    plan.study.set_user_attr(PLAN, {name: value for name, value in before.items() if name != INPUTS})
    assert TrialPlan(config).study.user_attrs[PLAN] == before
    make_shop(config.run, [5] * 6)
    with pytest.raises(UserError, match="dataset, soft_labels changed"):
        TrialPlan(config)


def test_items_networks_have_other_inputs(config, shop):
    config = replace(
        config, variant="tiger", settings={"backbone": "sasrec"}, space={"lr": {"low": 1e-4, "high": 1e-2}}
    )
    assert TrialPlan(config).inputs == {"dataset": read(shop / "dataset", "dataset").fingerprint}


def test_inputs_that_are_missing(config, tmp_path):
    with pytest.raises(UserError, match=r"No dataset at .*nowhere/dataset"):
        TrialPlan(replace(config, run=tmp_path / "nowhere"))
    assert not config.folder.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {}}, "--space is empty"),
        ({"space": {"gama": {"low": 1, "high": 2}}}, "no setting 'gama'. Did you mean 'gamma'"),
        ({"space": {"gamma": {"low": 1}}}, "expected {low: A, high: B}"),
        ({"space": {"gamma": {"low": 2, "high": 1}}}, "low is not below high"),
        ({"space": {"gamma": {"low": 0, "high": 1, "log": True}}}, "expected {low: A"),
        ({"space": {"gamma": {"low": 0, "high": 1, "step": 1}}}, "unknown: step"),
        ({"space": {"gamma": {"choices": []}}}, "at least one is needed"),
        ({"space": {"gamma": {"low": 0.2, "high": 1}}}, "gamma: 0.1, the present setting, is not in it"),
        ({"space": {"candidates": {"low": 2, "high": 4.5}}}, "candidates is 2.0; expected a whole number"),
        ({"space": {"epochs": {"low": 0, "high": 4}}}, "epochs is 0; expected a whole number of at least 1"),
        ({"space": SPACE, "sampler": "grid"}, "a grid needs choices"),
        ({"settings": {"lr": -1}}, "lr is -1; expected a number above 0"),
    ],
)
def test_plans_that_cannot_be_meant(config, changes, message):
    with pytest.raises(UserError) as refused:
        TrialPlan(replace(config, **changes))
    assert message in str(refused.value)
    assert not Path(config.folder).exists()
