"""A training step on the shape of a pretrained base (SmolLM2-135M), with four training loops and on the same batches.

Weights are random: speed does not depend on them. The batches are streams with titles and texts with IDs, as in
`configs/smollm2/teacher.yaml`. Each loop runs in a fresh process, whose peak memory is read too; the loops take turns.
On CPUs the clock counts the process's CPU seconds, divided by its threads, so that other work disturbs it less.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benches import resident
from distill.data.dataset import Dataset
from distill.runtime.logs import progress_bar
from distill.runtime.precision import has_bf16
from distill.semantic_ids.ids import SemanticIDs
from teacher.batching import collate, make_batches
from teacher.config import TrainingSettings
from teacher.loss import use_counted_loss
from teacher.model import use_plain_attention
from teacher.tasks import TaskData
from teacher.tokenizer import add_codewords, train_tokenizer

SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152,
}  # fmt: skip
TRAININGS = {  # bf16, loss at counted positions
    "ours": (True, True),
    "float32_loop": (False, False),
    "bf16_loop": (True, False),
    "trainer_bf16": (True, False),
}
SETTINGS = TrainingSettings(
    tasks={"stream": 1.0, "item2index": 0.25, "index2item": 0.25}, vocab_size=8192, stream_titles=10, max_tokens=384
)
Batches = list[dict[str, np.ndarray]]


def compare(sizes: dict[str, float], run: Path, batch_tokens: int, batches: int, repeats: int, seed: int) -> dict:
    """Measure all loops.

    Args:
        sizes: fields of LlamaConfig.
        run: holds a data set with texts, and semantic IDs.
        batch_tokens: tokens a batch.
        batches: measured batches of a round; one more warms up.
        repeats: rounds; medians are reported.
        seed: of samples and order.
    """
    inputs, vocabulary = draw_batches(run, batch_tokens, batches + 1, seed)
    fields = {name: int(value) for name, value in sizes.items()}
    fields["vocab_size"] = max(fields["vocab_size"], vocabulary)
    seconds: dict[str, list[float]] = {training: [] for training in TRAININGS}
    peaks: dict[str, list[float]] = {training: [] for training in TRAININGS}
    for _ in progress_bar(range(repeats), desc="shape of a base", unit="round"):
        for training in TRAININGS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                elapsed, peak = pool.apply(measure, (training, fields, inputs, torch.get_num_threads()))
            seconds[training].append(elapsed)
            peaks[training].append(peak)
    median = {training: statistics.median(values) for training, values in seconds.items()}
    tokens = sum(batch["input_ids"].size for batch in inputs[1:])
    counted = sum(int((batch["labels"] >= 0).sum()) for batch in inputs[1:])
    figures: dict[str, Any] = {"base_counted_share": counted / tokens, "base_has_bf16": has_bf16()}
    for training in TRAININGS:
        figures[f"base_tokens_per_s_{training}"] = tokens / median[training]
        figures[f"base_peak_mib_{training}"] = statistics.median(peaks[training])
    for training in list(TRAININGS)[1:]:
        figures[f"ratio_base_vs_{training}"] = median[training] / median["ours"]
    rate = matrix_rate()
    flops = 6 * (layer_weights(fields) * tokens + fields["vocab_size"] * fields["hidden_size"] * counted)
    return figures | {"base_share_of_matrix_rate": flops / median["ours"] / rate, "matrix_gflops": rate / 1e9}


def draw_batches(run: Path, batch_tokens: int, count: int, seed: int) -> tuple[Batches, int]:
    """Draw the batches; returns them and the tokens of the vocabulary in use."""
    dataset = Dataset.load(run / "dataset")
    ids = SemanticIDs.load(run / "semantic_ids", dataset.n_items)
    tokenizer = train_tokenizer(dataset.texts(), SETTINGS.vocab_size)
    add_codewords(tokenizer, ids)
    samples = TaskData.of(SETTINGS, dataset, ids, tokenizer).epoch(SETTINGS.tasks, seed, 0)
    groups = make_batches(samples, batch_tokens, np.random.default_rng(seed))[:count]
    return [collate(samples, group, tokenizer.pad_token_id) for group in groups], len(tokenizer)


def measure(training: str, fields: dict[str, int], batches: Batches, threads: int) -> tuple[float, float]:
    """Train on the batches in this process; returns the seconds of all but the first, and the peak MiB of memory."""
    torch.set_num_threads(threads)
    bf16, counted = TRAININGS[training]
    bf16 = bf16 and has_bf16()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**fields, tie_word_embeddings=True)).train()
    if counted:
        use_counted_loss(model)
        if bf16 and not torch.cuda.is_available():
            use_plain_attention(model)
    seconds = (
        trainer_seconds(model, batches, bf16) if training == "trainer_bf16" else loop_seconds(model, batches, bf16)
    )
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else resident("VmHWM")
    return seconds, peak


def loop_seconds(model, batches: Batches, bf16: bool) -> float:
    """Run the steps of the training loop: forward, backward, clipping, AdamW."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    started = 0.0
    for number, batch in enumerate(batches):
        if number == 1:
            started = clock()
        inputs = {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(**inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return clock() - started


def trainer_seconds(model, batches: Batches, bf16: bool) -> float:
    """Run Hugging Face's `Trainer` on the same batches, in their order."""
    stamps: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            stamps.append(clock())

    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(batches)

    arguments = TrainingArguments(
        output_dir="unused", per_device_train_batch_size=1, num_train_epochs=1, learning_rate=1e-4, bf16=bf16,
        save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip

    def collator(features):
        return {name: torch.from_numpy(array) for name, array in features[0].items()}

    InOrder(model, arguments, collator, batches, callbacks=[Clock()]).train()
    return stamps[-1] - stamps[0]


def clock() -> float:
    """Seconds: of the wall with a GPU, else of this process's CPU time a thread."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time() / torch.get_num_threads()


def matrix_rate() -> float:
    """Floating-point operations a second of a large matrix product, in bf16 where the hardware has it."""
    size, device = 2048, "cuda" if torch.cuda.is_available() else "cpu"
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16 if has_bf16() else torch.float32)
    best = float("inf")
    for _ in range(5):
        started = clock()
        (matrix @ matrix).sum().item()
        best = min(best, clock() - started)
    return 2 * size**3 / best


def layer_weights(fields: dict[str, int]) -> int:
    """Weights of the layers' matrix products."""
    width, heads, groups = fields["hidden_size"], fields["num_attention_heads"], fields["num_key_value_heads"]
    attention = width * width * 2 + 2 * width * (width // heads) * groups
    return fields["num_hidden_layers"] * (attention + 3 * width * fields["intermediate_size"])
