"""Running other programs from a command."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

from distill.runtime.errors import UserError


def run_command(*words: Any) -> None:
    """Run a command to its end; it writes to this process's output.

    Args:
        words: program and arguments; each is converted to a string.

    Raises:
        UserError: the command failed. It has already printed its own message.
    """
    command = [str(word) for word in words]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"This command failed, see its message above: {shlex.join(command)}")
