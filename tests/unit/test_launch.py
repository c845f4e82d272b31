"""This process's number in launches by torchrun and by MPI."""

import pytest

from distill.runtime import launch


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*launch.NUMBERS, *launch.COUNTS, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher():
    assert (launch.process_number(), launch.process_count(), launch.has_count()) == (0, 1, False)
    assert launch.is_main_process() and launch.is_first_of_machine()


@pytest.mark.parametrize(("number", "count"), [*zip(launch.NUMBERS, launch.COUNTS, strict=True)])
def test_with_a_launcher(number, count, monkeypatch):
    monkeypatch.setenv(number, "2")
    monkeypatch.setenv(count, "4")
    assert (launch.process_number(), launch.process_count(), launch.has_count()) == (2, 4, True)
    assert not launch.is_main_process() and not launch.is_first_of_machine()
    monkeypatch.setenv("LOCAL_RANK", "0")  # the first of the second machine
    assert launch.is_first_of_machine() and not launch.is_main_process()
