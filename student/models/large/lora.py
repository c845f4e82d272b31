"""LoRA adapters of a large student (Hu et al., 2022). peft is imported late: saved students do without it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

ALPHA = 4  # LoRA's alpha, times its rank (LC-Rec: alpha 32, rank 8)


def add_lora(trunk: PreTrainedModel, rank: int, dropout: float) -> None:
    """Add float32 adapters to all linear maps of the trunk and freeze its other weights, in place."""
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(r=rank, lora_alpha=ALPHA * rank, lora_dropout=dropout, target_modules="all-linear")
    inject_adapter_in_model(settings, trunk)
    for parameter in trunk.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def without_lora(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the adapters from a state dict and name the other weights as if there were none."""
    return {name.replace(".base_layer.", "."): value for name, value in weights.items() if ".lora_" not in name}


@torch.no_grad()
def merge_lora(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Add what the adapters of `source` compute to the weights of `target`, which has none, in place."""
    from peft.tuners.lora import LoraLayer

    for name, part in source.named_modules():
        if isinstance(part, LoraLayer):
            weight = target.get_parameter(f"{name}.weight")
            weight.copy_(weight + part.get_delta_weight("default").to(weight.device))
