"""Which precision the hardware multiplies fast, and what `--precision auto` takes for a training."""

from __future__ import annotations

from typing import Literal, cast

import torch

from distill.runtime.logs import log

MixedPrecision = Literal["no", "bf16", "fp16"]


def has_bf16() -> bool:
    """Tell whether the GPU, or without one the processor, has instructions for bf16 products."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # bf16: ARM


def choose_mixed_precision(setting: str, large: bool) -> MixedPrecision:
    """Choose the mixed precision of a training.

    "auto" is bf16 for a large network where the hardware multiplies in bf16. A small one stays in float32: it gains
    little, and its results do not depend on the machine.

    Args:
        setting: "auto" or one of the results.
        large: whether the network is large enough to be faster in bf16.
    """
    if setting != "auto":
        return cast(MixedPrecision, setting)
    return "bf16" if large and has_bf16() else "no"


def log_mixed_precision(setting: str, chosen: MixedPrecision, large: bool) -> None:
    """Say in one line what "auto" has chosen; nothing where the user chose."""
    if setting != "auto":
        return
    where = "GPU" if torch.cuda.is_available() else "processor"
    reason = f"the {where} has {'it' if chosen == 'bf16' else 'no bf16'}" if large else "the network is small"
    log.info(f"precision: {'float32' if chosen == 'no' else chosen} ({reason}; --precision chooses another)")
