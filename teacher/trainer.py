"""The teacher's training, from data to a saved checkpoint; `teacher/finetune.py` is its command."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from distill.data.dataset import Dataset
from distill.runtime.accelerator import accelerator, share, start_tracker
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.checkpoints import Checkpoints, Progress, check_finite, working_folder
from distill.runtime.errors import UserError
from distill.runtime.logs import log, progress_bar
from distill.runtime.memory import memory_gib, out_of_memory
from distill.runtime.precision import choose_mixed_precision, log_mixed_precision
from distill.runtime.sharding import engine_of, gathered, sharded_loading, trained_copy, unsharded
from distill.semantic_ids.ids import SemanticIDs
from teacher.batching import EpochDraws, collate, counted_tokens, mask_codewords
from teacher.config import TrainingSettings
from teacher.engines import TITLE_FACTS
from teacher.engines.hf import HFEngine
from teacher.loss import use_counted_loss
from teacher.model import build_model, count_parameters, save_teacher, unwrap_peft, use_plain_attention
from teacher.optimiser import build_optimizer, trained_parameters, warmup_cosine_schedule
from teacher.tasks import TaskData
from teacher.title_validation import validate_titles
from teacher.validation import validate

MEMORY = (
    "lower --batch_tokens and raise --accumulation, set --gradient_checkpointing true, train --mode lora or qlora, "
    "or shard the weights: configs/accelerate/zero3.yaml"
)


@out_of_memory(MEMORY)
def tune(settings: TrainingSettings, dataset_folder: Path, ids_folder: Path, job: ArtifactJob) -> None:
    """Train, keep the best epoch, merge adapters, save.

    Raises:
        UserError: a task without texts, a base model that does not fit, a loss or gradient that is no number,
            memory that does not suffice.
    """
    dataset = Dataset.load(dataset_folder)
    ids = SemanticIDs.load(ids_folder, dataset.n_items)
    logs = job.output.parent / "logs"
    large = settings.base is not None
    precision = choose_mixed_precision(settings.precision, large)
    log_mixed_precision(settings.precision, precision, large)
    settings = replace(settings, precision=precision)
    job.facts["precision"] = precision
    acc = accelerator(
        settings.accumulation, settings.precision, settings.seed, settings.clip, settings.tracker, logs,
        job.separate_disks,
    )  # fmt: skip
    with unsharded(acc):
        loading = sharded_loading(acc)
        model, tokenizer = build_model(settings, dataset, ids, settings.max_tokens, settings.seed, loading)
    if settings.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    if settings.base or settings.title_loss:  # elsewhere the vocabulary is small
        use_counted_loss(model)
    if precision == "bf16" and acc.device.type == "cpu":
        use_plain_attention(unwrap_peft(model))
    trainable = trained_parameters(model)
    n_parameters, n_trainable = count_parameters(model.parameters()), count_parameters(trainable)
    log.info(f"teacher: {n_parameters:,} parameters, {n_trainable:,} train; tasks {settings.tasks}")

    data = TaskData.of(settings, dataset, ids, tokenizer)
    epochs = EpochDraws(data, settings)
    steps = count_steps(epochs.n_batches, acc)
    if settings.codeword_lr and engine_of(acc) != "whole":
        raise UserError("--codeword_lr does not run under DeepSpeed or FSDP, which cut the rows; leave it out.")
    optimizer = build_optimizer(model, settings, data.token_of.ravel().tolist())
    schedule = warmup_cosine_schedule(optimizer, round(settings.warmup * steps), steps)
    model, optimizer = acc.prepare(model, optimizer)

    with working_folder(job, acc) as folder:
        every, keep = settings.checkpoint_every, settings.keep_checkpoints
        checkpoints = Checkpoints(folder / "checkpoints", every, keep, acc, model, optimizer, schedule, job=job)
        progress = checkpoints.restore()
        start_tracker(acc, job.output.name, job.config)
        trainer = Trainer(settings, acc, model, optimizer, schedule, dataset, data, epochs, steps)
        trainer.fit(progress, checkpoints)
        trained = acc.unwrap_model(model)
        with gathered(trained), unsharded(acc):
            if acc.is_main_process:
                trained.load_state_dict(progress.best_state, strict=False)
                facts = {name: getattr(settings, name) for name in ("prompt", "max_history", "max_tokens")}
                if settings.stream_titles:
                    facts |= {name: getattr(settings, name) for name in ("stream_titles", "stream_title_items")}
                if settings.prompt == "titles":
                    best_row = max(progress.curve, key=lambda row: row["valid_ndcg@10"])  # the first of equals, as kept
                    facts |= {name: best_row.get(name, getattr(settings, name)) for name in TITLE_FACTS}
                save_teacher(trained, tokenizer, folder, facts | {"valid_ndcg@10": progress.best})
                write_json(folder / "curve.json", progress.curve)
                checkpoints.remove()
    acc.end_training()


@dataclass
class Trainer:
    """The training loop.

    Attributes:
        settings: of the training.
        acc: the Accelerator.
        model: the network, prepared by the Accelerator.
        optimizer: likewise.
        schedule: of its learning rate, a step each optimiser step.
        dataset: whose validation users are measured.
        data: the tasks' data; under cross-fitting without a fold.
        epochs: samples and batches of each epoch.
        steps: optimiser steps of the whole training.
    """

    settings: TrainingSettings
    acc: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    dataset: Dataset
    data: TaskData
    epochs: EpochDraws
    steps: int

    def fit(self, progress: Progress, checkpoints: Checkpoints) -> None:
        """Train from where `progress` stands; it then holds the curve and the parameters of the best epoch."""
        settings, acc, model = self.settings, self.acc, self.model
        trainable = trained_parameters(model)  # FSDP has replaced the parameters
        options = {"desc": "teacher", "unit": "step", "disable": not acc.is_main_process}
        bar = progress_bar(total=self.steps, initial=progress.step, **options)
        for epoch in range(progress.epoch, settings.epochs):
            samples, batches = self.epochs[epoch]
            counts = counted_tokens(samples, batches)
            model.train()
            started, tokens_seen = time.time(), 0
            for number in share(range(len(batches)), acc)[progress.batch :]:
                inputs = self.inputs(epoch, number)
                with acc.accumulate(model):
                    # rows are padded on the right, so the causal mask alone keeps padding from every real token;
                    # a cache would make transformers ignore the boundaries of packed samples
                    loss = model(**inputs, use_cache=False).loss
                    check_finite("loss", loss, epoch, checkpoints)
                    acc.backward(loss * batch_weight(number, counts, acc))
                    if acc.sync_gradients:
                        norm = acc.clip_grad_norm_(trainable, settings.clip)
                        if norm is not None and settings.precision != "fp16":  # its scaler skips such steps itself
                            check_finite("gradient norm", torch.as_tensor(norm), epoch, checkpoints)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                progress.loss += loss.item() * counts[number].item()
                progress.counted += counts[number].item()
                progress.batch += 1
                tokens_seen += int(samples.lengths[np.hstack(batches[number])].sum())
                rate = acc.num_processes * tokens_seen / (time.time() - started)
                if acc.sync_gradients:
                    self.schedule.step()
                    progress.step += 1
                    bar.update()
                    lr = self.schedule.get_last_lr()[0]
                    figures = {"loss": loss.item(), "lr": lr, "tokens_s": rate, "GiB": memory_gib(), "epoch": epoch + 1}
                    acc.log(figures, progress.step)
                    if checkpoints.due(progress):
                        checkpoints.save(progress)
                bar.set_postfix(bar_figures(progress, rate), refresh=False)
            del samples, batches  # before the next epoch is drawn
            self.end_epoch(progress)
            if settings.patience and progress.waited >= settings.patience:
                break
        bar.close()

    def inputs(self, epoch: int, number: int) -> dict[str, Tensor]:
        """The network's inputs of batch `number`, with codewords masked; the same on whichever process."""
        samples, batches = self.epochs[epoch]
        pad = self.data.tokenizer.pad_token_id
        inputs = collate(samples, batches[number], pad)
        rng = np.random.default_rng([self.settings.seed, epoch, number])
        mask_codewords(inputs["input_ids"], pad, self.data.token_of, self.settings.token_dropout, rng)
        return {name: torch.from_numpy(array).to(self.acc.device) for name, array in inputs.items()}

    def end_epoch(self, progress: Progress) -> None:
        """Validate, add a row to the curve, and keep the parameters if they are the best so far."""
        unwrapped = self.acc.unwrap_model(self.model)
        row = {"epoch": progress.epoch + 1, "loss": mean_loss(progress, self.acc)}
        engine = HFEngine(unwrap_peft(unwrapped), self.data, self.settings.prompt)
        with self.acc.autocast():  # the engine calls the trunk, past the forward pass that Accelerate has wrapped
            if self.settings.prompt == "titles":
                figures, grounding = validate_titles(self.acc, engine, self.dataset, self.settings)
            else:
                figures, grounding = validate(self.acc, engine, self.dataset, self.settings), {}
        row |= figures
        self.acc.log({name: value for name, value in row.items() if name != "epoch"}, progress.step)
        progress.curve.append(row | grounding)
        progress.epoch, progress.batch, progress.loss, progress.counted = progress.epoch + 1, 0, 0.0, 0
        if row["valid_ndcg@10"] > progress.best:
            progress.best, progress.waited = row["valid_ndcg@10"], 0
            progress.best_state = trained_copy(self.acc, unwrapped)
        else:
            progress.waited += 1


def count_steps(n_batches: list[int], acc: Accelerator) -> int:
    """Optimiser steps of the whole training.

    Args:
        n_batches: of each epoch, on all processes.
        acc: says how they are shared.

    Raises:
        UserError: an epoch has too few batches for one step.
    """
    shares = [len(share(range(number), acc)) for number in n_batches]
    if min(shares) == 0:
        raise UserError(
            f"An epoch has {min(n_batches)} batches, too few for {acc.num_processes} processes and --accumulation "
            f"{acc.gradient_accumulation_steps}; lower --batch_tokens."
        )
    return sum(shares) // acc.gradient_accumulation_steps


def batch_weight(number: int, counts: np.ndarray, acc: Accelerator) -> float:
    """Factor of a batch's mean loss that makes the step's gradient that of the mean over all its counted tokens.

    Accumulation and processes average the gradients over the step's batches, whatever their sizes. 1 where a step is
    one batch.

    Args:
        number: of the batch in the epoch.
        counts: tokens that the loss counts in each batch [batches].
        acc: says how many batches make a step.
    """
    size = acc.num_processes * acc.gradient_accumulation_steps
    start = number // size * size
    return float(counts[number] * size / counts[start : start + size].sum())


def mean_loss(progress: Progress, acc: Accelerator) -> float:
    """The epoch's mean loss over the counted tokens of all processes."""
    if acc.num_processes == 1:
        return progress.loss / progress.counted
    loss, counted = acc.reduce(torch.tensor([progress.loss, progress.counted], device=acc.device)).tolist()
    return loss / counted


def bar_figures(progress: Progress, rate: float) -> dict[str, str | int]:
    """What the progress bar shows: this epoch's loss and speed, the last validation, and the best."""
    figures = {
        "epoch": progress.epoch + 1,
        "loss": f"{progress.loss / progress.counted:.3f}",
        "tokens_s": f"{rate:.0f}",
        "GiB": f"{memory_gib():.2f}",
    }
    if progress.curve:
        figures |= {name: f"{value:.4f}" for name, value in progress.curve[-1].items() if name.startswith("valid_")}
        figures["best"] = f"{progress.best:.4f}"
    return figures
