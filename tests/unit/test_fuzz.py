"""A short run of the fuzzer (tests/faults/fuzz.py) on every reader, always the same, and all that was found before."""

import pytest
from faults.fuzz import CORPUS, corpus
from faults.fuzz_contract import Target, judge
from faults.fuzz_mutations import mutate
from faults.fuzz_targets import TARGETS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from distill.runtime.errors import UserError

EXAMPLES, FEW = 60, 2  # of each target; few where an input takes long
FOUND = [(target, name, files) for target in TARGETS.values() for name, files in corpus(target)]


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_are_accepted(name):
    outcome = judge(TARGETS[name], TARGETS[name].seed())
    assert outcome.verdict == "accepted", outcome.detail


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs(name):
    target = TARGETS[name]

    @given(st.randoms(use_true_random=False))
    @settings(
        max_examples=FEW if target.share < 0.5 else EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # the seed is small; shrinking a fault would take minutes
        suppress_health_check=list(HealthCheck),
    )
    def check(random):
        outcome = judge(target, mutate(target.seed(), random))
        assert outcome.verdict != "fault", outcome.detail

    check()


@pytest.mark.parametrize(("target", "name", "files"), FOUND, ids=[f"{target.name}-{name}" for target, name, _ in FOUND])
def test_what_was_found_is_refused(target, name, files):
    outcome = judge(target, files)
    assert outcome.verdict == "refused", outcome.detail


def test_every_folder_of_the_corpus_has_a_target():
    assert {path.name for path in CORPUS.iterdir()} <= TARGETS.keys()


def target_of(check):
    return Target("any", lambda: {"a": b""}, check)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (None, "accepted"),
        (UserError("expected a, got b"), "refused"),
        (UserError(""), "fault"),
        (KeyError("a"), "fault"),
    ],
)
def test_verdicts(error, verdict):
    def check(folder):
        if error is not None:
            raise error

    assert judge(target_of(check), {"a": b""}).verdict == verdict


def test_too_much_memory_and_time_are_faults(monkeypatch):
    monkeypatch.setattr("faults.fuzz_contract.SECONDS", 0.2)

    def hang(folder):
        while True:
            pass

    assert "no answer after" in judge(target_of(hang), {"a": b""}).detail
    assert "MemoryError" in judge(target_of(lambda folder: bytearray(3 << 30)), {"a": b""}).detail
