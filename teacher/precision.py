"""The precision of the training: `--precision auto`."""

from __future__ import annotations

import torch

from distill.runtime.logs import log
from distill.runtime.precision import has_bf16


def resolve_precision(precision: str, base: str | None) -> str:
    """Choose the mixed precision: "no", "bf16" or "fp16".

    "auto" is bf16 where there is a base model and the hardware multiplies in bf16. A small network from random weights
    stays in float32: it gains little, and its results do not depend on the machine.

    Args:
        precision: the setting, "auto" or one of the results.
        base: the base model, None without.
    """
    if precision != "auto":
        return precision
    return "bf16" if base is not None and has_bf16() else "no"


def log_precision(setting: str, chosen: str) -> None:
    """Say in one line what `--precision auto` has chosen."""
    if setting == "auto":
        where = "GPU" if torch.cuda.is_available() else "processor"
        reason = f"the {where} has it" if chosen == "bf16" else f"the {where} has no bf16, or there is no base"
        log.info(f"precision: {'float32' if chosen == 'no' else chosen} ({reason}; --precision chooses another)")


def use_plain_attention(causal) -> None:
    """Compute attention as plain matrix products: on CPUs the fused kernel's backward pass is slow in bf16.

    On an AVX512 processor it took 24 ms a layer of 9 heads and 1,000 tokens, the plain products 5 to 11 ms
    (torch 2.13).
    """
    causal.set_attn_implementation("eager")
