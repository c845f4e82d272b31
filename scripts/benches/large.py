"""Measure the memory of a large student's ranking step: one history for all candidates, or one for each.

    python scripts/bench.py large --json large.json

A small random LLaMA of LLaMA-7B's proportions (feed-forward 2.69 times the width) takes DWR steps over histories of 80
codewords, with 0 to 16 candidates. The peak memory of forward and backward pass beyond weights and gradients is
measured on the CPU, in a new process for each layout and batch size, and a line is fitted to it.

For 7B the memory is computed: the bytes that autograd keeps for one token and layer are counted on the small model, as
it is trained (bf16 with LoRA); they are proportional to the width. A step then needs

    weights + 16 bytes for each trained parameter (float32: itself, gradient, AdamW's moments)
    + tokens · layers · kept                       without checkpointing
    + tokens · (layers · width · 2 + kept)         with it: every layer's input, and `kept` of one layer at a time
    + candidates · levels · codewords · 12         logits, their softmax in float32, their gradient

where tokens is 1 + history + candidates · (levels - 1), or candidates · (1 + history + levels - 1).
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benches import resident
from distill import losses
from distill.runtime.logs import progress_bar
from student.models.large import Large, LargeConfig, add_lora, remove_vocabulary

LEVELS, SIZE = 4, 256
LAYOUTS = ("shared", "repeated")
# LLaMA-7B: layers, width, parameters of the layers and norms (the vocabulary's rows are not kept), of LoRA's r = 1
LLAMA_7B = (32, 4096, 6_476_271_616, 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008)))
WEIGHTS = {"bf16": 2.0, "nf4": 0.5 + 1 / 64 + 4 / 64 / 256}  # bytes a weight (Dettmers et al., 2023)
RANK = 8


@dataclass(frozen=True)
class Config:
    """Memory of ranking with a large student: python scripts/bench.py large [--json FILE]."""

    width: int = 256
    """Width of the measured network; its feed-forward is 2.69 times as wide."""
    layers: int = 8
    """Layers of the measured network."""
    items: int = 20
    """Items of history, 4 codewords each."""
    candidates: list[int] = field(default_factory=lambda: [0, 2, 4, 8, 16])
    """Numbers of ranked candidates; 0: the teacher's distributions alone."""
    batches: list[int] = field(default_factory=lambda: [1, 8])
    """Numbers of histories a step."""
    json: Path | None = None
    """File for the figures."""
    seed: int = 0
    """Seed of weights and data."""


def main(config: Config) -> dict[str, Any]:
    """Measure and return all figures: MiB of steps, MiB a candidate, GiB of 7B."""
    model = network(config)
    figures: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # freed memory is returned at once: peaks are those of tensors
    bar = progress_bar(total=len(LAYOUTS) * len(config.batches), desc="large", unit="process")
    for batch in config.batches:
        lines = {}
        for layout in LAYOUTS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peaks = pool.apply(steps, (config, layout, batch))
            bar.update()
            figures |= {f"mib_{layout}_{batch}x{k}": value for k, value in zip(config.candidates, peaks, strict=True)}
            ranked = [(k, value) for k, value in zip(config.candidates, peaks, strict=True) if k]
            numbers, values = np.array(ranked).T
            lines[layout] = np.polyfit(numbers * batch, values, 1)[0]
            figures[f"mib_a_candidate_{layout}_{batch}"] = float(lines[layout])
            figures[f"r2_{layout}_{batch}"] = float(np.corrcoef(numbers, values)[0, 1] ** 2)
        figures[f"ratio_a_candidate_{batch}"] = float(lines["repeated"] / lines["shared"])
    bar.close()
    kept = kept_bytes(config)
    figures["kept_bytes_a_token_layer_width"] = kept
    return figures | llama_7b(config, kept)


def llama_7b(config: Config, kept: float) -> dict[str, float]:
    """Compute the memory of LLaMA-7B's steps with the most candidates, and how many histories fit GPUs."""
    layers, width, trunk, adapters = LLAMA_7B
    history, k, new = 1 + config.items * LEVELS, max(config.candidates), LEVELS - 1
    trained = RANK * adapters + 2 * LEVELS * SIZE * width  # and the codewords' rows
    figures = {}
    for name, each in WEIGHTS.items():
        figures[f"gib_7b_fixed_{name}"] = (trunk * each + 16 * trained) / 2**30
    for layout, tokens in (("shared", history + k * new), ("repeated", k * (history + new))):
        for checkpointing in (False, True):
            a_token = layers * width * 2 + kept * width if checkpointing else layers * kept * width
            step = (tokens * a_token + k * LEVELS * SIZE * 12) / 2**30
            end = f"{layout}_checkpointing" if checkpointing else layout
            figures[f"mib_7b_a_history_{end}"] = step * 2**10
            for gpu in (24, 80):
                figures[f"histories_7b_{end}_{gpu}gib"] = int((gpu - figures["gib_7b_fixed_bf16"]) / step)
    figures["tokens_7b_shared"], figures["tokens_7b_repeated"] = history + k * new, k * (history + new)
    return figures


def network(config: Config, lora: bool = False) -> Large:
    """Build the measured network; with `lora`, weights in bf16 and adapters in float32."""
    torch.manual_seed(config.seed)
    heads = max(1, config.width // 32)
    sizes = {"hidden_size": config.width, "intermediate_size": config.width * 43 // 16, "num_attention_heads": heads}
    settings = LlamaConfig(vocab_size=8, num_hidden_layers=config.layers, **sizes)
    trunk = LlamaForCausalLM(settings).base_model
    trunk = trunk.to(torch.bfloat16) if lora else trunk
    remove_vocabulary(trunk)
    model = Large(LargeConfig(LEVELS, SIZE, settings.to_dict()), trunk).train()
    for rows in (model.head, model.codewords):
        nn.init.normal_(rows, std=0.02)
    if lora:
        add_lora(trunk, RANK, 0.0)
        model.start.requires_grad_(False)
    return model


def loss(model: Large, layout: str, batch: int, k: int, items: int) -> torch.Tensor:
    """Compute DISTILL of the first candidate plus RANK over all: equation (16)."""
    generator = torch.Generator().manual_seed(0)
    history = torch.randint(SIZE, (batch, items, LEVELS), generator=generator)
    candidates = torch.randint(SIZE, (batch, max(k, 1), LEVELS), generator=generator)
    teacher = torch.randn(batch, LEVELS, SIZE, generator=generator).log_softmax(-1)
    if layout == "shared":
        log_probs = model(history, candidates)
    else:
        alone = model(history.repeat_interleave(max(k, 1), dim=0), candidates.flatten(0, 1)[:, None])
        log_probs = alone.view(*candidates.shape, SIZE)
    value = losses.distill(log_probs[:, 0], teacher, 1.0, candidates[:, 0], 0.0).mean()
    if k:
        value = value + losses.rank(losses.sequence_score(log_probs, candidates), 0.001).mean()
    return value


def steps(config: Config, layout: str, batch: int) -> list[float]:
    """Measure the peak MiB of one step for each number of candidates, beyond weights and gradients, in this process."""
    torch.set_num_threads(1)
    model = network(config)
    peaks = []
    for k in (1, *config.candidates):  # the first allocates the gradients, which remain
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        loss(model, layout, batch, k, config.items).backward()
        peaks.append(resident("VmHWM") - before)
    return peaks[1:]


def kept_bytes(config: Config) -> float:
    """Count the bytes that autograd keeps for one token, layer and unit of width: those of two layers less one's."""
    sums = []
    for layers in (1, 2):
        sizes = Config(width=config.width, layers=layers, items=config.items, seed=config.seed)
        model, kept = network(sizes, lora=True), {}
        weights = {value.untyped_storage().data_ptr() for value in model.parameters()}

        def pack(value: torch.Tensor, weights=weights, kept=kept) -> torch.Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = (storage.nbytes(), value)
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), torch.autocast("cpu", torch.bfloat16):
            loss(model, "shared", 1, 16, config.items)
        sums.append(sum(size for size, _ in kept.values()))
    tokens = 1 + config.items * LEVELS + 16 * (LEVELS - 1)
    return (sums[1] - sums[0]) / tokens / config.width
