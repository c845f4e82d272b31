"""How the log-probabilities of a level's codewords are stored: fp16, u8 or topk+tail."""

from __future__ import annotations

import numpy as np

from distill.labels.schema import Columns


class Fp16:
    """Every log-probability as a half."""

    @staticmethod
    def encode(log_probs: np.ndarray) -> Columns:
        return {"log_probs": log_probs.astype(np.float16)}

    @staticmethod
    def decode(columns: Columns, size: int) -> np.ndarray:
        return columns["log_probs"].astype(np.float32)


class U8:
    """√p in equal steps: where KL is the price, an error of √p costs the same wherever it is made.

    KL(p ‖ p + dp) ≈ ½ Σ dp²/p = 2 Σ d(√p)², so steps of 1/208 cost at most 2 · V / (12 · 208²) nats: below .001 for 256
    codewords, whatever the distribution. Most bytes are small, and zstd packs them.
    """

    STEPS = 208

    @staticmethod
    def encode(log_probs: np.ndarray) -> Columns:
        mass = np.logaddexp.reduce(log_probs, axis=1)
        shares = np.exp(log_probs - np.maximum(mass, np.finfo(np.float32).min)[:, None])
        roots = np.rint(np.sqrt(shares) * U8.STEPS).astype(np.uint8)
        with np.errstate(divide="ignore"):
            tail = np.log(np.where(roots == 0, shares, 0).sum(1))
        return {"roots": roots, "mass": mass.astype(np.float16), "tail": tail.astype(np.float16)}

    @staticmethod
    def decode(columns: Columns, size: int) -> np.ndarray:
        roots, tail = columns["roots"], np.exp(columns["tail"].astype(np.float32))
        squares = (np.arange(256, dtype=np.float32) / U8.STEPS) ** 2
        with np.errstate(divide="ignore"):
            table = np.log(squares)
            rest = np.log(tail / np.maximum((roots == 0).sum(1), 1))
            scale = np.log(np.maximum(1 - tail, 0)) - np.log(np.maximum(squares[roots].sum(1), 1e-9))
        inside = np.where(roots == 0, rest[:, None], table[roots] + scale[:, None])
        return inside + columns["mass"].astype(np.float32)[:, None]


class TopK:
    """The likeliest codewords, and the mass of the others in one number: what peers store. Biased: the tail is flat."""

    K = 48

    @staticmethod
    def encode(log_probs: np.ndarray) -> Columns:
        k = min(TopK.K, log_probs.shape[1])
        top = np.argsort(-log_probs, axis=1, kind="stable")[:, :k]
        probs = np.exp(log_probs)
        np.put_along_axis(probs, top, 0, axis=1)
        with np.errstate(divide="ignore"):
            tail = np.log(probs.sum(1)).astype(np.float16)
        kept = np.take_along_axis(log_probs, top, axis=1).astype(np.float16)
        return {"top": top.astype(np.int16), "top_log_probs": kept, "tail": tail}

    @staticmethod
    def decode(columns: Columns, size: int) -> np.ndarray:
        top = columns["top"].astype(np.int64)
        share = columns["tail"].astype(np.float32) - np.log(max(size - top.shape[1], 1), dtype=np.float32)
        log_probs = np.repeat(share[:, None], size, axis=1)
        np.put_along_axis(log_probs, top, columns["top_log_probs"].astype(np.float32), axis=1)
        return log_probs


ENCODINGS = {"fp16": Fp16, "u8": U8, "topk+tail": TopK}


def kl(log_probs: np.ndarray, encoding: str) -> float:
    """Mean KL in nats from the labels to what an encoding makes of them, both normalised over the codewords.

    Args:
        log_probs: [n, levels, V].
        encoding: a key of `ENCODINGS`.
    """
    kind, size = ENCODINGS[encoding], log_probs.shape[-1]
    exact = log_probs.reshape(-1, size).astype(np.float64)
    found = kind.decode(kind.encode(exact.astype(np.float32)), size).astype(np.float64)
    exact, found = (one - np.logaddexp.reduce(one, axis=1, keepdims=True) for one in (exact, found))
    probs = np.exp(exact)
    with np.errstate(invalid="ignore"):
        return float(np.where(probs > 0, probs * (exact - found), 0).sum(1).mean())


def parts_of(kind: type) -> list[str]:
    """Names of an encoding's columns, without the level."""
    return list(kind.encode(np.zeros((1, 1), np.float32)))
