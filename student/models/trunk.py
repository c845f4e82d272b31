"""A causal language model without its vocabulary: vectors in, states out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from distill.runtime import models
from distill.runtime.errors import UserError
from student.setrec_config import HEADS


def causal_trunk(network: dict[str, Any], model: Any = None) -> Any:
    """Take the layers of a causal language model, or build them with random weights.

    Args:
        network: the language model's config, as Hugging Face writes it.
        model: its layers, pretrained, changed in place; None: built from the config.
    """
    if model is None:
        from transformers import AutoConfig

        config = AutoConfig.for_model(**network)
        model = models.build_causal_model(config, dtype=config.dtype).base_model
    remove_vocabulary(model)
    return model


def random_llama(dim: int, layers: int, places: int, **options: float) -> dict[str, Any]:
    """Choose the sizes of a LLaMA that starts from random weights, as a Transformers config.

    Args:
        dim: width of its states.
        layers: how many.
        places: that it can read.
        options: of Transformers' LlamaConfig; the default of initializer_range, the standard deviation of the initial
            weights, is dim^-½.
    """
    from transformers import LlamaConfig

    llama = LlamaConfig(
        vocab_size=2, hidden_size=dim, intermediate_size=4 * dim, num_hidden_layers=layers, num_attention_heads=HEADS,
        max_position_embeddings=places, bos_token_id=0, eos_token_id=0, **{"initializer_range": dim**-0.5} | options,
    )  # fmt: skip
    return llama.to_dict()


def read_vectors(trunk: Any, inputs: Tensor) -> Tensor:
    """Compute the last states of a trunk [users, length, hidden], in the type of its inputs of the same shape."""
    weights = next(trunk.parameters())
    return trunk(inputs_embeds=inputs.to(weights.dtype), use_cache=False).last_hidden_state.to(inputs.dtype)


def check_window(network: dict[str, Any], max_history: int, places: int, base: Path) -> None:
    """Refuse a pretrained language model whose window is shorter than what it has to read.

    Args:
        network: its config, as Hugging Face writes it.
        max_history: items of a history, for the message.
        places: that a history takes.
        base: folder of the checkpoint.

    Raises:
        UserError: as above.
    """
    window = network.get("max_position_embeddings") or places
    if places > window:
        raise UserError(
            f"Histories of {max_history} items take {places} places, and --base {base} has {window}. Lower "
            "--max_history."
        )


def remove_vocabulary(trunk: Any) -> None:
    """Remove the vocabulary's input table from a trunk, in place: its inputs come as vectors."""
    table = trunk.get_input_embeddings()
    for part in list(trunk.modules()):
        for name, child in part.named_children():
            if child is table:
                setattr(part, name, None)
