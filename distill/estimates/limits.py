"""What breaks at a size: the toolkit's present limits, each with what it needs, what there is, and what replaces it.

A limit's need is a lower bound, from the arrays that the named code holds at once. When code changes, change its limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from distill.estimates.hardware import Hardware
from distill.estimates.language_models import HALF, SINGLE, LanguageModel
from distill.estimates.stages import READ_SECONDS, prepare, tune
from distill.estimates.workload import Workload

# measured: `bench.py scale` with 10^6 users (docs/scale.md, "Growth, measured"): what a loaded data set has beside its
# mapped files, users' ids above all, and the peak of examples that are made a shard at a time
DATASET_BYTES_A_USER = 46.0
TARGET_RANGE_BYTES_A_USER = 56.0
# measured: tracemalloc's peak while EpochDraws draws 4 * 10^5 stream windows, two a user; and `bench.py scale`, that
# of Dataset.examples, which a prompt a target needs besides
SAMPLE_BYTES = 75.0
EXAMPLE_BYTES = 200.0
PAIRS_WINDOW = 5  # distill/baselines/counting.py: pairs at most this far apart are counted
PAIR_BYTES = 2 * 24  # row, column and weight of a pair before pairs are added up: parts, and all of them joined
PATIENCE_HOURS = 24.0  # a pass over the labels that takes longer is called broken


@dataclass(frozen=True)
class Limit:
    """A limit of the present code.

    Attributes:
        stage: that meets it.
        what: breaks, in words.
        where: the file.
        need: at the planned size.
        capacity: what there is.
        unit: of both.
        instead: what replaces it.
        grows: whether the need grows with the data; else it is the model's.
    """

    stage: str
    what: str
    where: str
    need: float
    capacity: float
    unit: str
    instead: str
    grows: bool = True

    @property
    def load(self) -> float:
        """Need over capacity; above 1 it breaks."""
        return self.need / self.capacity


def limits(workload: Workload, model: LanguageModel, hardware: Hardware, nodes: int) -> list[Limit]:
    """List the limits in the order of the pipeline; arguments as in `stages.tune`."""
    return [*data_limits(workload, model, hardware), *model_limits(workload, model, hardware, nodes)]


def data_limits(workload: Workload, model: LanguageModel, hardware: Hardware) -> list[Limit]:
    """List the limits of data, embeddings and semantic IDs."""
    w, h = workload, hardware
    return [
        Limit(
            "data",
            "all interactions and texts in the memory of one machine",
            "distill/data/prepare.py",
            prepare(w, h).memory_bytes,
            h.cpu_memory,
            "bytes",
            "prepare_data --engine duckdb or ray, for tables: chunks of users on disk or on a cluster, counts a round",
        ),
        Limit(
            "data",
            "32-bit starts of the lists in one sequences.parquet",
            "distill/data/dataset.py, as_lists",
            w.interactions,
            2**31 - 1,
            "interactions",
            "large lists, or several files",
        ),
        Limit(
            "embeddings",
            "every GPU holds the whole base",
            "distill/semantic_ids/embedders.py",
            model.parameters() * HALF,
            h.gpu_memory,
            "bytes a GPU",
            "a smaller model; a text embedder is enough for IDs",
            grows=False,
        ),
        Limit(
            "embeddings",
            "shards joined and sorted on the first process: three copies",
            "distill/semantic_ids/embed.py",
            3 * w.items * model.width * SINGLE,
            h.node_memory,
            "bytes",
            "shards of embeddings that stay on disk; fewer dimensions before the quantiser",
        ),
        Limit(
            "semantic IDs",
            "distinct IDs; where they fill, prefixes overflow long before",
            "distill/semantic_ids/collisions.py",
            w.items,
            float(w.codebook_size) ** w.levels,
            "items",
            "another level, or more codewords a level",
        ),
    ]


def model_limits(workload: Workload, model: LanguageModel, hardware: Hardware, nodes: int) -> list[Limit]:
    """List the limits of teacher, labels, students, evaluation and memories."""
    w, h = workload, hardware
    weights = model.parameters(w.codewords)
    users = w.users * (DATASET_BYTES_A_USER + TARGET_RANGE_BYTES_A_USER)
    streams, prompts = w.users * math.ceil(w.targets_a_user / w.max_history), w.targets
    drawn = streams * SAMPLE_BYTES if w.prompt == "stream" else prompts * (SAMPLE_BYTES + EXAMPLE_BYTES)
    return [
        *([] if w.mode == "qlora" else [gathering_limit(weights, h)]),
        Limit(
            "teacher",
            "weights, gradients, optimiser and activations on every GPU",
            "teacher/trainer.py",
            tune(w, model, h, nodes).memory_bytes,
            h.gpu_memory,
            "bytes a GPU",
            "more nodes, adapters (--mode lora, qlora), or fewer --batch_tokens",
            grows=False,
        ),
        Limit(
            "teacher",
            "lengths and order of an epoch's samples in every process",
            "teacher/samples.py",
            h.gpus_a_node * drawn * w.teacher_share,
            h.node_memory,
            "bytes a node",
            "batches dealt within parts of an epoch, each process its parts",
        ),
        Limit(
            "labels",
            "ids of all users, and where their targets are, in every process",
            "distill/data/examples.py, TargetRanges",
            h.gpus_a_node * users,
            h.node_memory,
            "bytes a node",
            "each process its own users",
        ),
        *([engine_limit(weights, h)] if w.engine == "hf" else []),
        Limit(
            "student",
            "ids of all users, and where their targets are, in every process that learns from labels",
            "student/ranked_lists.py, ExampleIndex",
            h.gpus_a_node * users,
            h.node_memory,
            "bytes a node",
            "each process its own users",
        ),
        Limit(
            "student",
            "every process reads all labels of a pass",
            "student/batches.py",
            w.targets * w.label_share * READ_SECONDS / 3600,
            PATIENCE_HOURS,
            "hours a pass",
            "each process reads its shards only",
        ),
        Limit(
            "labels and evaluation by counts",
            "all pairs of the transition counter before they are added up",
            "distill/baselines/counting.py",
            w.interactions * PAIRS_WINDOW * PAIR_BYTES,
            h.cpu_memory,
            "bytes",
            "counts in shards of rows, as a transition memory's",
        ),
        Limit(
            "memories",
            "the content memory's texts in float16 and float32",
            "student/content_memory.py",
            w.items * w.content_dim * (HALF + SINGLE),
            h.cpu_memory,
            "bytes",
            "an approximate index over compressed vectors",
        ),
    ]


def gathering_limit(weights: int, hardware: Hardware) -> Limit:
    """Build the limit of saving a teacher of so many parameters after full training or LoRA."""
    return Limit(
        "teacher",
        "every GPU gathers the whole model when it is saved",
        "teacher/trainer.py",
        weights * HALF,
        hardware.gpu_memory,
        "bytes a GPU",
        "gather, merge and save layer by layer",
        grows=False,
    )


def engine_limit(weights: int, hardware: Hardware) -> Limit:
    """Build the limit of the engine hf for a teacher of so many parameters."""
    return Limit(
        "labels",
        "the engine hf holds the whole teacher on one GPU",
        "teacher/engines/hf.py",
        weights * HALF,
        hardware.gpu_memory,
        "bytes a GPU",
        "--engine vllm --tensor_parallel_size",
        grows=False,
    )


def first_to_break(all_limits: list[Limit]) -> Limit | None:
    """Return the broken limit that is met first while the data grow; None: none is broken.

    Limits of the model alone are met at any size; of the others, the most overloaded one is met first.
    """
    broken = [limit for limit in all_limits if limit.load > 1]
    fixed = [limit for limit in broken if not limit.grows]
    return fixed[0] if fixed else max(broken, key=lambda limit: limit.load, default=None)
