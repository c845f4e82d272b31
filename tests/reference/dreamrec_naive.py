"""DreamRec's loss and reverse process, one vector and one number at a time, from the paper's algorithms 1 and 2."""

import math

import numpy as np


def schedule(steps):
    """β of each step: the variance-preserving schedule, whose rate grows from 0.1 to 10."""
    return [1 - math.exp(-0.1 / steps - (2 * t + 1) * (10 - 0.1) / (2 * steps**2)) for t in range(steps)]


def kept(betas, t):
    """ᾱ_t, the product of 1 − β up to step t; 1 before the first step."""
    product = 1.0
    for beta in betas[: t + 1]:
        product *= 1 - beta
    return product


def squared_error(denoise, clean, guide, t, noise, betas):
    """Mean over dimensions of (f(√ᾱ_t x_0 + √(1 − ᾱ_t) ε, c, t) − x_0)²."""
    share = kept(betas, t)
    noisy = [math.sqrt(share) * x + math.sqrt(1 - share) * e for x, e in zip(clean, noise, strict=True)]
    predicted = denoise(np.array(noisy), guide, t)
    return sum((guess - x) ** 2 for guess, x in zip(predicted, clean, strict=True)) / len(clean)


def generate(denoise, guide, empty, guidance, betas, draws):
    """x_{T-1} … x_0 → the item: the mean and the variance of q(x_{t−1} | x_t, x̂_0), x̂_0 by guided prediction.

    `draws[T]` is the noise that it starts from, `draws[t]` what step t adds.
    """
    steps = len(betas)
    x = np.array(draws[steps], dtype=float)
    for t in range(steps - 1, -1, -1):
        clean = (1 + guidance) * denoise(x, guide, t) - guidance * denoise(x, empty, t)
        beta, now, before = betas[t], kept(betas, t), kept(betas, t - 1)
        mean = math.sqrt(before) * beta / (1 - now) * clean + math.sqrt(1 - beta) * (1 - before) / (1 - now) * x
        variance = beta * (1 - before) / (1 - now)
        x = mean + (math.sqrt(variance) * np.array(draws[t]) if t > 0 else 0.0)
    return x
