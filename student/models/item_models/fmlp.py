"""FMLP-Rec: learnable filters in the frequency domain in place of attention (Zhou et al., WWW 2022).

A filter reads the whole window, so a state would know the items after it. As in the paper, only the last place of a
window is used: each prefix of a sequence is a window of its own, padded on the left. Training costs as many passes as a
sequence has targets. The loss is ours, cross-entropy over all items; the paper's compares the target with one sampled
item.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.data.dataset import PAD
from student.models.item_models.items import ItemModel, build_items
from student.models.item_text import TextConfig


@dataclass(frozen=True)
class FMLPConfig:
    """Sizes."""

    n_items: int
    max_history: int = 20
    dim: int = 64
    layers: int = 2
    dropout: float = 0.3
    text: TextConfig | None = None


class FMLPRec(ItemModel):
    """Filter layers over the embeddings of a window; the same embeddings score the items."""

    def __init__(self, config: FMLPConfig):
        super().__init__()
        self.config = config
        self.items = build_items(config.n_items, config.dim, config.text)
        self.positions = nn.Embedding(config.max_history, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        for table in (*self.items.parameters(), self.positions.weight):
            nn.init.normal_(table, std=0.02)

    def forward(self, histories: Tensor, places: Tensor | None = None) -> Tensor:
        """As `ItemModel.forward`; only the windows that end at `places` are computed."""
        if places is None:
            return self.encode(histories)
        return self.items(None, self.encode_windows(windows(histories, places, self.config.max_history)))

    def encode(self, histories: Tensor) -> Tensor:
        """Compute the states after each prefix [users, length, dim]; those of padding are zero."""
        places = histories != PAD
        states = self.encode_windows(windows(histories, places, self.config.max_history))
        return states.new_zeros(*histories.shape, states.shape[-1]).masked_scatter(places[..., None], states)

    def encode_windows(self, windows: Tensor) -> Tensor:
        """Compute the state at the end of each window.

        Args:
            windows: item numbers, padded with -1 on the left [n, max_history].

        Returns:
            [n, dim].
        """
        embedded = self.items(windows) * (windows != PAD)[..., None]
        places = torch.arange(self.config.max_history, device=windows.device)
        hidden = self.dropout(self.norm(embedded + self.positions(places)))
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden[:, -1]


class Layer(nn.Module):
    """A filter, then a feed-forward network; layer norm after each."""

    def __init__(self, config: FMLPConfig):
        super().__init__()
        self.filter = Filter(config.max_history, config.dim)
        self.feed = nn.Sequential(
            nn.Linear(config.dim, 4 * config.dim), nn.GELU(), nn.Linear(4 * config.dim, config.dim)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform hidden states [n, length, dim]."""
        hidden = self.norms[0](hidden + self.dropout(self.filter(hidden)))
        return self.norms[1](hidden + self.dropout(self.feed(hidden)))


class Filter(nn.Module):
    """Multiply each frequency of a sequence by a learned complex number, in each dimension by itself (paper, 4.2.1).

    That is a circular convolution over places with the inverse Fourier transform of these numbers.

    Args:
        length: of the sequences.
        dim: of the states.
    """

    def __init__(self, length: int, dim: int):
        super().__init__()
        self.length = length
        # real and imaginary parts of the frequencies 0 to length / 2; the others are their conjugates
        self.weight = nn.Parameter(torch.randn(length // 2 + 1, dim, 2) * 0.02)

    def forward(self, hidden: Tensor) -> Tensor:
        """Filter states [n, length, dim], in float32 under mixed precision: transforms of bfloat16 do not exist."""
        with torch.autocast(hidden.device.type, enabled=False):
            spectrum = torch.fft.rfft(hidden.float(), dim=1, norm="ortho")
            filtered = spectrum * torch.view_as_complex(self.weight.float())
            return torch.fft.irfft(filtered, n=self.length, dim=1, norm="ortho").to(hidden.dtype)


def windows(histories: Tensor, places: Tensor, length: int) -> Tensor:
    """Cut the prefix that ends at each place, the last `length` items of it.

    Args:
        histories: item numbers, oldest first, padded with -1 on the right [users, items].
        places: True where a window ends [users, items].
        length: of a window.

    Returns:
        Item numbers padded with -1 on the left [n, length], user by user.
    """
    users, ends = places.nonzero(as_tuple=True)
    source = ends[:, None] + torch.arange(1 - length, 1, device=histories.device)
    return torch.where(source >= 0, histories[users[:, None], source.clamp(min=0)], PAD)
