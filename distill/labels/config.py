"""Settings of the export of soft labels, in groups; `Config` of the command has the fields of all."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from distill.labels.labeller import LAST_LAYER
from distill.runtime.config import IF_CHANGED, JobSettings, suggest
from distill.runtime.errors import UserError
from distill.runtime.launch import process_count, process_number
from distill.runtime.ray_settings import RaySettings, check_ray

TEACHERS = ("llm", "transitions", "distance", "statistics", "item_model", "content")


@dataclass(frozen=True)
class FolderSettings:
    """Inputs and output."""

    run: Path = Path("runs/demo")
    """Folder of the run; inputs and output default to their names inside it."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    semantic_ids: Path | None = None
    """Semantic IDs artifact (default: RUN/semantic_ids)."""
    teacher: Path | None = None
    """Teacher artifact (default: RUN/teacher); with folds its neighbours teacher-fold0, teacher-fold1, ... are read."""
    embeddings: Path | None = None
    """Embeddings of the items' texts, for content (default: RUN/embeddings)."""
    output: Path | None = None
    """Where the labels go (default: RUN/soft_labels)."""
    reuse: Path | None = None
    """Labels of an earlier version of the data set, by the same teacher and settings: targets of the same user and
    position with the same history keep their rows, and only the others are labelled. Their candidates do not hold items
    that were launched since. For mix llm=1."""
    reuse_dataset: Path | None = None
    """The data set of these labels (default: where it was when they were made)."""


@dataclass(frozen=True)
class TeacherSettings:
    """Teachers that label."""

    mix: dict[str, float] = field(default_factory=lambda: {"llm": 1.0})
    """Teachers and their weights: llm (the teacher artifact), transitions (counts, leave-one-out), distance and
    statistics (paper, Appendix B), item_model (a trained network over items), content (the similarity of texts);
    "llm=0.7,transitions=0.3" for short. Without llm no teacher artifact is read."""
    item_model: Path | None = None
    """The network of item_model: a SASRec, GRU4Rec, FMLP-Rec or SETRec (default: RUN/baselines/setrec); with folds its
    neighbours NAME-fold0, NAME-fold1, ... are read (default: RUN/folds/setrec)."""
    item_temperature: PositiveFloat = field(default=1.0, metadata=IF_CHANGED)
    """Temperature of item_model: divides its scores."""
    folds: NonNegativeInt = 0
    """Cross-fitting: users of fold i are labelled by teacher-fold<i>, a network of that fold, or counts without them;
    0: none."""


@dataclass(frozen=True)
class EngineSettings:
    """Running the language model."""

    engine: Literal["hf", "vllm"] = "hf"
    """What runs the teacher: plain PyTorch or vLLM."""
    batch_size: PositiveInt = field(default=64, metadata={"identity": False})
    """Examples of a forward pass."""
    device: str = field(default="auto", metadata={"identity": False})
    """auto, cpu or cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the teacher's weights."""
    tensor_parallel_size: PositiveInt = field(default=1, metadata={"identity": False})
    """vllm: GPUs that share one model."""
    gpu_memory_utilization: PositiveFloat = field(default=0.9, metadata={"identity": False})
    """vllm: share of a GPU's memory for weights and caches."""
    kv_cache_gb: PositiveFloat | None = field(default=None, metadata={"identity": False})
    """vllm: gigabytes of keys and values instead (default on CPUs: 1)."""
    max_num_seqs: PositiveInt = field(default=256, metadata={"identity": False})
    """vllm: requests in one forward pass."""


@dataclass(frozen=True)
class ExampleSettings:
    """Examples that are labelled."""

    split: Literal["train", "valid", "test"] = "train"
    """The split whose examples are labelled."""
    limit: PositiveInt | None = None
    """Label only the first N examples."""
    users: str | None = None
    """Label only these users, by number: N for the first N, FROM:TO for a range."""


@dataclass(frozen=True)
class LabelSettings:
    """Candidates and distributions."""

    width: PositiveInt = 25
    """Beam width (paper: 25)."""
    keep: PositiveInt = 16
    """Candidates kept after correction, the reference first (paper: 16)."""
    exclude_bought: bool | None = None
    """Leave items of the history out of the candidates (default: where the training part never has an item twice)."""
    unconstrained: bool = False
    """Search beams of any codewords and drop the invalid IDs, as in the paper; otherwise search valid IDs only."""
    scope: Literal["level", "all"] = "level"
    """Log-probabilities of the codewords of each position's level, or of all levels."""
    features: NonNegativeInt = field(default=0, metadata=IF_CHANGED)
    """Store the language model's hidden states before each codeword, of the layers that feature_layers names, each
    projected to so many numbers of a byte, for students with --feature_weight; 0: none."""
    feature_layers: list[int] = field(default_factory=lambda: list(LAST_LAYER), metadata=IF_CHANGED)
    """Layers whose states are stored: from 1, or backwards from -1, the last; such as [10,20,-1]."""


@dataclass(frozen=True)
class ShardSettings:
    """Storage, and the division of the work."""

    encoding: Literal["fp16", "u8", "topk+tail"] = "u8"
    """How log-probabilities are stored: u8 loses less than .001 nats (256 codewords) in about a third of the bytes."""
    shard_rows: PositiveInt = 4096
    """Examples of a shard, about: shards end where users end."""
    shard: str | None = field(default=None, metadata={"identity": False})
    """I/N: only every Nth shard from the Ith (0 to N-1), for job arrays; launched processes need no such option."""


@dataclass(frozen=True)
class RunSettings(JobSettings):
    """Before and after the export."""

    dry_run: bool = field(default=False, metadata={"identity": False})
    """Write nothing: label 200 examples and report what all of them would take."""
    push: str | None = field(default=None, metadata={"identity": False})
    """Copy the finished set there: a name on the Hugging Face hub (USER/NAME), or a folder (./NAME)."""


@dataclass(frozen=True)
class Config(
    FolderSettings,
    TeacherSettings,
    EngineSettings,
    ExampleSettings,
    LabelSettings,
    ShardSettings,
    RaySettings,
    RunSettings,
):
    """Export soft labels: python distill/export_soft_labels.py [--config FILE] [--field value ...]."""


def check(config: Config) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UserError: unreadable users or shard; an unknown teacher, a weight that is not positive, a single fold, folds
            with vLLM, one shard of a set that is to be overwritten; Ray's settings without Ray, or Ray in a launch.
    """
    for name, weight in config.mix.items():
        if name not in TEACHERS:
            raise UserError(f"Unknown teacher {name!r} in --mix. {suggest(name, TEACHERS)}")
        if not 0 < weight < math.inf:
            raise UserError(f"mix.{name} is {weight}; expected a weight above 0, or leave {name} out.")
    if not config.mix:
        raise UserError("--mix is empty; expected a teacher or more, such as llm=0.7,transitions=0.3.")
    if "item_model" not in config.mix and (config.item_model or config.item_temperature != 1):
        raise UserError("--item_model and --item_temperature are for --mix item_model=1, alone or beside others.")
    if config.embeddings and "content" not in config.mix:
        raise UserError("--embeddings are the texts that content compares: --mix content=1, alone or beside others.")
    if config.features and (config.mix.keys() != {"llm"} or config.engine != "hf"):
        raise UserError("--features are hidden states of a language model in PyTorch: --mix llm=1 --engine hf.")
    if not config.features and config.feature_layers != list(LAST_LAYER):
        raise UserError("--feature_layers are layers whose states are stored; say by how many numbers: --features 64.")
    if config.reuse and (config.mix.keys() != {"llm"} or config.folds):
        raise UserError(
            "--reuse keeps labels of a language model, --mix llm=1 without --folds: counts change with every "
            "interaction, and folds go by the users' numbers. Leave --reuse out; counts are made anew in seconds."
        )
    if config.reuse_dataset and not config.reuse:
        raise UserError("--reuse_dataset is the data set of the labels that --reuse names; give both.")
    if config.folds == 1:
        raise UserError("--folds 1 would leave no other users to learn from; expected 0 (none) or 2 folds or more.")
    if config.folds and config.engine == "vllm" and "llm" in config.mix:
        raise UserError("--folds needs every fold's model at once, and vLLM holds one; run with --engine hf.")
    if config.shard and config.overwrite:
        raise UserError("--overwrite would delete the other processes' shards; run one process without --shard first.")
    parse_users(config.users)
    parse_shard(config.shard)
    if config.launcher == "ray" and config.shard:
        raise UserError("--launcher ray divides the work itself: start one process with python, without --shard.")
    check_ray(config)


def parse_users(text: str | None) -> tuple[int, float]:
    """Read N or FROM:TO: the first user and the one after the last."""
    if text is None:
        return 0, math.inf
    first, _, last = text.rpartition(":")
    try:
        bounds = int(first or 0), int(last)
    except ValueError:
        bounds = 0, 0
    if not 0 <= bounds[0] < bounds[1]:
        raise UserError(f"--users {text}: expected N or FROM:TO with FROM below TO, such as 1000 or 500:1000.")
    return bounds


def parse_shard(text: str | None) -> tuple[int, int]:
    """Read I/N: this process's number and how many there are; without it, those of the launch."""
    if text is None:
        return process_number(), process_count()
    try:
        number, count = map(int, text.split("/"))
    except ValueError:
        number, count = 0, 0
    if not 0 <= number < count:
        raise UserError(f"--shard {text}: expected I/N with I from 0 to N-1, such as 0/8.")
    return number, count
