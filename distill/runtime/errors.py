"""The one exception that users are meant to see, and 'did you mean' suggestions."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend: printed without a traceback, exit code 2.

    Args:
        message: what was expected, what was got, what to do.
        everyone: whether all processes of a launch meet it, so that the first may speak for them.
    """

    def __init__(self, message: str, everyone: bool = True):
        super().__init__(message)
        self.everyone = everyone
