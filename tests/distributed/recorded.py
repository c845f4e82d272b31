"""Students' trainings that write down every step's loss and gradient norm.

    torchrun --nproc_per_node 2 -- recorded.py ROOT JSON BATCH_SIZE ACCUMULATION

The loop is the real one; its numbers are only overheard.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator

from distill.runtime.config import leave
from student import trainer
from student.models import BACKBONES
from student.train import Config, main

TRAININGS = [(variant, backbone) for variant in ("distill", "dwr") for backbone in BACKBONES]


def record(config: Config) -> list[tuple[float, float]]:
    """Train; loss and gradient norm of every step of the optimiser over its global batch, on every process."""
    steps, parts = [], []
    batch_loss, clip = trainer.batch_loss, Accelerator.clip_grad_norm_

    def overheard_loss(*args):
        parts.append(value := batch_loss(*args))
        return value

    def overheard_norm(accelerator, *args):
        norm = clip(accelerator, *args)
        loss = accelerator.reduce(torch.stack([part.detach().double() for part in parts]).sum(), "sum")
        steps.append((loss.item(), norm.item()))
        parts.clear()
        return norm

    # several trainings in one process: the group of processes stays
    with (
        patch.object(trainer, "batch_loss", overheard_loss),
        patch.object(Accelerator, "clip_grad_norm_", overheard_norm),
        patch.object(Accelerator, "end_training", lambda accelerator: accelerator.wait_for_everyone()),
    ):
        main(config)
    return steps


def record_all(root: Path, config: Config) -> dict[str, list[tuple[float, float]]]:
    """All of `TRAININGS`."""
    folder = root / f"recorded-{config.batch_size}-{config.accumulation}"
    found = {}
    for variant, backbone in TRAININGS:
        output = folder / f"{variant}-{backbone}"
        found[f"{variant} {backbone}"] = record(replace(config, variant=variant, backbone=backbone, output=output))
    return found


if __name__ == "__main__":
    root, path, batch_size, accumulation = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
    settings = json.loads((root / "recorded.yaml").read_text())
    found = record_all(root, Config(run=root, **settings | {"batch_size": batch_size, "accumulation": accumulation}))
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        path.write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
    leave(0)
