"""The precision of the students' search and scores: `--precision auto`."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch
from torch import nn

from distill.runtime import precision
from distill.runtime.models import count_parameters
from student.config import Precision

# Below, casts and calls cost more than bf16 saves: for one user .7 to .8 of float32's speed at 1 M parameters,
# 1.0 at 4.5 M, 1.3 at 13 M (docs/results/speed.md).
MIN_PARAMETERS = 4_000_000


def resolve_precision(setting: Precision, model: nn.Module) -> Literal["float32", "bfloat16"]:
    """Choose the type of the matrix products.

    "auto" is bfloat16 where the processor or GPU multiplies in it and the model has at least `MIN_PARAMETERS`.

    Args:
        setting: "auto" or one of the results.
        model: a student's network.
    """
    if setting != "auto":
        return setting
    large = count_parameters(model) >= MIN_PARAMETERS
    return "bfloat16" if large and precision.has_bf16() else "float32"


def autocast(device: torch.device, chosen: Literal["float32", "bfloat16"]) -> contextlib.AbstractContextManager:
    """Compute matrix products in the chosen type; norms, softmax and the codewords' logits stay float32."""
    if chosen == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
