"""The teacher's network: a LLaMA-type causal model whose vocabulary holds the codewords; LoRA and merging."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
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

from distill.artifacts import UserError, write_json
from distill.catalog import Dataset
from distill.semantic_ids import SemanticIDs

if TYPE_CHECKING:
    from teacher.finetune import Config

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build(config: Config, dataset: Dataset, ids: SemanticIDs) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The network that is tuned, and its tokenizer, both with the codewords.

    Raises:
        UserError: no such base, or one that does not fit.
    """
    if config.base is None:
        tokenizer = train_tokenizer([text for text in dataset.texts() if text] or ["-"], config.vocab_size)
        add_codewords(tokenizer, ids)
        model = from_scratch(tokenizer, config.sizes, config.max_tokens)
    else:
        tokenizer = load_tokenizer(config.base)
        new = add_codewords(tokenizer, ids)
        model = load_base(config.base)
        extend_vocabulary(model, tokenizer, new)
    if config.chat:
        use_chat_template(tokenizer)
    return adapt(model, config, tokenizer.convert_tokens_to_ids(ids.tokens())), tokenizer


def adapt(model: PreTrainedModel, config: Config, codewords: list[int]):
    """The network as the config trains it; `codewords` are their rows."""
    for part in (model.config, *model.modules()):
        if hasattr(part, "attention_dropout"):  # the layers have copied it from the config
            part.attention_dropout = config.attention_dropout
    if config.mode == "lora":
        model = add_lora(model, codewords, config.lora_rank, config.lora_alpha, config.lora_dropout)
    return model


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
    """The base model's tokenizer, with a pad token, and a BOS where the model never had one (Qwen): its EOS.

    Raises:
        UserError: there is none at that path or name.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise UserError(f"No tokenizer at {base!r}: {str(error).splitlines()[0]}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    return tokenizer


def use_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Put all prompts into the tokenizer's chat template from now on; saved with the tokenizer, so that whoever asks
    the teacher later does it as in training.

    Raises:
        UserError: the tokenizer has none.
    """
    if not tokenizer.chat_template:
        raise UserError("The base model's tokenizer has no chat template; run with --chat false.")
    tokenizer.init_kwargs["chat_prompts"] = True


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


def load_base(base: str, dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
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


def save_teacher(model, tokenizer: PreTrainedTokenizerBase, folder: Path, facts: dict[str, Any]) -> None:
    """Save a checkpoint that any engine loads, with tokenizer and `teacher.json`; a PEFT model's adapter is saved
    beside it in `adapter/`, then merged.
    """
    if hasattr(model, "merge_and_unload"):
        adapter = folder / "adapter"
        # PEFT would add both whole tables, since the vocabulary has grown; the codewords' rows are in the adapter
        model.save_pretrained(adapter, save_embedding_layers=False)
        tokenizer.save_pretrained(adapter)
        write_json(adapter / "teacher.json", facts)
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "teacher.json", facts)


def merge_adapter(
    adapter: Path, home: Path, base: str, dtype: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Base and adapter as one model, with tokenizer and the facts of `teacher.json`.

    Args:
        adapter: folder of the adapter.
        home: folder with the tokenizer that holds the codewords, and `teacher.json`.
        base: the base model, a local path or hub name.
        dtype: of the merged weights; "auto": the base's own.

    Raises:
        UserError: no such base, one of another vocabulary or other sizes, or a damaged adapter.
    """
    from peft import PeftModel, get_peft_model_state_dict

    tokenizer = load_tokenizer(str(home))
    rows = json.loads((adapter / "adapter_config.json").read_text()).get("trainable_token_indices") or {}
    rows = sorted({row for table in rows.values() for row in table}) if isinstance(rows, dict) else sorted(rows)
    if not rows:
        raise UserError(f"{adapter} trains no codeword rows (trainable_token_indices); it is no teacher's adapter.")
    _check_vocabulary(tokenizer, rows[0], base)
    model = load_base(base, dtype if dtype == "auto" else getattr(torch, dtype))
    if rows[0] > model.get_input_embeddings().num_embeddings:
        raise UserError(f"{base!r} has {model.get_input_embeddings().num_embeddings} tokens, too few for {adapter}.")
    extend_vocabulary(model, tokenizer, len(rows))  # what the new rows start from does not matter: the adapter has them
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT only warns of tensors that the file lacks; it is refused below
            tuned = PeftModel.from_pretrained(model, str(adapter))
        expected = get_peft_model_state_dict(tuned, save_embedding_layers=False)
        with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
            unlike = set(file.keys()) ^ expected.keys()
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = next(line.strip() for line in reversed(str(error).splitlines() or ["?"]) if line.strip())
        raise UserError(f"The adapter at {adapter} does not fit {base!r}: {reason}") from None
    if unlike:
        raise UserError(
            f"The adapter at {adapter} does not fit {base!r}: {len(unlike)} tensors are in one of the two only (first "
            f"{min(unlike)}). Give the base that it was tuned on."
        )
    return tuned.merge_and_unload(), tokenizer, json.loads((home / "teacher.json").read_text())


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, first: int, base: str) -> None:
    """Refuse a base that numbers the words otherwise than the tuned tokenizer below its first codeword."""
    old = {token for token, number in tokenizer.get_vocab().items() if number < first}
    found = load_tokenizer(base).get_vocab()
    moved = [token for token in old if found.get(token) != tokenizer.convert_tokens_to_ids(token)]
    if moved or len(found) != len(old):
        example = f", and {len(moved)} of them differ (say {min(moved)!r})" if moved else ""
        raise UserError(
            f"{base!r} has another vocabulary than the adapter's base: expected {len(old)} tokens, got {len(found)}"
            f"{example}. Give the base that it was tuned on."
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
