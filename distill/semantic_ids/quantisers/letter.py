"""LETTER's two losses beside the RQ-VAE's (Wang et al., CIKM 2024): IDs that know who buys what, and codewords that are
used evenly.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.semantic_ids.quantisers.codebooks import plain_kmeans
from distill.semantic_ids.quantisers.settings import KMeansConfig, LetterConfig
from distill.semantic_ids.quantisers.sinkhorn import balanced_codes, squared_distances

EVERY = 10  # epochs between two clusterings of the codewords, which move slowly


def collaborative_loss(quantised: Tensor, collaborative: Tensor) -> Tensor:
    """Compute L_CF: −mean_i log softmax_j ⟨ẑ_i, h_j⟩ at j = i, over the items of a batch.

    Args:
        quantised: ẑ, sums of codewords [n, d].
        collaborative: h, embeddings of the same items from their interactions [n, d].
    """
    return F.cross_entropy(quantised @ collaborative.T, torch.arange(len(quantised), device=quantised.device))


def diversity_loss(codebook: Tensor, codes: Tensor, positives: Tensor) -> Tensor:
    """Compute L_Div of a level: −mean log softmax_{j ≠ c} ⟨e_c, e_j⟩ at another codeword of c's cluster.

    Codewords of a cluster come nearer to each other and farther from all others.

    Args:
        codebook: e [codebook_size, d].
        codes: c, of the items [n].
        positives: for each item another codeword of the cluster, -1 where c is alone in it [n].
    """
    logits = (codebook[codes] @ codebook.T).scatter(1, codes[:, None], -torch.inf)
    shared = positives >= 0
    return F.cross_entropy(logits[shared], positives[shared]) if shared.any() else 0 * codebook.sum()


class Letter:
    """Adds the losses to an RQ-VAE's training.

    Args:
        config: weights, and the number of clusters.
        collaborative: embeddings of the items that are trained [n, any]; projected to the size of the codewords, and
            scaled to unit variance. None: no collaborative loss.
        latent_dim: size of the codewords.
        seed: of clusters and draws.
    """

    def __init__(self, config: LetterConfig, collaborative: np.ndarray | None, latent_dim: int, seed: int):
        self.config, self.rng = config, np.random.default_rng([seed, 1])
        self.collaborative = None
        if config.collaborative and collaborative is not None:
            self.collaborative = torch.from_numpy(project(collaborative, latent_dim))
        self.clusters: list[np.ndarray] = []

    def cluster(self, codebooks: Tensor, epoch: int) -> None:
        """Group each level's codewords into clusters of equal size, every `EVERY` epochs."""
        if not self.config.diversity or (self.clusters and epoch % EVERY):
            return
        settings = KMeansConfig()
        self.clusters = []
        for words in codebooks.detach().cpu():
            centres = torch.from_numpy(plain_kmeans(words.numpy(), self.config.clusters, self.rng, 20))
            distances = squared_distances(words, centres)
            codes = balanced_codes(distances, settings.sinkhorn_epsilon, settings.sinkhorn_iterations)
            self.clusters.append(codes.numpy())

    def losses(self, codebooks: Tensor, rows: np.ndarray, straight: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch, by name.

        Args:
            codebooks: [levels, codebook_size, d].
            rows: of the items among those that are trained [n].
            straight: ẑ with the encoder's gradient [n, d].
            codes: of the items [n, levels].
        """
        parts = {}
        if self.collaborative is not None:
            target = self.collaborative[torch.from_numpy(rows)].to(straight)
            parts["cf"] = self.config.collaborative * collaborative_loss(straight, target)
        if self.config.diversity:
            levels = [
                diversity_loss(codebook, codes[:, level], self._positives(level, codes[:, level]))
                for level, codebook in enumerate(codebooks)
            ]
            parts["div"] = self.config.diversity * torch.stack(levels).mean()
        return parts

    def _positives(self, level: int, codes: Tensor) -> Tensor:
        """Draw another codeword of each code's cluster, -1 where there is none [n]."""
        clusters, codewords = self.clusters[level], codes.cpu().numpy()
        members = np.argsort(clusters, kind="stable")  # codewords, cluster after cluster
        place, sizes = np.argsort(members), np.bincount(clusters)
        start, size = (np.cumsum(sizes) - sizes)[clusters[codewords]], sizes[clusters[codewords]]
        steps = 1 + self.rng.integers(np.maximum(size - 1, 1))  # onward from the codeword, around its cluster
        chosen = members[start + (place[codewords] - start + steps) % size]
        return torch.from_numpy(np.where(size > 1, chosen, -1)).to(codes.device)


def project(vectors: np.ndarray, dim: int) -> np.ndarray:
    """Project embeddings [n, any] to their first `dim` principal components, of unit mean variance [n, dim]."""
    centred = vectors - vectors.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    projected = np.zeros((len(vectors), dim), dtype=np.float32)
    kept = axes[:dim]
    projected[:, : len(kept)] = centred @ kept.T
    spread = float(np.sqrt(np.square(projected).mean()))
    return projected / spread if spread else projected
