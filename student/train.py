"""Train a light student: one of the variants of the paper (3.1 to 3.3).

    accelerate launch student/train.py --variant dtr --config configs/demo/student.yaml

`dtr` trains a retriever and then a ranker, and saves one recommender; every other variant is one stage. The loop is in
`student/loop.py`; it is imported when there is work to do, so that `--help` and finished work answer at once.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from distill.runtime import artifacts
from distill.runtime.artifacts import Artifact, ArtifactJob
from distill.runtime.config import JobSettings, run, suggest
from distill.runtime.errors import UserError
from distill.runtime.logs import log
from student import variants
from student.baselines import stage as baseline
from student.variants import Variant

PRESETS = ("demo", "small", "tiger-4m", "lohrec-13m")


@dataclass(frozen=True)
class Config(JobSettings):
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
    backbone: Literal["seq2seq", "causal", "nested", "sasrec", "gru4rec"] = "seq2seq"
    """The network: T5's encoder and decoder, a decoder alone that reads the history once, or one over items with
    another over an item's codewords inside (the fastest). Or one without semantic IDs, for tiger, distill, dwr and
    dwr-without-distill: then student/baseline.py's code makes it, in RUN/baselines, and reads only the options it has
    (configs/*/baseline.yaml)."""
    init: Path | None = None
    """causal: start from this Hugging Face causal language model, a teacher's folder or a base model's; no preset."""
    lora_rank: int = 0
    """init: train adapters of this rank and the codewords' rows; 0: all weights."""
    gradient_checkpointing: bool = field(default=False, metadata={"identity": False})
    """init: compute activations anew in the backward pass: slower, far smaller."""
    dim: int = field(default=64, metadata={"identity": False})
    """sasrec, gru4rec: size of an item's embedding."""
    layers: int | None = field(default=None, metadata={"identity": False})
    """sasrec, gru4rec: layers of the network (default: two, one)."""
    preset: str = "demo"
    """Sizes of the network: demo, small (1.2M parameters), tiger-4m (4.5M) or lohrec-13m (13M)."""
    dropout: float = 0.1
    """On embeddings and on every layer's output; with init, before the adapters."""
    epochs: int = 20
    """Passes over the training examples."""
    ranker_epochs: int = 5
    """Passes of dtr's second stage."""
    batch_size: int = 256
    """Rows a batch, process and accumulation step: examples, or users' sequences where one pass trains them."""
    accumulation: int = 1
    """Batches before each step of the optimiser; with N processes a step is over batch_size x accumulation x N rows."""
    one_pass: bool = True
    """causal, nested: train all targets of a user's sequence in one pass. Targets of another item than the next one,
    and histories that are shuffled under labels, go prefix by prefix regardless."""
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
    temperature: float = 0.7
    """Of the teacher's distributions (paper: 1)."""
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
    prior: Literal["teacher", "distance", "statistics", "mixture"] = "teacher"
    """Whose order the ranking loss teaches (paper, Appendix B): that of the soft labels, or that of a second set of
    labels; what DISTILL teaches stays the soft labels'."""
    prior_labels: Path | None = None
    """The second set (default: RUN/soft_labels-PRIOR)."""
    alpha: float = 0.0
    """Share of the hard label in DISTILL's weights."""
    confidence: float = 0.5
    """Weight labelled examples by 1 / rank^confidence, rank being the teacher's of the real next item; 0 (the paper):
    all alike."""
    rank_within: int = 5
    """No ranking loss where whoever made the list (--prior) ranked the real next item after this place; 0
    (the paper): always."""
    drop_items: float = 0.0
    """Augmentation: leave out each item of a history with this probability. In one pass its target goes with it."""
    reverse: float = 0.0
    """Augmentation: turn a history around with this probability; in one pass the whole sequence, whose targets have no
    labels then: the items themselves are taught."""
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

    @property
    def prior_folder(self) -> Path:
        return self.prior_labels or self.run / f"soft_labels-{self.prior}"


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
    if config.prior != "teacher":
        inputs.append(read_prior(config, variant))
    elif config.prior_labels:
        raise UserError("--prior_labels is given, but not whose they are: --prior distance, statistics or mixture.")
    output = config.output or config.run / "students" / config.variant
    if config.seeds:
        each_seed(
            config,
            output,
            lambda seed, place: train_one(replace(config, seed=seed, seeds=None), variant, inputs, place),
        )
    else:
        train_one(config, variant, inputs, output)


def each_seed(config: Config, output: Path, train: Callable[[int, Path], object]) -> None:
    """Train once a seed, into OUTPUT-seed0 and so on, and say mean and spread of the best validation NDCG@10."""
    best = {}
    for seed in config.seeds:
        place = output.with_name(f"{output.name}-seed{seed}")
        train(seed, place)
        curve = json.loads((place / "curve.json").read_text())
        if isinstance(curve, dict):  # of stages; the last one ranks
            curve = curve.get("ranker") or curve["retriever"]
        best[seed] = max(row["valid_ndcg@10"] for row in curve)
    values = list(best.values())
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    each = ", ".join(f"{value:.4f} (seed {seed})" for seed, value in best.items())
    log.info(f"{config.variant}: validation NDCG@10 {statistics.mean(values):.4f} ± {spread:.4f}: {each}")


def train_one(config: Config, variant: Variant, inputs: list[Artifact], output: Path) -> None:
    """Train one student unless it is finished."""
    extra = check_init(config.init, inputs[1]) if config.init else None
    stage = ArtifactJob("student", config, output, inputs, extra, overwrite=config.overwrite)
    if not stage.is_finished():
        from student.trainer import train

        train(config, variant, [artifact.folder for artifact in inputs], stage)


def read_prior(config: Config, variant: Variant) -> Artifact:
    """The labels whose order is taught in place of the soft labels'.

    Raises:
        UserError: the variant ranks nothing; there are no such labels, and the command that makes them is named.
    """
    if not variant.ranks:
        raise UserError(
            f"--prior {config.prior} is an order for the ranking loss, and {config.variant} has none; take --variant "
            "dwr, dtr or dwr-without-distill, or --labels rank."
        )
    folder = config.prior_folder
    mix = "llm=0.5,transitions=0.5" if config.prior == "mixture" else f"{config.prior}=1"
    words = {"run": config.run, "dataset": config.dataset, "semantic_ids": config.semantic_ids}
    words |= {"keep": config.candidates, "mix": mix, "output": folder}
    options = " ".join(f"--{name} {value}" for name, value in words.items() if value is not None)
    artifact = artifacts.read(folder, "soft_labels", f"{artifacts.COMMANDS['soft_labels']} {options}")
    return replace(artifact, role=config.prior)


def train_baseline(config: Config) -> None:
    """The same by a network without semantic IDs, once or once a seed: `student/baselines/stage.py` has all options.

    Raises:
        UserError: a variant or labels that such a network cannot learn.
    """
    if config.variant not in baseline.LOSSES or config.labels != "ref":
        asked = f"--variant {config.variant}" if config.labels == "ref" else f"--labels {config.labels}"
        raise UserError(f"{asked} is for backbones with semantic IDs (seq2seq, causal, nested); {config.backbone} "
                        f"learns --variant {', '.join(baseline.LOSSES)}.")  # fmt: skip
    shared = {one.name for one in fields(baseline.Config)} & {one.name for one in fields(config)}
    settings = baseline.Config(
        network=config.backbone,
        loss=baseline.LOSSES[config.variant],
        **{name: getattr(config, name) for name in shared},
    )
    if config.seeds:
        each_seed(
            config,
            baseline.place(settings),
            lambda seed, output: baseline.make(replace(settings, seed=seed, output=output)),
        )
    else:
        baseline.make(settings)


def check_init(folder: Path, ids: Artifact) -> dict[str, Any]:
    """What a student starts from, for the stage's identity.

    Args:
        folder: of a Hugging Face checkpoint, a teacher's or any other.
        ids: the semantic IDs.

    Raises:
        UserError: there is none, or a teacher of other semantic IDs.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        adapter = (folder / "adapter_config.json").is_file()
        kind = "a LoRA adapter; merge it first (teacher/merge.py)" if adapter else "no config.json with *.safetensors"
        raise UserError(f"--init {folder} is no Hugging Face checkpoint: it holds {kind}.")
    if not (folder / artifacts.MANIFEST).is_file():
        sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
        return {"init": {"config": (folder / "config.json").read_text(), "weights": sizes}}
    teacher = artifacts.read(folder, "teacher")
    if teacher.inputs.get("semantic_ids", ids.fingerprint) != ids.fingerprint:
        raise UserError(
            f"The teacher at {folder} speaks the codewords of semantic_ids {teacher.inputs['semantic_ids']}, the "
            f"student's are {ids.fingerprint}, at {ids.folder}: another codebook. Tune a teacher on these."
        )
    return {"init": teacher.fingerprint}


def check(config: Config) -> None:
    """Refuse settings that no training can have.

    Raises:
        UserError: which, and what it may be.
    """
    if config.init and config.backbone != "causal":
        raise UserError(f"--init starts from a causal language model; --backbone {config.backbone} is none.")
    if not config.init and (config.lora_rank or config.gradient_checkpointing):
        raise UserError("--lora_rank and --gradient_checkpointing are for a large student; give --init.")
    if config.preset not in PRESETS:
        raise UserError(f"Unknown preset {config.preset!r}. {suggest(config.preset, PRESETS)}")
    least = {"epochs": 1, "ranker_epochs": 1, "batch_size": 1, "accumulation": 1, "candidates": 2, "max_history": 1}
    least |= {"width": 1, "valid_users": 1, "patience": 0, "checkpoint_every": 0, "keep_checkpoints": 1}
    least |= {"rank_within": 0, "buffer_rows": 1, "confidence": 0, "shuffle": 0, "lora_rank": 0}
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


if __name__ == "__main__":
    run(main, Config, "demo/student.yaml")
