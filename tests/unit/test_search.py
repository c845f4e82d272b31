"""The plan of a search: its trials, what continues it, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest

from distill.runtime.errors import UserError
from student.search_config import Config
from student.trial_plan import TrialPlan

SPACE = {"gamma": {"low": 0.01, "high": 1.0, "log": True}, "candidates": {"low": 2, "high": 16}}
GRID = {"gamma": {"choices": [0.1, 0.2]}, "scope": {"choices": ["level", "all"]}}


@pytest.fixture
def config(tmp_path):
    student = tmp_path / "student.yaml"
    student.write_text("gamma: 0.1\ncandidates: 4\n")
    return Config(run=tmp_path / "run", student=student, space=SPACE, trials=8)


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
        TrialPlan(replace(config, variant="dtr", output=config.folder))


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
