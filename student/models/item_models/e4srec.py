"""E4SRec: a language model reads the frozen item embeddings of a SASRec; a linear head scores all items.

After Li et al. (2023), "E4SRec: An Elegant Effective Efficient Extensible Solution of Large Language Models for
Sequential Recommendation": an item's embedding from a trained collaborative model, frozen, is projected into the input
of a causal language model, whose weights are adapted by LoRA; the last state is multiplied with a row for each item.
The paper puts an instruction round the items; here the items are all that is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from student.models.item_models.items import FrozenItems, ItemModel
from student.models.trunk import causal_trunk, random_llama, read_vectors


@dataclass(frozen=True)
class E4SRecConfig:
    """What the network consists of.

    Attributes:
        n_items: of the catalogue.
        max_history: items that it reads.
        source_dim: of the frozen item embeddings.
        dim, layers: of a language model with random weights.
        dropout: on its inputs and its last states, and before the adapters.
        network: config of the language model, as Hugging Face writes it; empty: a LLaMA of `dim` and `layers`.
        pretrained: the language model is a checkpoint's; then it is validated in place.
        lora_rank: of the adapters, 0 for none.
    """

    n_items: int
    max_history: int = 20
    source_dim: int = 64
    dim: int = 64
    layers: int = 2
    dropout: float = 0.3
    network: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    lora_rank: int = 0


class E4SRec(ItemModel):
    """A causal language model between a projection of frozen item vectors and a linear head.

    Args:
        config: see there.
        trunk: the pretrained layers; None: built from the config.
    """

    items: FrozenItems

    def __init__(self, config: E4SRecConfig, trunk: Any = None):
        super().__init__()
        self.config = config
        network = config.network or random_llama(config.dim, config.layers, config.max_history)
        self.trunk = causal_trunk(network, trunk)
        hidden = self.trunk.config.get_text_config().hidden_size
        self.items = FrozenItems(config.n_items, config.source_dim, hidden)
        self.reader = nn.Linear(config.source_dim, hidden, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        if config.lora_rank:
            from student.models.large.lora import add_lora

            add_lora(self.trunk, config.lora_rank, config.dropout)

    @property
    def in_place(self) -> bool:
        """Whether validation uses the network itself, since a copy of a pretrained model is expensive."""
        return self.config.pretrained

    @torch.no_grad()
    def set_item_vectors(self, vectors: Tensor, size: float) -> None:
        """Take the frozen vectors, and draw the projection so that inputs have the standard deviation `size`.

        Args:
            vectors: of all items [n_items, source_dim].
            size: as large as the language model knows its inputs.
        """
        self.items.weight.copy_(vectors)
        norm = vectors.norm(dim=1).mean().clamp(min=1e-9)
        nn.init.normal_(self.reader.weight, std=float(size / norm))

    def encode(self, histories: Tensor) -> Tensor:
        """Compute the states after each prefix [users, length, hidden].

        Padding is on the right, so causal attention does not see it.
        """
        return self.dropout(read_vectors(self.trunk, self.dropout(self.reader(self.items(histories)))))

    def merged(self) -> E4SRec:
        """Return the network without adapters, their effect added to its weights."""
        if not self.config.lora_rank:
            return self
        from student.models.large.lora import merge_lora, without_lora

        model = E4SRec(replace(self.config, lora_rank=0))
        model.load_state_dict(without_lora(self.state_dict()))
        merge_lora(self.trunk, model.trunk)
        return model
