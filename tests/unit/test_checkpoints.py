"""Checkpoints of runs that start afresh: those of another launch must not crowd out the new ones."""

import json

import pytest
import torch

from distill.runtime.accelerator import accelerator
from distill.runtime.checkpoints import Checkpoints, Progress


@pytest.fixture
def checkpoints(tmp_path):
    """Opens the run's checkpoints, the last two of which are kept, as a new start of the command would."""
    acc = accelerator()

    def open_them(**options):
        model = torch.nn.Linear(1, 1)
        return Checkpoints(tmp_path / "checkpoints", 1, 2, acc, model, torch.optim.SGD(model.parameters()), **options)

    return open_them


def steps(checkpoints):
    return [int(path.name.removeprefix("step-")) for path in checkpoints.all()]


def pretend(checkpoints, **launch):
    """Rewrite all checkpoints as if another launch had saved them."""
    for folder in checkpoints.all():
        path = folder / "state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | launch))


@pytest.mark.parametrize("launch", [{"processes": 2}, {"engine": "DEEPSPEED 3"}], ids=str)
def test_a_fresh_start_keeps_its_own_checkpoints(checkpoints, launch, caplog):
    old = checkpoints()
    for step in (8, 9):
        old.save(Progress(step=step))
    pretend(old, **launch)
    fresh = checkpoints()
    assert fresh.restore() == Progress()
    assert steps(fresh) == [8, 9]  # until there is a new one: the launch may have been a mistake
    fresh.save(Progress(step=1))
    assert steps(fresh) == [1]
    fresh.save(Progress(step=2))
    assert steps(fresh) == [1, 2]
    assert checkpoints().restore().step == 2  # broken off, the fresh run goes on from its own checkpoint


def test_another_division_into_batches_starts_afresh(checkpoints):
    checkpoints(division={"buffer_rows": 60}).save(Progress(step=3, batch=3))
    assert checkpoints(division={"buffer_rows": 61}).restore() == Progress()
    assert checkpoints(division={"buffer_rows": 60}).restore().step == 3


def test_a_checkpoint_from_before_divisions_were_noted_goes_on(checkpoints):
    checkpoints().save(Progress(step=3))
    assert checkpoints(division={"buffer_rows": 60}).restore().step == 3


def test_a_fresh_checkpoint_of_the_same_step_replaces_the_old_one(checkpoints):
    old = checkpoints()
    old.save(Progress(step=3))
    pretend(old, processes=2)
    fresh = checkpoints()
    fresh.restore()
    fresh.save(Progress(step=3, epoch=7))
    assert steps(fresh) == [3] and checkpoints().restore().epoch == 7


def test_killed_before_the_old_checkpoints_were_removed(checkpoints):
    run = checkpoints()
    run.save(Progress(step=9))
    pretend(run, processes=2)
    old = run.all()[0]
    kept = old.rename(old.with_name("kept"))
    run.save(Progress(step=1))
    kept.rename(old)
    assert steps(run) == [1, 9]
    assert checkpoints().restore().step == 1
