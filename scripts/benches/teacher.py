"""A training step of the teacher: packed and padded batches, Hugging Face's `Trainer`, and the peak memory.

    python scripts/bench.py teacher --json teacher.json

All train the same network on the same samples, drawn at random from LC-Rec's six tasks and `stream` on the demo's shop.
The Trainer draws its batches at random and pads each to its longest sample, its default; a batch has as many samples as
hold `batch_tokens` real tokens on average. Ours are sorted or packed among these few samples, with a little more
padding than in a whole epoch. A rate counts tokens with their padding, a useful rate without.

Memory is the peak of a few steps beyond the code: weights, gradients, optimiser, activations (with gradient
checkpointing). Loading the base may need more for a moment; that is left out.

On the shape of SmolLM2-135M, `_pretrained.py` compares our step with the float32 loop, the bf16 loop with all logits,
and the Trainer in bf16.
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
from benches._pretrained import SMOLLM2, compare
from distill.data import sources
from distill.data.dataset import Dataset, as_lists, write_dataset
from distill.runtime import artifacts
from distill.runtime.accelerator import accelerator
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.logs import log, progress_bar
from distill.semantic_ids.ids import SemanticIDs, write_codes
from teacher.base_model import from_scratch
from teacher.batching import Batch, collate, make_batches, padded_size
from teacher.config import TASKS, TrainingSettings
from teacher.model import build_model
from teacher.samples import Samples
from teacher.tasks import TaskData
from teacher.tokenizer import train_tokenizer

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
    base: bool = True
    """Compare steps on the shape of a pretrained base too, each in a fresh process."""
    base_sizes: dict[str, float] = field(default_factory=lambda: dict(SMOLLM2))
    """That shape: fields of LlamaConfig (default: SmolLM2-135M)."""
    base_tokens: int = 1024
    """Tokens a batch there."""
    base_batches: int = 4
    """Measured batches of a round there."""
    base_repeats: int = 2
    """Rounds there; medians are reported."""
    memory: bool = True
    """Measure the modes' memory too, each in a fresh process."""
    large: dict[str, float] = field(default_factory=lambda: dict(LARGE))
    """The network whose memory is measured."""
    steps: int = 2
    """Steps after which the peak of memory is read."""
    json: Path | None = None
    """Where the figures go."""
    seed: int = 0
    """Seed of weights, samples and order."""


def main(config: Config) -> dict[str, Any]:
    """Measure speed and memory; returns all figures."""
    with tempfile.TemporaryDirectory() as folder:
        run = config.run or made_up(Path(folder), config.seed)
        figures = speed(config, run, Path(folder))
        if config.base:
            rounds = config.base_tokens, config.base_batches, config.base_repeats
            figures |= compare(config.base_sizes, run, *rounds, config.seed)
        if config.memory:
            figures |= memory(config, run, Path(folder))
    return figures


def made_up(folder: Path, seed: int) -> Path:
    """Make a run's folder with the demo's shop and random IDs."""
    shop = sources.reader("demo").read(None, sources.Options(seed=seed, users=2000))
    settings = Config(seed=seed)
    with ArtifactJob("dataset", settings, folder / "dataset").write() as into:
        write_dataset(into, shop.items, shop.user_ids, as_lists(shop.values, shop.offsets, pa.int32()))
    dataset = artifacts.read(folder / "dataset", "dataset")
    codes = np.random.default_rng(seed).integers(0, 256, (shop.items.num_rows, 4))
    with ArtifactJob("semantic_ids", settings, folder / "semantic_ids", [dataset]).write() as into:
        write_codes(into, shop.items["item_id"].to_pylist(), codes)
        write_json(into / "report.json", {"codebook_size": 256})
    return folder


def teacher_settings(config: Config, **more) -> TrainingSettings:
    """The teacher's settings: a full pass over every task."""
    tasks = dict.fromkeys(TASKS, 1.0)
    return TrainingSettings(**{"tasks": tasks, "batch_tokens": config.batch_tokens, "seed": config.seed} | more)


def build(settings: TrainingSettings, run: Path):
    """Build (network, samples of an epoch, tokenizer)."""
    dataset = Dataset.load(run / "dataset")
    ids = SemanticIDs.load(run / "semantic_ids", dataset.n_items)
    model, tokenizer = build_model(settings, dataset, ids, settings.max_tokens, settings.seed)
    return model, TaskData.of(settings, dataset, ids, tokenizer).epoch(settings.tasks, settings.seed, 0), tokenizer


def speed(config: Config, run: Path, folder: Path) -> dict[str, Any]:
    """Measure our steps, packed and padded, and the Trainer's, in turns."""
    acc = accelerator(seed=config.seed)
    model, samples, tokenizer = build(teacher_settings(config, sizes=config.sizes), run)
    samples_in_batch = max(round(config.batch_tokens / samples.lengths.mean()), 1)
    rows = np.random.default_rng(config.seed).permutation(len(samples))[: config.batches * samples_in_batch]
    samples = Samples.of([samples[row] for row in rows])
    useful = int(samples.lengths.sum())
    contenders: dict[str, tuple[Callable[[], float], int]] = {}  # function, and its tokens with padding
    for name, packing in (("padded", False), ("packed", True)):
        batches = make_batches(samples, config.batch_tokens, np.random.default_rng(config.seed), packing)
        with_padding = sum(padded_size(samples, batch) for batch in batches)
        round_of = our_round(copy.deepcopy(model), samples, batches, tokenizer.pad_token_id, acc)
        contenders[name] = (round_of, with_padding)
    contenders["trainer"] = trainer_round(
        copy.deepcopy(model), samples, samples_in_batch, tokenizer, config.seed, folder
    )
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in progress_bar(range(config.repeats + 1), desc="steps", unit="round"):
        for name, (run_round, _) in contenders.items():
            elapsed = run_round()
            if number > 0:
                seconds[name].append(elapsed)
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


def our_round(model, samples: Samples, batches: list[Batch], pad: int, acc) -> Callable[[], float]:
    """A function that runs the training loop's steps over all batches and returns the seconds."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, 1e-4, fused=True)
    model, optimizer = acc.prepare(model, optimizer)

    def run_round() -> float:
        model.train()
        started = time.perf_counter()
        for batch in batches:
            inputs = {name: torch.from_numpy(x).to(acc.device) for name, x in collate(samples, batch, pad).items()}
            loss = model(**inputs, use_cache=False).loss
            acc.backward(loss)
            acc.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
        return time.perf_counter() - started

    return run_round


class Clock(TrainerCallback):
    """Seconds from the first step to the last, without what the Trainer does before and after."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Start."""
        self.started = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        """Stop."""
        self.seconds = time.perf_counter() - self.started


def trainer_round(
    model, samples: Samples, samples_in_batch: int, tokenizer, seed: int, folder: Path
) -> tuple[Callable[[], float], int]:
    """A function that runs the Trainer over the samples and returns the seconds, and its tokens with padding."""
    examples = [
        {"input_ids": s.tokens.tolist(), "labels": np.where(s.counted, s.tokens, -100).tolist()} for s in samples
    ]
    sizes = []

    class Counting(DataCollatorForSeq2Seq):
        def __call__(self, features, return_tensors=None):
            batch = super().__call__(features, return_tensors)
            sizes.append(batch["input_ids"].numel())
            return batch

    def run_round() -> float:
        arguments = TrainingArguments(
            output_dir=str(folder / "trainer"),
            per_device_train_batch_size=samples_in_batch,
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

    run_round()  # counts the padding, the same in every round of this seed
    return run_round, sum(sizes)


def memory(config: Config, run: Path, folder: Path) -> dict[str, float]:
    """Measure the peak MiB of each mode in a fresh process, beyond its memory before it loads the base."""
    log.info("memory: one base for all modes")
    settings = teacher_settings(config, base=str(folder / "base"), batch_tokens=256)
    dataset = Dataset.load(run / "dataset")
    tokenizer = train_tokenizer(dataset.texts(), settings.vocab_size)
    from_scratch(tokenizer, config.large, settings.max_tokens).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    figures = {}
    for mode in progress_bar(MODES, desc="memory", unit="mode"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            figures[f"peak_mib_{mode}"] = pool.apply(peak, (asdict(settings) | {"mode": mode}, run, config.steps))
    return figures


def peak(fields: dict[str, Any], run: Path, steps: int) -> float:
    """Measure the peak MiB of a few steps in this process, on its GPU if there is one."""
    settings = TrainingSettings(**fields)
    acc = accelerator(seed=settings.seed)
    if settings.mode == "qlora":
        import bitsandbytes  # noqa: F401  its code does not count as the training's memory
    import peft  # noqa: F401

    before = resident("VmRSS")
    model, samples, tokenizer = build(settings, run)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    batches = make_batches(samples, settings.batch_tokens, np.random.default_rng(0))[:steps]
    if acc.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:  # return the memory that loading needed, and reset the peak
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    our_round(model, samples, batches, tokenizer.pad_token_id, acc)()
    if acc.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resident("VmHWM") - before
