"""Steps of the students' training: against Hugging Face's Trainer, one backbone against the other, ranking or not."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from benches import interleaved
from distill.artifacts import Artifact, UserError
from distill.catalog import PAD, Dataset
from student.feed import Batch, Feed, Prefetched
from student.loop import batch_loss, feed
from student.models import BACKBONES
from student.models.seq2seq import Seq2Seq
from student.models.t5 import to_t5
from student.variants import Loss

LEVELS, SIZE, ITEMS = 4, 256, 9922
LOSSES = {"nll": Loss("nll"), "distill": Loss("distill"), "dwr": Loss("distill", rank=True)}


@dataclass(frozen=True)
class Config:
    """Targets per second of training steps: python scripts/bench.py train [--json FILE]."""

    run: Path | None = None
    """A run whose sequences are taken; none: made-up ones of Instruments' lengths (8.3 items a user, 5.3 targets)."""
    preset: str = "tiger-4m"
    """Sizes of the students; both backbones' have as many parameters."""
    users: int = 384
    """Users whose targets are trained in each measured round."""
    batch_size: int = 128
    """Examples a batch; in one pass, as many users as have that many targets."""
    k: int = 16
    """Candidates ranked."""
    repeats: int = 3
    """Measured rounds; medians are reported."""
    steps: int = 0
    """For the subprocesses that measure memory: train so many steps of `what`, say the peak, and do nothing else."""
    what: str = ""
    """backbone and loss, as causal-dwr."""
    json: Path | None = None
    """Where the figures go."""
    seed: int = 0
    """Of weights and made-up data."""


def main(config: Config) -> dict[str, Any]:
    """All figures."""
    if config.preset not in BACKBONES["seq2seq"][2]:
        raise UserError(f"Unknown preset {config.preset!r}. Available: {', '.join(BACKBONES['seq2seq'][2])}.")
    bench = Bench(config)
    if config.steps:
        print(f"peak {bench.peak(*config.what.split('-'), config.steps)}", flush=True)
        return {}
    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "preset": config.preset, "targets": bench.targets}
    for name, model in bench.models.items():
        figures[f"parameters_{name}"] = sum(parameter.numel() for parameter in model.parameters())
    contenders = {
        "hf_trainer": bench.hf_trainer(),
        "repeated": bench.epoch("seq2seq", "dwr", repeated=True),
        **{f"{name}_{loss}": bench.epoch(name, loss) for name in BACKBONES for loss in LOSSES},
    }
    bar = tqdm(total=len(contenders) * (config.repeats + 1), desc="train", unit="round")
    seconds = interleaved({name: counted(work, bar) for name, work in contenders.items()}, config.repeats)
    bar.close()
    figures |= {f"targets_per_s_{name}": bench.targets / value for name, value in seconds.items()}
    figures["ratio_seq2seq_vs_hf_trainer"] = seconds["hf_trainer"] / seconds["seq2seq_nll"]
    figures["ratio_causal_vs_seq2seq"] = seconds["seq2seq_nll"] / seconds["causal_nll"]
    figures["ratio_causal_vs_seq2seq_distill"] = seconds["seq2seq_distill"] / seconds["causal_distill"]
    figures["time_dwr_vs_distill"] = seconds["causal_dwr"] / seconds["causal_distill"]
    figures["time_dwr_vs_distill_seq2seq"] = seconds["seq2seq_dwr"] / seconds["seq2seq_distill"]
    figures["time_dwr_vs_repeated"] = seconds["seq2seq_dwr"] / seconds["repeated"]
    for name in ("causal", "seq2seq"):
        peaks = {loss: bench.peak_of(f"{name}-{loss}") for loss in ("distill", "dwr")}
        end = "" if name == "causal" else f"_{name}"
        figures |= {f"mib_{loss}{end}": value for loss, value in peaks.items()}
        figures[f"memory_dwr_vs_distill{end}"] = peaks["dwr"] / peaks["distill"]
    figures["data_wait_share"] = bench.wait_share
    return figures


def counted(work, bar: tqdm):
    """The same, on the bar."""

    def done():
        work()
        bar.update()

    return done


@dataclass(frozen=True)
class Settings:
    """Of `student/train.py`, its defaults: what feed and loss ask for."""

    backbone: str
    candidates: int
    batch_size: int
    seed: int
    accumulation: int = 1
    one_pass: bool = True
    long_histories: str = "windows"
    max_history: int = 20
    buffer_rows: int = 65536
    rank_positions: str = "one"
    confidence: float = 0.0
    rank_within: int = 0
    drop_items: float = 0.0
    reverse: float = 0.0
    shuffle: int = 0
    scope: str = "level"
    xi: float = 0.1
    temperature: float = 1.0
    alpha: float = 0.0
    gamma: float = 1.0
    margin: float = 0.001
    eta: float = 1.0
    clip: float = 1.0


class Labels:
    """A label store of made-up labels, as large as real ones."""

    def __init__(self, dataset: Dataset, k: int, rng: np.random.Generator):
        examples = dataset.examples("train", 1)
        self.users, self.positions, self.targets = examples.users, examples.positions, examples.targets
        self.rows, self._k, self.candidates = len(examples), k, k
        self._lists = rng.integers(0, ITEMS, (self.rows, k))
        self._lists[:, 0] = self.targets
        self._logs = rng.normal(-6, 1, (self.rows, LEVELS, SIZE)).astype(np.float16)

    def blocks(self, buffer_rows: int, rng: np.random.Generator) -> Iterator[Any]:
        """One block of everything."""
        yield Block(self)


class Block:
    """All of `Labels` at once."""

    def __init__(self, labels: Labels):
        self.users, self.positions, self.targets, self._labels = labels.users, labels.positions, labels.targets, labels

    def candidates(self, rows: np.ndarray) -> np.ndarray:
        return self._labels._lists[rows]

    def log_probs(self, rows: np.ndarray) -> np.ndarray:
        return self._labels._logs[rows]


class Alone:
    """In place of an Accelerator: one process."""

    process_index, num_processes = 0, 1


class Bench:
    """Data, models and optimisers."""

    def __init__(self, config: Config):
        self.config, rng = config, np.random.default_rng(config.seed)
        torch.manual_seed(config.seed)
        self.dataset = sequences(config, rng)
        self.codes = torch.from_numpy(rng.integers(0, SIZE, (ITEMS, LEVELS)))
        self.targets = len(self.dataset.examples("train", 1))
        self.labels = Labels(self.dataset, config.k, rng)
        self.models, self.optimizers = {}, {}
        for name, (network, sizes, presets) in BACKBONES.items():
            self.models[name] = network(sizes(LEVELS, SIZE, **presets[config.preset])).train()
            self.optimizers[name] = torch.optim.AdamW(self.models[name].parameters(), 1e-3, fused=True)
        nn.init.zeros_(self.models["seq2seq"].recency.weight)  # T5 has none
        self.waited = self.worked = 0.0

    @property
    def wait_share(self) -> float:
        """Of the time of all our epochs, what went by waiting for batches."""
        return self.waited / self.worked

    def feed(self, name: str, loss: str) -> tuple[Feed, Settings]:
        """The feed of a backbone and loss, as the training makes it."""
        a_user = self.targets / self.dataset.n_users
        size = self.config.batch_size if name == "seq2seq" else max(1, round(self.config.batch_size / a_user))
        settings = Settings(backbone=name, candidates=self.config.k, batch_size=size, seed=self.config.seed)
        store = self.labels if LOSSES[loss].needs_labels else None
        return feed(self.dataset, store, LOSSES[loss], Alone(), settings), settings

    def step(self, name: str, loss: str, batch: Batch, settings: Settings, model: nn.Module | None = None) -> None:
        """One step of the training's loop."""
        value = batch_loss(model or self.models[name], LOSSES[loss], batch, self.codes, LOSSES[loss].rank, settings)
        value.backward()
        nn.utils.clip_grad_norm_(self.models[name].parameters(), settings.clip)
        self.optimizers[name].step()
        self.optimizers[name].zero_grad()

    def epoch(self, name: str, loss: str, repeated: bool = False):
        """One pass over all targets; `repeated`: the plain way to rank, with a history a candidate."""
        examples, settings = self.feed(name, loss)
        model = Repeated(self.models[name]) if repeated else self.models[name]

        def work():
            started = time.perf_counter()
            with Prefetched(examples.batches(0)) as batches:
                for batch in batches:
                    self.step(name, loss, batch, settings, model)
            self.waited += batches.waited
            self.worked += time.perf_counter() - started

        return work

    def hf_trainer(self):
        """The same targets by Hugging Face's T5 of equal sizes in a plain Trainer: random batches, padded to the
        longest of each."""
        from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

        examples = self.dataset.examples("train", 20)
        start = np.arange(LEVELS) * SIZE + 1
        tokens = self.codes.numpy() + start
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
        model = to_t5(self.models["seq2seq"]).train()
        return lambda: Seq2SeqTrainer(model, arguments, train_dataset=rows, data_collator=collate).train()

    def peak(self, name: str, loss: str, steps: int) -> float:
        """Most memory of this process so far, in MiB, after some steps of the longest batches."""
        examples, settings = self.feed(name, loss)
        batches = sorted(examples.batches(0), key=lambda batch: -batch.sequences.numel())[:steps]
        for batch in batches:
            self.step(name, loss, batch, settings)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def peak_of(self, what: str) -> float:
        """`peak` of a fresh process above that of one which trains nothing, in MiB."""
        return self._peak(what, 3) - self._peak(what, -1)

    def _peak(self, what: str, steps: int) -> float:
        words = [sys.executable, Path(__file__).parents[1] / "bench.py", "train", "--what", what, "--steps", steps]
        words += ["--preset", self.config.preset, "--users", self.config.users, "--k", self.config.k]
        words += ["--batch_size", self.config.batch_size] + (["--run", self.config.run] if self.config.run else [])
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True)
        return float(done.stdout.split("peak ")[1].split()[0])


class Repeated(nn.Module):
    """seq2seq with the encoder's states repeated for each candidate, as a plain implementation has them."""

    def __init__(self, model: Seq2Seq):
        super().__init__()
        self.model = model

    def forward(self, history: torch.Tensor, items: torch.Tensor, scope: str = "level") -> torch.Tensor:
        """As `Seq2Seq.forward`."""
        memory, k = self.model.encode(history), items.shape[1]
        repeat = lambda values: values.repeat_interleave(k, dim=0)  # noqa: E731
        keys, values = ([repeat(part) for part in parts] for parts in (memory.keys, memory.values))
        wide = type(memory)(keys, values, repeat(memory.mask))
        return self.model.log_probs(wide, items.flatten(0, 1)[:, None], scope).view(*items.shape, -1)


def sequences(config: Config, rng: np.random.Generator) -> Dataset:
    """Some users of a run, or made-up ones: 5-core sequences with a mean of 8.3 items and a long tail."""
    if config.run:
        whole = Dataset.load(config.run / "dataset")
        chosen = rng.choice(whole.n_users, min(config.users, whole.n_users), replace=False)
        rows = [whole.sequence(user) % ITEMS for user in chosen]
    else:
        lengths = 5 + np.minimum(rng.geometric(1 / 4.3, config.users) - 1, 95)
        rows = [rng.integers(0, ITEMS, length) for length in lengths]
    offsets = np.cumsum([0, *map(len, rows)])
    artifact = Artifact(Path(), "dataset", "", {}, {}, {})
    return Dataset(artifact, None, None, np.concatenate(rows), offsets)
