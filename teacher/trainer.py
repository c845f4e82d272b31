"""The teacher's training loop, from data to a saved checkpoint; `teacher/finetune.py` is its command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from transformers import get_cosine_schedule_with_warmup

from distill.data.dataset import Dataset
from distill.metrics import hit_ranks, ndcg, recall
from distill.runtime.accelerator import accelerator, share, start_tracker
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.checkpoints import Checkpoints, Progress, check_finite, working_folder
from distill.runtime.errors import UserError
from distill.runtime.logs import log, progress_bar
from distill.runtime.memory import memory_gib, out_of_memory
from distill.runtime.sharding import gathered, trained_copy, unsharded
from distill.semantic_ids.ids import SemanticIDs
from teacher import model as models
from teacher.engines.hf import HFEngine
from teacher.tasks import Batch, Samples, TaskData, batches, collate

if TYPE_CHECKING:
    from teacher.finetune import Config

MEMORY = (
    "lower --batch_tokens and raise --accumulation, set --gradient_checkpointing true, train --mode lora or qlora, "
    "or shard the weights: configs/accelerate/zero3.yaml"
)


@out_of_memory(MEMORY)
def tune(config: Config, dataset_folder: Path, ids_folder: Path, stage: ArtifactJob) -> None:
    """Tune, keep the best epoch, merge, save.

    Raises:
        UserError: a task without texts, a base model that does not fit, a loss or gradient that is no number,
            memory that does not suffice.
    """
    dataset = Dataset.load(dataset_folder)
    ids = SemanticIDs.load(ids_folder, dataset.n_items)
    logs = stage.output.parent / "logs"
    acc = accelerator(config.accumulation, config.precision, config.seed, config.clip, config.tracker, logs)
    with unsharded(acc):
        model, tokenizer = models.build(config, dataset, ids)
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    log.info(f"teacher: {count(model.parameters()):,} parameters, {count(trainable):,} train; tasks {config.tasks}")

    data = TaskData.of(config, dataset, ids, tokenizer)
    epochs = [batches_of(data, config, epoch) for epoch in range(config.epochs)]
    steps = sum(len(share(groups, acc)) for _, groups in epochs) // config.accumulation
    if min(len(share(groups, acc)) for _, groups in epochs) == 0:
        raise UserError(
            f"An epoch has {len(epochs[0][1])} batches, too few for {acc.num_processes} processes and --accumulation "
            f"{config.accumulation}; lower --batch_tokens."
        )
    optimizer = torch.optim.AdamW(trainable, config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(config.warmup * steps), steps)
    model, optimizer = acc.prepare(model, optimizer)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]  # FSDP has made others

    with working_folder(stage, acc) as folder:
        places = (folder / "checkpoints", config.checkpoint_every, config.keep_checkpoints)
        checkpoints = Checkpoints(*places, acc, model, optimizer, schedule)
        progress = checkpoints.restore()
        start_tracker(acc, stage.output.name, stage.config)
        bar = progress_bar(
            total=steps, initial=progress.step, desc="teacher", unit="step", disable=not acc.is_main_process
        )
        for epoch in range(progress.epoch, config.epochs):
            samples, groups = epochs[epoch]
            counts = counted_in(samples, groups)
            model.train()
            started, seen = time.time(), 0
            for number in share(list(range(len(groups))), acc)[progress.batch :]:
                inputs = collate(samples, groups[number], tokenizer.pad_token_id)
                rng = np.random.default_rng([config.seed, epoch, number])  # the same, whoever computes the batch
                hide(inputs["input_ids"], tokenizer.pad_token_id, data.token_of, config.token_dropout, rng)
                inputs = {name: torch.from_numpy(array).to(acc.device) for name, array in inputs.items()}
                with acc.accumulate(model):
                    # padding stands on the right, so the causal mask alone keeps it from every real token;
                    # a cache, which nobody reads here, would make transformers overlook packed samples
                    loss = model(**inputs, use_cache=False).loss
                    check_finite("loss", loss, epoch, checkpoints)
                    acc.backward(loss * weight(number, counts, acc))
                    if acc.sync_gradients:
                        norm = acc.clip_grad_norm_(trainable, config.clip)
                        if norm is not None and config.precision != "fp16":  # its scaler skips such steps itself
                            check_finite("gradient norm", torch.as_tensor(norm), epoch, checkpoints)
                    optimizer.step()
                    optimizer.zero_grad()
                counted = int(counts[number])
                progress.loss += loss.item() * counted
                progress.counted += counted
                progress.batch += 1
                seen += int(samples.lengths[np.hstack(groups[number])].sum())
                mean, rate = progress.loss / progress.counted, acc.num_processes * seen / (time.time() - started)
                if acc.sync_gradients:
                    schedule.step()
                    progress.step += 1
                    bar.update()
                    now = {"loss": loss.item(), "lr": schedule.get_last_lr()[0], "tokens_s": rate, "GiB": memory_gib()}
                    acc.log(now | {"epoch": epoch + 1}, progress.step)
                    if checkpoints.due(progress):
                        checkpoints.save(progress)
                shown = {
                    "epoch": epoch + 1,
                    "loss": f"{mean:.3f}",
                    "tokens_s": f"{rate:.0f}",
                    "GiB": f"{memory_gib():.2f}",
                }
                bar.set_postfix(shown | best_of(progress), refresh=False)
            row = {"epoch": epoch + 1, "loss": mean_loss(progress, acc)}
            row |= validate(acc, HFEngine(unpeft(acc.unwrap_model(model)), data, config.prompt), dataset, config)
            acc.log({name: value for name, value in row.items() if name != "epoch"}, progress.step)
            progress.curve.append(row)
            progress.epoch, progress.batch, progress.loss, progress.counted = epoch + 1, 0, 0.0, 0
            if row["valid_ndcg@10"] > progress.best:
                progress.best, progress.waited = row["valid_ndcg@10"], 0
                progress.best_state = trained_copy(acc, acc.unwrap_model(model))
            else:
                progress.waited += 1
                if progress.waited == config.patience:
                    break
        bar.close()

        bare = acc.unwrap_model(model)
        with gathered(bare), unsharded(acc):
            if acc.is_main_process:
                bare.load_state_dict(progress.best_state, strict=False)
                facts = {"prompt": config.prompt, "max_history": config.max_history, "max_tokens": config.max_tokens}
                models.save_teacher(bare, tokenizer, folder, facts | {"valid_ndcg@10": progress.best})
                write_json(folder / "curve.json", progress.curve)
                checkpoints.remove()
    acc.end_training()


def counted_in(samples: Samples, groups: list[Batch]) -> np.ndarray:
    """How many tokens the loss counts in each batch [batches]."""
    ends = np.concatenate([[0], np.cumsum(samples.counted)])
    of_sample = ends[samples.ends] - ends[samples.ends - samples.lengths]
    return np.array([of_sample[np.hstack(group)].sum() for group in groups])


def weight(number: int, counts: np.ndarray, acc: Accelerator) -> float:
    """What a batch's mean loss is multiplied by, so that the gradient is that of the mean over all counted tokens of
    the optimiser step, however they are dealt to processes and accumulated.

    Gradients are averaged over the step's batches, by accumulation and by the processes. 1 where a step is one batch.
    """
    size = acc.num_processes * acc.gradient_accumulation_steps
    start = number // size * size
    return float(counts[number] * size / counts[start : start + size].sum())


def mean_loss(progress: Progress, acc: Accelerator) -> float:
    """The epoch's loss over the counted tokens of all processes."""
    if acc.num_processes == 1:
        return progress.loss / progress.counted
    loss, counted = acc.reduce(torch.tensor([progress.loss, progress.counted], device=acc.device)).tolist()
    return loss / counted


def best_of(progress: Progress) -> dict[str, str]:
    """The last validation, and the best, for the progress bar."""
    if not progress.curve:
        return {}
    last = {name.removeprefix("valid_"): value for name, value in progress.curve[-1].items() if "valid" in name}
    return {f"valid_{name}": f"{value:.4f}" for name, value in last.items()} | {"best": f"{progress.best:.4f}"}


def batches_of(data: TaskData, config: Config, epoch: int) -> tuple[Samples, list[Batch]]:
    """One epoch's samples and their batches; the same on every process."""
    samples = data.epoch(config.tasks, config.seed, epoch)
    return samples, batches(samples, config.batch_tokens, np.random.default_rng([config.seed, epoch]), config.packing)


def hide(tokens: np.ndarray, pad: int, codewords: np.ndarray, share: float, rng: np.random.Generator) -> None:
    """Replace a share of the codewords by the pad token, in place; the labels keep them."""
    if share:
        tokens[np.isin(tokens, codewords) & (rng.random(tokens.shape) < share)] = pad


@torch.no_grad()
def validate(acc: Accelerator, engine: HFEngine, dataset: Dataset, config: Config) -> dict[str, float]:
    """What the epochs are compared by, on a fixed sample of validation users, dealt to the processes.

    Returns:
        valid_loss: mean −log p of the targets' codewords; valid_ndcg@10 and valid_recall@10 of constrained beams.
    """
    examples = dataset.examples("valid", config.max_history)
    rows = np.random.default_rng(0).permutation(len(examples))[: config.valid_users]
    share = -(-len(rows) // acc.num_processes)
    # all processes take as many, some perhaps the first again: where parameters are sharded they must call in step
    mine = np.resize(rows, share * acc.num_processes)[acc.process_index * share :][:share]
    examples, hides, values = examples.take(mine), dataset.resolve_exclude_bought(None), []
    for start in range(0, len(examples), 64):
        part = examples.take(slice(start, start + 64))
        codes = torch.from_numpy(engine.data.ids.codes[part.targets]).to(engine.device)
        logs = engine.codeword_logprobs(part.histories, part.targets).gather(2, codes[..., None])
        lists, _ = engine.beams(part.histories, 10, hides)
        ranks = hit_ranks(lists, part.targets)
        values.append(np.stack([-logs.mean((1, 2)).cpu().numpy(), ndcg(ranks, 10), recall(ranks, 10)], axis=1))
    values = np.concatenate(values)
    if acc.num_processes > 1:
        values = acc.gather(torch.from_numpy(values).to(acc.device)).cpu().numpy()[: len(rows)]
    return dict(zip(("valid_loss", "valid_ndcg@10", "valid_recall@10"), values.mean(0).tolist(), strict=True))


def unpeft(model):
    """The causal model inside a PEFT wrapper, adapters in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def count(parameters) -> int:
    """Number of scalars; of 4-bit weights, two lie in a byte."""
    return sum(parameter.numel() * (2 if hasattr(parameter, "quant_state") else 1) for parameter in parameters)
