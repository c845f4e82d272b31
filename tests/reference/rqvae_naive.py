"""Slow, readable versions of distill/semantic_ids/quantisers/rqvae.py and sinkhorn.py; float64 numpy."""

import numpy as np


def sinkhorn(distances, epsilon, iterations):
    """Sinkhorn-Knopp in logarithms: rows to 1/n, then columns to 1/k."""
    scores = -np.asarray(distances, dtype=np.float64) / epsilon
    n, k = scores.shape
    for _ in range(iterations):
        scores = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True) - np.log(n)
        scores = scores - np.logaddexp.reduce(scores, axis=0, keepdims=True) - np.log(k)
    return np.exp(scores)


def mlp(x, weights):
    for i, (matrix, bias) in enumerate(weights):
        x = matrix @ x + bias
        if i < len(weights) - 1:
            x = np.maximum(x, 0)
    return x


def nearest(residual, codebook):
    return int(np.argmin([np.sum((residual - word) ** 2) for word in codebook]))


def loss(x, encoder, decoder, codebooks, beta, frozen):
    """`‖x − x̂‖² + Σ_d ‖sg[r_d] − e‖² + β‖r_d − sg[e]‖²`, mean over the items.

    `frozen` holds the same parameters (encoder, codebooks) as constants: sg[·] is a value computed from them, so that
    finite differences of this function in the other arguments are the gradient with stops. The straight-through
    estimate is `z + sg[ẑ − z]`.
    """
    frozen_encoder, frozen_codebooks = frozen
    total = 0.0
    for row in x:
        z, stopped_z = mlp(row, encoder), mlp(row, frozen_encoder)
        residual, stopped_residual = z.copy(), stopped_z.copy()
        quantised = np.zeros_like(z)
        for codebook, stopped_codebook in zip(codebooks, frozen_codebooks, strict=True):
            code = nearest(stopped_residual, stopped_codebook)
            word, stopped_word = codebook[code], stopped_codebook[code]
            total += np.sum((stopped_residual - word) ** 2)
            total += beta * np.sum((residual - stopped_word) ** 2)
            residual = residual - stopped_word
            stopped_residual = stopped_residual - stopped_word
            quantised += stopped_word
        total += np.sum((row - mlp(z + (quantised - stopped_z), decoder)) ** 2)
    return total / len(x)


def rounded(plan):
    """Altschuler et al. 2017, algorithm 2: to uniform marginals, one row and one column at a time."""
    plan = np.array(plan)
    n, k = plan.shape
    for i in range(n):
        plan[i] *= min(1.0, (1 / n) / plan[i].sum())
    for j in range(k):
        plan[:, j] *= min(1.0, (1 / k) / plan[:, j].sum())
    rows = np.array([1 / n - plan[i].sum() for i in range(n)])
    columns = np.array([1 / k - plan[:, j].sum() for j in range(k)])
    return plan + np.outer(rows, columns) / rows.sum() if rows.sum() > 0 else plan
