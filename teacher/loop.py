"""The teacher's training loop, from data to a saved checkpoint; `teacher/finetune.py` is its command."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from distill.artifacts import Stage, UserError, say, write_json
from distill.catalog import Dataset
from distill.launch import accelerator, share
from distill.metrics import hit_ranks, ndcg
from distill.semantic_ids import SemanticIDs
from teacher import model as models
from teacher.engines.hf import HFEngine
from teacher.tasks import TaskData, batches, collate

if TYPE_CHECKING:
    from teacher.finetune import Config


def tune(config: Config, dataset_folder: Path, ids_folder: Path, stage: Stage) -> None:
    """Tune, keep the best epoch, merge, save."""
    dataset = Dataset.load(dataset_folder)
    ids = SemanticIDs.load(ids_folder, dataset.n_items)
    acc = accelerator(config.accumulation, config.precision, config.seed)
    if config.base is None:
        tokenizer = models.train_tokenizer([text for text in dataset.texts() if text] or ["-"], config.vocab_size)
        new = models.add_codewords(tokenizer, ids)
        model = models.from_scratch(tokenizer, config.sizes, config.max_tokens)
    else:
        tokenizer = models.load_tokenizer(config.base)
        new = models.add_codewords(tokenizer, ids)
        model = models.load_base(config.base)
        models.extend_vocabulary(model, tokenizer, new)
    model.config.attention_dropout = config.attention_dropout
    if config.mode == "lora":
        rows = tokenizer.convert_tokens_to_ids(ids.tokens())
        model = models.add_lora(model, rows, config.lora_rank, config.lora_alpha, config.lora_dropout)
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    say(f"teacher: {count(model.parameters()):,} parameters, {count(trainable):,} train; tasks {config.tasks}")

    data = TaskData(dataset, ids, tokenizer, config.max_history, config.max_tokens, config.crop)
    optimizer = torch.optim.AdamW(trainable, config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)
    plan = [batches_of(data, config, epoch)[1] for epoch in range(config.epochs)]
    steps = sum(math.ceil(len(share(groups, acc)) / config.accumulation) for groups in plan)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(config.warmup * steps), steps)
    model, optimizer = acc.prepare(model, optimizer)

    curve, best, best_state, waited = [], -1.0, None, 0
    bar = tqdm(total=steps, desc="teacher", unit="step", disable=not acc.is_main_process)
    for epoch in range(config.epochs):
        samples, groups = batches_of(data, config, epoch)
        model.train()
        total, tokens_seen, started = 0.0, 0, time.time()
        rng = np.random.default_rng([config.seed, epoch, acc.process_index])
        for group in share(groups, acc):
            tokens, labels = collate([samples[row] for row in group], tokenizer.pad_token_id)
            hide(tokens, tokenizer.pad_token_id, data.token_of, config.token_dropout, rng)
            tokens, labels = (torch.from_numpy(array).to(acc.device) for array in (tokens, labels))
            with acc.accumulate(model):
                # padding stands on the right, so the causal mask alone keeps it from every real token
                loss = model(input_ids=tokens, labels=labels).loss
                if not torch.isfinite(loss):
                    raise UserError(f"The loss is {loss.item()} in epoch {epoch + 1}; lower --lr or raise --clip.")
                acc.backward(loss)
                if acc.sync_gradients:
                    acc.clip_grad_norm_(trainable, config.clip)
                optimizer.step()
                optimizer.zero_grad()
            if acc.sync_gradients:
                schedule.step()
                bar.update()
            counted = int((labels >= 0).sum())
            total, tokens_seen = total + loss.item() * counted, tokens_seen + counted
            rate = f"{tokens_seen / (time.time() - started):.0f}"
            bar.set_postfix(epoch=epoch + 1, loss=f"{total / tokens_seen:.3f}", targets_s=rate, best=f"{best:.4f}")
        bare = acc.unwrap_model(model)
        value = validate(HFEngine(unpeft(bare), data, config.prompt), dataset, config)
        curve.append({"epoch": epoch + 1, "loss": total / tokens_seen, "valid_ndcg@10": value})
        if value > best:
            best, waited = value, 0
            best_state = {name: p.detach().cpu().clone() for name, p in trainable_state(bare).items()}
        elif (waited := waited + 1) >= config.patience:
            break
    bar.close()

    if acc.is_main_process:
        bare = acc.unwrap_model(model)
        bare.load_state_dict(best_state, strict=False)
        with stage.write() as folder:
            if config.mode == "lora":
                bare.save_pretrained(folder / "adapter")
                bare = bare.merge_and_unload()
            bare.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            facts = {"prompt": config.prompt, "max_history": config.max_history, "max_tokens": config.max_tokens}
            write_json(folder / "teacher.json", facts | {"valid_ndcg@10": best})
            write_json(folder / "curve.json", curve)
    acc.end_training()


def batches_of(data: TaskData, config: Config, epoch: int):
    """One epoch's samples and their batches; the same on every process."""
    samples = data.epoch(config.tasks, config.seed, epoch)
    return samples, batches(samples, config.batch_tokens, np.random.default_rng([config.seed, epoch]))


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


def trainable_state(model) -> dict[str, torch.Tensor]:
    """The trained parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def unpeft(model):
    """The causal model inside a PEFT wrapper, adapters in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def count(parameters) -> int:
    """Number of scalars."""
    return sum(parameter.numel() for parameter in parameters)
