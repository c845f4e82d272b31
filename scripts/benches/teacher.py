"""A training step of the teacher: packed against padded batches, against Hugging Face's `Trainer`, and its memory.

    python scripts/bench.py teacher --json teacher.json

All train the same network on the same samples, drawn at random from LC-Rec's six tasks and `stream` on the demo's shop.
The Trainer draws its batches at random and pads each to its longest sample, which is what it does unasked; its batches
hold as many samples as hold `batch_tokens` real tokens on average. Ours are sorted or packed among these few samples,
with a little more padding than in a whole epoch. A rate counts tokens with their padding, a useful rate without.

Memory is what a few steps need at their peak beyond the code: weights, gradients, optimiser, activations (with gradient
checkpointing). What loading the base needs for a moment is left out.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from benches import resident
from distill.data import sources
from distill.data.dataset import Dataset, as_lists, write_dataset
from distill.runtime import artifacts
from distill.runtime.accelerator import accelerator
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.logs import log, progress_bar
from distill.semantic_ids.ids import SemanticIDs, write_codes
from teacher import model as models
from teacher.tasks import TASKS, Batch, Samples, TaskData, batches, collate, padded_size

SIZES = {"intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4}
LARGE = {  # 51M parameters in projections, 1M in the table
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16, "num_attention_heads": 8,
    "num_key_value_heads": 8,
}  # fmt: skip
MODES = ("full", "lora", "qlora")


@dataclass(frozen=True)
class Config:
    """Tokens per second and peak memory of a training step: python scripts/bench.py teacher [--json FILE]."""

    run: Path | None = None
    """A run with dataset and semantic_ids; none: the demo's shop with random IDs."""
    sizes: dict[str, float] = field(default_factory=lambda: {"hidden_size": 128} | SIZES)
    """The timed network: fields of LlamaConfig (default: the demo's teacher)."""
    batch_tokens: int = 2048
    """Tokens a batch."""
    batches: int = 16
    """Batches' worth of samples in a round."""
    repeats: int = 5
    """Measured rounds; medians are reported."""
    memory: bool = True
    """Measure the modes' memory too, each in a process of its own."""
    large: dict[str, float] = field(default_factory=lambda: dict(LARGE))
    """The network whose memory is measured."""
    steps: int = 2
    """Steps after which the peak of memory is read."""
    json: Path | None = None
    """Where the figures go."""
    seed: int = 0
    """Of weights, samples and order."""


@dataclass(frozen=True)
class Teacher:
    """The fields of finetune's config that decide network and samples, at their defaults there."""

    run: Path
    base: str | None = None
    sizes: dict[str, float] = field(default_factory=dict)
    vocab_size: int = 1024
    mode: str = "full"
    lora_rank: int = 8
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    attention_dropout: float = 0.0
    init_codewords: str = "mean"
    precision: str = "no"
    chat: bool = False
    tasks: dict[str, float] = field(default_factory=dict)
    intentions: Path | None = None
    crop: float = 0.0
    reverse: float = 0.0
    drop_items: float = 0.0
    folds: int = 0
    max_history: int = 20
    max_tokens: int = 256
    batch_tokens: int = 4096
    seed: int = 0


def main(config: Config) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        run = config.run or made_up(Path(folder), config.seed)
        figures = speed(config, run, Path(folder))
        if config.memory:
            figures |= memory(config, run, Path(folder))
    return figures


def made_up(folder: Path, seed: int) -> Path:
    """A run's folder with the demo's shop and random IDs."""
    shop = sources.reader("demo").read(None, sources.Options(seed=seed, users=2000))
    made_of = Config(seed=seed)
    with ArtifactJob("dataset", made_of, folder / "dataset").write() as into:
        write_dataset(into, shop.items, shop.user_ids, as_lists(shop.values, shop.offsets, pa.int32()))
    dataset = artifacts.read(folder / "dataset", "dataset")
    codes = np.random.default_rng(seed).integers(0, 256, (shop.items.num_rows, 4))
    with ArtifactJob("semantic_ids", made_of, folder / "semantic_ids", [dataset]).write() as into:
        write_codes(into, shop.items["item_id"].to_pylist(), codes)
        write_json(into / "report.json", {"codebook_size": 256})
    return folder


def teacher_config(config: Config, run: Path, **more) -> Teacher:
    """The teacher's settings that count here."""
    tasks = dict.fromkeys(TASKS, 1.0)
    return Teacher(run=run, tasks=tasks, batch_tokens=config.batch_tokens, seed=config.seed, **more)


def build(settings: Teacher):
    """(network, samples of an epoch, tokenizer)."""
    dataset = Dataset.load(settings.run / "dataset")
    ids = SemanticIDs.load(settings.run / "semantic_ids", dataset.n_items)
    model, tokenizer = models.build(settings, dataset, ids)
    return model, TaskData.of(settings, dataset, ids, tokenizer).epoch(settings.tasks, settings.seed, 0), tokenizer


def speed(config: Config, run: Path, folder: Path) -> dict[str, Any]:
    """Ours, packed and padded, and the Trainer, taking turns."""
    acc = accelerator(seed=config.seed)
    model, samples, tokenizer = build(teacher_config(config, run, sizes=config.sizes))
    at_once = max(round(config.batch_tokens / samples.lengths.mean()), 1)
    rows = np.random.default_rng(config.seed).permutation(len(samples))[: config.batches * at_once]
    samples = Samples([samples[row] for row in rows])
    useful = int(samples.lengths.sum())
    contenders: dict[str, tuple[Callable[[], float], int]] = {}  # work, and its tokens with padding
    for name, packing in (("padded", False), ("packed", True)):
        groups = batches(samples, config.batch_tokens, np.random.default_rng(config.seed), packing)
        with_padding = sum(padded_size(samples, group) for group in groups)
        contenders[name] = (ours(copy.deepcopy(model), samples, groups, tokenizer.pad_token_id, acc), with_padding)
    contenders["trainer"] = theirs(copy.deepcopy(model), samples, at_once, tokenizer, config.seed, folder)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in progress_bar(range(config.repeats + 1), desc="steps", unit="round"):
        for name, (work, _) in contenders.items():
            taken = work()
            if number > 0:
                seconds[name].append(taken)
    figures: dict[str, Any] = {
        "device": acc.device.type,
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "mean_length": float(samples.lengths.mean()),
        "longest": int(samples.lengths.max()),
    }
    rate, useful_rate = {}, {}
    for name, (_, with_padding) in contenders.items():
        median = statistics.median(seconds[name])
        rate[name], useful_rate[name] = with_padding / median, useful / median
        figures[f"useful_tokens_per_s_{name}"] = useful_rate[name]
        figures[f"padding_share_{name}"] = 1 - useful / with_padding
    return figures | {
        "ratio_packed_vs_padded": useful_rate["packed"] / useful_rate["padded"],
        "ratio_vs_hf_trainer": rate["padded"] / rate["trainer"],
        "ratio_useful_vs_hf_trainer": useful_rate["padded"] / useful_rate["trainer"],
        "ratio_useful_packed_vs_hf_trainer": useful_rate["packed"] / useful_rate["trainer"],
    }


def ours(model, samples: Samples, groups: list[Batch], pad: int, acc) -> Callable[[], float]:
    """A round of the training loop's steps; returns its seconds."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, 1e-4, fused=True)
    model, optimizer = acc.prepare(model, optimizer)

    def work() -> float:
        model.train()
        started = time.perf_counter()
        for group in groups:
            inputs = {name: torch.from_numpy(x).to(acc.device) for name, x in collate(samples, group, pad).items()}
            loss = model(**inputs, use_cache=False).loss
            acc.backward(loss)
            acc.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
        return time.perf_counter() - started

    return work


class Clock(TrainerCallback):
    """Seconds from the first step to the last, without what the Trainer does before and after."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Start."""
        self.started = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        """Stop."""
        self.seconds = time.perf_counter() - self.started


def theirs(
    model, samples: Samples, at_once: int, tokenizer, seed: int, folder: Path
) -> tuple[Callable[[], float], int]:
    """The Trainer's round, and its tokens with padding."""
    examples = [
        {"input_ids": s.tokens.tolist(), "labels": np.where(s.counted, s.tokens, -100).tolist()} for s in samples
    ]
    sizes = []

    class Counting(DataCollatorForSeq2Seq):
        def __call__(self, features, return_tensors=None):
            made = super().__call__(features, return_tensors)
            sizes.append(made["input_ids"].numel())
            return made

    def work() -> float:
        arguments = TrainingArguments(
            output_dir=str(folder / "trainer"),
            per_device_train_batch_size=at_once,
            num_train_epochs=1,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
        )
        clock = Clock()
        collator = Counting(tokenizer, padding=True)
        Trainer(model, arguments, collator, examples, callbacks=[clock]).train()
        return clock.seconds

    work()  # counts the padding, the same in every round of this seed
    return work, sum(sizes)


def memory(config: Config, run: Path, folder: Path) -> dict[str, float]:
    """Peak MiB of each mode, each in a fresh process, beyond what the process had before it loaded the base."""
    log.info("memory: a base of its own for all modes")
    bare = teacher_config(config, run, sizes=config.large)
    dataset = Dataset.load(run / "dataset")
    tokenizer = models.train_tokenizer(dataset.texts(), bare.vocab_size)
    models.from_scratch(tokenizer, config.large, bare.max_tokens).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    figures = {}
    for mode in progress_bar(MODES, desc="memory", unit="mode"):
        settings = asdict(teacher_config(config, run, mode=mode, base=str(folder / "base"))) | {"batch_tokens": 256}
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            figures[f"peak_mib_{mode}"] = pool.apply(peak, (settings, config.steps))
    return figures


def peak(settings: dict[str, Any], steps: int) -> float:
    """Peak MiB of a few steps in this process, on its GPU if there is one."""
    settings = Teacher(**settings)
    acc = accelerator(seed=settings.seed)
    if settings.mode == "qlora":
        import bitsandbytes  # noqa: F401  its code is no part of the training's memory
    import peft  # noqa: F401

    before = resident("VmRSS")
    model, samples, tokenizer = build(settings)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    groups = batches(samples, settings.batch_tokens, np.random.default_rng(0))[:steps]
    if acc.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:  # give back what loading needed, and forget that peak
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    ours(model, samples, groups, tokenizer.pad_token_id, acc)()
    if acc.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resident("VmHWM") - before
