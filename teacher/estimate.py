"""The dry run: what a training would take, from the real data and a network without weights.

The network is built on torch's meta device, in seconds and without memory, whatever its size. Samples, batches and
steps are those of the first epoch of the training itself. Arithmetic:

- memory in bytes for weights, gradients and AdamW's two moments. DDP (stage 0) trains fp32 weights under autocast: 4 a
  parameter, and for each trained one 4 of gradient and 8 of moments. DeepSpeed (stages 1 to 3) under bf16 or fp16 keeps
  2 a parameter, and for each trained one 2 of gradient and 12 of fp32 copy and moments; stage 1 divides the optimiser
  by the GPUs, stage 2 the gradients too, stage 3 the weights too (Rajbhandari et al., 2020). Activations, buffers and
  the frameworks themselves come on top.
- QLoRA, which knows no stages: half a byte for each weight of a projection, a scale in one byte for each 64 of them,
  4 bytes for each 256 scales, and a few tables for each matrix (Dettmers et al., 2023); 4 bytes for all else.
- FLOPs a token, padding included, attention scores and the unpacking of 4-bit weights left out. Full: 6·N. LoRA and
  QLoRA: 4·N for forward and the activations' gradients, and 6·A for the adapters, whose weights have gradients too.
  Gradient checkpointing repeats the forward pass: 2·(N + A) more. N counts the parameters of matrix products: all, but
  without an input table of its own.
- seconds = FLOPs / (GPUs · peak · utilisation). Validation is not counted.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from distill.data.dataset import Dataset
from distill.runtime.errors import UserError
from distill.runtime.logs import log
from distill.semantic_ids.ids import SemanticIDs
from teacher import model as models
from teacher import templates
from teacher.tasks import TaskData, batches, padded_size

if TYPE_CHECKING:
    from teacher.finetune import Config

# dense bf16 peak in TFLOP/s with fp32 accumulation, and memory in GiB, from the makers' data sheets
GPUS = {
    "a100": (312.0, 80),
    "b200": (2250.0, 180),
    "h100": (989.0, 80),
    "h200": (989.0, 141),
    "l40s": (362.0, 48),
    "rtx4090": (165.0, 24),
}
STATES = ("weights", "gradients", "optimiser")


def plan(config: Config, dataset_folder: Path, ids_folder: Path) -> dict[str, Any]:
    """Sizes, tokens, memory and time of a training, as a flat object (memory by stage in lists).

    Raises:
        UserError: what the training itself would refuse: tasks without texts, too few batches, IDs of other items.
    """
    dataset = Dataset.load(dataset_folder)
    ids = SemanticIDs.load(ids_folder, dataset.n_items)
    tokenizer, estimated = tokenizer_of(config, dataset)
    new = models.add_codewords(tokenizer, ids)
    if config.chat and not estimated:
        models.use_chat_template(tokenizer)
    if config.init_codewords == "codebook":
        models.code_vectors(ids)  # refused here as it would be there
    model = on_meta(config, tokenizer, new, estimated)
    data = TaskData.of(config, dataset, ids, tokenizer)
    samples = data.epoch(config.tasks, config.seed, 0)
    groups = batches(samples, config.batch_tokens, np.random.default_rng([config.seed, 0]), config.packing)
    steps = len(groups) // config.gpus // config.accumulation
    if steps == 0:
        raise UserError(
            f"An epoch has {len(groups)} batches, too few for {config.gpus} GPUs and --accumulation "
            f"{config.accumulation}; lower --batch_tokens."
        )
    padded = sum(padded_size(samples, group) for group in groups)
    found = parameters(model) | {
        "tokenizer_estimated": estimated,
        "samples": len(samples),
        "samples_full": int((samples.lengths >= config.max_tokens).sum()),
        "longest": int(samples.lengths.max()),
        "tokens": int(samples.lengths.sum()),
        "tokens_padded": padded,
        "batches": len(groups),
        "steps": steps,
        "tokens_a_step": padded / len(groups) * config.gpus * config.accumulation,
        "epochs": config.epochs,
    }
    stages = 1 if config.mode == "qlora" else 4
    found["memory"] = [memory(found, stage, config.gpus, config.precision) for stage in range(stages)]
    if config.mode == "qlora":
        found["memory"][0]["weights"] = qlora_weights(model)
    peak, found["gpu_gib"] = GPUS[config.gpu]
    found["flops_a_token"] = flops_a_token(found, config.mode, config.gradient_checkpointing)
    found["flops"] = found["flops_a_token"] * padded
    found["seconds"] = found["flops"] / (config.gpus * peak * 1e12 * config.utilisation)
    found["gpus"], found["gpu"], found["utilisation"] = config.gpus, config.gpu, config.utilisation
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and found["longest"] > positions:
        raise UserError(f"The longest sample has {found['longest']} tokens, the base {positions}; lower --max_tokens.")
    return found


def tokenizer_of(config: Config, dataset: Dataset):
    """The base's tokenizer if it is on this machine, else one of the same size trained on the texts: an estimate."""
    texts = [text for text in dataset.texts() if text] or ["-"]
    if config.base is None:
        return models.train_tokenizer(texts, config.vocab_size), False
    try:
        AutoTokenizer.from_pretrained(config.base, local_files_only=True)
    except (OSError, ValueError):
        if config.base_config is None:
            raise UserError(
                f"No base model {config.base!r} on this machine; for a dry run without it give --base_config FILE, "
                "a config.json of its sizes."
            ) from None
        texts += [line for name, lines in vars(templates).items() if name.isupper() for line in lines]
        return models.train_tokenizer(texts, network(config.base_config).vocab_size), True
    return models.load_tokenizer(config.base), False


def network(where: Path | str) -> PretrainedConfig:
    """The config of a base model, from its file or folder.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(where, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"No config of a base model at {str(where)!r}: {str(error).splitlines()[0]}") from None


def on_meta(config: Config, tokenizer, new: int, estimated: bool = False):
    """The network of the training, without weights; its vocabulary is the base's where the tokenizer is not."""
    with torch.device("meta"):
        if config.base is None:
            model = models.from_scratch(tokenizer, config.sizes, config.max_tokens)
            rows = len(tokenizer)
        else:
            model = AutoModelForCausalLM.from_config(network(config.base_config if estimated else config.base))
            rows = model.config.vocab_size + new if estimated else len(tokenizer)
            model.resize_token_embeddings(rows, mean_resizing=False)
        return models.adapt(model, config, list(range(rows - new, rows)))


def parameters(model) -> dict[str, int]:
    """How many there are, how many train, and of what kind."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for _, p in trained)
    rows = sum(p.numel() for name, p in trained if "trainable_tokens" in name)
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    table = 0 if bare.config.tie_word_embeddings else bare.config.vocab_size * bare.config.hidden_size
    adapters = sum(p.numel() for name, p in trained if "lora_" in name)
    return {
        "parameters": total,
        "trainable": trainable,
        "trainable_tensors": len(trained),
        "codeword_rows": rows,
        "adapters": adapters,
        "in_products": total - rows - adapters - table,
    }


def memory(found: dict[str, Any], stage: int, gpus: int, precision: str) -> dict[str, float]:
    """Bytes a GPU for weights, gradients and optimiser under a ZeRO stage (0: DDP)."""
    half = stage > 0 and precision != "no"
    weights, gradients = found["parameters"] * (2 if half else 4), found["trainable"] * (2 if half else 4)
    # AdamW: two moments, one step counter a tensor; DeepSpeed's half precision also a fp32 copy
    optimiser = found["trainable"] * (12 if half else 8) + 4 * found["trainable_tensors"]
    return {
        "stage": stage,
        "weights": weights / (gpus if stage >= 3 else 1),
        "gradients": gradients / (gpus if stage >= 2 else 1),
        "optimiser": optimiser / (gpus if stage >= 1 else 1),
    }


def qlora_weights(model) -> int:
    """Bytes of a network whose projections, all that have adapters, lie in 4 bits."""
    packed = [part.base_layer.weight.numel() for part in model.modules() if hasattr(part, "lora_A")]
    total = 4 * (sum(parameter.numel() for parameter in model.parameters()) - sum(packed))
    for values in packed:
        scales = -(-values // 64)
        # and the 16 values that 4 bits stand for, the 256 that a scale's byte stands for, the scales' mean
        total += -(-values // 2) + scales + 4 * -(-scales // 256) + 4 * (16 + 256 + 1)
    return total


def flops_a_token(found: dict[str, Any], mode: str, gradient_checkpointing: bool) -> int:
    """Floating point operations that one token of training takes."""
    n, adapters = found["in_products"], found["adapters"]
    again = 2 * (n + adapters) if gradient_checkpointing else 0
    return (6 * n if mode == "full" else 4 * n + 6 * adapters) + again


def show(found: dict[str, Any]) -> None:
    """Print a plan for a reader."""
    if int(os.environ.get("RANK", "0")):
        return
    f = found
    full = f["parameters"] == f["trainable"]
    kinds = "" if full else f" (codeword rows {f['codeword_rows']:,}, adapters {f['adapters']:,})"
    padding = 1 - f["tokens"] / f["tokens_padded"]
    most = sum(f["memory"][0][name] for name in STATES)
    unit, size = ("GiB", 2**30) if most >= 2**30 else ("MiB", 2**20)
    lines = [
        f"parameters        {f['parameters']:,}",
        f"trainable         {f['trainable']:,}{kinds}",
        f"samples           {f['samples']:,} an epoch, the longest of {f['longest']} tokens",
        f"tokens            {f['tokens']:,} an epoch, {f['tokens_padded']:,} with padding ({padding:.1%})",
        f"steps             {f['steps']:,} an epoch, {f['steps'] * f['epochs']:,} in {f['epochs']} epochs; "
        f"{f['tokens_a_step']:,.0f} tokens a step, with padding",
        f"memory in {unit}     on each of {f['gpus']} {f['gpu']} of {f['gpu_gib']} GiB; activations come on top",
        "  ZeRO stage      weights  gradients  optimiser       sum",
    ]
    for row in f["memory"]:
        parts = [row[name] / size for name in STATES]
        name = f"{row['stage']} (DDP)" if row["stage"] == 0 else str(row["stage"])
        lines.append(f"  {name:<12}" + "".join(f"{part:>11.2f}" for part in parts) + f"{sum(parts):>10.2f}")
    lines += [
        f"FLOPs             {f['flops']:.3g} an epoch, {f['flops_a_token']:.3g} a token",
        f"time              {duration(f['seconds'])} an epoch, {duration(f['seconds'] * f['epochs'])} in all, "
        f"at {f['utilisation']:.0%} of the peak",
    ]
    print("\n".join(lines))
    if f["tokenizer_estimated"]:
        log.info("note: the base's tokenizer is not on this machine; texts were counted by one trained on the items")
    if f["samples_full"]:
        log.info(f"note: {f['samples_full']:,} samples fill --max_tokens; the beginning of their prompts may be cut")


def duration(seconds: float) -> str:
    """Seconds in the unit that one reads best."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
