"""Collaborative IDs of P5-CID: recursive spectral clustering of the co-occurrence graph (Hua et al., SIGIR-AP 2023)."""

from __future__ import annotations

import warnings
from collections import deque

import numpy as np
import scipy.sparse as sp

from distill.runtime.errors import UserError
from distill.semantic_ids.numbering import digits
from distill.semantic_ids.quantisers.settings import SpectralConfig

NO_CLUSTER = 0  # codeword of the levels that an item's path of clusters does not reach


def collaborative_codes(
    values: np.ndarray,
    offsets: np.ndarray,
    n_items: int,
    levels: int,
    codebook_size: int,
    settings: SpectralConfig,
    seed: int,
) -> np.ndarray:
    """Cluster items that are bought together, and clusters again until they are small; number the items within.

    A code is the path of clusters, then the item's number in its last one, drawn at random. As in the paper, the
    codewords of a level count on from one parent to the next, so that children of different parents share one only
    where the codebook is used up.

    The paper's IDs have as many codewords as their path is long, from one shared vocabulary. Here every item has
    `levels` codewords, of a vocabulary for each level: shorter paths are filled with codeword 0, and clusters are not
    divided after `levels` − 1 divisions. Items that were never bought with another one are in no cluster: codewords 0,
    then a random number among them, in digits.

    Args:
        values: item numbers of all training sequences, one after the other.
        offsets: start of each sequence [users + 1].
        n_items: catalogue size.
        levels: codewords of an item.
        codebook_size: codewords of a level.
        settings: how clusters are divided.
        seed: of the clustering and of the numbers.

    Returns:
        Codes without collision [n_items, levels] (int64).

    Raises:
        UserError: settings that cannot work, or a last cluster with more items than codewords.
    """
    check(levels, codebook_size, settings)
    affinity, rng = count_pairs(values, offsets, n_items), np.random.default_rng(seed)
    codes = np.full((n_items, levels), NO_CLUSTER, dtype=np.int64)
    is_isolated = np.diff(affinity.indptr) == 0
    codes[is_isolated] = _isolated_codes(int(is_isolated.sum()), levels, codebook_size, rng)
    leaf, clusters_of_level = settings.leaf or codebook_size, np.zeros(levels, dtype=np.int64)
    queue = deque([(np.flatnonzero(~is_isolated), 0)])  # breadth first, as the codewords count on
    while queue:
        items, level = queue.popleft()
        if level > 0 and (len(items) <= leaf or level == levels - 1):
            codes[items, -1] = _leaf_codewords(len(items), codebook_size, rng)
            continue
        labels = divide(affinity[items][:, items], settings.clusters, seed)
        for label in np.unique(labels):
            members = items[labels == label]
            codes[members, level] = 1 + clusters_of_level[level] % (codebook_size - 1)
            clusters_of_level[level] += 1
            queue.append((members, level + 1))
    return codes


def check(levels: int, codebook_size: int, settings: SpectralConfig) -> None:
    """Check that paths of clusters fit the codes.

    Raises:
        UserError: names the setting and what it may be.
    """
    if levels < 2:
        raise UserError(f"Quantiser cid needs --levels of at least 2, a cluster and a number in it; found {levels}.")
    if not 2 <= settings.clusters < codebook_size:
        raise UserError(
            f"spectral.clusters is {settings.clusters}; it must be from 2 to {codebook_size - 1}, one less than "
            "codebook_size."
        )


def count_pairs(values: np.ndarray, offsets: np.ndarray, n_items: int) -> sp.csr_matrix:
    """Count how often two items stand in one sequence: each pair of places counts once [n_items, n_items].

    Symmetric, without the pairs of an item with itself. A matrix, not an array: scikit-learn wants 32-bit indices.
    """
    users = len(offsets) - 1
    owner = np.repeat(np.arange(users), np.diff(offsets))
    bought = sp.coo_array((np.ones(len(values)), (owner, values)), shape=(users, n_items)).tocsr()
    pairs = sp.csr_matrix(bought.T @ bought)
    pairs.setdiag(0)
    pairs.eliminate_zeros()
    return pairs


def divide(affinity: sp.csr_matrix, clusters: int, seed: int) -> np.ndarray:
    """Divide items by spectral clustering (scikit-learn) into at most so many clusters: labels [n].

    As few items as clusters are each alone.
    """
    from sklearn.cluster import SpectralClustering

    if affinity.shape[0] <= clusters:
        return np.arange(affinity.shape[0])
    model = SpectralClustering(clusters, affinity="precomputed", assign_labels="cluster_qr", random_state=seed)
    with warnings.catch_warnings():  # a cluster may fall apart: its parts are what is looked for
        warnings.filterwarnings("ignore", "Graph is not fully connected", UserWarning)
        return model.fit_predict(affinity)


def _isolated_codes(count: int, levels: int, codebook_size: int, rng: np.random.Generator) -> np.ndarray:
    """Number items in no cluster: codeword 0 first [count, levels]."""
    if count > codebook_size ** (levels - 1):
        raise UserError(
            f"{count} items were never bought with another one; only {codebook_size ** (levels - 1)} codes begin with "
            "codeword 0. Raise --codebook_size or --levels."
        )
    return digits(rng.permutation(count), levels, codebook_size)


def _leaf_codewords(count: int, codebook_size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw different last codewords for the items of a cluster [count]."""
    if count > codebook_size:
        raise UserError(
            f"A cluster that is not divided any more holds {count} items, the last level has {codebook_size} codes. "
            "Raise --codebook_size, --levels or --spectral.clusters."
        )
    return rng.permutation(codebook_size)[:count]
