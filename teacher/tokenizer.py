"""The teacher's tokenizer: trained on the catalogue or taken from a base model, with a token for every codeword."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distill.runtime import models as runtime_models
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer on the catalogue's texts; offline."""
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


def load_tokenizer(base: str, **options) -> PreTrainedTokenizerBase:
    """Load a base model's tokenizer; `options` are those of `from_pretrained`.

    A missing pad or BOS token (Qwen has no BOS) is replaced by EOS.

    Raises:
        UserError: there is none at that path or name.
    """
    tokenizer = runtime_models.load_tokenizer(
        base, f"No tokenizer at {base!r}; expected tokenizer.json or tokenizer.model there", **options
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    if hasattr(tokenizer, "legacy"):  # LLaMA's; transformers would not save it, and the default splits words otherwise
        tokenizer.init_kwargs["legacy"] = tokenizer.legacy
    return tokenizer


def use_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Put all prompts into the tokenizer's chat template from now on.

    The choice is saved with the tokenizer, so that prompts after training look as in training.

    Raises:
        UserError: the tokenizer has no chat template.
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


def codeword_tokens(tokenizer: PreTrainedTokenizerBase, ids: SemanticIDs) -> tuple[np.ndarray, np.ndarray]:
    """Look up the token numbers of all codewords.

    Returns:
        Token numbers, and which codewords the vocabulary lacks (gaps), bool; both [levels, codebook_size]. A gap has
        the number of EOS, so that it can index a table; its probability is 0 (`engines.mask_gaps`).
    """
    vocabulary = tokenizer.get_vocab()
    numbers = np.array([vocabulary.get(token, -1) for token in ids.tokens()], dtype=np.int64)
    numbers = numbers.reshape(ids.levels, ids.codebook_size)
    return np.where(numbers < 0, tokenizer.eos_token_id, numbers), numbers < 0


def check_codewords(tokenizer: PreTrainedTokenizerBase, ids: SemanticIDs, rows: int, folder: Path | str) -> None:
    """Check that a checkpoint knows the codewords of all items. Codewords that no item has may be missing.

    Args:
        tokenizer: the checkpoint's.
        ids: the items' IDs.
        rows: rows of the checkpoint's embedding table.
        folder: the checkpoint, for the message.

    Raises:
        UserError: it does not, or its embeddings have fewer rows than its tokenizer's codewords need.
    """
    token_of, gaps = codeword_tokens(tokenizer, ids)
    used = np.zeros_like(gaps)
    used[np.arange(ids.levels), ids.codes] = True
    missing = used & gaps
    if missing.any():
        first = ids.tokens()[int(np.flatnonzero(missing)[0])]
        raise UserError(
            f"The teacher at {folder} does not know {gaps.sum()} codewords; {missing.sum()} of them are in IDs of "
            f"{ids.artifact.folder} (first {first!r}). Take the IDs that it was tuned with."
        )
    last = int(token_of[~gaps].max())
    if last >= rows:
        raise UserError(
            f"The teacher at {folder} has {rows} rows of embeddings, its tokenizer has codewords up to token {last}: "
            "it was saved before its vocabulary was extended."
        )
