"""This process in its launch: its number, and how many there are, as torchrun and the usual MPI launchers say."""

from __future__ import annotations

import os

NUMBERS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def process_number() -> int:
    """Return the number of this process in its launch, from 0."""
    return max(int(os.environ.get(name, "0")) for name in NUMBERS)


def process_count() -> int:
    """Return the number of processes in this launch; 1 without a launcher."""
    return max(int(os.environ.get(name, "1")) for name in COUNTS)


def has_count() -> bool:
    """Tell whether a launcher says how many processes there are."""
    return any(name in os.environ for name in COUNTS)


def is_main_process() -> bool:
    """Tell whether this is the first process of its launch, or the only one."""
    return process_number() == 0


def is_first_of_machine() -> bool:
    """Tell whether this is the first process on its machine; as `is_main_process` where the launcher does not say."""
    return os.environ["LOCAL_RANK"] == "0" if "LOCAL_RANK" in os.environ else is_main_process()
