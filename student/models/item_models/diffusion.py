"""Gaussian diffusion of vectors (Ho et al. 2020), by a network that predicts the clean vector."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

BETA_MIN, BETA_MAX = 0.1, 10.0  # of the schedule over continuous time, as in DreamRec's code


class Diffusion(nn.Module):
    """The forward process, which adds noise in steps 0 to T − 1, and the reverse process, which takes it away.

    β_t = 1 − exp(−β_min / T − (2t + 1)(β_max − β_min) / (2 T²)), α_t = 1 − β_t, ᾱ_t = α_0 · … · α_t.

    The reverse process draws the same noise for every vector, from a seed: a list does not depend on the others of its
    batch.

    Args:
        steps: T.
        dim: of the vectors.
        seed: of the reverse process's noise.
    """

    signal: Tensor
    noise: Tensor
    from_clean: Tensor
    from_noisy: Tensor
    deviation: Tensor
    draws: Tensor

    def __init__(self, steps: int, dim: int, seed: int = 0):
        super().__init__()
        self.steps = steps
        middle = (2 * np.arange(steps) + 1) / (2 * steps**2)
        betas = 1 - np.exp(-BETA_MIN / steps - middle * (BETA_MAX - BETA_MIN))
        kept = np.cumprod(1 - betas)  # ᾱ
        kept_before = np.concatenate([[1.0], kept[:-1]])
        constants = {
            "signal": np.sqrt(kept),
            "noise": np.sqrt(1 - kept),
            # of the posterior q(x_{t−1} | x_t, x_0): its mean is a sum, its deviation is 0 at step 0
            "from_clean": betas * np.sqrt(kept_before) / (1 - kept),
            "from_noisy": (1 - kept_before) * np.sqrt(1 - betas) / (1 - kept),
            "deviation": np.sqrt(betas * (1 - kept_before) / (1 - kept)),
            "draws": np.random.default_rng(seed).standard_normal((steps + 1, dim)),
        }
        for name, values in constants.items():
            self.register_buffer(name, torch.from_numpy(values.astype(np.float32)), persistent=False)

    def diffuse(self, clean: Tensor, steps: Tensor, noise: Tensor) -> Tensor:
        """Add noise: x_t = √ᾱ_t · x_0 + √(1 − ᾱ_t) · ε.

        Args:
            clean: x_0 [n, dim].
            steps: t [n].
            noise: ε [n, dim].
        """
        return self.signal[steps][:, None] * clean + self.noise[steps][:, None] * noise

    def generate(self, predict: Callable[[Tensor, int], Tensor], count: int) -> Tensor:
        """Run the reverse process from noise to vectors [count, dim].

        Args:
            predict: (x_t [count, dim], t) → the clean vectors that they seem to come from [count, dim].
            count: of vectors.
        """
        vectors = self.draws[self.steps].expand(count, -1)
        for step in reversed(range(self.steps)):
            mean = self.from_clean[step] * predict(vectors, step) + self.from_noisy[step] * vectors
            vectors = mean + self.deviation[step] * self.draws[step]
        return vectors
