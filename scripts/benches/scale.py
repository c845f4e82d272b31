"""How the cheap stages grow with the data: the trie, the training examples, data sets and soft labels on disk.

    python scripts/bench.py scale --json scale.json --figure docs/images/scale.png

Each size is a power of ten. The trie holds as many random IDs of 4 x 256. As many embeddings of 32 numbers, around
1,000 centres, get unique semantic IDs by residual k-means, trained on 65,536 of them (not counted). The examples are
those of as many interactions, ten a user, once all of them and once a shard at a time. The label store holds as many
targets and is streamed once, without decoding a row and with decoding all. Data sets of ten interactions a user are
loaded, once as they are written and once without the files that are memory-mapped. The transitions of random
interactions, window 5, are counted all pairs at once, and in shards of rows that are written and mapped. Seconds are
the processor's, memory is the peak of the process beyond what it held before.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jsonargparse.typing import PositiveInt

from benches import resident
from benches.labels import random_shard, write_set
from distill.baselines.count_shards import divide_rows
from distill.baselines.counting import TransitionSettings, count_transitions
from distill.data.dataset import Dataset, as_lists, write_dataset
from distill.data.mapped_sequences import ITEMS, STARTS
from distill.decoding.trie import Trie
from distill.labels.store import LabelStore
from distill.runtime.artifacts import Artifact, ArtifactJob
from distill.runtime.checksums import SEAL, seal
from distill.runtime.errors import UserError
from distill.runtime.logs import progress_bar
from distill.semantic_ids import quantisers
from distill.semantic_ids.build import resolve
from distill.semantic_ids.config import CollisionSettings
from student.transition_memory import TransitionMemory

LEVELS, SIZE, SEQUENCE, SHARD = 4, 256, 10, 4096
WIDTH, CHUNK = 32, 65_536  # of embeddings; of those that are drawn at once, and that train the quantiser
Stage = Literal["trie", "ids", "examples", "shards", "load", "load_parquet", "read", "labels", "pairs", "counts"]
STAGES: dict[Stage, str] = {
    "trie": "trie",
    "ids": "semantic IDs",
    "examples": "training examples",
    "shards": "examples, a shard at a time",
    "load": "data set, mapped",
    "load_parquet": "data set, parquet alone",
    "read": "labels, read",
    "labels": "labels, read and decoded",
    "pairs": "transitions, all pairs at once",
    "counts": "transitions, a shard at a time",
}
COUNTING = TransitionSettings()
LEAST_MIB = 1.0  # less is not drawn: the allocator's noise


@dataclass(frozen=True)
class Config:
    """Growth of the cheap stages: python scripts/bench.py scale [--figure FILE] [--json FILE]."""

    smallest: PositiveInt = 3
    """Power of ten of the smallest size."""
    largest: PositiveInt = 6
    """Power of ten of the largest size of examples and labels: 10^6 examples of 20 items take a gibibyte."""
    largest_trie: PositiveInt = 7
    """Power of ten of the largest trie, of the largest data set that is loaded, of examples and counts by shards."""
    largest_ids: PositiveInt = 6
    """Power of ten of the most items that get semantic IDs: some three minutes for 10^6."""
    stages: list[Stage] = field(default_factory=lambda: list(STAGES))
    """What is measured."""
    figure: Path | None = None
    """Draw seconds and MiB into this PNG file."""
    json: Path | None = None
    """File for the figures."""
    seed: int = 0
    """Seed of IDs, sequences and labels."""


@dataclass
class Growth:
    """Sizes, seconds and MiB of a stage."""

    sizes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)


def main(config: Config) -> dict[str, Any]:
    """Measure all stages at all sizes; names end with the power of ten."""
    if config.figure is not None and not config.figure.resolve().parent.is_dir():
        raise UserError(f"No folder {config.figure.parent} to draw {config.figure.name} in; make it first.")
    works = {
        "trie": build_trie,
        "ids": give_ids,
        "examples": draw_examples,
        "shards": draw_shards,
        "load": load_dataset,
        "load_parquet": load_parquet,
        "read": read_labels,
        "labels": decode_labels,
        "pairs": count_pairs,
        "counts": count_by_shards,
    }
    works = {name: work for name, work in works.items() if name in config.stages}
    limits = dict.fromkeys(("trie", "shards", "load", "load_parquet", "counts"), config.largest_trie)
    limits["ids"] = config.largest_ids
    growth = {name: Growth() for name in works}
    figures: dict[str, Any] = {}
    for name, prepare in progress_bar(works.items(), desc="scale", unit="stage"):
        for power in range(config.smallest, limits.get(name, config.largest) + 1):
            with tempfile.TemporaryDirectory() as folder:
                work, facts = prepare(10**power, np.random.default_rng(config.seed), Path(folder))
                seconds, mib = measure(work)
            growth[name].sizes.append(10**power)
            growth[name].seconds.append(seconds)
            growth[name].mib.append(mib)
            figures |= {f"{name}_s_1e{power}": seconds, f"{name}_mib_1e{power}": mib}
            figures |= {f"{name}_{fact}_1e{power}": value for fact, value in facts.items()}
    if config.figure is not None:
        draw(growth, config.figure)
    return figures


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Processor seconds of the work, and its peak memory in MiB beyond what the process held before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before, started = resident("VmRSS"), time.process_time()
    result = work()
    seconds = time.process_time() - started
    del result
    return seconds, max(resident("VmHWM") - before, 0.0)


def build_trie(size: int, rng: np.random.Generator, folder: Path) -> tuple[Callable[[], object], dict[str, float]]:
    """The trie of random IDs, and the MiB of its arrays."""
    codes = rng.integers(0, SIZE, (size, LEVELS), dtype=np.int16)
    trie = Trie.build(codes, SIZE)
    arrays = [*trie.offsets, *trie.codes, *trie.dense, trie.leaf_of_item, trie.leaf_offsets, trie.leaf_items]
    return lambda: Trie.build(codes, SIZE), {"arrays_mib": sum(array.nbytes for array in arrays) / 2**20}


def give_ids(size: int, rng: np.random.Generator, folder: Path) -> tuple[Callable[[], object], dict[str, float]]:
    """Codes of memory-mapped embeddings, and their collisions resolved; full prefixes give items away."""
    path, centres = folder / "embeddings.npy", rng.normal(size=(1000, WIDTH))
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(size, WIDTH))
    for start in range(0, size, CHUNK):
        part = rows[start : start + CHUNK]
        part[:] = centres[rng.integers(0, len(centres), len(part))] + 0.5 * rng.normal(size=part.shape)
    del rows
    embeddings = np.load(path, mmap_mode="r")
    quantiser = quantisers.fit("rkmeans", embeddings, LEVELS, SIZE, sample=CHUNK)
    settings = CollisionSettings(full_prefix="move")
    return lambda: resolve(quantiser, embeddings, quantiser.encode(embeddings), settings), {}


def draw_examples(size: int, rng: np.random.Generator, folder: Path) -> tuple[Callable[[], object], dict[str, float]]:
    """All training examples of random sequences at once, and their number."""
    dataset = random_sequences(size, rng, folder)
    return lambda: dataset.examples("train", 20), {"targets": len(dataset.targets("train"))}


def draw_shards(size: int, rng: np.random.Generator, folder: Path) -> tuple[Callable[[], object], dict[str, float]]:
    """The same shard by shard, as the export makes them."""
    dataset = random_sequences(size, rng, folder)

    def walk() -> None:
        targets = dataset.targets("train", 20)
        for start in range(0, len(targets), SHARD):
            targets.take(slice(start, start + SHARD))

    return walk, {}


def random_sequences(size: int, rng: np.random.Generator, folder: Path) -> Dataset:
    """A data set of so many random interactions, ten a user, of a tenth as many items without names."""
    users = items = size // SEQUENCE
    offsets = np.arange(users + 1) * SEQUENCE
    values = rng.integers(0, items, size, dtype=np.int32)
    artifact = Artifact(folder, "dataset", "", {}, {}, {})
    return Dataset(artifact, pa.table({"item_id": pa.nulls(items)}), pa.nulls(users), values, offsets)


def load_dataset(size: int, rng: np.random.Generator, folder: Path) -> tuple[Callable[[], object], dict[str, float]]:
    """Load a data set, its checksums compared; and the MiB that the process alone then holds."""
    users = size // SEQUENCE
    items = max(size // 50, 2)
    values, offsets = rng.integers(0, items, users * SEQUENCE), np.arange(users + 1) * SEQUENCE
    with ArtifactJob("dataset", NoSettings(), folder / "dataset").write() as partial:
        table = pa.table({"item_id": [f"B{number:09d}" for number in range(items)]})
        names = pa.array([f"A{number:013d}" for number in range(users)])
        write_dataset(
            partial, table, names, as_lists(values, offsets, pa.int32()), as_lists(values, offsets, pa.int64())
        )
    del values, offsets, table, names
    return loading_of(folder / "dataset")


def load_parquet(size: int, rng: np.random.Generator, folder: Path) -> tuple[Callable[[], object], dict[str, float]]:
    """The same without the memory-mapped files, as earlier versions wrote data sets."""
    load_dataset(size, rng, folder)
    path = folder / "dataset/manifest.json"
    manifest = json.loads(path.read_text())
    for name in (ITEMS, STARTS):
        (folder / "dataset" / name).unlink()
        del manifest["files"][name]
    path.write_text(json.dumps(seal({name: value for name, value in manifest.items() if name != SEAL})))
    return loading_of(folder / "dataset")


def loading_of(folder: Path) -> tuple[Callable[[], object], dict[str, float]]:
    """Loading that folder, and the MiB that a loaded data set takes of this process alone (without mapped files)."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    before = resident("RssAnon")
    loaded = Dataset.load(folder)
    pa.default_memory_pool().release_unused()
    private = max(resident("RssAnon") - before, 0.0)
    del loaded
    return lambda: Dataset.load(folder), {"private_mib": private}


@dataclass(frozen=True)
class NoSettings:
    """The data set has none."""


def read_labels(size: int, rng: np.random.Generator, folder: Path) -> tuple[Callable[[], object], dict[str, float]]:
    """A shuffled pass over a store that decodes nothing, and the bytes of a target."""
    rows = min(size, SHARD)
    store = write_set(folder / "labels", random_shard(rows, rng), "u8", -(-size // rows))
    disk = sum(path.stat().st_size for path in (folder / "labels/data").iterdir())
    return lambda: stream(store, decode=False), {"bytes_a_target": disk / store.rows}


def decode_labels(size: int, rng: np.random.Generator, folder: Path) -> tuple[Callable[[], object], dict[str, float]]:
    """A shuffled pass over a store that decodes every row, in batches of 256."""
    rows = min(size, SHARD)
    store = write_set(folder / "labels", random_shard(rows, rng), "u8", -(-size // rows))
    return lambda: stream(store, decode=True), {}


def count_pairs(size: int, rng: np.random.Generator, folder: Path) -> tuple[Callable[[], object], dict[str, float]]:
    """The transitions of random interactions in one matrix."""
    dataset = random_sequences(size, rng, folder)

    def count() -> object:
        values, offsets = dataset.training_sequences()
        return count_transitions(values, offsets, dataset.n_items, COUNTING.window, COUNTING.decay)

    return count, {}


def count_by_shards(size: int, rng: np.random.Generator, folder: Path) -> tuple[Callable[[], object], dict[str, float]]:
    """The same as a transition memory counts them; as many shards as its pairs need."""
    dataset = random_sequences(size, rng, folder)
    shards = len(divide_rows(dataset.count_purchases(), COUNTING.window)) - 1
    return lambda: TransitionMemory.of(dataset, COUNTING, scratch=folder), {"files": shards}


def stream(store: LabelStore, decode: bool) -> None:
    """Read all blocks of a store."""
    for block in store.blocks(65536, np.random.default_rng(0)):
        for start in range(0, len(block) if decode else 0, 256):
            block.log_probs(np.arange(start, min(start + 256, len(block))))


def draw(growth: dict[str, Growth], path: Path) -> None:
    """Draw seconds and MiB over the size, both logarithmic, beside a dashed line of proportional growth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.8), layout="constrained")
    for axes, unit in zip(figure.subplots(1, 2), ("seconds", "mib"), strict=True):
        for name, stage in growth.items():
            values = [value if unit == "seconds" or value >= LEAST_MIB else np.nan for value in getattr(stage, unit)]
            axes.loglog(stage.sizes, values, "o-", markersize=3, label=STAGES[name])
        first = next(iter(growth.values()))
        sizes, values = first.sizes, getattr(first, unit)
        line = [values[-1] * size / sizes[-1] for size in sizes]
        axes.loglog(sizes, line, "--", color="grey", linewidth=0.8, label="proportional to the size")
        axes.set_xlabel("items (trie), interactions (examples), targets (labels)")
        axes.set_title({"seconds": "processor seconds", "mib": "peak memory, MiB"}[unit], loc="left", fontsize=10)
        axes.grid(True, which="major", linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    lines = figure.axes[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
