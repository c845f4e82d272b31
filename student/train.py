"""Train a light student: one of the variants of the paper (3.1 to 3.3).

    accelerate launch student/train.py --variant dtr --config configs/demo/student.yaml

`dtr` trains a retriever and then a ranker, and saves one recommender; every other variant is one stage. The loop is in
`student/loop.py`; it is imported when there is work to do, so that `--help` and finished work answer at once.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from distill import artifacts
from distill.artifacts import Artifact, Stage, UserError, say
from distill.config import run, suggest
from student import variants
from student.baselines import stage as baseline
from student.variants import Variant

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
    """tiger, smooth, distill, dtr, dwr, or dwr-without-distill."""
    backbone: Literal["seq2seq", "causal", "sasrec", "gru4rec"] = "seq2seq"
    """The network: T5's encoder and decoder, or a decoder alone that reads the history once. Or one without semantic
    IDs, for tiger, distill, dwr and dwr-without-distill: then student/baseline.py's code makes it, in RUN/baselines,
    and reads only the options it has (configs/*/baseline.yaml)."""
    preset: str = "demo"
    """Sizes of the network: demo, tiger-4m or lohrec-13m."""
    dropout: float = 0.1
    """On embeddings and on every layer's output."""
    dim: int = field(default=64, metadata={"identity": False})
    """sasrec, gru4rec: size of an item's embedding."""
    layers: int | None = field(default=None, metadata={"identity": False})
    """sasrec, gru4rec: layers of the network (default: two, one)."""
    epochs: int = 20
    """Passes over the training examples."""
    ranker_epochs: int = 5
    """Passes of dtr's second stage."""
    batch_size: int = 256
    """Rows a batch, process and accumulation step: examples, or users' sequences where `causal` trains in one pass."""
    accumulation: int = 1
    """Batches before each step of the optimiser; with N processes a step is over batch_size x accumulation x N rows."""
    one_pass: bool = True
    """causal: train all targets of a user's sequence in one pass. Targets of another item than the next one, and
    histories that are reversed or shuffled under labels, go prefix by prefix regardless."""
    long_histories: Literal["windows", "prefixes"] = "windows"
    """In one pass, targets with more than max_history items before them: windows that overlap by half, so that each has
    the last max_history/2 to max_history items, or prefix by prefix with exactly the last max_history."""
    buffer_rows: int = field(default=65536, metadata={"identity": False})
    """Labels in memory at once; batches are drawn from among them."""
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
    rank_positions: Literal["one", "all"] = "one"
    """In one pass, rank candidates at one position of each sequence and step, drawn at random (it stands for all of
    them, so the loss is the same on average), or at all."""
    labels: Literal["ref", "top", "random", "rank"] = "ref"
    """What is taught (alignment study, 4.6): the real next item, the teacher's first, any item of its list, or nothing
    but the order of its list."""
    alpha: float = 0.0
    """Share of the hard label in DISTILL's weights."""
    confidence: float = 0.0
    """Weight examples by 1 / rank^confidence, rank being the teacher's of the real next item; 0: all alike."""
    rank_within: int = 0
    """No ranking loss where the teacher ranked the real next item after this place; 0: always."""
    drop_items: float = 0.0
    """Augmentation: leave out each item of a history with this probability. In one pass its target goes with it."""
    reverse: float = 0.0
    """Augmentation: turn a history around with this probability; in one pass, the whole sequence."""
    shuffle: int = 0
    """Augmentation: move items by at most so many places; in one pass, of the whole sequence."""
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
    """Stop after so many epochs without a better one; 0: never."""
    checkpoint_every: int = field(default=200, metadata={"identity": False})
    """Steps between checkpoints, from which a broken run goes on; 0: none."""
    keep_checkpoints: int = field(default=1, metadata={"identity": False})
    """The last so many checkpoints are kept while the training runs."""
    tracker: str = field(default="tensorboard", metadata={"identity": False})
    """Where the curves go: tensorboard (RUN/logs/students), none, or another that Accelerate knows."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    seed: int = 0
    """Of weights and order."""
    seeds: list[int] | None = field(default=None, metadata={"identity": False})
    """Train once for each, into OUTPUT-seed0 and so on, and say mean and spread of validation NDCG@10."""
    overwrite: bool = False
    """Repeat finished work."""


def main(config: Config) -> None:
    """Check the config and the inputs, then train, once or once a seed."""
    variant = variants.find(config.variant, config.labels)
    check(config)
    if config.backbone in baseline.NETWORKS:
        train_baseline(config)
        return
    inputs = [
        artifacts.read(config.dataset or config.run / "dataset", "dataset"),
        artifacts.read(config.semantic_ids or config.run / "semantic_ids", "semantic_ids"),
    ]
    if variant.needs_labels:
        inputs.append(artifacts.read(config.soft_labels or config.run / "soft_labels", "soft_labels"))
    output = config.output or config.run / "students" / config.variant
    if not config.seeds:
        train_one(config, variant, inputs, output)
        return
    best = {}
    for seed in config.seeds:
        place = output.with_name(f"{output.name}-seed{seed}")
        train_one(replace(config, seed=seed, seeds=None), variant, inputs, place)
        curve = json.loads((place / "curve.json").read_text())
        last = curve.get("ranker") or curve["retriever"]
        best[seed] = max(row["valid_ndcg@10"] for row in last)
    say_spread(config, best)


def say_spread(config: Config, best: dict[int, float]) -> None:
    """Mean and spread of validation NDCG@10 over the seeds."""
    values = list(best.values())
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    each = ", ".join(f"{value:.4f} (seed {seed})" for seed, value in best.items())
    say(f"{config.variant}: validation NDCG@10 {statistics.mean(values):.4f} ± {spread:.4f}: {each}")


def train_one(config: Config, variant: Variant, inputs: list[Artifact], output: Path) -> None:
    """Train one student unless it is finished."""
    stage = Stage("student", config, output, inputs, overwrite=config.overwrite)
    if not stage.is_finished():
        from student.loop import train

        train(config, variant, [artifact.folder for artifact in inputs], stage)


def check(config: Config) -> None:
    """Refuse settings that no training can have.

    Raises:
        UserError: which, and what it may be.
    """
    if config.preset not in PRESETS:
        raise UserError(f"Unknown preset {config.preset!r}. {suggest(config.preset, PRESETS)}")
    least = {"epochs": 1, "ranker_epochs": 1, "batch_size": 1, "accumulation": 1, "candidates": 2, "max_history": 1}
    least |= {"width": 1, "valid_users": 1, "patience": 0, "checkpoint_every": 0, "keep_checkpoints": 1}
    least |= {"rank_within": 0, "buffer_rows": 1, "confidence": 0, "shuffle": 0}
    for name, smallest in least.items():
        if getattr(config, name) < smallest:
            raise UserError(f"--{name} is {getattr(config, name)}; it must be at least {smallest}.")
    for name in ("drop_items", "reverse", "alpha", "rank_from", "dropout", "xi", "warmup"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"--{name} is {getattr(config, name)}; it must lie between 0 and 1.")
    for name in ("lr", "ranker_lr", "temperature", "clip"):
        if getattr(config, name) <= 0:
            raise UserError(f"--{name} is {getattr(config, name)}; it must be above 0.")
    if config.seeds is not None and len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"--seeds {config.seeds} names a seed twice.")


def train_baseline(config: Config) -> None:
    """The same by a network without semantic IDs, once or once a seed: `student/baselines/stage.py` has all options.

    Raises:
        UserError: a variant or labels that such a network cannot learn.
    """
    if config.variant not in baseline.LOSSES or config.labels != "ref":
        asked = f"--variant {config.variant}" if config.labels == "ref" else f"--labels {config.labels}"
        raise UserError(f"{asked} is for backbones with semantic IDs (seq2seq, causal); {config.backbone} learns "
                        f"--variant {', '.join(baseline.LOSSES)}.")  # fmt: skip
    shared = {one.name for one in fields(baseline.Config)} & {one.name for one in fields(config)}
    settings = baseline.Config(
        network=config.backbone,
        loss=baseline.LOSSES[config.variant],
        **{name: getattr(config, name) for name in shared},
    )
    best = {}
    for seed in config.seeds or ():
        output = baseline.place(settings)
        folder = baseline.make(replace(settings, seed=seed, output=output.with_name(f"{output.name}-seed{seed}")))
        best[seed] = max(row["valid_ndcg@10"] for row in json.loads((folder / "curve.json").read_text()))
    if config.seeds:
        say_spread(config, best)
    else:
        baseline.make(settings)


if __name__ == "__main__":
    run(main, Config, "demo/student.yaml")
