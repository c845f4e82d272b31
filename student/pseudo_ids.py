"""The distance prior of the paper's Appendix B: pseudo-IDs around each target, strictly ordered by equation (18)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PseudoIDs:
    """Draw candidates around targets: the target's ID, then the nearest of its 2^D − 1 pseudo-IDs, nearest first.

    There is one pseudo-ID for each non-empty set of levels in which it differs from the target. The distances
    Σ_i 2^(D−i)·[c_i differs], equation (18), are then 1, 2, … 2^D − 1, without ties. Pseudo-IDs need not be items.

    Attributes:
        codes: codewords of all items [n_items, levels].
        codebook_size: codewords of a level.
        k: candidates per target, the target included; at most 2^D are drawn.
    """

    codes: np.ndarray
    codebook_size: int
    k: int

    def draw(self, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw the candidates of some targets.

        Args:
            targets: item numbers [n].
            rng: draws the codewords that differ, evenly among the level's others.

        Returns:
            Codewords, the target's ID first [n, min(k, 2^D), levels].
        """
        levels = self.codes.shape[1]
        distances = np.arange(min(self.k, 2**levels))
        differs = distances[:, None] >> np.arange(levels)[::-1] & 1  # a distance's binary digits are its levels
        steps = rng.integers(1, self.codebook_size, (len(targets), len(distances), levels))
        return (self.codes[targets][:, None] + differs * steps) % self.codebook_size
