"""DreamRec: generate the next item's embedding by guided diffusion (Yang et al., NeurIPS 2023).

"Generate What You Prefer: Reshaping Sequential Recommendation via Guided Diffusion". A Transformer encodes the history
into c; a denoiser predicts the clean embedding of the next item from a noisy one, the step and c. There are no negative
items: the loss is the squared error of that embedding, and items are ranked by inner products with what is generated.
Sizes, noise schedule, denoiser (one linear layer) and the embeddings' start N(0, 1) are those of the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from student.models.item_models.diffusion import Diffusion
from student.models.item_models.items import ItemEmbedding, ItemModel
from student.models.item_models.sasrec import Layer, SASRecConfig


@dataclass(frozen=True)
class DreamRecConfig:
    """Sizes, and how items are generated.

    Attributes:
        n_items, max_history, dim, layers, heads, dropout: of the Transformer that reads the history.
        steps: T, steps of the diffusion.
        guidance: w, how far the history pulls the prediction away from the one without it.
        unguided: p, share of the training examples without their history.
        noise_seed: of the reverse process.
    """

    n_items: int
    max_history: int = 20
    dim: int = 64
    layers: int = 1
    heads: int = 1
    dropout: float = 0.1
    steps: int = 500
    guidance: float = 2.0
    unguided: float = 0.1
    noise_seed: int = 0


class DreamRec(ItemModel):
    """A Transformer over the history, and a denoiser of item embeddings that it guides."""

    def __init__(self, config: DreamRecConfig):
        super().__init__()
        self.config = config
        dim = config.dim
        self.items = ItemEmbedding(config.n_items, dim)  # N(0, 1), as the noise
        self.positions = nn.Embedding(config.max_history, dim)
        sizes = SASRecConfig(config.n_items, config.max_history, dim, config.layers, config.heads, config.dropout)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(config.layers))
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(config.dropout)
        self.no_history = nn.Parameter(torch.randn(dim))  # ∅
        self.step_network = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.denoiser = nn.Linear(3 * dim, dim)
        self.diffusion = Diffusion(config.steps, dim, config.noise_seed)

    def encode(self, histories: Tensor) -> Tensor:
        """Encode each prefix [users, length, dim]: c of the item after it."""
        places = torch.arange(histories.shape[1], device=histories.device)
        rows = functional.embedding(histories.clamp(min=0), self.items.weight)
        hidden = self.dropout(rows + self.positions(places))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)

    def forward(self, histories: Tensor, places: Tensor | None = None, targets: Tensor | None = None) -> Tensor:
        """Encode, generate, or compute the loss.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            places: True where the next item is generated [users, length]; None: return the encodings.
            targets: the next items at these places [n]: return the loss of each.

        Returns:
            Encodings [users, length, dim]; log-softmax of the inner products of all items with the generated embedding
            [n, n_items]; or squared errors, means over dimensions [n].
        """
        guides = self.encode(histories)
        if places is None:
            return guides
        guides = guides[places]
        if targets is None:
            return self.items(None, self.generate(guides))
        steps = torch.randint(self.config.steps, targets.shape, device=targets.device)
        is_unguided = torch.rand(targets.shape, device=targets.device) < self.config.unguided
        noise = torch.randn(guides.shape, device=guides.device)
        return self.errors(guides, targets, steps, noise, is_unguided)

    def errors(self, guides: Tensor, targets: Tensor, steps: Tensor, noise: Tensor, is_unguided: Tensor) -> Tensor:
        """Compute the mean squared error of the denoised embedding of each target (paper, algorithm 1) [n].

        Args:
            guides: encodings of the histories [n, dim].
            targets: item numbers [n].
            steps: of the diffusion [n].
            noise: that is added [n, dim].
            is_unguided: whose history is left out [n].
        """
        clean = functional.embedding(targets, self.items.weight)
        guides = torch.where(is_unguided[:, None], self.no_history, guides)
        predicted = self.denoise(self.diffusion.diffuse(clean, steps, noise), guides, steps)
        return (predicted - clean).square().mean(1)

    def denoise(self, noisy: Tensor, guides: Tensor, steps: Tensor) -> Tensor:
        """Predict clean embeddings [n, dim] of noisy ones [n, dim] at steps [n], guided by [n, dim]."""
        return self.denoiser(torch.cat([noisy, guides, self.step_network(sinusoids(steps, self.config.dim))], dim=1))

    def generate(self, guides: Tensor) -> Tensor:
        """Generate the next item's embedding by the reverse process (paper, algorithm 2) [n, dim].

        Guidance: (1 + w) · prediction with the history − w · prediction without it.
        """
        weight, empty = self.config.guidance, self.no_history.expand_as(guides)

        def predict(vectors: Tensor, step: int) -> Tensor:
            steps = torch.full((len(vectors),), step, device=vectors.device)
            guided = self.denoise(vectors, guides, steps)
            return (1 + weight) * guided - weight * self.denoise(vectors, empty, steps)

        return self.diffusion.generate(predict, len(guides))


def sinusoids(steps: Tensor, dim: int) -> Tensor:
    """Encode step numbers [n] as sines and cosines of dim / 2 frequencies from 1 to 1/10,000 [n, dim]."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=steps.device) * (-math.log(10_000) / max(half - 1, 1)))
    angles = steps[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
