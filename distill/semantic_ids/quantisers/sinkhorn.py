"""Balanced assignment: every codeword gets an equal share of the vectors (Sinkhorn-Knopp, LC-Rec 3.1.2)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def squared_distances(x: Tensor, codebook: Tensor) -> Tensor:
    """Compute `‖x − e‖²` of every vector [n, d] and codeword [k, d]: [n, k], at least 0."""
    products = x @ codebook.T
    return (x.square().sum(1, keepdim=True) - 2 * products + codebook.square().sum(1)).clamp_min(0)


@torch.no_grad()
def sinkhorn(distances: Tensor, epsilon: float = 0.003, iterations: int = 50) -> Tensor:
    """Assign n vectors softly to k codewords in equal shares: entropic optimal transport between uniform marginals.

    Each iteration scales rows to 1/n, then columns to 1/k (Cuturi 2013; LC-Rec 3.1.2). At a small epsilon the last
    digits would take thousands of iterations, so the remainder is rounded away (Altschuler et al. 2017, algorithm 2):
    the marginals of the result are uniform after any number of iterations. The scaling vectors are folded into log
    potentials before they leave the range of float64 (Schmitzer 2019): as stable as logarithms, and much faster.

    Args:
        distances: [..., n, k], any scale; LC-Rec centres them to [−1, 1] first, see `balanced_codes`.
        epsilon: entropy weight, in units of the distances.
        iterations: number of scalings of rows and columns.

    Returns:
        float64 [..., n, k]; each matrix sums to 1.
    """
    n, k = distances.shape[-2:]
    scores = distances.double() / -epsilon
    rows, columns = scores.new_zeros(scores.shape[:-1]), scores.new_zeros((*scores.shape[:-2], k))  # log potentials
    kernel = None
    for _ in range(iterations):
        if kernel is not None:
            # v Kᵀ instead of K v: several times faster on many small matrices.
            new_u = 1 / (n * (v[..., None, :] @ kernel.mT)[..., 0, :])  # noqa: F821 - v is set with kernel
            new_v = ((k * new_u[..., None, :]) @ kernel)[..., 0, :].reciprocal_()
            if _in_range(new_u) and _in_range(new_v):
                u, v = new_u, new_v
                continue
            rows, columns = rows + u.log(), columns + v.log()
        rows = -torch.logsumexp(scores + columns[..., None, :], dim=-1) - np.log(n)
        columns = -torch.logsumexp(scores + rows[..., None], dim=-2) - np.log(k)
        kernel = (scores + rows[..., None] + columns[..., None, :]).exp()
        u, v = torch.ones_like(rows), torch.ones_like(columns)
    return _rounded(kernel * u[..., None] * v[..., None, :])


def _in_range(scaling: Tensor) -> bool:
    low, high = scaling.aminmax()
    return bool(low > 1e-100 and high < 1e100)  # false for inf and NaN as well


def _rounded(plan: Tensor) -> Tensor:
    """Round to the nearby plan with rows 1/n and columns 1/k: cut the surplus, then spread the missing mass."""
    n, k = plan.shape[-2:]
    plan = plan * (1 / (n * plan.sum(-1, keepdim=True))).clamp_max(1)
    plan = plan * (1 / (k * plan.sum(-2, keepdim=True))).clamp_max(1)
    rows = (1 / n - plan.sum(-1, keepdim=True)).clamp_min(0)
    columns = (1 / k - plan.sum(-2, keepdim=True)).clamp_min(0)
    return plan + rows * (columns / rows.sum(-2, keepdim=True).clamp_min(1e-300))


def balanced_codes(distances: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assign codes [..., n] by Sinkhorn on distances [..., n, k], which are first scaled to [−1, 1] as in LC-Rec."""
    low, high = distances.amin((-2, -1), keepdim=True), distances.amax((-2, -1), keepdim=True)
    centred = (distances - (high + low) / 2) / ((high - low) / 2 + 1e-5)
    return sinkhorn(centred, epsilon, iterations).argmax(dim=-1)
