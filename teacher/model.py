"""The teacher's network: a LLaMA-type causal model whose vocabulary holds the codewords; LoRA and merging."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from distill.artifacts import UserError
from distill.semantic_ids import SemanticIDs

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of the catalogue's own words; offline."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def load_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with a pad token.

    Raises:
        UserError: there is none at that path or name.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise UserError(f"No tokenizer at {base!r}: {str(error).splitlines()[0]}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def add_codewords(tokenizer: PreTrainedTokenizerBase, ids: SemanticIDs) -> int:
    """Add the codeword tokens; returns how many are new.

    Raises:
        UserError: the tokenizer already holds some of them, but not all.
    """
    tokens = ids.tokens()
    known = [token for token in tokens if token in tokenizer.get_vocab()]
    if known and len(known) < len(tokens):
        raise UserError(
            f"The tokenizer already holds {len(known)} of the {len(tokens)} codeword tokens (first {known[0]!r}): "
            "it was made for another codebook. Start from a base model without codewords."
        )
    return tokenizer.add_tokens(tokens)


def from_scratch(tokenizer: PreTrainedTokenizerBase, sizes: dict[str, float], max_tokens: int) -> LlamaForCausalLM:
    """A small LLaMA from a random start; `sizes` are numeric fields of LlamaConfig."""
    fields = {name: int(value) if float(value).is_integer() else value for name, value in sizes.items()}
    fields = {"tie_word_embeddings": True} | fields
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=max_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **fields,
    )
    return LlamaForCausalLM(config)


def load_base(base: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A pretrained causal model.

    Raises:
        UserError: there is none at that path or name.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    except (OSError, ValueError) as error:
        raise UserError(f"No base model at {base!r}: {str(error).splitlines()[0]}") from None


def extend_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new: int) -> None:
    """Grow embeddings and head to the tokenizer; the new rows start at the mean of the old ones plus a little noise."""
    if new == 0:
        return
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables = {id(table.weight): table.weight for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    with torch.no_grad():
        for weight in tables.values():
            old = weight[:-new]
            noise = torch.randn(new, weight.shape[1], dtype=weight.dtype, device=weight.device)
            weight[-new:] = old.mean(0) + 0.1 * old.std(0) * noise


def add_lora(model: PreTrainedModel, new_rows: list[int], rank: int, alpha: int, dropout: float):
    """LoRA on all seven projections; of the embeddings (and an untied head) only the codewords' rows train."""
    from peft import LoraConfig, get_peft_model

    tables = ["embed_tokens"] if model.config.tie_word_embeddings else ["embed_tokens", "lm_head"]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=PROJECTIONS,
        trainable_token_indices={name: new_rows for name in tables},
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


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
