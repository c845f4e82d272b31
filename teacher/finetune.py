"""Tune a causal LLM to recommend items as semantic IDs (LC-Rec; paper 3.1).

    accelerate launch teacher/finetune.py --config configs/demo/teacher.yaml

Without `base`, a small LLaMA with a tokenizer of the catalogue's words starts from random weights, offline. The loop is
in `teacher/loop.py`; it is imported when there is work to do, so that `--help` and finished work answer at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import JobSettings, run, suggest
from distill.runtime.errors import UserError

TASKS = ("stream", "seqrec", "item2index", "index2item", "fusionseqrec", "itemsearch", "preferenceobtain")


@dataclass(frozen=True)
class Config(JobSettings):
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
    sizes: dict[str, float] = field(default_factory=dict)
    """Without a base: fields of LlamaConfig (hidden_size, intermediate_size, num_hidden_layers, ...)."""
    vocab_size: int = 1024
    """Without a base: text tokens of the tokenizer trained on the catalogue."""
    mode: Literal["full", "lora", "qlora"] = "full"
    """Train all weights; or LoRA adapters and the codewords' rows; or these beside a base in 4 bits (needs `base`)."""
    lora_rank: int = 8
    """LoRA's r."""
    lora_alpha: int = 32
    """LoRA's alpha."""
    lora_dropout: float = 0.05
    """Dropout before the adapters."""
    init_codewords: Literal["mean", "codebook"] = "mean"
    """What the codewords' rows start from: the mean of the base's rows plus noise (without a base: as all rows do), or
    the quantiser's code vectors, projected."""
    attention_dropout: float = 0.0
    """Dropout on attention weights."""
    token_dropout: float = 0.0
    """Share of codewords in the context that are hidden in training: a small teacher learns to use the others."""
    crop: float = 0.0
    """Share of the `stream` sequences that begin at a random item: the same purchases after other histories."""
    reverse: float = 0.0
    """Share of the `stream` sequences that run backwards, for data whose order says little (same-day purchases)."""
    drop_items: float = 0.0
    """Share of the `stream` sequences' items that are left out."""
    tasks: dict[str, float] = field(default_factory=lambda: {"stream": 1.0})
    """Passes a task and epoch: stream, and LC-Rec's seqrec, item2index, index2item, fusionseqrec, itemsearch and
    preferenceobtain."""
    intentions: Path | None = None
    """Users' intentions and preferences (LC-Rec's user.json), for itemsearch and preferenceobtain (default: derived
    from item texts)."""
    chat: bool = False
    """Put prompts into the base model's chat template."""
    prompt: Literal["stream", "seqrec"] = "stream"
    """How the teacher is asked for recommendations; a task of that name must be tuned on."""
    epochs: int = 10
    """Passes over the tasks."""
    batch_tokens: int = 4096
    """Tokens a batch and process, padding included."""
    packing: bool = False
    """Several samples a row, which do not see each other: less padding where lengths differ."""
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
    valid_users: int = 1000
    """Users whose validation NDCG@10 chooses the epoch that is kept."""
    patience: int = 3
    """Stop after so many epochs without a better one; 0: never."""
    checkpoint_every: int = field(default=1000, metadata={"identity": False})
    """Optimiser steps between two checkpoints, from which a killed run goes on; 0: none."""
    keep_checkpoints: int = field(default=2, metadata={"identity": False})
    """How many of the last checkpoints are kept until the run is finished."""
    folds: int = 0
    """Cross-fitting: tune without the users of one of so many folds, so that it can label them; 0: on all users."""
    fold: int = 0
    """Which fold is left out, from 0; the output is then RUN/teacher-fold<i> by default."""
    tracker: str = field(default="tensorboard", metadata={"identity": False})
    """Where the curves go: tensorboard (logs/teacher beside the output), none, or another that Accelerate knows."""
    seed: int = 0
    """Of weights, order and templates."""
    dry_run: bool = field(default=False, metadata={"identity": False})
    """Train nothing, write nothing: check the config against the data, and say what the training would take."""
    base_config: Path | None = None
    """Dry run: the base model's config.json, where the base itself is not on this machine."""
    gpu: Literal["a100", "b200", "h100", "h200", "l40s", "rtx4090"] = field(
        default="h100", metadata={"identity": False}
    )
    """Dry run: whose time and memory are estimated."""
    gpus: int = field(default=1, metadata={"identity": False})
    """Dry run: how many of them."""
    utilisation: float = field(default=0.4, metadata={"identity": False})
    """Dry run: share of the GPU's peak that the training reaches."""


def main(config: Config) -> None:
    """Check the config and the inputs, then tune."""
    check(config)
    dataset = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    ids = artifacts.read(config.semantic_ids or config.run / "semantic_ids", "semantic_ids")
    if config.dry_run:
        from teacher.estimate import plan, show

        show(plan(config, dataset.folder, ids.folder))
        return
    extra = {"intentions": file_hash(config.intentions)} if config.intentions else None
    output = config.output or config.run / (f"teacher-fold{config.fold}" if config.folds else "teacher")
    stage = ArtifactJob("teacher", config, output, [dataset, ids], extra, overwrite=config.overwrite)
    if not stage.is_finished():
        from teacher.trainer import tune

        tune(config, dataset.folder, ids.folder, stage)


def check(config: Config) -> None:
    """Refuse what needs no data to be seen as wrong.

    Raises:
        UserError: unknown tasks, a prompt that is not tuned on, numbers out of range.
    """
    for task, weight in config.tasks.items():
        if task not in TASKS:
            raise UserError(f"Unknown task {task!r}. {suggest(task, TASKS)}")
        if weight < 0:
            raise UserError(f"tasks.{task} is {weight}; expected 0 or more passes an epoch.")
    if not config.tasks.get(config.prompt):
        raise UserError(f"The teacher is asked with {config.prompt!r} but not tuned on it; give tasks.{config.prompt}.")
    for name, least in (
        ("epochs", 1),
        ("patience", 0),
        ("accumulation", 1),
        ("checkpoint_every", 0),
        ("keep_checkpoints", 1),
        ("gpus", 1),
        ("folds", 0),
        ("fold", 0),
    ):
        if getattr(config, name) < least:
            raise UserError(f"--{name} is {getattr(config, name)}; expected {least} or more.")
    if config.folds == 1 or config.fold >= max(config.folds, 1):
        raise UserError(f"--fold {config.fold} of --folds {config.folds}; expected 2 folds or more, counted from 0.")
    if not 0 < config.utilisation <= 1:
        raise UserError(f"--utilisation is {config.utilisation}; expected a share above 0 and up to 1.")
    if config.mode == "qlora" and config.base is None:
        raise UserError("--mode qlora trains beside a base model in 4 bits; give --base.")
    if config.chat and config.base is None:
        raise UserError("--chat needs a base model with a chat template; give --base.")


def file_hash(path: Path) -> str:
    """Content hash of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None


if __name__ == "__main__":
    run(main, Config, "demo/teacher.yaml")
