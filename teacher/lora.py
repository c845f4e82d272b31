"""LoRA adapters, 4-bit bases (QLoRA), and merging an adapter into its base.

PEFT is imported where it is used: it imports bitsandbytes, which warns on CPUs.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from distill.runtime.errors import UserError
from distill.semantic_ids.ids import LEVEL_NAMES
from teacher.base_model import extend_vocabulary, load_base, token_tables
from teacher.tokenizer import load_tokenizer

# dtype of the matrix products with 4-bit weights, by the training's precision
COMPUTE_DTYPE = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CODEWORD = re.compile(rf"<[{LEVEL_NAMES}]_\d+>")  # the token of a codeword


def add_lora(
    model: PreTrainedModel,
    codeword_rows: list[int],
    rank: int,
    alpha: int,
    dropout: float,
    embeddings: Literal["codewords", "all"] = "codewords",
):
    """Add LoRA to all seven projections; of the embeddings (and an untied head) the codewords' rows train, or all rows.

    Whole tables train in place. PEFT's `modules_to_save`, which LC-Rec uses, would keep a frozen copy of each.
    """
    from peft import LoraConfig, get_peft_model

    names = ["embed_tokens"] if model.config.tie_word_embeddings else ["embed_tokens", "lm_head"]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=PROJECTIONS,
        trainable_token_indices={name: codeword_rows for name in names} if embeddings == "codewords" else None,
        task_type="CAUSAL_LM",
    )
    tuned = get_peft_model(model, config)
    if embeddings == "all":
        for table in token_tables(model):
            table.requires_grad_(True)
    return tuned


def save_adapter(tuned, folder: Path) -> None:
    """Save a PEFT model's adapter with what trained of the embeddings: the codewords' rows, or whole tables.

    By default PEFT would always add whole tables, since the vocabulary has grown.
    """
    config = tuned.peft_config["default"]
    # PEFT writes sets in their order of iteration, which changes with the hash seed of each process
    for name, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, name, sorted(value))
    tuned.save_pretrained(folder, save_embedding_layers=not config.trainable_token_indices)


def load_quantised(base: str, precision: str) -> PreTrainedModel:
    """Load a pretrained causal model with its projections in 4 bits (NF4, double quantisation: Dettmers et al., 2023).

    Embeddings, head and norms stay float32: the codewords' rows are trained in them. The weights lie on this process's
    device.

    Args:
        base: a local path or hub name.
        precision: of the training, "no", "bf16" or "fp16".

    Raises:
        UserError: no bitsandbytes, no such base, or an engine that shards weights.
    """
    for engine in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{engine}") == "true":
            raise UserError(
                f"--mode qlora does not run under {engine}; use configs/accelerate/ddp.yaml or --mode lora."
            )
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError:
        raise UserError("--mode qlora needs bitsandbytes: pip install 'lohrec-distill[qlora]'.") from None
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=COMPUTE_DTYPE[precision],
    )
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    model = load_base(base, quantization_config=quantisation, device_map={"": device})
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # on some CPUs it would repack its weights in the first validation, for a kernel that has no gradient
            module.support_avx512bf16_for_cpu = False
    return model


def merge_adapter(
    adapter: Path, tokenizer_folder: Path, base: str, dtype: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Merge an adapter into its base.

    Args:
        adapter: folder of the adapter.
        tokenizer_folder: holds the tokenizer with the codewords, and `teacher.json`.
        base: the base model, a local path or hub name.
        dtype: of the merged weights; "auto": the base's.

    Returns:
        The merged model, its tokenizer, and the content of `teacher.json`.

    Raises:
        UserError: no such base, one of another vocabulary or other sizes, or a damaged adapter.
    """
    tokenizer = load_tokenizer(str(tokenizer_folder))
    rows = codeword_rows(adapter, tokenizer)
    check_vocabulary(tokenizer, rows[0], base)
    model = load_base(base, dtype if dtype == "auto" else getattr(torch, dtype))
    n_tokens = model.get_input_embeddings().num_embeddings
    if rows[0] > n_tokens:
        raise UserError(f"{base!r} has {n_tokens} tokens, too few for {adapter}.")
    extend_vocabulary(model, tokenizer, len(rows))  # the adapter replaces these rows
    tuned = load_adapter(model, adapter, base)
    return tuned.merge_and_unload(), tokenizer, json.loads((tokenizer_folder / "teacher.json").read_text())


def codeword_rows(adapter: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The codewords' embedding rows, ascending: those that an adapter trains, or the tokenizer's if all rows train.

    Raises:
        UserError: the adapter trains none, or is damaged.
    """
    rows = json.loads((adapter / "adapter_config.json").read_text()).get("trainable_token_indices") or {}
    rows = sorted({row for table in rows.values() for row in table}) if isinstance(rows, dict) else sorted(rows)
    if not rows and holds_tables(adapter):
        rows = sorted(row for token, row in tokenizer.get_vocab().items() if CODEWORD.fullmatch(token))
    if not rows:
        raise UserError(
            f"{adapter} trains no codeword rows (neither trainable_token_indices nor whole embeddings); it is no "
            "teacher's adapter."
        )
    return rows


def holds_tables(adapter: Path) -> bool:
    """Whether an adapter's file holds whole embedding tables.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
            return any(name.endswith(".embed_tokens.weight") for name in set(file.keys()))
    except (OSError, SafetensorError) as error:
        raise UserError(f"The adapter at {adapter} cannot be read: {error}. Copy it again.") from None


def load_adapter(model: PreTrainedModel, adapter: Path, base: str):
    """Put an adapter on its base; returns the PEFT model.

    Raises:
        UserError: the adapter is damaged or no safetensors, or its tensors are not those that the base needs.
    """
    if not (adapter / "adapter_model.safetensors").is_file():  # PEFT would take adapter_model.bin, which is pickle
        raise UserError(f"The adapter at {adapter} cannot be read: it holds no adapter_model.safetensors.")
    from peft import PeftModel, get_peft_model_state_dict

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT only warns of missing tensors; they are refused below
            tuned = PeftModel.from_pretrained(model, str(adapter))
        expected = get_peft_model_state_dict(tuned, save_embedding_layers=holds_tables(adapter))
        with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
            mismatches = set(file.keys()) ^ expected.keys()
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = next(line.strip() for line in reversed(str(error).splitlines() or ["?"]) if line.strip())
        raise UserError(f"The adapter at {adapter} does not fit {base!r}: {reason}") from None
    if mismatches:
        raise UserError(
            f"The adapter at {adapter} does not fit {base!r}: {len(mismatches)} tensors are in one of the two only "
            f"(first {min(mismatches)}). Give the base that it was tuned on."
        )
    return tuned


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, first_codeword: int, base: str) -> None:
    """Refuse a base whose tokens below the first codeword have other numbers than in the tuned tokenizer.

    Raises:
        UserError: its vocabulary differs.
    """
    tuned = tokenizer.get_vocab()
    expected = {token: number for token, number in tuned.items() if number < first_codeword}
    # the base may have the codewords already
    in_base = {
        token: number
        for token, number in load_tokenizer(base).get_vocab().items()
        if number < first_codeword or tuned.get(token) != number
    }
    differing = [token for token, number in expected.items() if in_base.get(token) != number]
    if differing or len(in_base) != len(expected):
        example = f", and {len(differing)} of them differ (say {min(differing)!r})" if differing else ""
        raise UserError(
            f"{base!r} has another vocabulary than the adapter's base: expected {len(expected)} tokens, got "
            f"{len(in_base)}{example}. Give the base that it was tuned on."
        )
