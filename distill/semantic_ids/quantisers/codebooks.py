"""Residual k-means and product quantisation.

Both approximate `x ≈ center + Σ_d e^d_{c_d}`. Residual k-means clusters the residuals of the levels before. In product
quantisation (Jégou et al. 2011) the codewords of each level lie in a separate sub-space, so the levels have no order.
Greedy residual encoding is then exact, so both share a class.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from distill.semantic_ids.quantisers.settings import KMeansConfig
from distill.semantic_ids.quantisers.sinkhorn import balanced_codes, squared_distances

CHUNK = 8192  # items encoded at once
BALANCED_SAMPLES = 64  # points per codeword for Sinkhorn


class Codebooks:
    """Additive codebooks.

    Args:
        center: mean of the training embeddings [dim].
        words: codewords [levels, codebook_size, dim].
        name: rkmeans or pq.
    """

    def __init__(self, center: np.ndarray, words: np.ndarray, name: str):
        self.center, self._words, self.name = center.astype(np.float32), words.astype(np.float32), name
        self.levels, self.codebook_size, self.input_dim = words.shape
        flat = self._words.reshape(-1, self.input_dim)
        self._flat = np.ascontiguousarray(flat.T)
        self._word_products = flat @ flat.T  # how a chosen codeword changes the products of later levels
        self._squares = np.square(flat).sum(1)

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Encode embeddings [n, dim] as codes [n, levels] (int64): each level takes the codeword nearest to the
        residual.

        `‖r_d − e‖² = ‖r_d‖² − 2 (x − center)·e + 2 Σ_{l<d} e^l·e + ‖e‖²`, so one matrix product serves all levels and
        the residuals are not computed.
        """
        codes = np.empty((len(x), self.levels), dtype=np.int64)
        size = self.codebook_size
        for start in range(0, len(x), CHUNK):
            rows = np.asarray(x[start : start + CHUNK], dtype=np.float32)
            products = (rows - self.center) @ self._flat
            chunk_codes = codes[start : start + CHUNK]
            for level in range(self.levels):
                block = slice(level * size, (level + 1) * size)
                scores = self._squares[block] - 2 * products[:, block]
                for before in range(level):
                    scores += (
                        2 * self._word_products[before * size : (before + 1) * size, block][chunk_codes[:, before]]
                    )
                chunk_codes[:, level] = scores.argmin(1)
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode codes [n, up to levels] to embeddings [n, dim] (float32); fewer levels are coarser."""
        total = np.repeat(self.center[None], len(codes), axis=0)
        for level, column in enumerate(codes.T):
            total += self._words[level][column]
        return total

    def target(self, x: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
        """Compute the residual that `level` quantises, given the codes before it [n, dim]."""
        return np.asarray(x, dtype=np.float32) - self.decode(codes[:, :level])

    def words(self, level: int) -> np.ndarray:
        """Return the level's codewords [codebook_size, dim], comparable with `target`."""
        return self._words[level]

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return tensors and settings for `from_state`."""
        return {"center": self.center, "words": self._words}, {}

    @staticmethod
    def from_state(name: str, tensors: dict[str, np.ndarray], settings: dict[str, Any]) -> Codebooks:
        """Restore a quantiser from what `state` returned."""
        return Codebooks(tensors["center"], tensors["words"], name)


def fit_rkmeans(x: np.ndarray, levels: int, codebook_size: int, seed: int, config: KMeansConfig, tick) -> Codebooks:
    """Fit residual k-means to embeddings [n, dim]; `tick(level)` is called after every level."""
    rng = np.random.default_rng(seed)
    center = np.mean(x, axis=0, dtype=np.float64).astype(np.float32)
    residual = np.asarray(x, dtype=np.float32) - center
    words = []
    for level in range(levels):
        words.append(kmeans(residual, codebook_size, rng, config))
        residual -= words[-1][_nearest(residual, words[-1])]
        tick(level)
    return Codebooks(center, np.stack(words), "rkmeans")


def fit_pq(x: np.ndarray, levels: int, codebook_size: int, seed: int, config: KMeansConfig, tick) -> Codebooks:
    """Fit product quantisation to embeddings [n, dim] after a random rotation, which spreads the variance evenly."""
    rng = np.random.default_rng(seed)
    dim = x.shape[1]
    center = np.mean(x, axis=0, dtype=np.float64).astype(np.float32)
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0].astype(np.float32)
    rotated = (np.asarray(x, dtype=np.float32) - center) @ rotation
    words = np.zeros((levels, codebook_size, dim), dtype=np.float32)
    for level, part in enumerate(np.array_split(np.arange(dim), levels)):
        if len(part):  # with fewer dimensions than levels, the last levels keep zero codewords
            centres = kmeans(np.ascontiguousarray(rotated[:, part]), codebook_size, rng, config)
            words[level] = centres @ rotation[:, part].T
        tick(level)
    return Codebooks(center, words, "pq")


def kmeans(points: np.ndarray, clusters: int, rng: np.random.Generator, config: KMeansConfig) -> np.ndarray:
    """Compute centres [clusters, d] (float32) of points [n, d]: k-means, then rounds in which Sinkhorn assigns equal
    shares.

    Unused codewords are moved to random points.
    """
    words = plain_kmeans(points, clusters, rng, config.iterations)
    if len(points) <= clusters:
        return words
    if len(points) > BALANCED_SAMPLES * clusters:
        points = points[np.sort(rng.choice(len(points), BALANCED_SAMPLES * clusters, replace=False))]
    rows = torch.from_numpy(points)
    for _ in range(config.balanced_rounds):
        distances = squared_distances(rows, torch.from_numpy(words))
        codes = balanced_codes(distances, config.sinkhorn_epsilon, config.sinkhorn_iterations)
        counts = torch.bincount(codes, minlength=clusters)
        words = torch.zeros(words.shape).index_add_(0, codes, rows).div_(counts.clamp_min(1)[:, None]).numpy()
        unused = np.flatnonzero(counts.numpy() == 0)
        words[unused] = sample_with_noise(points, len(unused), rng)
    return words


def plain_kmeans(points: np.ndarray, clusters: int, rng: np.random.Generator, iterations: int = 300) -> np.ndarray:
    """Compute k-means centres [clusters, d]; with fewer points than clusters, noisy copies of points are added."""
    from sklearn.cluster import KMeans  # late: slow to import
    from sklearn.exceptions import ConvergenceWarning

    n_centres = min(clusters, len(points))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than codewords
        means = KMeans(n_centres, n_init=1, max_iter=iterations, random_state=int(rng.integers(2**31))).fit(points)
    words = means.cluster_centers_.astype(np.float32)
    if n_centres < clusters:
        words = np.concatenate([words, sample_with_noise(points, clusters - n_centres, rng)])
    return words


def sample_with_noise(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw random points [count, d] and add a little noise, so that no two are equal."""
    noise = rng.normal(size=(count, points.shape[1])) * 0.01 * points.std()
    return (points[rng.integers(len(points), size=count)] + noise).astype(np.float32)


def _nearest(points: np.ndarray, words: np.ndarray) -> np.ndarray:
    return squared_distances(torch.from_numpy(points), torch.from_numpy(words)).argmin(1).numpy()
