"""Lite-LLM4Rec: a language model over item vectors with a projection to all items in the place of beams.

After Wang et al. (2024), "Rethinking Large Language Model Architectures for Sequential Recommendations": an item enters
the language model as one vector, so that a history of 20 items is 20 tokens, and one forward pass scores all items. As
there, an item's vector comes from its text; here the text encoder is frozen (`text`), and a learned row is added to it
or takes its place. The head is factorised: the last state is projected to the item embeddings, which score the items.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from student.models.item_models.items import ItemModel, build_items
from student.models.item_text import TextConfig
from student.models.trunk import causal_trunk, random_llama, read_vectors


@dataclass(frozen=True)
class LiteLLM4RecConfig:
    """What the network consists of.

    Attributes:
        n_items: of the catalogue.
        max_history: items that it reads.
        dim: of an item's embedding.
        layers: of a language model with random weights.
        dropout: on its inputs and its last states.
        network: config of the language model, as Hugging Face writes it; empty: a LLaMA of `dim` and `layers`.
        pretrained: the language model is a checkpoint's; then it is validated in place.
        text: sizes of the text embeddings.
    """

    n_items: int
    max_history: int = 20
    dim: int = 64
    layers: int = 2
    dropout: float = 0.3
    network: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    text: TextConfig | None = None


class LiteLLM4Rec(ItemModel):
    """A causal language model between two projections; the item embeddings also score the items.

    Args:
        config: see there.
        trunk: the pretrained layers; None: built from the config.
    """

    def __init__(self, config: LiteLLM4RecConfig, trunk: Any = None):
        super().__init__()
        self.config = config
        self.items = build_items(config.n_items, config.dim, config.text)
        for table in self.items.parameters():
            nn.init.normal_(table, std=0.02)
        network = config.network or random_llama(config.dim, config.layers, config.max_history)
        self.trunk = causal_trunk(network, trunk)
        hidden = self.trunk.config.get_text_config().hidden_size
        self.reader = nn.Linear(config.dim, hidden, bias=False)
        self.projection = nn.Linear(hidden, config.dim, bias=False)
        nn.init.normal_(self.reader.weight, std=config.dim**-0.5)
        nn.init.normal_(self.projection.weight, std=hidden**-0.5)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def in_place(self) -> bool:
        """Whether validation uses the network itself, since a copy of a pretrained model is expensive."""
        return self.config.pretrained

    def encode(self, histories: Tensor) -> Tensor:
        """Compute the states after each prefix [users, length, dim].

        Padding is on the right, so causal attention does not see it.
        """
        inputs = self.dropout(self.reader(self.items(histories)))
        return self.projection(self.dropout(read_vectors(self.trunk, inputs)))
