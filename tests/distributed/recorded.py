"""Students' trainings that record every step's loss and gradient norm.

    torchrun --nproc_per_node 2 -- recorded.py ROOT JSON BATCH_SIZE ACCUMULATION

The training loop is the real one; the recorder only listens to its checks of losses and norms.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator
from student_shop import FakeTeacher

from distill.runtime.config import leave
from student import train, trainer
from student.config import Config
from student.models import BACKBONES

TRAININGS = [("dwr", backbone, {}) for backbone in [*BACKBONES, "sasrec"]] + [("distill", "sasrec", {})]
TRAININGS += [("tiger", "gru4rec", {}), ("tiger", "fmlp", {}), ("dwr", "nested", {"scope": "trie"})]
TRAININGS += [("distill", "nested", {"on_policy": 0.5}), ("dtr", "nested", {"list_loss": "grpo"})]


def record(config: Config) -> list[tuple[float, float]]:
    """Train; return loss and gradient norm of every optimiser step over its global batch, on every process."""
    steps, parts = [], []
    check_finite, clip = trainer.check_finite, Accelerator.clip_grad_norm_

    def record_loss(what, value, *args):
        if what == "loss":
            parts.append(value)
        check_finite(what, value, *args)

    def record_norm(accelerator, *args):
        norm = clip(accelerator, *args)
        loss = accelerator.reduce(torch.stack([part.detach().double() for part in parts]).sum(), "sum")
        steps.append((loss.item(), norm.item()))
        parts.clear()
        return norm

    with patch.object(trainer, "check_finite", record_loss), patch.object(Accelerator, "clip_grad_norm_", record_norm):
        train.main(config)
    return steps


def record_all(root: Path, config: Config) -> dict[str, list[tuple[float, float]]]:
    """Record all of `TRAININGS`."""
    folder = root / f"recorded-{config.batch_size}-{config.accumulation}"
    recorded = {}
    for variant, backbone, changes in TRAININGS:
        name = "-".join([variant, backbone, *changes])
        changed = replace(config, variant=variant, backbone=backbone, output=folder / name, **changes)
        with patch.object(train, "open_teacher", lambda *_: FakeTeacher()):
            recorded[name] = record(changed)
    return recorded


if __name__ == "__main__":
    root, path, batch_size, accumulation = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
    settings = json.loads((root / "recorded.yaml").read_text())
    recorded = record_all(root, Config(run=root, **settings | {"batch_size": batch_size, "accumulation": accumulation}))
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        path.write_text(json.dumps(recorded))
    leave(0)
