"""Time the students' training steps: against Hugging Face's Trainer, one backbone against another, ranking or not.

Memory is the peak of a few steps of the longest batches, beyond code and labels: weights, gradients, optimiser states
and activations. Each case runs in a fresh process.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import convert_to_fp32
from scipy.stats import lognorm
from torch import nn

from benches import interleaved, resident
from distill.data.dataset import PAD, Dataset
from distill.runtime.artifacts import Artifact
from distill.runtime.errors import UserError
from distill.runtime.logs import progress_bar
from student.batch import Batch
from student.batches import BatchSampler
from student.config import Config as StudentConfig
from student.models import BACKBONES
from student.models.fast_paths import PrefixTree
from student.models.seq2seq import Seq2Seq
from student.objective import batch_loss
from student.phases import build_sampler
from student.prefetch import Prefetcher
from student.variants import Loss

LEVELS, SIZE, ITEMS = 4, 256, 9922
SUFFIXES = {"causal": "", "nested": "_nested", "seq2seq": "_seq2seq"}  # of the figures' names
LOSSES = {"nll": Loss("nll"), "distill": Loss("distill"), "dwr": Loss("distill", rank=True)}


@dataclass(frozen=True)
class Config:
    """Targets per second of training steps: python scripts/bench.py train [--json FILE]."""

    run: Path | None = None
    """A run whose sequences are used; none: synthetic ones of Instruments' lengths (8.3 items, 5.3 targets a user)."""
    preset: str = "tiger-4m"
    """Sizes of the students; all backbones have about as many parameters."""
    users: int = 1500
    """Users whose examples are sorted into batches of similar lengths, as in training."""
    batches: int = 4
    """How many of these batches are trained in each measured round, evenly spread over the lengths."""
    batch_size: int = 128
    """Examples per batch; in one pass, as many users as have that many targets."""
    k: int = 16
    """Candidates ranked."""
    repeats: int = 3
    """Measured rounds; medians are reported."""
    steps: int = 2
    """Steps after which the peak memory is read."""
    cpu_time: bool = False
    """Measure CPU seconds of this process, which other load does not stretch, not wall-clock seconds; only for a single
    thread, since threads that wait for each other count too."""
    json: Path | None = None
    """File for the figures."""
    seed: int = 0
    """Seed of weights and synthetic data."""


def main(config: Config) -> dict[str, Any]:
    """Measure all figures."""
    if config.preset not in BACKBONES["seq2seq"][2]:
        raise UserError(f"Unknown preset {config.preset!r}. Available: {', '.join(BACKBONES['seq2seq'][2])}.")
    bench = Bench(config)
    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "preset": config.preset}
    for name in BACKBONES:
        figures[f"parameters_{name}"] = sum(parameter.numel() for parameter in bench.model(name).parameters())
    figures["distinct_prefixes_share"] = bench.distinct_prefixes()
    contenders = {
        "hf_trainer": bench.hf_trainer(),
        "repeated": bench.student("repeated", "seq2seq", "dwr"),
        **{f"{name}_{loss}": bench.student(f"{name}_{loss}", name, loss) for name in BACKBONES for loss in LOSSES},
        **{f"{name}_distill_bf16": bench.student(f"{name}_distill_bf16", name, "distill") for name in BACKBONES},
    }
    clock = time.process_time if config.cpu_time else time.perf_counter
    bar = progress_bar(total=len(contenders) * (config.repeats + 1), desc="train", unit="round")
    contenders = {name: with_progress(name, work, bar, clock) for name, work in contenders.items()}
    seconds = interleaved(contenders, config.repeats, clock=clock)
    seconds = {name: value / bench.trained[name] for name, value in seconds.items()}
    bar.close()
    figures["targets"] = bench.trained["hf_trainer"]
    figures |= {f"targets_per_s_{name}": 1 / value for name, value in seconds.items()}
    figures["ratio_seq2seq_vs_hf_trainer"] = seconds["hf_trainer"] / seconds["seq2seq_nll"]
    for name in ("causal", "nested"):
        for loss, end in (("nll", ""), ("distill", "_distill"), ("dwr", "_dwr")):
            figures[f"ratio_{name}_vs_seq2seq{end}"] = seconds[f"seq2seq_{loss}"] / seconds[f"{name}_{loss}"]
    for name, end in SUFFIXES.items():
        figures[f"time_dwr_vs_distill{end}"] = seconds[f"{name}_dwr"] / seconds[f"{name}_distill"]
        figures[f"ratio_bf16_vs_float32{end}"] = seconds[f"{name}_distill"] / seconds[f"{name}_distill_bf16"]
    figures["time_dwr_vs_repeated"] = seconds["seq2seq_dwr"] / seconds["repeated"]
    cases = [(name, loss) for name in BACKBONES for loss in ("distill", "dwr")]
    peaks = {}
    for case in progress_bar(cases, desc="memory", unit="process"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks[case] = pool.apply(peak, (config, *case))
    for name, end in SUFFIXES.items():
        figures |= {f"mib_{loss}{end}": peaks[name, loss] for loss in ("distill", "dwr")}
        figures[f"memory_dwr_vs_distill{end}"] = peaks[name, "dwr"] / peaks[name, "distill"]
    figures["data_wait_share"] = bench.wait_share()
    return figures


def spread_over(many: int, few: int) -> np.ndarray:
    """`few` numbers below `many` (or all of them), evenly spread."""
    few = min(few, many)
    return ((np.arange(few) + 0.5) * many / few).astype(int)


def with_progress(
    name: str, work: Callable[[], None], bar: progress_bar, clock: Callable[[], float]
) -> Callable[[], None]:
    """Wrap a contender so that the bar shows its seconds."""

    def measured() -> None:
        started = clock()
        work()
        bar.set_postfix_str(f"{name} {clock() - started:.2f} s", refresh=False)
        bar.update()

    return measured


def peak(config: Config, name: str, loss: str) -> float:
    """Peak memory of a few steps of the longest batches, in MiB beyond this process without a model."""
    bench = Bench(config)
    examples, settings = bench.sampler(name, loss)
    batches = sorted(examples.batches(0), key=lambda batch: -batch.sequences.numel())[: config.steps]
    gc.collect()  # release what loading needed, then reset the peak
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    for batch in batches:
        bench.step(name, loss, batch, settings)
    return resident("VmHWM") - before


def synthetic_codes(rng: np.random.Generator) -> np.ndarray:
    """Draw the catalogue's codes [items, levels].

    Few second and third codewords follow each first one, so that lists drawn from a dozen first codewords have as many
    distinct prefixes as a teacher's on Instruments: 9.6, 14.4 and 14.9 of 16.
    """
    first, last = rng.integers(0, SIZE, (2, ITEMS))
    return np.stack([np.sort(first), rng.integers(0, 4, ITEMS), (rng.random(ITEMS) < 0.17).astype(int), last], axis=1)


class Labels:
    """A label store of synthetic labels, as large as real ones."""

    split, scope = "train", "level"

    def __init__(self, dataset: Dataset, codes: np.ndarray, k: int, rng: np.random.Generator):
        examples = dataset.examples("train", 1)
        self.users, self.positions, self.targets = examples.users, examples.positions, examples.targets
        self.rows, self.candidates = len(examples), k
        families = rng.integers(0, SIZE, (self.rows, 12))
        drawn = np.take_along_axis(families, rng.integers(0, 12, (self.rows, k)), axis=1)
        start, end = (np.searchsorted(codes[:, 0], drawn + more) for more in (0, 1))  # sorted by first codewords
        self._lists = np.minimum(start + (rng.random(drawn.shape) * (end - start)).astype(int), ITEMS - 1)
        self._lists[:, 0] = self.targets
        self._logs = rng.normal(-6, 1, (self.rows, LEVELS, SIZE)).astype(np.float16)
        self._scores = -np.arange(k, dtype=np.float32) * np.ones((self.rows, 1), np.float32)

    def blocks(self, buffer_rows: int, rng: np.random.Generator) -> Iterator[Any]:
        """Yield one block of all labels."""
        yield Block(self)


class Block:
    """All of `Labels` as one block."""

    def __init__(self, labels: Labels):
        self.users, self.positions, self.targets, self._labels = labels.users, labels.positions, labels.targets, labels

    def candidates(self, rows: np.ndarray) -> np.ndarray:
        return self._labels._lists[rows]

    def scores(self, rows: np.ndarray) -> np.ndarray:
        return self._labels._scores[rows]

    def log_probs(self, rows: np.ndarray) -> np.ndarray:
        return self._labels._logs[rows]


class SingleProcess:
    """Stands in for an Accelerator of one process."""

    process_index, num_processes = 0, 1


class Bench:
    """Data, models and optimisers of the benchmark.

    Attributes:
        trained: targets that each contender trains per round.
    """

    def __init__(self, config: Config):
        self.config, rng = config, np.random.default_rng(config.seed)
        self.dataset, codes = sequences(config, rng), synthetic_codes(rng)
        self.codes = torch.from_numpy(codes)
        self.targets = len(self.dataset.examples("train", 1))
        self.labels = Labels(self.dataset, codes, config.k, rng)
        self.models: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.trained: dict[str, int] = {}

    def model(self, name: str) -> nn.Module:
        """Build a backbone's model on first use."""
        if name not in self.models:
            torch.manual_seed(self.config.seed)
            network, sizes, presets = BACKBONES[name]
            model = network(sizes(LEVELS, SIZE, **presets[self.config.preset])).train()
            if name == "seq2seq":
                nn.init.zeros_(model.recency.weight)  # T5 has none
            self.models[name] = model
            self.optimizers[name] = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
        return self.models[name]

    def distinct_prefixes(self) -> float:
        """Share of the candidates' codewords (last level aside) that is left when each prefix is computed once."""
        tree = PrefixTree(self.codes[torch.from_numpy(self.labels._lists)][..., :-1])
        return tree.present.sum().item() / tree.nodes.numel()

    def sampler(self, name: str, loss: str) -> tuple[BatchSampler, StudentConfig]:
        """The batches of a backbone and loss, as in training, and the settings."""
        a_user = self.targets / self.dataset.n_users
        size = self.config.batch_size if name == "seq2seq" else max(1, round(self.config.batch_size / a_user))
        settings = StudentConfig(
            backbone=name,
            candidates=self.config.k,
            batch_size=size,
            seed=self.config.seed,
            confidence=0.0,
            rank_within=0,
        )  # rank every example, to time the ranking
        store = self.labels if LOSSES[loss].needs_labels else None
        return build_sampler(self.dataset, store, LOSSES[loss], SingleProcess(), settings), settings

    def step(self, name: str, loss: str, batch: Batch, settings: StudentConfig, wrapper: type | None = None) -> None:
        """Run one training step."""
        model = self.model(name)
        used = wrapper(model) if wrapper else model
        batch_loss(used, LOSSES[loss], batch, self.codes, LOSSES[loss].rank, settings).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        self.optimizers[name].step()
        self.optimizers[name].zero_grad()

    def student(self, contender: str, name: str, loss: str) -> Callable[[], None]:
        """Train some batches of an epoch.

        The contender "repeated" ranks the plain way, with one history per candidate; "_bf16" is mixed precision.
        """
        wrapper = Repeated if contender == "repeated" else InBf16 if contender.endswith("_bf16") else None
        examples, settings = self.sampler(name, loss)
        batches = sorted(examples.batches(0), key=lambda batch: batch.sequences.shape[1])
        batches = [batches[place] for place in spread_over(len(batches), self.config.batches)]
        self.trained[contender] = sum(batch.count for batch in batches)

        def work() -> None:
            for batch in batches:
                self.step(name, loss, batch, settings, wrapper)

        return work

    def wait_share(self) -> float:
        """Share of the training time spent waiting for batches, for the largest batches and the fastest backbone."""
        examples, settings = self.sampler("nested", "dwr")
        started = time.perf_counter()
        with Prefetcher(examples.batches(0)) as batches:
            for batch in islice(batches, self.config.batches):
                self.step("nested", "dwr", batch, settings)
            return batches.waited / (time.perf_counter() - started)

    def hf_trainer(self) -> Callable[[], None]:
        """Train as many targets by Hugging Face's T5 of equal sizes in a plain Trainer: random batches, padded to the
        longest row of each."""
        from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

        from student.models.t5 import to_t5

        examples = self.dataset.examples("train", 20)
        start = np.arange(LEVELS) * SIZE + 1
        tokens = self.codes.numpy() + start
        drawn = np.random.default_rng(self.config.seed).permutation(len(examples))
        examples = examples.take(drawn[: self.config.batches * self.config.batch_size])
        self.trained["hf_trainer"] = len(examples)
        rows = [
            {"input_ids": tokens[history[history != PAD]].ravel(), "labels": tokens[target]}
            for history, target in zip(examples.histories, examples.targets, strict=True)
        ]

        def collate(batch: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
            inputs = nn.utils.rnn.pad_sequence([torch.from_numpy(row["input_ids"]) for row in batch], batch_first=True)
            labels = torch.from_numpy(np.stack([row["labels"] for row in batch]))
            return {"input_ids": inputs, "attention_mask": (inputs > 0).long(), "labels": labels}

        folder = tempfile.mkdtemp()
        arguments = Seq2SeqTrainingArguments(
            output_dir=folder, per_device_train_batch_size=self.config.batch_size, num_train_epochs=1,
            save_strategy="no", logging_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
            seed=self.config.seed,
        )  # fmt: skip
        model = to_t5(self.model("seq2seq")).train()
        return lambda: Seq2SeqTrainer(model, arguments, train_dataset=rows, data_collator=collate).train()


class Repeated(nn.Module):
    """seq2seq with the encoder's states repeated for each candidate, as in a plain implementation."""

    def __init__(self, model: Seq2Seq):
        super().__init__()
        self.model = model

    def forward(self, history: torch.Tensor, items: torch.Tensor, scope: str = "level") -> torch.Tensor:
        """As `Seq2Seq.forward`."""
        encoded, k = self.model.encode(history), items.shape[1]
        repeat = lambda values: values.repeat_interleave(k, dim=0)  # noqa: E731
        keys, values = ([repeat(part) for part in parts] for parts in (encoded.keys, encoded.values))
        wide = type(encoded)(keys, values, repeat(encoded.mask))
        return self.model.log_probs(wide, items.flatten(0, 1)[:, None], scope).view(*items.shape, -1)


class InBf16(nn.Module):
    """A network under autocast, as Accelerate wraps it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """As the network's, in float32."""
        with torch.autocast("cpu", torch.bfloat16):
            return convert_to_fp32(self.model(*inputs, **options))


def sequences(config: Config, rng: np.random.Generator) -> Dataset:
    """Sample users of a run, or synthesise some of Instruments' lengths: from 5 on, median 6, mean 8.3, a long tail."""
    if config.run:
        whole = Dataset.load(config.run / "dataset")
        chosen = rng.choice(whole.n_users, min(config.users, whole.n_users), replace=False)
        rows = [whole.sequence(user) % ITEMS for user in chosen]
    else:
        quantiles = (np.arange(config.users) + 0.5) / config.users  # not drawn: few users should be like many
        lengths = 5 + lognorm.ppf(quantiles, 1.2, scale=np.exp(0.6)).astype(int)
        rows = [rng.integers(0, ITEMS, length) for length in rng.permutation(lengths)]
    offsets = np.cumsum([0, *map(len, rows)])
    artifact = Artifact(Path(), "dataset", "", {}, {}, {})
    return Dataset(artifact, None, None, np.concatenate(rows), offsets)
