"""Check that a device exists before anything is computed on it."""

from __future__ import annotations

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
