"""The network that is trained, with the codewords in its vocabulary, and its checkpoint."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.data.dataset import Dataset
from distill.runtime.artifacts import write_json
from distill.runtime.errors import UserError
from distill.runtime.precision import choose_mixed_precision
from distill.semantic_ids.ids import SemanticIDs
from teacher.base_model import (
    extend_vocabulary,
    from_scratch,
    init_from_codebook,
    init_from_text,
    item_texts,
    load_base,
    quantiser_vectors,
    unshard_token_tables,
)
from teacher.config import ModelSettings
from teacher.lora import add_lora, load_quantised, merge_adapter, save_adapter
from teacher.tokenizer import add_codewords, load_tokenizer, train_tokenizer, use_chat_template


def build_model(
    settings: ModelSettings,
    dataset: Dataset,
    ids: SemanticIDs,
    max_tokens: int,
    seed: int,
    loading: AbstractContextManager[None] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Build the network and its tokenizer, both with the codewords.

    Args:
        settings: base or sizes, and what trains.
        dataset: its item texts train the tokenizer where there is no base.
        ids: the codewords.
        max_tokens: window of a network without a base.
        seed: of the projections of `init_codewords: codebook`.
        loading: entered while a base is loaded, such as `sharded_loading`; None: this process loads all of it.

    Raises:
        UserError: no such base, or one that does not fit.
    """
    if settings.base is None:
        tokenizer = train_tokenizer([text for text in dataset.texts() if text] or ["-"], settings.vocab_size)
        new = add_codewords(tokenizer, ids)
        model = from_scratch(tokenizer, settings.sizes, max_tokens)
    else:
        tokenizer = load_tokenizer(settings.base)
        new = add_codewords(tokenizer, ids)
        if settings.mode == "qlora":
            model = load_quantised(settings.base, choose_mixed_precision(settings.precision, large=True))
        else:
            with loading or nullcontext():
                model = load_base(settings.base)
                unshard_token_tables(model)
        extend_vocabulary(model, tokenizer, new)
    if settings.init_codewords == "codebook" and new:
        init_from_codebook(model, quantiser_vectors(ids), seed)
    if settings.init_codewords == "text" and new:
        init_from_text(model, item_texts(dataset), ids, tokenizer)
    if settings.chat:
        use_chat_template(tokenizer)
    return adapt(model, settings, tokenizer.convert_tokens_to_ids(ids.tokens())), tokenizer


def adapt(model: PreTrainedModel, settings: ModelSettings, codeword_rows: list[int]):
    """Set the attention dropout and add adapters, as the settings ask; returns the model or its PEFT wrapper."""
    for module in (model.config, *model.modules()):
        if hasattr(module, "attention_dropout"):  # the layers have copied it from the config
            module.attention_dropout = settings.attention_dropout
    if settings.mode in ("lora", "qlora"):
        adapters = settings.lora_rank, settings.lora_alpha, settings.lora_dropout
        model = add_lora(model, codeword_rows, *adapters, settings.lora_embeddings)
    return model


def use_plain_attention(causal: PreTrainedModel) -> None:
    """Compute attention as plain matrix products: on CPUs the fused kernel's backward pass is slow in bf16.

    On an AVX512 processor it took 24 ms a layer of 9 heads and 1,000 tokens, the plain products 5 to 11 ms
    (torch 2.13).
    """
    causal.set_attn_implementation("eager")


def save_teacher(model, tokenizer: PreTrainedTokenizerBase, folder: Path, facts: dict[str, Any]) -> None:
    """Save a checkpoint that any engine loads, with tokenizer and `teacher.json`.

    A PEFT model's adapter is saved in `adapter/`, then merged; QLoRA's is merged into the base in its full precision.
    """
    if hasattr(model, "merge_and_unload"):
        adapter = folder / "adapter"
        save_adapter(model, adapter)
        tokenizer.save_pretrained(adapter)
        write_json(adapter / "teacher.json", facts)
        if getattr(model, "is_loaded_in_4bit", False):
            base = model.peft_config["default"].base_model_name_or_path
            model = merge_adapter(adapter, adapter, base, "auto")[0]
        else:
            model = model.merge_and_unload()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "teacher.json", facts)


def unwrap_peft(model):
    """The causal model inside a PEFT wrapper, adapters in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def soft_cap(causal) -> float | None:
    """The bound of the logits, Gemma 2's `final_logit_softcapping`; None: they are not bounded."""
    return getattr(causal.config, "final_logit_softcapping", None)


def output_logits(causal, hidden: Tensor) -> Tensor:
    """Logits of the whole vocabulary at hidden states, bounded as the model bounds them; float32 [..., vocabulary]."""
    return bound_logits(causal, causal.get_output_embeddings()(hidden).float())


def bound_logits(causal, logits: Tensor) -> Tensor:
    """Bound logits as the model does."""
    cap = soft_cap(causal)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def count_parameters(parameters) -> int:
    """Number of scalars; a byte of 4-bit weights holds two, ZeRO-3 empties parameters and keeps `ds_numel`."""
    return sum(
        getattr(parameter, "ds_numel", parameter.numel()) * (2 if hasattr(parameter, "quant_state") else 1)
        for parameter in parameters
    )


def check_checkpoint(folder: Path) -> None:
    """Refuse folders that no causal model can be loaded from.

    Raises:
        UserError: no config, no weights, or an adapter that was not merged.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        kind = "a LoRA adapter; merge it into its base first" if (folder / "adapter_config.json").is_file() else None
        raise UserError(f"{folder} is not a Hugging Face checkpoint: it holds {kind or 'no config.json'}.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} is not a Hugging Face checkpoint: it holds no *.safetensors.")
