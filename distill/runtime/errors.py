"""The exception for mistakes of the user."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can correct: printed without a traceback, exit code 2.

    Args:
        message: what was expected, what was given, what to do.
        on_all_processes: whether all processes of a launch raise it, so that only the first prints it.
    """

    def __init__(self, message: str, on_all_processes: bool = True):
        super().__init__(message)
        self.on_all_processes = on_all_processes
