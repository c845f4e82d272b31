"""How a student represents the items (paper 4.6, Figure 4)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from distill.runtime.errors import UserError
from student.models.causal import Causal
from student.models.layers import history_tokens
from student.models.nested import Nested
from student.models.seq2seq import Seq2Seq


@torch.inference_mode()
def item_states(model: nn.Module, codes: Tensor, batch_size: int = 1024) -> np.ndarray:
    """Represent each item by the mean state of the last layer at its codewords, the item read as the whole history.

    Args:
        model: a network over codewords; of `seq2seq` the encoder's states are taken, of `nested` the one state that it
            has of an item.
        codes: of all items, on the model's device [n_items, levels].
        batch_size: items at once.

    Returns:
        float32 [n_items, d_model].

    Raises:
        UserError: a large student, which has no such network.
    """
    model.eval()
    return torch.cat([_states(model, part[:, None]).float() for part in codes.split(batch_size)]).cpu().numpy()


def _states(model: nn.Module, codes: Tensor) -> Tensor:
    """States of histories of one item [batch, 1, levels] → [batch, d_model]."""
    if isinstance(model, Nested):  # a Causal too
        return model.item_states(codes)[:, 0]
    if isinstance(model, Causal):
        embedded = model.embed_history(codes, history_tokens(codes, model.config.codebook_size))
        return model.decode(embedded)[0][-1].mean(1)
    if isinstance(model, Seq2Seq):
        states, _, packing = model.encoder_states(codes)
        return packing.pad(states).mean(1)
    raise UserError("Items are represented by students of the backbones seq2seq, causal and nested, not by large ones.")
