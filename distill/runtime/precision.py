"""Which precision the hardware multiplies fast."""

from __future__ import annotations

import torch


def has_bf16() -> bool:
    """Tell whether the GPU, or without one the processor, has instructions for bf16 products."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # bf16: ARM
