"""Number items without embeddings: sequential, random and independent IDs (Hua et al., SIGIR-AP 2023).

A number is written in base `codebook_size`, the first digit first, so that every item has as many codewords as any
other. The paper lets T5's tokeniser cut the decimal number instead.
"""

from __future__ import annotations

import numpy as np

from distill.runtime.errors import UserError


def sequential_codes(values: np.ndarray, n_items: int, levels: int, codebook_size: int, seed: int) -> np.ndarray:
    """Number items in the order in which they first appear, user after user (SID).

    Neighbours in a sequence that are new get neighbouring numbers, which differ in the last digits only.

    Args:
        values: item numbers of all training sequences, one after the other.
        n_items: catalogue size.
        levels: digits.
        codebook_size: the base.
        seed: of the order of items that no training sequence holds. They come last; the catalogue's order may be that
            of the held-out interactions.

    Returns:
        Codes [n_items, levels] (int64).
    """
    seen, first = np.unique(values, return_index=True)
    cold = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(n_items), seen))
    return digits(_ranks(np.concatenate([seen[np.argsort(first)], cold])), levels, codebook_size)


def random_codes(n_items: int, levels: int, codebook_size: int, seed: int) -> np.ndarray:
    """Number items at random (RID): shared prefixes mean nothing, a control for the other IDs [n_items, levels]."""
    return digits(np.random.default_rng(seed).permutation(n_items), levels, codebook_size)


def independent_codes(n_items: int, levels: int, codebook_size: int) -> np.ndarray:
    """Give every item a codeword that no other item has (IID) [n_items, 1].

    Raises:
        UserError: several levels, or fewer codewords than items.
    """
    if levels != 1 or codebook_size < n_items:
        raise UserError(
            f"Quantiser iid gives each of the {n_items} items one codeword of its own, found --levels {levels} "
            f"--codebook_size {codebook_size}; expected --levels 1 --codebook_size {n_items}."
        )
    return np.arange(n_items)[:, None]


def digits(numbers: np.ndarray, levels: int, base: int) -> np.ndarray:
    """Write numbers [n] below base^levels as digits, the highest first [n, levels]."""
    codes = np.empty((len(numbers), levels), dtype=np.int64)
    for level in reversed(range(levels)):
        numbers, codes[:, level] = np.divmod(numbers, base)
    return codes


def _ranks(order: np.ndarray) -> np.ndarray:
    """Return the place of each item in an order of all items [n_items]."""
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    return ranks
