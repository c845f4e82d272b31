"""Tune a causal LLM to recommend items as semantic IDs (LC-Rec; paper 3.1).

    accelerate launch teacher/finetune.py --config configs/demo/teacher.yaml

Without `base`, a small LLaMA with a tokenizer of the catalogue's words starts from random weights, offline. The loop is
in `teacher/loop.py`; it is imported when there is work to do, so that `--help` and finished work answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distill import artifacts
from distill.artifacts import Stage, UserError
from distill.config import run, suggest

TASKS = ("stream", "seqrec", "item2index", "index2item")


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
    sizes: dict[str, float] = field(default_factory=dict)
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
    token_dropout: float = 0.0
    """Share of codewords in the context that are hidden in training: a small teacher learns to use the others."""
    crop: float = 0.0
    """Share of the `stream` sequences that begin at a random item: the same purchases after other histories."""
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
    valid_users: int = 1000
    """Users whose validation NDCG@10 chooses the epoch that is kept."""
    patience: int = 3
    """Stop after so many epochs without a better one."""
    seed: int = 0
    """Of weights, order and templates."""
    overwrite: bool = False
    """Repeat finished work."""


def main(config: Config) -> None:
    """Check the config and the inputs, then tune."""
    for task in config.tasks:
        if task not in TASKS:
            raise UserError(f"Unknown task {task!r}. {suggest(task, TASKS)}")
    if not config.tasks.get(config.prompt):
        raise UserError(f"The teacher is asked with {config.prompt!r} but not tuned on it; give tasks.{config.prompt}.")
    dataset = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    ids = artifacts.read(config.semantic_ids or config.run / "semantic_ids", "semantic_ids")
    output = config.output or config.run / "teacher"
    stage = Stage("teacher", config, output, [dataset, ids], overwrite=config.overwrite)
    if not stage.is_finished():
        from teacher.loop import tune

        tune(config, dataset.folder, ids.folder, stage)


if __name__ == "__main__":
    run(main, Config, "demo/teacher.yaml")
