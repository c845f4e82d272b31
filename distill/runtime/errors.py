"""The exception for mistakes of the user."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can correct: printed without a traceback, exit code 2.

    Args:
        message: what was expected, what was given, what to do.
        everyone: whether it is raised in all processes of a launch, so that the first alone prints it.
    """

    def __init__(self, message: str, everyone: bool = True):
        super().__init__(message)
        self.everyone = everyone
