"""Checkpoints of a training run: all that decides its further course, so that it ends as if it had not been broken off.

A checkpoint is a folder `step-NNNNNNNN` of safetensors (trained parameters, optimiser, best parameters so far, torch's
generators) and JSON (position, curve, schedule, the other generators; one file for each process). Where DeepSpeed or
FSDP keep parameters and optimiser in pieces, these lie in `engine/` in that engine's own form. A checkpoint is written
under another name and renamed: whatever moment the run is killed at, the last folder of that name is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from distill.runtime.artifacts import IDENTITY, ArtifactJob
from distill.runtime.errors import UserError
from distill.runtime.logs import log
from distill.runtime.sharding import SHARDED, engine_of, trainable_state

STATE = ("step", "epoch", "batch", "best", "waited", "curve")


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: optimiser steps taken.
        epoch: the current epoch, from 0.
        batch: this process's batches of the epoch that are done.
        loss: sum of the epoch's losses over the counted tokens, on this process.
        counted: how many these were.
        best: best validation value so far.
        waited: epochs since then.
        curve: one row for each finished epoch.
        best_state: the trained parameters of the best epoch; on the first process only.
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
        folder: where the checkpoints lie, for all processes; made on the first save.
        every: optimiser steps between two; 0: none.
        keep: how many of the last are kept.
        acc: the Accelerator.
        model: the model, wrapped or not.
        optimizer: any torch optimiser whose states are tensors.
        schedule: learning rate schedule; None where the rate follows from the progress.
        name: who trains, in messages.
        best_everywhere: every process has the best parameters, not only the first.
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
        name: str = "teacher",
        best_everywhere: bool = False,
    ):
        self.name, self.best_everywhere = name, best_everywhere
        self.folder, self.every, self.keep, self.acc = folder, every, keep, acc
        self.model, self.optimizer, self.schedule = acc.unwrap_model(model), optimizer, schedule
        self.sharded = acc.distributed_type.value in SHARDED

    def due(self, progress: Progress) -> bool:
        """Whether one should be saved after this step."""
        return bool(self.every) and progress.step % self.every == 0

    def save(self, progress: Progress) -> None:
        """Save, then remove the oldest; called by all processes."""
        name = f"step-{progress.step:08d}"
        made = self.folder / f"{name}.partial"
        if self.acc.is_main_process:
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
        self.acc.wait_for_everyone()
        rank = self.acc.process_index
        save_file(_torch_generators(), made / f"generators-{rank}.safetensors")
        own = {"loss": progress.loss, "counted": progress.counted}
        (made / f"process-{rank}.json").write_text(json.dumps(own | _generators()))
        if self.sharded:
            self.acc.save_state(made / "engine", **self._engine_options(exclude_frozen_parameters=True))
        self.acc.wait_for_everyone()
        if not self.acc.is_main_process:
            return
        if not self.sharded:
            save_file(_saveable(trainable_state(self.model)), made / "model.safetensors")
            save_file(_saveable(self._optimizer_state()), made / "optimizer.safetensors")
        if progress.best_state is not None:
            save_file(_saveable(progress.best_state), made / "best.safetensors")
        scaler = self.acc.scaler.state_dict() if self.acc.scaler is not None else None
        state = {name: getattr(progress, name) for name in STATE}
        state |= {
            "processes": self.acc.num_processes,
            "engine": engine_of(self.acc),
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

    def restore(self) -> Progress:
        """Go back to the last checkpoint, or start afresh where there is none; called by all processes."""
        found = self.all()
        if not found:
            return Progress()
        state = json.loads((found[-1] / "state.json").read_text())
        for what, now in (("processes", self.acc.num_processes), ("engine", engine_of(self.acc))):
            if state[what] != now:
                log.info(f"starting afresh: {found[-1].name} has {what} {state[what]}, this run {now}")
                return Progress()
        rank = self.acc.process_index
        own = json.loads((found[-1] / f"process-{rank}.json").read_text())
        if self.sharded:
            self.acc.load_state(found[-1] / "engine", **self._engine_options(load_module_strict=False))
        else:
            self._load_whole(found[-1])
        for group, lr in zip(self.optimizer.param_groups, state["lr"], strict=True):
            group["lr"] = lr
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        if state["scaler"] is not None:
            self.acc.scaler.load_state_dict(state["scaler"])
        _set_generators(own, load_file(found[-1] / f"generators-{rank}.safetensors"))
        best = found[-1] / "best.safetensors"
        progress = Progress(
            **{name: state[name] for name in STATE},
            loss=own["loss"],
            counted=own["counted"],
            best_state=load_file(best)
            if best.is_file() and (self.best_everywhere or self.acc.is_main_process)
            else None,
        )
        log.info(f"{self.name}: goes on from step {progress.step} (epoch {progress.epoch + 1})")
        return progress

    def remove(self) -> None:
        """Remove all; the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _load_whole(self, folder: Path) -> None:
        self.model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        for name, value in load_file(folder / "optimizer.safetensors").items():
            name, key = name.rsplit("/", 1)
            parameter = self.model.get_parameter(name)
            self.optimizer.state.setdefault(parameter, {})[key] = value.to(parameter.device)

    def _engine_options(self, **of_deepspeed: bool) -> dict[str, bool]:
        """Of a LoRA run only what trains is saved; FSDP's own functions know no such options."""
        partly = any(not parameter.requires_grad for parameter in self.model.parameters())
        return of_deepspeed if partly and self.acc.distributed_type.value == "DEEPSPEED" else {}

    def _optimizer_state(self) -> dict[str, torch.Tensor]:
        states = self.optimizer.state
        return {
            f"{name}/{key}": value
            for name, parameter in trainable_state(self.model).items()
            for key, value in states.get(parameter, {}).items()
        }


@contextlib.contextmanager
def working_folder(stage: ArtifactJob, acc: Accelerator) -> Iterator[Path]:
    """The stage's working folder on every process; what a killed run of the same config left in it is still there."""
    mark = stage.partial / IDENTITY
    if not acc.is_main_process:
        acc.wait_for_everyone()
        yield stage.partial
        return
    try:
        found = json.loads(mark.read_text())
    except (OSError, ValueError):
        found = stage.identity
    if found != stage.identity:
        old, new = (identity["config"] for identity in (found, stage.identity))
        differs = [f"{key} ({old.get(key)} -> {new[key]})" for key in new if old.get(key) != new[key]]
        differs += [key for key in ("inputs", "extra") if found[key] != stage.identity[key]]
        log.info(f"starting afresh: the run broken off at {stage.partial} had another {', '.join(differs)}")
    with stage.write(resume=True) as folder:
        acc.wait_for_everyone()  # not before an outdated folder is gone
        yield folder


def check_finite(what: str, value: torch.Tensor, epoch: int, checkpoints: Checkpoints) -> None:
    """Stop a run whose numbers are gone.

    Raises:
        UserError: inf or NaN; the checkpoints stay.
    """
    if not torch.isfinite(value):
        kept = checkpoints.all()
        said = f" The last checkpoint is {kept[-1]}." if kept else ""
        message = f"The {what} is {value.item()} in epoch {epoch + 1}; lower --lr or --clip.{said}"
        raise UserError(message, everyone=False)


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
