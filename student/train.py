"""Train a light student: one of the variants of the paper (3.1 to 3.3).

    accelerate launch student/train.py --variant dtr --config configs/demo/student.yaml

`dtr` trains a retriever and then a ranker, and saves one recommender; every other variant is one stage. The loop is in
`student/loop.py`; it is imported when there is work to do, so that `--help` and finished work answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill import artifacts
from distill.artifacts import Stage, UserError
from distill.config import run, suggest
from student import variants

PRESETS = ("demo", "tiger-4m", "lohrec-13m")


@dataclass(frozen=True)
class Config:
    """Train a student: accelerate launch student/train.py --variant NAME [--config FILE] [--field value ...]."""

    run: Path = Path("runs/demo")
    """Folder of the run; inputs and output default to their names inside it."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    semantic_ids: Path | None = None
    """Semantic IDs artifact (default: RUN/semantic_ids)."""
    soft_labels: Path | None = None
    """Soft labels artifact (default: RUN/soft_labels); not read by variants that need none."""
    output: Path | None = None
    """Where the student goes (default: RUN/students/VARIANT)."""
    variant: str = "tiger"
    """tiger, smooth, distill, dtr or dwr."""
    backbone: Literal["seq2seq", "causal"] = "seq2seq"
    """The network: T5's encoder and decoder, or a decoder alone that reads the history once."""
    preset: str = "demo"
    """Sizes of the network: demo, tiger-4m or lohrec-13m."""
    dropout: float = 0.1
    """On embeddings and on every layer's output."""
    epochs: int = 20
    """Passes over the training examples."""
    ranker_epochs: int = 5
    """Passes of dtr's second stage."""
    batch_size: int = 256
    """Examples a batch and process."""
    lr: float = 2e-3
    """Peak learning rate."""
    ranker_lr: float = 5e-4
    """Peak learning rate of dtr's second stage, which starts from the retriever."""
    weight_decay: float = 0.05
    """AdamW's weight decay."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    clip: float = 1.0
    """Largest gradient norm."""
    scope: Literal["level", "all"] = "level"
    """Softmax over the level's codewords, or over all levels'."""
    xi: float = 0.1
    """ξ of label smoothing, equation (10)."""
    temperature: float = 1.0
    """Of the teacher's distributions."""
    gamma: float = 1.0
    """γ, weight of the ranking loss beside a generative one, equation (16)."""
    rank_from: float = 0.0
    """Share of the steps that pass before the ranking loss joins a generative one (paper: 0); before, it costs time and
    the order of candidates that the student cannot yet tell apart teaches little."""
    margin: float = 0.001
    """λ of the ranking loss, equation (14)."""
    eta: float = 1.0
    """η, length exponent of M."""
    candidates: int = 16
    """k, candidates ranked."""
    max_history: int = 20
    """Items of history (paper: 20)."""
    width: int = 20
    """Beams in validation."""
    exclude_bought: bool | None = None
    """Never recommend items of the history, in validation and by default later (default: where the training part never
    has an item twice)."""
    valid_users: int = 1000
    """Users whose validation NDCG@10 chooses the epoch that is kept."""
    patience: int = 5
    """Stop after so many epochs without a better one."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    seed: int = 0
    """Of weights and order."""
    overwrite: bool = False
    """Repeat finished work."""


def main(config: Config) -> None:
    """Check the config and the inputs, then train."""
    variant = variants.find(config.variant)
    if config.preset not in PRESETS:
        raise UserError(f"Unknown preset {config.preset!r}. {suggest(config.preset, PRESETS)}")
    inputs = [
        artifacts.read(config.dataset or config.run / "dataset", "dataset"),
        artifacts.read(config.semantic_ids or config.run / "semantic_ids", "semantic_ids"),
    ]
    if variant.needs_labels:
        inputs.append(artifacts.read(config.soft_labels or config.run / "soft_labels", "soft_labels"))
    output = config.output or config.run / "students" / config.variant
    stage = Stage("student", config, output, inputs, overwrite=config.overwrite)
    if not stage.is_finished():
        from student.loop import train

        train(config, variant, [artifact.folder for artifact in inputs], stage)


if __name__ == "__main__":
    run(main, Config, "demo/student.yaml")
