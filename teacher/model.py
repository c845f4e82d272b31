"""The teacher's network: a causal model whose vocabulary holds the codewords; LoRA, QLoRA and merging."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from distill.data.dataset import Dataset
from distill.runtime.artifacts import write_json
from distill.runtime.errors import UserError
from distill.semantic_ids import quantisers
from distill.semantic_ids.ids import SemanticIDs

if TYPE_CHECKING:
    from teacher.finetune import Config

COMPUTE = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # what 4-bit weights are unpacked to
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
        new = len(ids.tokens())
    else:
        tokenizer = load_tokenizer(config.base)
        new = add_codewords(tokenizer, ids)
        model = load_quantised(config.base, config.precision) if config.mode == "qlora" else load_base(config.base)
        extend_vocabulary(model, tokenizer, new)
    if config.init_codewords == "codebook" and new:
        start_from_codebook(model, code_vectors(ids), config.seed)
    if config.chat:
        use_chat_template(tokenizer)
    return adapt(model, config, tokenizer.convert_tokens_to_ids(ids.tokens())), tokenizer


def adapt(model: PreTrainedModel, config: Config, codewords: list[int]):
    """The network as the config trains it; `codewords` are their rows."""
    for part in (model.config, *model.modules()):
        if hasattr(part, "attention_dropout"):  # the layers have copied it from the config
            part.attention_dropout = config.attention_dropout
    if config.mode in ("lora", "qlora"):
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


def load_base(base: str, dtype: torch.dtype | str = torch.float32, **options) -> PreTrainedModel:
    """A pretrained causal model; `options` are those of `from_pretrained`.

    Raises:
        UserError: there is none at that path or name.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"No base model at {base!r}: {str(error).splitlines()[0]}") from None


def load_quantised(base: str, precision: str) -> PreTrainedModel:
    """A pretrained causal model whose projections lie in 4 bits (NF4, double quantisation: Dettmers et al., 2023).

    Embeddings, head and norms stay float32: the codewords' rows are trained in them. The weights lie on this process's
    own device.

    Args:
        base: a local path or hub name.
        precision: of the training; what the weights are unpacked to.

    Raises:
        UserError: no bitsandbytes, no such base, or an engine that would take the packed weights apart.
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
    packed = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=COMPUTE[precision],
    )
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    model = load_base(base, quantization_config=packed, device_map={"": device})
    for part in model.modules():
        if isinstance(part, Linear4bit):
            # on some CPUs it would repack its weights in the first validation, for a kernel that has no gradient
            part.support_avx512bf16_for_cpu = False
    return model


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


def code_vectors(ids: SemanticIDs) -> list[np.ndarray]:
    """The quantiser's codewords [codebook_size, d] of each level; d may differ.

    Raises:
        UserError: the IDs have no quantiser of theirs, or one of other sizes.
    """
    folder = ids.artifact.folder
    if not (folder / quantisers.SETTINGS).is_file():
        raise UserError(f"{folder} was imported: it has no quantiser to start from; run with --init_codewords mean.")
    quantiser = quantisers.load(folder)
    if (quantiser.levels, quantiser.codebook_size) != (ids.levels, ids.codebook_size):
        raise UserError(
            f"The quantiser of {folder} has {quantiser.levels} levels of {quantiser.codebook_size} codewords, the IDs "
            f"{ids.levels} of {ids.codebook_size}; run with --init_codewords mean."
        )
    return [np.asarray(quantiser.words(level), np.float32) for level in range(ids.levels)]


def start_from_codebook(model: PreTrainedModel, words: list[np.ndarray], seed: int) -> None:
    """Start the codewords' rows, the last ones, as the quantiser's vectors, so that like codewords start alike.

    Each level has a random orthogonal map into the embeddings' space, so that levels differ, and is scaled to the
    spread of the old rows around their mean.
    """
    new = sum(map(len, words))
    tables = {id(table.weight): table.weight for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for vectors in words:
        centred = torch.from_numpy(vectors - vectors.mean(0))
        width = next(iter(tables.values())).shape[1]
        square = torch.randn(max(width, centred.shape[1]), min(width, centred.shape[1]), generator=generator)
        basis = torch.linalg.qr(square)[0]  # orthonormal columns
        projected = centred @ (basis.T if centred.shape[1] <= width else basis)
        rows.append(projected / projected.square().mean().sqrt().clamp(min=1e-12))
    rows = torch.cat(rows)
    with torch.no_grad():
        for weight in tables.values():
            old = weight[:-new]
            weight[-new:] = old.mean(0) + old.std(0) * rows.to(weight)


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
    beside it in `adapter/`, then merged (a QLoRA's into the base in its own precision).
    """
    if hasattr(model, "merge_and_unload"):
        adapter = folder / "adapter"
        # PEFT would add both whole tables, since the vocabulary has grown; the codewords' rows are in the adapter
        model.save_pretrained(adapter, save_embedding_layers=False)
        tokenizer.save_pretrained(adapter)
        write_json(adapter / "teacher.json", facts)
        if getattr(model, "is_loaded_in_4bit", False):  # merged into the base as it is, not into its 4-bit image
            base = model.peft_config["default"].base_model_name_or_path
            model = merge_adapter(adapter, adapter, base, "auto")[0]
        else:
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
    tuned = tokenizer.get_vocab()
    found = load_tokenizer(base).get_vocab()
    found = {token: n for token, n in found.items() if n < first or tuned.get(token) != n}  # it may have the codewords
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
