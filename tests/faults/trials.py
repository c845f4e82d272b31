"""One trial: an empty working folder, a command that is broken off, the same command again, a comparison."""

import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from . import processes
from .processes import Outcome
from .results import Results
from .snapshot import differences, snapshot
from .stages import STAGES, Shop, Stage

T = TypeVar("T")


class Trials:
    """The trials of one stage.

    Args:
        shop: folders.
        stage: the command.
        results: takes the outcomes.
        seed: of random moments.
        limit: at most so many kills, full disks and damaged files of each sort, chosen by the seed; None: all.
    """

    def __init__(self, shop: Shop, stage: Stage, results: Results, seed: int = 0, limit: int | None = None):
        self.shop, self.stage, self.results, self.limit = shop, stage, results, limit
        self.rng = np.random.default_rng([seed, *stage.name.encode()])
        self.words = stage.words(shop)

    @property
    def output(self) -> Path:
        """What the command writes."""
        return self.shop.work / self.stage.output

    @cached_property
    def whole(self) -> tuple[Outcome, dict[str, str]]:
        """The unbroken command: how it ended, and what it made; the second of two runs, which must be equal.

        Raises:
            AssertionError: they are not, so nothing can be compared.
        """
        first = self.start_over().run_to_end()
        contents = snapshot(self.shop.work)
        outcome = self.start_over().run_to_end()
        again = snapshot(self.shop.work)
        assert first.code == outcome.code == 0, outcome.text
        assert again == contents, differences(again, contents)
        self.results.changes = len(outcome.changes)
        return outcome, again

    def choose(self, among: Sequence[T]) -> list[T]:
        """Choose at most `limit` of some, in order."""
        if self.limit is None or self.limit >= len(among):
            return list(among)
        return [among[number] for number in sorted(self.rng.choice(len(among), self.limit, replace=False))]

    def start_over(self) -> "Trials":
        """Empty the working folder."""
        shutil.rmtree(self.shop.work, ignore_errors=True)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        return self

    def run_to_end(self, **options) -> Outcome:
        """Run the command, or begin it and kill it (`processes.run`)."""
        return processes.run(self.words, self.shop.log, self.shop.work, **options)

    def compare(self, kind: str, description: str) -> None:
        """Run the command again, and count the trial: equal, differing or unkind."""
        again = self.run_to_end()
        difference = differences(snapshot(self.shop.work), self.whole[1])
        # a command whose result was in place when it was killed may say that the output exists
        is_refused = self.stage.refuses_existing and again.code == 2 and "exists" in again.text and not difference
        if again.code and not is_refused:
            self.results.add(kind, "unkind", f"{description}: exit code {again.code}: {again.text[-500:]}")
        elif difference:
            self.results.add(kind, "differing", f"{description}: {', '.join(difference[:5])}")
        else:
            self.results.add(kind, "equal")


def make_shop(shop: Shop, stages: list[Stage]) -> None:
    """Make the artifacts that stages read, and their own, by their own commands; finished artifacts stay.

    Raises:
        AssertionError: a command fails.
    """
    shop.write_raw()
    shop.write_configs()
    needed = {stage.output for stage in stages}
    for stage in reversed(STAGES):  # each reads what earlier ones make
        needed |= set(stage.reads) if stage.output in needed else set()
    for stage in STAGES:
        if stage.output in needed and stage.is_artifact and not (shop.run / stage.output).exists():
            words = stage.words(shop, shop.run / stage.output)
            outcome = processes.run(words, shop.log, shop.run)
            assert outcome.code == 0, f"{stage.name}: {outcome.text[-3000:]}"
            print(f"{stage.name}: {outcome.seconds:.1f} s, {len(outcome.changes)} changes", flush=True)
