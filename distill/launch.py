"""What both training loops need from Accelerate."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed

from distill.artifacts import UserError


def accelerator(accumulation: int = 1, precision: str = "no", seed: int = 0) -> Accelerator:
    """An Accelerator that is really what was asked for.

    Raises:
        UserError: several processes were launched, or DeepSpeed or FSDP asked for, and each would train alone.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpus = launched > 1 and not torch.cuda.is_available()
    handlers = [InitProcessGroupKwargs(backend="gloo")] if on_cpus else []
    made = Accelerator(
        cpu=not torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true",
        gradient_accumulation_steps=accumulation,
        mixed_precision=precision,
        kwargs_handlers=handlers,
    )
    if made.num_processes != launched:
        raise UserError(f"{launched} processes were launched, but each would train alone; see configs/accelerate.")
    for engine in ("DEEPSPEED", "FSDP"):
        asked = os.environ.get(f"ACCELERATE_USE_{engine}") == "true"
        if asked and made.distributed_type.value != engine:
            raise UserError(f"{engine} was asked for, but {made.distributed_type.value} runs; see configs/accelerate.")
    if made.state.deepspeed_plugin is not None:
        # batches are made by token budget, so DeepSpeed cannot count them; the number is only for its own bookkeeping
        made.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
    set_seed(seed)
    return made


def share(batches: list, made: Accelerator) -> list:
    """This process's batches; the last ones are left out where they do not fill a round of all processes."""
    even = len(batches) // made.num_processes * made.num_processes
    return batches[made.process_index : even or None : made.num_processes]
