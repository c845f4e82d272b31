"""Tune a causal LLM to recommend items as semantic IDs (LC-Rec; paper 3.1).

    accelerate launch teacher/finetune.py --config configs/demo/teacher.yaml

Without `base`, a small LLaMA with a tokenizer of the catalogue's words starts from random weights, offline.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from distill.artifacts import Stage, UserError, say, write_json
from distill.catalog import Dataset
from distill.config import run, suggest
from distill.launch import accelerator, share
from distill.metrics import hit_ranks, ndcg
from distill.semantic_ids import SemanticIDs
from teacher import model as models
from teacher.engines.hf import HFEngine
from teacher.tasks import TASKS, TaskData, batches, collate


@dataclass(frozen=True)
class Config:
    """Fine-tune the teacher: accelerate launch teacher/finetune.py [--config FILE] [--field value ...]."""

    run: Path = Path("runs/demo")
    """Folder of the run; inputs and output default to their names inside it."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    semantic_ids: Path | None = None
    """Semantic IDs artifact (default: RUN/semantic_ids)."""
    output: Path | None = None
    """Where the teacher goes (default: RUN/teacher)."""
    base: str | None = None
    """Base model, a local path or hub name (LLaMA-7B); none: a small LLaMA from a random start."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Without a base: fields of LlamaConfig (hidden_size, intermediate_size, num_hidden_layers, ...)."""
    vocab_size: int = 1024
    """Without a base: text tokens of the tokenizer trained on the catalogue."""
    mode: Literal["full", "lora"] = "full"
    """Train all weights, or LoRA adapters and the codewords' rows."""
    lora_rank: int = 8
    """LoRA's r."""
    lora_alpha: int = 32
    """LoRA's alpha."""
    lora_dropout: float = 0.05
    """Dropout before the adapters."""
    attention_dropout: float = 0.0
    """Dropout on attention weights."""
    tasks: dict[str, float] = field(default_factory=lambda: {"stream": 1.0})
    """Passes a task and epoch: stream, seqrec, item2index, index2item."""
    prompt: Literal["stream", "seqrec"] = "stream"
    """How the teacher is asked for recommendations; a task of that name must be tuned on."""
    epochs: int = 10
    """Passes over the tasks."""
    batch_tokens: int = 4096
    """Tokens a batch and process, padding included."""
    accumulation: int = 1
    """Batches an optimiser step."""
    lr: float = 1e-3
    """Peak learning rate (LC-Rec: 5e-5 full, 1e-4 LoRA, for 7B)."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    clip: float = 1.0
    """Largest gradient norm."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, far smaller."""
    max_history: int = 20
    """Items of history (paper: 20)."""
    max_tokens: int = 256
    """Longest sequence in tokens."""
    valid_users: int = 500
    """Users whose validation NDCG@10 chooses the epoch that is kept."""
    seed: int = 0
    """Of weights, order and templates."""
    overwrite: bool = field(default=False, metadata={"identity": False})
    """Repeat finished work."""


def main(config: Config) -> None:
    """Tune, keep the best epoch, merge, save."""
    for task in config.tasks:
        if task not in TASKS:
            raise UserError(f"Unknown task {task!r}. {suggest(task, list(TASKS))}")
    if not config.tasks.get(config.prompt):
        raise UserError(f"The teacher is asked with {config.prompt!r} but not tuned on it; give tasks.{config.prompt}.")
    dataset = Dataset.load(config.dataset or config.run / "dataset")
    ids = SemanticIDs.load(config.semantic_ids or config.run / "semantic_ids", dataset.n_items)
    stage = Stage(
        "teacher", config, config.output or config.run / "teacher", [dataset.artifact, ids.artifact],
        overwrite=config.overwrite,
    )  # fmt: skip
    if stage.is_finished():
        return

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

    data = TaskData(dataset, ids, tokenizer, config.max_history, config.max_tokens)
    optimizer = torch.optim.AdamW(trainable, config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    plan = [batches_of(data, config, epoch)[1] for epoch in range(config.epochs)]
    steps = sum(math.ceil(len(share(groups, acc)) / config.accumulation) for groups in plan)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(config.warmup * steps), steps)
    model, optimizer = acc.prepare(model, optimizer)

    curve, best, best_state = [], -1.0, None
    bar = tqdm(total=steps, desc="teacher", unit="step", disable=not acc.is_main_process)
    for epoch in range(config.epochs):
        samples, groups = batches_of(data, config, epoch)
        model.train()
        total, tokens_seen, started = 0.0, 0, time.time()
        for group in share(groups, acc):
            tokens, labels = collate([samples[row] for row in group], tokenizer.pad_token_id)
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
            best, best_state = value, {name: p.detach().cpu().clone() for name, p in trainable_state(bare).items()}
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


if __name__ == "__main__":
    run(main, Config, "demo/teacher.yaml")
