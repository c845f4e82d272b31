"""What the trials of a stage came to."""

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

# what a trial may come to; of these, "differing", "lost" and "unkind" are faults
OUTCOMES = ("equal", "refused", "unread", "repaired", "fitted", "differing", "lost", "unkind")


@dataclass
class Results:
    """Numbers of a stage.

    Attributes:
        stage: its name.
        changes: changes to files that the unbroken command makes.
        trials: kind of trial -> outcome -> how many.
            equal: the same command ended with the same bytes. refused: one message, exit code 2, nothing written.
            unread: damage to a file that the command does not read; the result is the same. repaired: the command made
            again what was damaged. fitted: the disk was large enough. differing, lost (neither the old nor the new
            result is whole after the kill) and unkind (a traceback, another exit code, a message without the file's
            name, something half-written) are faults.
        faults: a description of each.
        seconds: how long all took.
    """

    COLUMNS: ClassVar = (
        "stage", "changes", "kills", "random", "replaced", "two runs", "disk full", "damage", "launch", "s",
    )  # fmt: skip
    KINDS: ClassVar = ("kill", "random", "replaced", "two_runs", "full_disk", "damage", "launch")

    stage: str
    changes: int = 0
    trials: dict[str, dict[str, int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, kind: str, outcome: str, description: str = "") -> None:
        """Count a trial; a fault needs a description."""
        self.trials[kind] = dict(Counter(self.trials.get(kind, {})) + Counter([outcome]))
        if outcome in ("differing", "lost", "unkind"):
            self.faults.append(f"{kind}: {outcome}: {description}")
            print(f"  {self.stage}: {self.faults[-1]}", flush=True)

    def row(self) -> list[str | int]:
        """Collect the row of the table."""
        cells = [
            ", ".join(f"{number} {outcome}" for outcome, number in self.trials.get(kind, {}).items()) or "-"
            for kind in self.KINDS
        ]
        return [self.stage, self.changes, *cells, round(self.seconds)]

    def line(self) -> str:
        """Write the numbers on one line."""
        cells = [f"{name} {cell}" for name, cell in zip(self.COLUMNS, self.row(), strict=True) if cell != "-"]
        return "; ".join(cells)
