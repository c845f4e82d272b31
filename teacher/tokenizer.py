"""The teacher's tokenizer: trained on the catalogue or taken from a base model, with a token for every codeword."""

from __future__ import annotations

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


def load_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """Load a base model's tokenizer. A missing pad or BOS token (Qwen has no BOS) is replaced by EOS.

    Raises:
        UserError: there is none at that path or name.
    """
    tokenizer = runtime_models.load_tokenizer(base, f"No tokenizer at {base!r}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
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
