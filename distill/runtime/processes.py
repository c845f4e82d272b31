"""Running other programs from a command, and losing other processes of a launch."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import Any

from distill.runtime.errors import UserError
from distill.runtime.launch import process_count

# what gloo, NCCL and the store say when another process has ended, or cannot be reached
LOST_CONNECTION = re.compile(
    r"connection closed by peer|connection reset by peer|connectFullMesh failed|remote process exited|socket timeout",
    re.IGNORECASE,
)


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


def lost_process(error: BaseException) -> str | None:
    """Describe an error that says only that another process of the launch is gone; None for all other errors."""
    if process_count() == 1 or not isinstance(error, RuntimeError):
        return None
    reason = LOST_CONNECTION.search(str(error))
    if reason is None:
        return None
    if "connectFullMesh" in str(error):
        advice = (
            "Processes do not reach each other. Name the network interface that leads to the other machines: "
            "GLOO_SOCKET_IFNAME=eth0, on GPUs NCCL_SOCKET_IFNAME=eth0; see `ip address`."
        )
    else:
        advice = (
            "Another process of the launch has ended; its own message says why. The same command goes on from the "
            "last checkpoint."
        )
    return f"{advice} ({reason[0]})"
