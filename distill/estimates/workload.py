"""What is planned: the size of the data and the settings of each stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt

from distill.runtime.errors import UserError

MOST_COUNT = 1e15  # of users, items and interactions
MOST = {"levels": 8, "codebook_size": 32767}  # distill/semantic_ids/ids.py
HELD_OUT = 2  # leave-one-out: the last item of a user is the test target, the one before it that of validation


@dataclass(frozen=True)
class DataSize:
    """Size of the data."""

    users: PositiveFloat = 1e8
    """Users."""
    items: PositiveFloat = 1e8
    """Items."""
    interactions: PositiveFloat = 1e10
    """Interactions of all users."""
    text_tokens: PositiveFloat = 100
    """Tokens of an item's text, about four letters each."""
    levels: PositiveInt = 4
    """Codewords of a semantic ID."""
    codebook_size: PositiveInt = 256
    """Codewords of a level."""
    max_history: PositiveInt = 20
    """Most items of a history."""

    @property
    def targets_a_user(self) -> float:
        """Training targets: all items but the first and those held out."""
        return self.interactions / self.users - 1 - HELD_OUT

    @property
    def targets(self) -> float:
        """Training targets of all users."""
        return self.users * self.targets_a_user

    @property
    def items_a_target(self) -> float:
        """Items of training sequences over their targets."""
        return (self.targets_a_user + 1) / self.targets_a_user

    @property
    def history_items(self) -> float:
        """Mean items of a training target's history, at most `max_history`, where all users have equally many."""
        n, cap = self.targets_a_user, self.max_history
        return (n + 1) / 2 if n <= cap else (cap * (cap + 1) / 2 + cap * (n - cap)) / n

    @property
    def codewords(self) -> int:
        """Codewords of all levels."""
        return self.levels * self.codebook_size


@dataclass(frozen=True)
class TeacherPlan:
    """The teacher and its labels."""

    teacher: str = "llama-7b"
    """A known model, or the path of a config.json of Hugging Face."""
    mode: Literal["full", "lora", "qlora"] = "lora"
    """How it is tuned."""
    lora_rank: PositiveInt = 8
    """Rank of the adapters."""
    prompt: Literal["stream", "seqrec"] = "stream"
    """stream: one pass over a user's sequence trains all of its targets; seqrec: a prompt for each target."""
    teacher_epochs: PositiveFloat = 1
    """Passes over the users it is tuned on."""
    teacher_share: ClosedUnitInterval = 1.0
    """Share of the users it is tuned on."""
    batch_tokens: PositiveInt = 4096
    """Tokens of a GPU's batch."""
    engine: Literal["hf", "vllm"] = "hf"
    """What writes the labels: hf reads a sequence once, with all beams of a target; vllm makes a request a token."""
    label_share: ClosedUnitInterval = 1.0
    """Share of the training targets that are labelled."""
    width: PositiveInt = 25
    """Beams of the teacher."""
    label_batch: PositiveInt = 64
    """Targets that are searched at once on a GPU."""


@dataclass(frozen=True)
class StudentPlan:
    """The student and its service."""

    backbone: Literal["seq2seq", "causal", "nested"] = "seq2seq"
    """The student's network."""
    preset: str = "lohrec-13m"
    """Its size."""
    variant: Literal["tiger", "distill", "dwr"] = "dwr"
    """What it is trained with."""
    student_epochs: PositiveFloat = 1
    """Passes over the labelled targets."""
    student_nodes: PositiveInt = 1
    """GPU nodes of the student's training; every process reads all labels, so many of them only wait."""
    beams: PositiveInt = 20
    """Beams of a list."""
    lists_a_user: PositiveFloat = 10
    """Lists a user asks for in a day."""
    peak_factor: PositiveFloat = 3
    """The busiest moment against the day's mean."""
    content_dim: PositiveInt = 384
    """Dimensions of a content memory's embeddings."""


@dataclass(frozen=True)
class Workload(DataSize, TeacherPlan, StudentPlan):
    """All that is planned but the machines."""


def check(workload: Workload) -> None:
    """Refuse sizes that no data set has.

    Raises:
        UserError: less than one of something or more than there can be, too few interactions a user, more items than
            semantic IDs, no share.
    """
    for name in ("users", "items", "interactions"):
        if not 1 <= getattr(workload, name) <= MOST_COUNT:
            raise UserError(f"--{name} is {getattr(workload, name):g}; expected at least 1 and at most {MOST_COUNT:g}.")
    if workload.targets_a_user < 1:
        least = 2 + HELD_OUT
        raise UserError(
            f"--interactions {workload.interactions:g} are {workload.interactions / workload.users:.3g} a user; "
            f"expected at least {least}: one of history, one to train on, one each for validation and test."
        )
    for name, most in MOST.items():
        if getattr(workload, name) > most:
            raise UserError(f"--{name} is {getattr(workload, name)}; expected at most {most}, as semantic IDs have.")
    ids = workload.codebook_size**workload.levels
    if workload.items > ids:
        raise UserError(f"--items {workload.items:g} are more than the {ids:g} semantic IDs; raise --levels.")
    for name in ("teacher_share", "label_share"):
        if not getattr(workload, name):
            raise UserError(f"--{name} is 0; expected a share above 0 and up to 1.")
