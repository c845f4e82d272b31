"""The dry run: memory, steps and time of a training, from the real data and a network without weights.

The network is built on torch's meta device, in seconds and without memory, whatever its size. Samples, batches and
steps are those of the training's first epoch. Formulas:

- Memory in bytes for weights, gradients and AdamW's two moments. DDP (stage 0) trains fp32 weights under autocast: 4 a
  parameter, and for each trained one 4 of gradient and 8 of moments. DeepSpeed (stages 1 to 3) under bf16 or fp16 keeps
  2 a parameter, and for each trained one 2 of gradient and 12 of fp32 copy and moments; stage 1 divides the optimiser
  by the GPUs, stage 2 the gradients too, stage 3 the weights too (Rajbhandari et al., 2020). Activations, buffers and
  the frameworks themselves come on top.
- QLoRA, which has no stages: half a byte for each weight of a projection, a scale of one byte for each 64 of them,
  4 bytes for each 256 scales, and a few tables for each matrix (Dettmers et al., 2023); 4 bytes for all else.
- FLOPs a token, padding included, without attention scores and the unpacking of 4-bit weights. Full: 6·N. LoRA and
  QLoRA: 4·N for forward and the activations' gradients, 6·A for the adapters, whose weights have gradients too, and
  2·H for the gradient of an output head that trains as a whole (`lora_embeddings: all`).
  Gradient checkpointing repeats the forward pass: 2·(N + A) more. N counts the parameters of matrix products: all but
  an input table that is not also the output head.
- Seconds = FLOPs / (GPUs · peak · utilisation). Validation is not counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from distill.data.dataset import Dataset
from distill.estimates.hardware import GPUS
from distill.estimates.language_models import STATES, training_flops, training_state
from distill.runtime import models
from distill.runtime.errors import UserError
from distill.runtime.launch import is_main_process
from distill.runtime.logs import log
from distill.semantic_ids.ids import SemanticIDs
from teacher import templates
from teacher.base_model import from_scratch, item_texts, quantiser_vectors
from teacher.batching import epoch_batches, padded_size
from teacher.config import EstimateSettings, ModelSettings
from teacher.model import adapt, unwrap_peft
from teacher.tasks import TaskData
from teacher.tokenizer import add_codewords, load_tokenizer, train_tokenizer, use_chat_template


def plan(settings: EstimateSettings, dataset_folder: Path, ids_folder: Path) -> dict[str, Any]:
    """Estimate sizes, tokens, memory and time of a training, as one flat object (memory as a list, a ZeRO stage each).

    Raises:
        UserError: what the training itself would refuse: tasks without texts, too few batches, IDs of other items.
    """
    dataset = Dataset.load(dataset_folder)
    ids = SemanticIDs.load(ids_folder, dataset.n_items)
    tokenizer, is_estimate = tokenizer_of(settings, settings.base_config, dataset)
    new = add_codewords(tokenizer, ids)
    if settings.chat and not is_estimate:
        use_chat_template(tokenizer)
    if settings.init_codewords == "codebook":
        quantiser_vectors(ids)  # raises here as it would in the training
    if settings.init_codewords == "text":
        item_texts(dataset)
    base_config = settings.base_config if is_estimate else settings.base
    model = on_meta(settings, base_config, settings.max_tokens, tokenizer, new, is_estimate)
    sizes = parameters(model) | {"tokenizer_estimated": is_estimate}
    sizes |= epoch_sizes(settings, TaskData.of(settings, dataset, ids, tokenizer))

    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and sizes["longest"] > positions:
        raise UserError(f"The longest sample has {sizes['longest']} tokens, the base {positions}; lower --max_tokens.")
    stages = 1 if settings.mode == "qlora" else 4
    precision = settings.precision  # all of these GPUs have bf16
    if precision == "auto":
        precision = "bf16" if settings.base else "no"
    sizes["memory"] = [memory(sizes, stage, settings.gpus, precision) for stage in range(stages)]
    if settings.mode == "qlora":
        sizes["memory"][0]["weights"] = qlora_weights(model)
    peak, gpu_gib = GPUS[settings.gpu]
    flops = flops_a_token(sizes, settings.mode, settings.gradient_checkpointing)
    return sizes | {
        "flops_a_token": flops,
        "flops": flops * sizes["tokens_padded"],
        "seconds": flops * sizes["tokens_padded"] / (settings.gpus * peak * 1e12 * settings.utilisation),
        "gpu": settings.gpu,
        "gpus": settings.gpus,
        "gpu_gib": gpu_gib,
        "utilisation": settings.utilisation,
    }


def epoch_sizes(settings: EstimateSettings, data: TaskData) -> dict[str, Any]:
    """Samples, tokens, batches and steps of the first epoch.

    Raises:
        UserError: too few batches for one step.
    """
    samples, batches = epoch_batches(data, settings, 0)
    steps = len(batches) // settings.gpus // settings.accumulation
    if steps == 0:
        raise UserError(
            f"An epoch has {len(batches)} batches, too few for {settings.gpus} GPUs and --accumulation "
            f"{settings.accumulation}; lower --batch_tokens."
        )
    padded = sum(padded_size(samples, batch) for batch in batches)
    return {
        "samples": len(samples),
        "samples_full": int((samples.lengths >= settings.max_tokens).sum()),
        "longest": int(samples.lengths.max()),
        "tokens": int(samples.lengths.sum()),
        "tokens_padded": padded,
        "batches": len(batches),
        "steps": steps,
        "tokens_a_step": padded / len(batches) * settings.gpus * settings.accumulation,
        "epochs": settings.epochs,
    }


def tokenizer_of(settings: ModelSettings, base_config: Path | None, dataset: Dataset):
    """The tokenizer, and whether it is only an estimate.

    Without a base it is trained as in the training. With one it is the base's, if that is on this machine; else one of
    the same size is trained on items and templates.

    Raises:
        UserError: neither the base nor its config is on this machine.
    """
    texts = [text for text in dataset.texts() if text] or ["-"]
    if settings.base is None:
        return train_tokenizer(texts, settings.vocab_size), False
    try:
        models.load_tokenizer(settings.base, "", local_files_only=True)
    except UserError:
        if base_config is None:
            raise UserError(
                f"No base model {settings.base!r} on this machine; for a dry run without it give --base_config FILE, "
                "a config.json of its sizes."
            ) from None
        texts += [line for name, lines in vars(templates).items() if name.isupper() for line in lines]
        return train_tokenizer(texts, load_config(base_config).vocab_size), True
    return load_tokenizer(settings.base), False


def load_config(where: Path | str) -> PretrainedConfig:
    """Load a base model's config from its file or folder.

    Raises:
        UserError: it cannot be read.
    """
    return models.load_config(where, f"No config of a base model at {str(where)!r}", local_files_only=True)


def on_meta(
    settings: ModelSettings, base_config: Path | str | None, max_tokens: int, tokenizer, new: int, is_estimate: bool
):
    """Build the training's network without weights.

    Args:
        settings: of the network.
        base_config: file or folder of the base's config; not read without a base.
        max_tokens: window of a network without a base.
        tokenizer: holds the codewords.
        new: how many of its tokens the base lacks.
        is_estimate: the tokenizer is not the base's, so the vocabulary is counted from the base's config.
    """
    with torch.device("meta"):
        if settings.base is None:
            model, rows = from_scratch(tokenizer, settings.sizes, max_tokens), len(tokenizer)
        else:
            model = models.build_causal_model(load_config(base_config))
            rows = model.config.vocab_size + new if is_estimate else len(tokenizer)
            model.resize_token_embeddings(rows, mean_resizing=False)
        return adapt(model, settings, list(range(rows - new, rows)))


def parameters(model) -> dict[str, int]:
    """Count the parameters: all, trained, and by kind."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    total = sum(p.numel() for p in model.parameters())
    codeword_rows = sum(p.numel() for name, p in trained if "trainable_tokens" in name)
    config = unwrap_peft(model).config
    input_table = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    adapters = sum(p.numel() for name, p in trained if "lora_" in name)
    head = unwrap_peft(model).get_output_embeddings().weight
    return {
        "parameters": total,
        "trainable": sum(p.numel() for _, p in trained),
        "trainable_tensors": len(trained),
        "codeword_rows": codeword_rows,
        "adapters": adapters,
        "trained_head": head.numel() if any(p is head for _, p in trained) else 0,
        "in_products": total - codeword_rows - adapters - input_table,
    }


def memory(sizes: dict[str, Any], stage: int, gpus: int, precision: str) -> dict[str, float]:
    """Bytes a GPU for weights, gradients and optimiser under a ZeRO stage (0: DDP)."""
    half = stage > 0 and precision != "no"
    counts = sizes["parameters"], sizes["trainable"], sizes["trainable_tensors"]
    return {"stage": stage} | training_state(*counts, stage, gpus, half)


def qlora_weights(model) -> int:
    """Bytes of a network whose projections, all that have adapters, are in 4 bits."""
    packed = [module.base_layer.weight.numel() for module in model.modules() if hasattr(module, "lora_A")]
    total = 4 * (sum(parameter.numel() for parameter in model.parameters()) - sum(packed))
    for values in packed:
        scales = -(-values // 64)
        # and the 16 values that 4 bits stand for, the 256 that a scale's byte stands for, the scales' mean
        total += -(-values // 2) + scales + 4 * -(-scales // 256) + 4 * (16 + 256 + 1)
    return total


def flops_a_token(sizes: dict[str, Any], mode: str, gradient_checkpointing: bool) -> int:
    """Floating point operations of one token's training."""
    counts = sizes["in_products"], sizes["adapters"], sizes["trained_head"]
    return training_flops(*counts, mode == "full", gradient_checkpointing)


def show(sizes: dict[str, Any]) -> None:
    """Print a plan, on the first process only."""
    if not is_main_process():
        return
    s = sizes
    full = s["parameters"] == s["trainable"]
    tables = s["trainable"] - s["adapters"]
    embeddings = f"codeword rows {tables:,}" if s["codeword_rows"] else f"embeddings {tables:,}"
    kinds = "" if full else f" ({embeddings}, adapters {s['adapters']:,})"
    padding = 1 - s["tokens"] / s["tokens_padded"]
    lines = [
        f"parameters        {s['parameters']:,}",
        f"trainable         {s['trainable']:,}{kinds}",
        f"samples           {s['samples']:,} an epoch, the longest of {s['longest']} tokens",
        f"tokens            {s['tokens']:,} an epoch, {s['tokens_padded']:,} with padding ({padding:.1%})",
        f"steps             {s['steps']:,} an epoch, {s['steps'] * s['epochs']:,} in {s['epochs']} epochs; "
        f"{s['tokens_a_step']:,.0f} tokens a step, with padding",
        *memory_lines(s),
        f"FLOPs             {s['flops']:.3g} an epoch, {s['flops_a_token']:.3g} a token",
        f"time              {duration(s['seconds'])} an epoch, {duration(s['seconds'] * s['epochs'])} in all, "
        f"at {s['utilisation']:.0%} of the peak",
    ]
    print("\n".join(lines))
    if s["tokenizer_estimated"]:
        log.info("note: the base's tokenizer is not on this machine; texts were counted by one trained on the items")
    if s["samples_full"]:
        log.info(f"note: {s['samples_full']:,} samples fill --max_tokens; the beginning of their prompts may be cut")


def memory_lines(sizes: dict[str, Any]) -> list[str]:
    """The table of memory, a ZeRO stage a row."""
    most = sum(sizes["memory"][0][name] for name in STATES)
    unit, size = ("GiB", 2**30) if most >= 2**30 else ("MiB", 2**20)
    gpus = f"{sizes['gpus']} {sizes['gpu']} of {sizes['gpu_gib']} GiB"
    lines = [
        f"memory in {unit}     on each of {gpus}; activations come on top",
        "  ZeRO stage      weights  gradients  optimiser       sum",
    ]
    for row in sizes["memory"]:
        values = [row[name] / size for name in STATES]
        stage = f"{row['stage']} (DDP)" if row["stage"] == 0 else str(row["stage"])
        lines.append(f"  {stage:<12}" + "".join(f"{value:>11.2f}" for value in values) + f"{sum(values):>10.2f}")
    return lines


def duration(seconds: float) -> str:
    """Seconds in the most readable unit."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
