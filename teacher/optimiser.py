"""AdamW, a learning rate of its own for the codewords' rows, and the schedule of both."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from teacher.config import OptimiserSettings
from teacher.model import unwrap_peft


def build_optimizer(model, settings: OptimiserSettings, codewords: list[int]) -> torch.optim.AdamW:
    """Build AdamW over the parameters that train.

    Args:
        model: a causal model or its PEFT wrapper.
        settings: learning rates and weight decay.
        codewords: token numbers of all codewords, used where they have a learning rate of their own.
    """
    decay = settings.weight_decay
    optimizer = torch.optim.AdamW(
        trained_parameters(model), settings.lr, betas=(0.9, 0.98), weight_decay=decay, fused=True
    )
    if settings.codeword_lr:
        scale_steps(optimizer, trained_codeword_rows(model, codewords), settings.codeword_lr / settings.lr)
    return optimizer


def trained_parameters(model) -> list[Tensor]:
    """The parameters that have gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trained_codeword_rows(model, codewords: list[int]) -> list[tuple[Tensor, Tensor | slice]]:
    """Find the rows that train of the codewords: pairs of a parameter and its rows.

    A whole table trains its codewords' rows among others; adapters hold those rows alone.
    """
    causal = unwrap_peft(model)
    tables = (causal.get_input_embeddings(), causal.get_output_embeddings())
    trained = {id(p): p for table in tables for p in table.parameters() if p.requires_grad and p.dim() == 2}
    index = torch.tensor(codewords)
    return [(p, slice(None) if len(p) == len(index) else index.to(p.device)) for p in trained.values()]


def scale_steps(optimizer: torch.optim.Optimizer, parts: list[tuple[Tensor, Tensor | slice]], factor: float) -> None:
    """Multiply what each optimiser step changes in some rows by a factor.

    AdamW has one learning rate for a tensor, and its steps do not depend on the scale of the gradients.

    Args:
        optimizer: plain, not sharded.
        parts: parameters and their rows.
        factor: of the changes, weight decay included.
    """
    before: list[Tensor] = []

    def keep(*_) -> None:
        before[:] = [parameter.detach()[rows].clone() for parameter, rows in parts]

    def scale(*_) -> None:
        with torch.no_grad():
            for (parameter, rows), old in zip(parts, before, strict=True):
                parameter[rows] = torch.lerp(old, parameter[rows], factor)

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(scale)


def warmup_cosine_schedule(optimizer, warmup_steps: int, steps: int) -> LambdaLR:
    """Linear warm-up, then a cosine to 0.

    As `transformers.get_cosine_schedule_with_warmup`, whose import brings in PEFT and bitsandbytes.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / max(1, warmup_steps)
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))

    return LambdaLR(optimizer, factor)
