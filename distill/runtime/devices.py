"""Choose a device, and check that it exists before anything is computed on it."""

from __future__ import annotations

import os

from distill.runtime.errors import UserError


def check_device(name: str) -> None:
    """Refuse a device that torch does not know or that is not on this machine; "auto" passes.

    Raises:
        UserError: as above.
    """
    if name == "auto":
        return
    import torch  # late: commands read their settings without it

    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device is {name}; expected cpu, cuda, or cuda:0 and so on.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device is {name}; this machine has {torch.cuda.device_count()} GPUs that torch can use.")


def choose_device(name: str) -> str:
    """Choose this process's device: "auto" is a GPU where there is one; of several, each process has its own."""
    import torch

    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name
