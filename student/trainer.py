"""The training loop of all students, the networks over items among them, from batches to a saved recommender."""

from __future__ import annotations

import atexit
import copy
import functools
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.data.dataset import Examples
from distill.metrics import hit_ranks, ndcg
from distill.runtime.accelerator import accelerator, start_tracker
from distill.runtime.artifacts import IDENTITY, ArtifactJob, write_json
from distill.runtime.checkpoints import (
    Checkpoints,
    check_finite,
    load_generators,
    save_generators,
    working_folder,
)
from distill.runtime.folders import discard
from distill.runtime.logs import log, progress_bar
from distill.runtime.memory import memory_gib, out_of_memory
from distill.runtime.sharding import SHARDED, gathered, trainable_state, unsharded
from student.config import BaselineConfig, Config, TrainerSettings
from student.item_recommender import ItemRecommender
from student.phases import Phase, Student
from student.prefetch import Prefetcher
from student.recommender import Recommender

Curve = list[dict[str, float]]  # one row per epoch


def train(config: Config | BaselineConfig, job: ArtifactJob, build: Callable[[Accelerator], Student]) -> None:
    """Train the phases one after the other and save the recommender.

    Args:
        config: of the command.
        job: takes the result.
        build: builds the student, after the random generators are seeded.
    """
    logs = config.run / "logs" / "students"
    acc = accelerator(
        config.accumulation, config.precision, config.seed, config.clip, config.tracker, logs, job.separate_disks
    )
    student = build(acc)
    recommender, curves = student.recommender, {}
    with working_folder(job, acc) as folder:
        start_tracker(acc, job.output.name, job.config)
        for phase in student.phases:
            if phase.name == "ranker":
                recommender.ranker = clone_for_ranker(recommender.model, acc)
            curves[phase.name] = finished_phase(phase, recommender, folder, acc)
            if curves[phase.name] is None:
                with out_of_memory(
                    "lower --batch_size and raise --accumulation, or shard by configs/accelerate/zero3.yaml; a large "
                    "student also takes --gradient_checkpointing true, --lora_rank and --precision bf16"
                ):
                    phase_trainer = PhaseTrainer(phase, student, job, acc, config)
                    curves[phase.name] = phase_trainer.fit()
                save_phase(phase, recommender, curves[phase.name], job, acc)
                acc.wait_for_everyone()  # until the phase is saved on all disks
                if job.is_writer:
                    phase_trainer.checkpoints.remove()
        acc.wait_for_everyone()
        if acc.is_main_process:
            if student.finish:
                student.finish()
            save(recommender, curves, folder, acc)
    for tracker in acc.trackers:  # not acc.end_training(), which would take the process group from the next seed
        tracker.finish()
    end_processes_at_exit()


@functools.cache
def end_processes_at_exit() -> None:
    """Destroy the process group when the command ends."""
    atexit.register(lambda: torch.distributed.is_initialized() and torch.distributed.destroy_process_group())


class PhaseTrainer:
    """Trains one of the recommender's models and keeps the weights of its best epoch.

    Args:
        phase: which model, by which loss, on which batches.
        student: has the model and the validation users.
        job: in whose working folder the checkpoints lie.
        acc: the Accelerator.
        settings: of optimiser, validation and checkpoints.
    """

    def __init__(self, phase: Phase, student: Student, job: ArtifactJob, acc: Accelerator, settings: TrainerSettings):
        self.phase, self.student, self.acc, self.settings = phase, student, acc, settings
        self.model = active_model(phase.name, student.recommender)
        self.parameters = list(trainable_state(self.model).values())
        optimizer = torch.optim.AdamW(
            self.parameters, phase.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay, fused=True
        )
        self.wrapped, self.optimizer = acc.prepare(self.model, optimizer)
        self.checkpoints = Checkpoints(
            job.partial / "checkpoints", settings.checkpoint_every, settings.keep_checkpoints, acc, self.wrapped,
            self.optimizer, name=phase.title, best_everywhere=True, job=job, division=phase.division,
        )  # fmt: skip
        acc.wait_for_everyone()
        self.progress = self.checkpoints.restore()
        if phase.name == "ranker" and self.progress.best_state is None:
            self.progress.best = self.validate()  # a ranker has to beat the retriever's own order
            self.progress.best_state = copy_trained_weights(self.model)
        total = phase.sampler.total
        self.bar = progress_bar(
            total=phase.epochs * total, initial=self.progress.epoch * total + self.progress.counted, desc=phase.title,
            unit="target", unit_scale=True, disable=not acc.is_main_process,
        )  # fmt: skip

    def fit(self) -> Curve:
        """Train until the last epoch, or until patience ends.

        Returns:
            The curve.

        Raises:
            UserError: a loss or gradient norm that is not finite; the checkpoints stay.
        """
        progress, patience = self.progress, self.settings.patience
        for epoch in range(progress.epoch, self.phase.epochs):
            if patience and progress.waited >= patience:
                break
            self.train_epoch(epoch)
            quality = self.validate()
            row = {"epoch": epoch + 1, "loss": self.mean_loss(), "valid_ndcg@10": quality}
            self.log(row)
            progress.curve.append(row)
            progress.epoch, progress.batch, progress.loss, progress.counted = epoch + 1, 0, 0.0, 0
            if quality > progress.best:
                progress.best, progress.best_state, progress.waited = quality, copy_trained_weights(self.model), 0
            else:
                progress.waited += 1
        self.bar.close()
        log.info(f"{self.phase.title}: best validation NDCG@10 {progress.best:.4f}")
        restore_best(self.phase.name, self.student.recommender, self.wrapped, progress.best_state, self.acc)
        return progress.curve

    def train_epoch(self, epoch: int) -> None:
        """Train the batches of an epoch that are left."""
        phase, acc, progress, started = self.phase, self.acc, self.progress, time.perf_counter()
        self.wrapped.train()
        with Prefetcher(phase.sampler.batches(epoch, progress.batch)) as batches:
            for batch in batches:
                done = (epoch + (progress.counted + batch.count / 2) / phase.sampler.total) / phase.epochs
                for group in self.optimizer.param_groups:
                    group["lr"] = phase.lr * learning_rate(done, self.settings.warmup)
                with acc.accumulate(self.wrapped):
                    loss = phase.loss(self.wrapped, batch, done)
                    check_finite("loss", loss, epoch, self.checkpoints)
                    # gradients are averaged over processes and accumulation steps, losses over the global batch
                    acc.backward(loss * (acc.num_processes * acc.gradient_accumulation_steps))
                    if acc.sync_gradients:
                        norm = acc.clip_grad_norm_(self.parameters, self.settings.clip)
                        if norm is not None and acc.scaler is None:  # fp16's scaler skips such steps itself
                            check_finite("gradient norm", torch.as_tensor(norm), epoch, self.checkpoints)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                progress.loss += loss.item() * batch.count
                if batch.last:
                    progress.counted += batch.count
                    progress.batch += 1
                    progress.step += 1
                    if self.checkpoints.due(progress):
                        self.checkpoints.save(progress)
                    lr = self.optimizer.param_groups[0]["lr"]
                    self.log({"loss": loss.item(), "lr": lr, "GiB": memory_gib()})
                    self.show(batch.count, waited=batches.waited / (time.perf_counter() - started))

    def validate(self) -> float:
        """Compute NDCG@10 over the validation users of all processes."""
        student = self.student
        return validate(student.recommender, self.model, student.valid, self.acc, student.width)

    def mean_loss(self) -> float:
        """Compute the mean loss of the epoch over the examples of all processes."""
        process_sum = torch.tensor(self.progress.loss, dtype=torch.float64, device=self.acc.device)
        return self.acc.reduce(process_sum, "sum").item() / self.progress.counted

    def log(self, values: dict[str, float]) -> None:
        """Add to the phase's curves."""
        self.acc.log({f"{self.phase.name}/{key}": value for key, value in values.items()}, self.progress.step)

    def show(self, count: int, waited: float) -> None:
        """Advance the bar; `waited` is the share of the time that went into waiting for batches."""
        self.bar.update(count)
        mean = self.progress.loss * self.acc.num_processes / self.progress.counted  # of this process
        texts = {"loss": f"{mean:.3f}", "wait": f"{waited:.0%}", "best": f"{self.progress.best:.4f}"}
        self.bar.set_postfix(epoch=self.progress.epoch + 1, **texts, refresh=False)


def learning_rate(done: float, warmup: float) -> float:
    """Compute the learning rate as a share of its peak: linear warm-up, then a cosine.

    Args:
        done: share of the training that is done, from 0 to 1.
        warmup: share of the training in which the rate rises.
    """
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) if warmup < 1 else 1.0


@torch.no_grad()
def validate(
    recommender: Recommender | ItemRecommender,
    model: torch.nn.Module,
    valid: Examples,
    acc: Accelerator,
    width: int,
) -> float:
    """Compute NDCG@10 over the validation users, who are divided among the processes.

    A copy of the model is used, because a sharding engine would gather the weights at every call. A large model that is
    not sharded is used as it is.

    Args:
        recommender: holds the model.
        model: the one of its models that is being trained.
        valid: the validation users.
        acc: the Accelerator.
        width: items per list.
    """
    validated = model.eval() if is_in_place(model) else copy_whole(model, acc)
    models = recommender.model, recommender.ranker
    recommender.model, recommender.ranker = (validated if each is model else each for each in models)
    users = valid.take(slice(acc.process_index, None, acc.num_processes))
    lists, _ = recommender.rank_items(users.histories, width, recommender.facts["exclude_bought"])
    recommender.model, recommender.ranker = models
    total = torch.tensor(ndcg(hit_ranks(lists, users.targets), 10).sum(), dtype=torch.float64, device=acc.device)
    return acc.reduce(total, "sum").item() / len(valid)


def active_model(phase: str, recommender: Recommender | ItemRecommender) -> torch.nn.Module:
    """Return the recommender's model that a phase trains."""
    return recommender.ranker if phase == "ranker" else recommender.model


def copy_trained_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copy the trainable weights to the CPU of every process; all processes must call it."""
    with gathered(model):
        return {name: value.detach().cpu().clone() for name, value in trainable_state(model).items()}


def copy_whole(model: torch.nn.Module, acc: Accelerator) -> torch.nn.Module:
    """Copy a model to this process, gathering its weights where they are sharded; all processes must call it."""
    with unsharded(acc):
        copied = type(model)(model.config)
    with gathered(model):
        copied.load_state_dict(model.state_dict())
    return copied.to(acc.device).eval()


def clone_for_ranker(model: torch.nn.Module, acc: Accelerator) -> torch.nn.Module:
    """Copy the retriever for the ranker phase; frozen weights are shared unless an engine will shard them."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    sharded = acc.distributed_type.value in SHARDED
    return copy.deepcopy(model, {} if sharded else {id(parameter): parameter for parameter in frozen})


def is_in_place(model: torch.nn.Module) -> bool:
    """Tell whether the model is used without a copy: it is large, and not sharded."""
    sharded = any(hasattr(parameter, "ds_id") or hasattr(parameter, "full_tensor") for parameter in model.parameters())
    return getattr(model, "in_place", False) and not sharded


def restore_best(
    phase: str,
    recommender: Recommender | ItemRecommender,
    wrapped: torch.nn.Module,
    best_state: dict[str, Tensor],
    acc: Accelerator,
) -> None:
    """Put the best epoch's weights into the recommender, and free the engine; all processes must call it."""
    model = active_model(phase, recommender)
    if is_in_place(model) and acc.distributed_type.value not in SHARDED:
        best = acc.unwrap_model(wrapped, keep_fp32_wrapper=False)
        # a ranker is cloned from it, and `prepare` would take the clone for prepared: no mixed precision
        vars(best).pop("_is_accelerate_prepared", None)
    else:
        best = copy_whole(model, acc)
    best.load_state_dict(best_state, strict=False)
    setattr(recommender, "ranker" if phase == "ranker" else "model", best.to(acc.device).eval())
    acc.free_memory()
    acc.wait_for_everyone()


def finished_phase(
    phase: Phase, recommender: Recommender | ItemRecommender, folder: Path, acc: Accelerator
) -> Curve | None:
    """Load what `save_phase` wrote in a run that broke off later; None if the phase is not finished.

    The random generators go on as after the phase, so that the next one ends as in an unbroken run. All processes must
    call it; a phase that is saved on some machines' disks alone is not finished.
    """
    result = folder / f"{phase.name}-done"
    if not all(gather_object([result.is_dir()])):
        return None
    model = active_model(phase.name, recommender)
    model.load_state_dict(load_file(result / "model.safetensors"), strict=False)
    model.eval()
    state = json.loads((result / "phase.json").read_text())
    if state["processes"] == acc.num_processes:
        load_generators(result, acc.process_index)
    else:
        log.info(f"{phase.title}: finished by {state['processes']} processes; what follows draws other random numbers")
    return state["curve"]


def save_phase(
    phase: Phase, recommender: Recommender | ItemRecommender, curve: Curve, job: ArtifactJob, acc: Accelerator
) -> None:
    """Save curve, trained weights and random generators of a finished phase, whole or not at all.

    All processes must call it.
    """
    partial, complete = (job.partial / f"{phase.name}-{state}" for state in ("partial", "done"))
    if job.is_writer:
        discard(partial)
        partial.mkdir()
    acc.wait_for_everyone()
    save_generators(partial, acc.process_index)
    acc.wait_for_everyone()
    if job.is_writer:
        save_file(copy_trained_weights(active_model(phase.name, recommender)), partial / "model.safetensors")
        write_json(partial / "phase.json", {"curve": curve, "processes": acc.num_processes})
        discard(complete)  # where a machine was cut off before another had saved the phase
        os.replace(partial, complete)


def save(recommender: Recommender | ItemRecommender, curves: dict[str, Curve], folder: Path, acc: Accelerator) -> None:
    """Save recommender and curves in the working folder, then remove the phases' folders."""
    for path in folder.iterdir():
        if path.name != IDENTITY and not path.is_dir():
            path.unlink()
    with unsharded(acc):  # adapters are merged into a newly built model
        recommender.save_pretrained(folder)
    # a codeword student has a curve for each phase; an item model has one phase, and its file one curve
    by_phase = isinstance(recommender, Recommender)
    write_json(folder / "curve.json", curves if by_phase else next(iter(curves.values())))
    for path in folder.iterdir():
        if path.is_dir():
            discard(path)
