"""The teacher's training loop, from data to a saved checkpoint; `teacher/finetune.py` is its command."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from distill.artifacts import IDENTITY, Stage, UserError, say, write_json
from distill.catalog import Dataset
from distill.launch import accelerator, share
from distill.metrics import hit_ranks, ndcg
from distill.semantic_ids import SemanticIDs
from teacher import model as models
from teacher.checkpoints import Checkpoints, trainable_state
from teacher.engines.hf import HFEngine
from teacher.tasks import Batch, Samples, TaskData, batches, collate

if TYPE_CHECKING:
    from teacher.finetune import Config


def tune(config: Config, dataset_folder: Path, ids_folder: Path, stage: Stage) -> None:
    """Tune, keep the best epoch, merge, save.

    Raises:
        UserError: a task without texts, a base model that does not fit, a loss or gradient that is no number.
    """
    dataset = Dataset.load(dataset_folder)
    ids = SemanticIDs.load(ids_folder, dataset.n_items)
    acc = accelerator(config.accumulation, config.precision, config.seed)
    model, tokenizer = models.build(config, dataset, ids)
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    say(f"teacher: {count(model.parameters()):,} parameters, {count(trainable):,} train; tasks {config.tasks}")

    data = TaskData.of(config, dataset, ids, tokenizer)
    epochs = [batches_of(data, config, epoch) for epoch in range(config.epochs)]
    steps = sum(len(share(groups, acc)) for _, groups in epochs) // config.accumulation
    if steps == 0 or min(len(groups) for _, groups in epochs) < acc.num_processes:
        raise UserError(
            f"An epoch has {len(epochs[0][1])} batches, too few for {acc.num_processes} processes and --accumulation "
            f"{config.accumulation}; lower --batch_tokens."
        )
    optimizer = torch.optim.AdamW(trainable, config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(config.warmup * steps), steps)
    model, optimizer = acc.prepare(model, optimizer)

    with working_folder(stage, acc) as folder:
        places = (folder / "checkpoints", config.checkpoint_every, config.keep_checkpoints)
        checkpoints = Checkpoints(*places, acc, model, optimizer, schedule)
        progress, hidden = checkpoints.restore()
        bar = tqdm(total=steps, initial=progress.step, desc="teacher", unit="step", disable=not acc.is_main_process)
        for epoch in range(progress.epoch, config.epochs):
            samples, groups = epochs[epoch]
            model.train()
            started, before = time.time(), progress.counted
            rng = np.random.default_rng([config.seed, epoch, acc.process_index])
            if hidden:  # in the middle of an epoch
                rng.bit_generator.state, hidden = hidden, None
            for group in share(groups, acc)[progress.batch :]:
                inputs = collate(samples, group, tokenizer.pad_token_id)
                hide(inputs["input_ids"], tokenizer.pad_token_id, data.token_of, config.token_dropout, rng)
                inputs = {name: torch.from_numpy(array).to(acc.device) for name, array in inputs.items()}
                with acc.accumulate(model):
                    # padding stands on the right, so the causal mask alone keeps it from every real token;
                    # a cache, which nobody reads here, would make transformers overlook packed samples
                    loss = model(**inputs, use_cache=False).loss
                    check_finite("loss", loss, epoch, checkpoints)
                    acc.backward(loss)
                    if acc.sync_gradients:
                        norm = acc.clip_grad_norm_(trainable, config.clip)
                        if norm is not None and acc.scaler is None:  # fp16's scaler skips such steps itself
                            check_finite("gradient norm", norm, epoch, checkpoints)
                    optimizer.step()
                    optimizer.zero_grad()
                counted = int((inputs["labels"] >= 0).sum())
                progress.loss += loss.item() * counted
                progress.counted += counted
                progress.batch += 1
                if acc.sync_gradients:
                    schedule.step()
                    progress.step += 1
                    bar.update()
                    if checkpoints.due(progress):
                        checkpoints.save(progress, rng)
                rate = f"{(progress.counted - before) / (time.time() - started):.0f}"
                mean = f"{progress.loss / progress.counted:.3f}"
                bar.set_postfix(epoch=epoch + 1, loss=mean, targets_s=rate, best=f"{progress.best:.4f}")
            bare = acc.unwrap_model(model)
            value = validate(HFEngine(unpeft(bare), data, config.prompt), dataset, config)
            row = {"epoch": epoch + 1, "loss": progress.loss / progress.counted, "valid_ndcg@10": value}
            progress.curve.append(row)
            progress.epoch, progress.batch, progress.loss, progress.counted = epoch + 1, 0, 0.0, 0
            if value > progress.best:
                progress.best, progress.waited = value, 0
                progress.best_state = {name: p.detach().cpu().clone() for name, p in trainable_state(bare).items()}
            else:
                progress.waited += 1
                if progress.waited >= config.patience:
                    break
        bar.close()

        if acc.is_main_process:
            bare = acc.unwrap_model(model)
            bare.load_state_dict(progress.best_state, strict=False)
            facts = {"prompt": config.prompt, "max_history": config.max_history, "max_tokens": config.max_tokens}
            models.save_teacher(bare, tokenizer, folder, facts | {"valid_ndcg@10": progress.best})
            write_json(folder / "curve.json", progress.curve)
            checkpoints.remove()
    acc.end_training()


@contextlib.contextmanager
def working_folder(stage: Stage, acc: Accelerator) -> Iterator[Path]:
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
        say(f"starting afresh: the run broken off at {stage.partial} had another {', '.join(differs)}")
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
        raise UserError(f"The {what} is {value.item()} in epoch {epoch + 1}; lower --lr or --clip.{said}")


def batches_of(data: TaskData, config: Config, epoch: int) -> tuple[Samples, list[Batch]]:
    """One epoch's samples and their batches; the same on every process."""
    samples = data.epoch(config.tasks, config.seed, epoch)
    return samples, batches(samples, config.batch_tokens, np.random.default_rng([config.seed, epoch]), config.packing)


def hide(tokens: np.ndarray, pad: int, codewords: np.ndarray, share: float, rng: np.random.Generator) -> None:
    """Replace a share of the codewords by the pad token, in place; the labels keep them."""
    if share:
        tokens[np.isin(tokens, codewords) & (rng.random(tokens.shape) < share)] = pad


def validate(engine: HFEngine, dataset: Dataset, config: Config) -> float:
    """NDCG@10 of constrained beams on a fixed sample of validation users."""
    examples = dataset.examples("valid", config.max_history)
    rows = np.random.default_rng(0).permutation(len(examples))[: config.valid_users]
    examples, values = examples.take(rows), []
    for start in range(0, len(examples), 64):
        part = examples.take(slice(start, start + 64))
        lists, _ = engine.beams(part.histories, 10)
        values.append(ndcg(hit_ranks(lists, part.targets), 10))
    return float(np.concatenate(values).mean())


def unpeft(model):
    """The causal model inside a PEFT wrapper, adapters in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def count(parameters) -> int:
    """Number of scalars; of 4-bit weights, two lie in a byte."""
    return sum(parameter.numel() * (2 if hasattr(parameter, "quant_state") else 1) for parameter in parameters)
