"""Checkpoints of a training run: everything that decides its further course, so that a resumed run ends the same.

A checkpoint is a folder `step-NNNNNNNN` of safetensors (trained parameters, optimiser, best parameters so far, torch's
random generators) and JSON (position, curve, schedule, the other generators; one file for each process). Where
DeepSpeed or FSDP shard parameters and optimiser, the shards lie in `engine/` in that engine's format. A checkpoint is
written under a temporary name and renamed, and renamed again before it is removed: whenever the run is killed, the
folders of that name are complete. Their files have checksums; one that is damaged all the same is skipped.

Machines with disks of their own each have a folder of checkpoints: what all processes share, and what differs between
processes of that machine's alone. Old ones are removed when the new one is complete everywhere, so that a launch that
is cut off leaves a step that all machines have.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file

from distill.runtime import machines
from distill.runtime.artifacts import IDENTITY, ArtifactJob, identity_difference
from distill.runtime.checksums import checksums, find_damage, is_seal_intact, seal
from distill.runtime.errors import UserError
from distill.runtime.folders import discard
from distill.runtime.logs import log
from distill.runtime.sharding import SHARDED, engine_of, trainable_state

STATE = "state.json"  # written last; holds the checksums of the other files, and its own
SHARED_FIELDS = ("step", "epoch", "batch", "best", "waited", "curve")  # of Progress: equal on all processes


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: optimiser steps taken.
        epoch: the current epoch, from 0.
        batch: batches of the epoch that this process has finished.
        loss: sum of the epoch's losses over the counted tokens, on this process.
        counted: how many tokens these were.
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

    Checkpoints belong to a run (the identity of its job), a model, a launch and a division into batches; others are not
    loaded.

    Args:
        folder: of the checkpoints, shared by all processes; created on the first save. It lies in the job's working
            folder, which holds the identity.
        every: optimiser steps between two; 0: none.
        keep: how many of the last are kept.
        acc: the Accelerator.
        model: the model, wrapped or not.
        optimizer: any torch optimiser whose states are tensors.
        schedule: learning rate schedule; None where the rate follows from the progress.
        name: of the model in training, for messages.
        best_everywhere: restore the best parameters on every process, not only on those that write.
        job: tells which processes write; None: the first.
        division: settings that are not in the job's identity and decide which batches follow.
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
        job: ArtifactJob | None = None,
        division: Mapping[str, int] | None = None,
    ):
        self.name, self.best_everywhere = name, best_everywhere
        self.is_writer = acc.is_main_process if job is None else job.is_writer
        self.folder, self.every, self.keep, self.acc = folder, every, keep, acc
        self.model, self.optimizer, self.schedule = acc.unwrap_model(model), optimizer, schedule
        self.sharded = acc.distributed_type.value in SHARDED
        self.launch = {"processes": acc.num_processes, "engine": engine_of(acc)}
        self.launch |= {"model": name, "run": _run_of(folder.parent), **(division or {})}
        if job is not None and job.separate_disks:
            self.launch["machine"] = machines.number()  # whose processes' files are on this disk

    def due(self, progress: Progress) -> bool:
        """Tell whether to save after this step."""
        return bool(self.every) and progress.step % self.every == 0

    def all(self) -> list[Path]:
        """List the complete checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if not path.name.endswith(".partial"))

    def save(self, progress: Progress) -> None:
        """Save, then remove the oldest and those of other launches; called by all processes."""
        complete = self.folder / f"step-{progress.step:08d}"
        partial = complete.with_name(f"{complete.name}.partial")
        if self.is_writer:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.acc.wait_for_everyone()
        self._save_process_state(partial, progress)
        self.acc.wait_for_everyone()
        if self.is_writer:
            self._save_shared_state(partial, progress)
            discard(complete)
            os.replace(partial, complete)
        self.acc.wait_for_everyone()
        if not self.is_writer:
            return
        _, unusable = self._by_launch()
        for path in unusable:
            discard(path)
        for path in self.all()[: -self.keep]:
            discard(path)

    def restore(self) -> Progress:
        """Go back to the last whole checkpoint of this run and launch, or start afresh; called by all processes.

        Checkpoints of another run, number of processes, engine or division are not loaded. They are removed by the
        first `save`, not here: the launch may be a mistake, and loses nothing if it is stopped before.
        """
        name = self._choose()
        if name is None:
            return Progress()
        folder = self.folder / name
        state = _read_state(folder)
        self._load_parameters(folder)
        self._load_rates(state)
        process_state = load_generators(folder, self.acc.process_index)
        best = folder / "best.safetensors"
        wants_best = self.best_everywhere or self.is_writer
        progress = Progress(
            **{name: state[name] for name in SHARED_FIELDS},
            loss=process_state["loss"],
            counted=process_state["counted"],
            best_state=load_file(best) if wants_best and best.is_file() else None,
        )
        log.info(f"{self.name}: goes on from step {progress.step} (epoch {progress.epoch + 1})")
        return progress

    def remove(self) -> None:
        """Remove all; the run is finished."""
        discard(self.folder)

    def _choose(self) -> str | None:
        """Choose the checkpoint to go on from, and delete what a killed run left; logs why others are not used.

        Those that write agree on the last one that all of them have, whole; the other processes follow.
        """
        usable: list[Path] = []
        unusable: list[Path] = []
        if self.is_writer:
            for path in self.folder.glob(".step-*"):
                shutil.rmtree(path)
            usable, unusable = self._by_launch()
        for name in reversed(self._common_names(usable)):
            damages = [self._damage(name)] if self.is_writer else []
            damage = next(filter(None, gather_object(damages)), None)
            if not damage:
                return name
            log.info(f"{self.name}: {name} is skipped: {damage}")
        for path in unusable[-1:]:
            state = _read_state(path)
            differences = [
                f"{name} {state.get(name)}, this run {now}"
                for name, now in self.launch.items()
                if state.get(name, now) != now
            ]
            log.info(f"starting afresh: {path.name} has {' and '.join(differences) or f'no readable {STATE}'}")
        return None

    def _common_names(self, usable: list[Path]) -> list[str]:
        """List the names of checkpoints that all processes which write can load, oldest first."""
        names = gather_object([{path.name for path in usable}] if self.is_writer else [])
        return sorted(set.intersection(*names))

    def _damage(self, name: str) -> str | None:
        """Describe the first damaged file of a checkpoint; None if all are whole."""
        return find_damage(self.folder / name, _read_state(self.folder / name).get("files", {}))

    def _by_launch(self) -> tuple[list[Path], list[Path]]:
        """List the checkpoints that this launch can load, and the others; oldest first."""
        usable: list[Path] = []
        unusable: list[Path] = []
        for path in self.all():
            state = _read_state(path)
            # older checkpoints name neither model nor run nor division
            matches = bool(state) and all(state.get(name, now) == now for name, now in self.launch.items())
            (usable if matches else unusable).append(path)
        return usable, unusable

    def _save_process_state(self, folder: Path, progress: Progress) -> None:
        """Write what differs between processes: losses, generators and, under a sharding engine, the shards."""
        save_generators(folder, self.acc.process_index, loss=progress.loss, counted=progress.counted)
        if self.sharded:
            self.acc.save_state(folder / "engine", **self._engine_options(exclude_frozen_parameters=True))

    def _save_shared_state(self, folder: Path, progress: Progress) -> None:
        """Write what all processes share."""
        if not self.sharded:
            save_file(_saveable(trainable_state(self.model)), folder / "model.safetensors")
            save_file(_saveable(self._optimizer_state()), folder / "optimizer.safetensors")
        if progress.best_state is not None:
            save_file(_saveable(progress.best_state), folder / "best.safetensors")
        state = {name: getattr(progress, name) for name in SHARED_FIELDS}
        state |= self.launch | {
            "schedule": self.schedule and self.schedule.state_dict(),
            "lr": [group["lr"] for group in self.optimizer.param_groups],
            "scaler": self.acc.scaler.state_dict() if self.acc.scaler is not None else None,
        }
        state = json.loads(json.dumps(state | {"files": checksums(folder)}))
        (folder / STATE).write_text(json.dumps(seal(state)))

    def _load_parameters(self, folder: Path) -> None:
        """Load the trained parameters and the optimiser's state."""
        if self.sharded:
            self.acc.load_state(folder / "engine", **self._engine_options(load_module_strict=False))
            return
        self.model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        for name, value in load_file(folder / "optimizer.safetensors").items():
            name, key = name.rsplit("/", 1)
            parameter = self.model.get_parameter(name)
            self.optimizer.state.setdefault(parameter, {})[key] = value.to(parameter.device)

    def _load_rates(self, state: dict[str, Any]) -> None:
        """Load learning rates, schedule and loss scale."""
        for group, lr in zip(self.optimizer.param_groups, state["lr"], strict=True):
            group["lr"] = lr
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        if state["scaler"] is not None:
            self.acc.scaler.load_state_dict(state["scaler"])

    def _engine_options(self, **of_deepspeed: bool) -> dict[str, bool]:
        """Save only the trained parameters of a LoRA run; FSDP's functions have no such options."""
        has_frozen = any(not parameter.requires_grad for parameter in self.model.parameters())
        return of_deepspeed if has_frozen and self.acc.distributed_type.value == "DEEPSPEED" else {}

    def _optimizer_state(self) -> dict[str, torch.Tensor]:
        """Collect the optimiser's tensors by PARAMETER/KEY."""
        states = self.optimizer.state
        return {
            f"{name}/{key}": value
            for name, parameter in trainable_state(self.model).items()
            for key, value in states.get(parameter, {}).items()
        }


@contextlib.contextmanager
def working_folder(job: ArtifactJob, acc: Accelerator) -> Iterator[Path]:
    """Give the job's working folder on every process, with what a killed run of the same config left in it.

    All processes leave together, when the result is in place.
    """
    if not job.is_writer:
        acc.wait_for_everyone()
        yield job.partial
        acc.wait_for_everyone()
        return
    unfinished = job.unfinished_identity()
    difference = identity_difference(unfinished, job.identity) if unfinished is not None else ""
    if difference:
        log.info(f"starting afresh: the run broken off at {job.partial} had another {difference}")
    with job.write(resume=True) as folder:
        acc.wait_for_everyone()  # until an outdated folder is removed
        yield folder
        if not job.keeps_result:
            acc.wait_for_everyone()  # until the first machine has the result, and this one's checkpoints are useless
    if job.keeps_result:
        acc.wait_for_everyone()


def check_finite(quantity: str, value: torch.Tensor, epoch: int, checkpoints: Checkpoints) -> None:
    """Stop a run whose loss or gradient is infinite or NaN.

    Raises:
        UserError: it is; the checkpoints are kept.
    """
    if not torch.isfinite(value):
        kept = checkpoints.all()
        hint = f" The last checkpoint is {kept[-1]}." if kept else ""
        message = f"The {quantity} is {value.item()} in epoch {epoch + 1}; lower --lr or --clip.{hint}"
        raise UserError(message, on_all_processes=False)


def _read_state(folder: Path) -> dict[str, Any]:
    """Read the state of a checkpoint; empty if it is damaged."""
    with contextlib.suppress(OSError, ValueError):
        state = json.loads((folder / STATE).read_text())
        return state if isinstance(state, dict) and is_seal_intact(state) else {}
    return {}


def _run_of(folder: Path) -> str | None:
    """Hash the identity of the job that fills a working folder; None outside one."""
    with contextlib.suppress(OSError):
        return hashlib.sha256((folder / IDENTITY).read_bytes()).hexdigest()[:16]
    return None


def _saveable(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def save_generators(folder: Path, rank: int, **facts: float) -> None:
    """Save the states of torch's, NumPy's and Python's generators of process `rank`, and facts about the process."""
    states = {"cpu": torch.get_rng_state()}
    states |= {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    save_file(states, folder / f"generators-{rank}.safetensors")
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    generators = {"python": [version, list(numbers), gauss], "numpy": [kind, np.asarray(keys).tolist(), *rest]}
    (folder / f"process-{rank}.json").write_text(json.dumps(facts | generators))


def load_generators(folder: Path, rank: int) -> dict[str, Any]:
    """Set the generators to the states that `save_generators` saved; returns the facts."""
    facts = json.loads((folder / f"process-{rank}.json").read_text())
    states = load_file(folder / f"generators-{rank}.safetensors")
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    version, numbers, gauss = facts.pop("python")
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = facts.pop("numpy")
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    return facts
