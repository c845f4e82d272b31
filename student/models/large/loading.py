"""Start a large student from a Hugging Face checkpoint, or refuse it with the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.runtime import models
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs
from student.models.large.lora import add_lora
from student.models.large.network import Large, LargeConfig
from student.models.trunk import remove_vocabulary

HALF_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def load(
    folder: Path,
    ids: SemanticIDs,
    max_history: int,
    lora_rank: int = 0,
    dropout: float = 0.0,
    checkpointing: bool = False,
    precision: str = "no",
    layers: int = 0,
    features: int = 0,
    feature_layers: int = 1,
) -> Large:
    """Build a student from a language model.

    Args:
        folder: a Hugging Face checkpoint with its tokenizer. Codewords that the tokenizer knows keep their rows. If it
            knows none, they get new rows: the mean of the vocabulary's rows and a little noise.
        ids: the semantic IDs.
        max_history: items of history that have to fit the model's window.
        lora_rank, dropout, checkpointing: see `LargeConfig`.
        precision: of the training; with LoRA the frozen weights are stored in it.
        layers: keep so many layers, from the first; 0: all.
        features, feature_layers: see `LargeConfig`.

    Raises:
        UserError: no such checkpoint, codewords of another codebook, a window that is too short, or a model whose
            candidates cannot share one history.
    """
    stored = HALF_PRECISIONS.get(precision, torch.float32) if lora_rank else torch.float32
    base, tokenizer = read_checkpoint(folder, stored)
    if layers:
        keep_first_layers(base, layers, folder)
    table, base_head = base.get_input_embeddings(), base.get_output_embeddings()
    start = start_token(tokenizer, folder)
    check_window(base, max_history, ids.levels, folder)
    rows = codeword_rows(tokenizer, ids, folder)
    has_codewords = rows is not None
    if not has_codewords:  # any rows will do for the comparison below
        rows = torch.arange(ids.levels * ids.codebook_size) % len(table.weight)
    elif max(rows.max(), start) >= len(table.weight):
        raise UserError(f"{folder} has {len(table.weight)} rows, its tokenizer goes up to {rows.max()}.")
    config = LargeConfig(
        ids.levels, ids.codebook_size, base.config.to_dict(), base_head.weight is table.weight,
        float(getattr(table, "embed_scale", 1.0)), dropout=dropout, checkpointing=checkpointing,
        features=features, feature_layers=feature_layers,
    )  # fmt: skip
    model = Large(config, base.base_model).eval()
    tables = [(model.head, base_head)] + ([] if model.codewords is None else [(model.codewords, table)])
    with torch.no_grad():
        model.start.copy_(table.weight[start])
        for codewords, vocabulary in tables:
            codewords.copy_(vocabulary.weight[rows].view_as(codewords))
    check_shared_history(model, base, rows.view(ids.levels, -1), start, folder)
    if not has_codewords:
        for codewords, vocabulary in tables:
            initialise_codewords(codewords, vocabulary)
    remove_vocabulary(model.trunk)
    if lora_rank:
        model.config = replace(config, lora_rank=lora_rank)
        add_lora(model.trunk, lora_rank, dropout)
        model.start.requires_grad_(False)
    return model


def read_checkpoint(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a causal language model and its tokenizer from a local folder.

    Raises:
        UserError: the folder holds none.
    """
    refusal = f"--init {folder} is no causal language model"
    tokenizer = models.load_tokenizer(folder, refusal, local_files_only=True)
    return models.load_model(folder, refusal, dtype=dtype, local_files_only=True).eval(), tokenizer


def keep_first_layers(base: PreTrainedModel, layers: int, folder: Path, flag: str = "--init_layers") -> None:
    """Drop all but the first layers of a language model (SLMRec: Xu et al., ICLR 2025, prunes its students so).

    Args:
        base: the model, changed in place.
        layers: how many are kept.
        folder: of the model, for the message.
        flag: that asked for it, for the message.

    Raises:
        UserError: it has fewer, or keeps them in no single list.
    """
    config = base.config.get_text_config()
    total = config.num_hidden_layers
    if layers > total:
        raise UserError(f"{flag} is {layers}, and {folder} has {total} layers.")
    lists = [
        (parent, name)
        for parent in base.base_model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == total
    ]
    if len(lists) != 1:
        raise UserError(f"{folder} ({base.config.model_type}) keeps its layers in {len(lists)} lists, expected one.")
    parent, name = lists[0]
    setattr(parent, name, getattr(parent, name)[:layers])
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def start_token(tokenizer: PreTrainedTokenizerBase, folder: Path) -> int:
    """Return the token that histories start with: BOS, or EOS for tokenizers without one (Qwen's).

    Raises:
        UserError: the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise UserError(f"The tokenizer at {folder} has neither BOS nor EOS; histories need a token to start from.")


def check_window(base: PreTrainedModel, max_history: int, levels: int, folder: Path) -> None:
    """Refuse a model whose window is shorter than a history and a candidate.

    Raises:
        UserError: as above.
    """
    tokens = (max_history + 1) * levels
    window = getattr(base.config.get_text_config(), "max_position_embeddings", None) or tokens
    if tokens > window:
        raise UserError(f"Histories of {max_history} items take {tokens} tokens, {folder} reads {window}.")


def codeword_rows(tokenizer: PreTrainedTokenizerBase, ids: SemanticIDs, folder: Path) -> Tensor | None:
    """Return the tokenizer's numbers of the codewords, level after level; None if it knows none of them.

    Raises:
        UserError: it knows some.
    """
    tokens, vocabulary = ids.tokens(), tokenizer.get_vocab()
    missing = [token for token in tokens if token not in vocabulary]
    if not missing:
        return torch.tensor([vocabulary[token] for token in tokens])
    if len(missing) < len(tokens):
        raise UserError(
            f"The tokenizer at {folder} lacks {len(missing)} of the {len(tokens)} codeword tokens (first "
            f"{missing[0]!r}): it was made for another codebook. Give a model of these semantic IDs, or one without "
            "codewords."
        )
    return None


@torch.no_grad()
def initialise_codewords(codewords: nn.Parameter, vocabulary: nn.Module) -> None:
    """Set new rows to the mean of the vocabulary's rows and a tenth of their standard deviation of noise."""
    weight = vocabulary.weight.float()
    codewords.copy_(weight.mean(0) + 0.1 * weight.std(0) * torch.randn(codewords.shape))


@torch.no_grad()
def check_shared_history(model: Large, base: PreTrainedModel, rows: Tensor, start: int, folder: Path) -> None:
    """Refuse a language model for which candidates that share one history get other scores than alone.

    It may ignore position ids or the mask (state-space layers), or transform its logits after the head. Two candidates
    after two items are compared with plain forward passes.

    Args:
        model: the student with the codewords' rows of `base`.
        base: the language model.
        rows: the tokenizer's numbers of the codewords [levels, codebook_size].
        start: the start token.
        folder: of the language model, for the message.

    Raises:
        UserError: as above.
    """
    c, generator = model.config, torch.Generator().manual_seed(0)
    history, items = (torch.randint(c.codebook_size, (1, 2, c.levels), generator=generator) for _ in range(2))
    expected = []
    for item in items[0]:
        codes = torch.cat([history.flatten(), item[:-1]])
        levels = torch.arange(len(codes)) % c.levels
        tokens = torch.cat([torch.tensor([start]), rows[levels, codes]])[None]
        logits = base(input_ids=tokens, use_cache=False).logits[0, -c.levels :].float()
        expected.append(logits.gather(1, rows).log_softmax(-1))
    expected = torch.stack(expected)
    expected = expected - expected.mean(-1, keepdim=True)
    tolerance = 1e-3 if base.dtype == torch.float32 else 0.1
    try:
        for log_probs in (model(history, items), model.log_probs(model.encode(history), items)):
            centred = log_probs[0] - log_probs[0].mean(-1, keepdim=True)
            if (centred - expected).norm() > tolerance * expected.norm():
                raise ValueError("candidates scored together get other probabilities than scored alone")
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder} ({base.config.model_type}) cannot be a student: candidates attach to the history by position "
            "ids and an attention mask, and this network has layers or logits of its own kind (state-space layers, "
            f"ALiBi, a short sliding window, capped logits): {str(error).splitlines()[0]}."
        ) from None
