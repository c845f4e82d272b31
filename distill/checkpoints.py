"""Checkpoints of a training run: all that decides its further course, so that it ends as if it had not been broken off.

A checkpoint is a folder `step-NNNNNNNN` of safetensors (trained parameters, optimiser, best parameters so far, torch's
generators) and JSON (position, curve, schedule, the other generators; one file for each process). It is written under
another name and renamed: whatever moment the run is killed at, the last folder of that name is whole.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from distill.artifacts import say

SHARDED = ("DEEPSPEED", "FSDP")  # their optimiser states lie in pieces on all processes


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: optimiser steps taken.
        epoch: the current epoch, from 0.
        batch: global batches of the epoch that are done.
        loss: sum of the epoch's losses over what was counted, on this process.
        counted: how many these were.
        best: best validation value so far.
        waited: epochs since then.
        curve: one row for each finished epoch.
        best_state: the trained parameters of the best epoch.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    counted: int = 0
    best: float = -1.0
    waited: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    best_state: dict[str, torch.Tensor] | None = None


class Checkpoints:
    """Saves and restores a run.

    Args:
        folder: where the checkpoints lie; made on the first save.
        every: optimiser steps between two; 0: none.
        keep: how many of the last are kept.
        acc: the Accelerator.
        model: the model, wrapped or not.
        optimizer: any torch optimiser whose states are tensors.
        schedule: learning rate schedule; None where the rate follows from the progress.
        name: who trains, in messages.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        keep: int,
        acc: Accelerator,
        model,
        optimizer,
        schedule=None,
        name: str = "student",
    ):
        self.folder, self.every, self.keep, self.acc = folder, every, keep, acc
        self.model, self.optimizer, self.schedule = acc.unwrap_model(model), optimizer, schedule
        self.name = name
        if every and acc.distributed_type.value in SHARDED:
            say(f"no checkpoints under {acc.distributed_type.value}: a broken run starts afresh")
            self.every = 0

    def due(self, progress: Progress) -> bool:
        """Whether one should be saved after this step."""
        return bool(self.every) and progress.step % self.every == 0

    def save(self, progress: Progress, rng: np.random.Generator | None = None) -> None:
        """Save, then remove the oldest. `rng` draws in the current epoch."""
        name = f"step-{progress.step:08d}"
        made = self.folder / f"{name}.partial"
        if self.acc.is_main_process:
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
        self.acc.wait_for_everyone()
        rank = self.acc.process_index
        save_file(_torch_generators(), made / f"generators-{rank}.safetensors")
        own = {"loss": progress.loss, "counted": progress.counted, "drawn": rng and rng.bit_generator.state}
        (made / f"process-{rank}.json").write_text(json.dumps(own | _generators()))
        self.acc.wait_for_everyone()
        if not self.acc.is_main_process:
            return
        save_file(_saveable(trainable_state(self.model)), made / "model.safetensors")
        save_file(_saveable(self._optimizer_state()), made / "optimizer.safetensors")
        if progress.best_state is not None:
            save_file(_saveable(progress.best_state), made / "best.safetensors")
        scaler = self.acc.scaler.state_dict() if self.acc.scaler is not None else None
        state = {name: getattr(progress, name) for name in ("step", "epoch", "batch", "best", "waited", "curve")}
        state |= {
            "processes": self.acc.num_processes,
            "schedule": self.schedule and self.schedule.state_dict(),
            "lr": [group["lr"] for group in self.optimizer.param_groups],
            "scaler": scaler,
        }
        (made / "state.json").write_text(json.dumps(state))
        whole = self.folder / name
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(made, whole)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old)

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if not path.name.endswith(".partial"))

    def restore(self) -> tuple[Progress, dict | None]:
        """The last checkpoint's progress and the state of its `rng`; a fresh start and None where there is none."""
        found = self.all()
        if not found:
            return Progress(), None
        state = json.loads((found[-1] / "state.json").read_text())
        if state["processes"] != self.acc.num_processes:
            say(f"starting afresh: {found[-1].name} is of {state['processes']} processes, not {self.acc.num_processes}")
            return Progress(), None
        rank = self.acc.process_index
        own = json.loads((found[-1] / f"process-{rank}.json").read_text())
        self.model.load_state_dict(load_file(found[-1] / "model.safetensors"), strict=False)
        for name, value in load_file(found[-1] / "optimizer.safetensors").items():
            name, key = name.rsplit("/", 1)
            parameter = self.model.get_parameter(name)
            self.optimizer.state.setdefault(parameter, {})[key] = value.to(parameter.device)
        for group, lr in zip(self.optimizer.param_groups, state["lr"], strict=True):
            group["lr"] = lr
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        if state["scaler"] is not None:
            self.acc.scaler.load_state_dict(state["scaler"])
        _set_generators(own, load_file(found[-1] / f"generators-{rank}.safetensors"))
        best = found[-1] / "best.safetensors"
        progress = Progress(
            **{name: state[name] for name in ("step", "epoch", "batch", "best", "waited", "curve")},
            loss=own["loss"],
            counted=own["counted"],
            best_state=load_file(best) if best.is_file() else None,
        )
        say(f"{self.name}: goes on from step {progress.step} (epoch {progress.epoch + 1})")
        return progress, own["drawn"]

    def remove(self) -> None:
        """Remove all; the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _optimizer_state(self) -> dict[str, torch.Tensor]:
        states = self.optimizer.state
        return {
            f"{name}/{key}": value
            for name, parameter in trainable_state(self.model).items()
            for key, value in states.get(parameter, {}).items()
        }


def trainable_state(model) -> dict[str, torch.nn.Parameter]:
    """The trained parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _saveable(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _torch_generators() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _generators() -> dict:
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {"python": [version, list(numbers), gauss], "numpy": [kind, keys.tolist(), *rest]}


def _set_generators(own: dict, states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    version, numbers, gauss = own["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = own["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
