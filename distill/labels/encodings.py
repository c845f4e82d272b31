"""Encodings of a level's codeword log-probabilities: fp16, u8 and topk+tail."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from distill.labels.schema import Columns, Rows


class Encoding(Protocol):
    """The interface of an encoding: a class with two functions."""

    @staticmethod
    def encode(log_probs: np.ndarray) -> Columns:
        """Encode log-probabilities, float32 [n, V], as columns of n rows."""
        ...

    @staticmethod
    def decode(columns: Columns, size: int) -> np.ndarray:
        """Decode to float32 [n, V], V = `size`."""
        ...


class Fp16:
    """Every log-probability in half precision."""

    @staticmethod
    def encode(log_probs: np.ndarray) -> Columns:
        """Encode float32 [n, V]."""
        return {"log_probs": log_probs.astype(np.float16)}

    @staticmethod
    def decode(columns: Columns, size: int) -> np.ndarray:
        """Decode to float32 [n, V], V = `size`."""
        return columns["log_probs"].astype(np.float32)


class U8:
    """√p in equal steps, one byte a codeword: an error of √p costs the same KL wherever it is made.

    KL(p ‖ p + dp) ≈ ½ Σ dp²/p = 2 Σ d(√p)², so steps of 1/208 cost at most 2 · V / (12 · 208²) nats: below .001 for 256
    codewords, whatever the distribution. Most bytes are small, so zstd compresses them well.
    """

    STEPS = 208

    @staticmethod
    def encode(log_probs: np.ndarray) -> Columns:
        """Encode float32 [n, V]."""
        mass = np.logaddexp.reduce(log_probs, axis=1)
        shares = np.exp(log_probs - np.maximum(mass, np.finfo(np.float32).min)[:, None])
        roots = np.rint(np.sqrt(shares) * U8.STEPS).astype(np.uint8)
        with np.errstate(divide="ignore"):
            tail = np.log(np.where(roots == 0, shares, 0).sum(1))
        return {"roots": roots, "mass": mass.astype(np.float16), "tail": tail.astype(np.float16)}

    @staticmethod
    def decode(columns: Columns, size: int) -> np.ndarray:
        """Decode to float32 [n, V], V = `size`; zero bytes share their tail equally."""
        roots, tail = columns["roots"], np.exp(columns["tail"].astype(np.float32))
        squares = (np.arange(256, dtype=np.float32) / U8.STEPS) ** 2
        with np.errstate(divide="ignore"):
            log_squares = np.log(squares)
            zero_share = np.log(tail / np.maximum((roots == 0).sum(1), 1))
            scale = np.log(np.maximum(1 - tail, 0)) - np.log(np.maximum(squares[roots].sum(1), 1e-9))
        log_shares = np.where(roots == 0, zero_share[:, None], log_squares[roots] + scale[:, None])
        return log_shares + columns["mass"].astype(np.float32)[:, None]


class TopK:
    """The likeliest codewords, and the mass of all others as one number. Biased: the tail becomes flat."""

    K = 48

    @staticmethod
    def encode(log_probs: np.ndarray) -> Columns:
        """Encode float32 [n, V]."""
        k = min(TopK.K, log_probs.shape[1])
        top = np.argsort(-log_probs, axis=1, kind="stable")[:, :k]
        probs = np.exp(log_probs)
        np.put_along_axis(probs, top, 0, axis=1)
        with np.errstate(divide="ignore"):
            tail = np.log(probs.sum(1)).astype(np.float16)
        top_log_probs = np.take_along_axis(log_probs, top, axis=1).astype(np.float16)
        # a codebook has fewer than 2^15 codewords, but with --scope all V counts those of all levels
        dtype = np.int16 if log_probs.shape[1] <= 1 << 15 else np.int32
        return {"top": top.astype(dtype), "top_log_probs": top_log_probs, "tail": tail}

    @staticmethod
    def decode(columns: Columns, size: int) -> np.ndarray:
        """Decode to float32 [n, V], V = `size`; codewords outside the top share the tail equally."""
        top = columns["top"].astype(np.int64)
        share = columns["tail"].astype(np.float32) - np.log(max(size - top.shape[1], 1), dtype=np.float32)
        log_probs = np.repeat(share[:, None], size, axis=1)
        np.put_along_axis(log_probs, top, columns["top_log_probs"].astype(np.float32), axis=1)
        return log_probs


def encode_states(states: np.ndarray) -> np.ndarray:
    """Encode hidden states [..., features] as bytes: each relative to its largest number, 128 for zero."""
    largest = np.abs(states).max(-1, keepdims=True)
    return (np.rint(states / np.where(largest > 0, largest, 1) * 127) + 128).astype(np.uint8)


def decode_states(encoded: np.ndarray) -> np.ndarray:
    """Decode bytes of `encode_states` to float32 in [−1, 1]; only the direction of a state is kept."""
    return (encoded.astype(np.float32) - 128) / 127


ENCODINGS: dict[str, type[Encoding]] = {"fp16": Fp16, "u8": U8, "topk+tail": TopK}


def kl(log_probs: np.ndarray, encoding: str) -> float:
    """Compute the mean KL in nats from the labels to their decoded form, both normalised over the codewords.

    Args:
        log_probs: [n, levels, V].
        encoding: a key of `ENCODINGS`.
    """
    codec, size = ENCODINGS[encoding], log_probs.shape[-1]
    exact = log_probs.reshape(-1, size).astype(np.float64)
    decoded = codec.decode(codec.encode(exact.astype(np.float32)), size).astype(np.float64)
    exact, decoded = (each - np.logaddexp.reduce(each, axis=1, keepdims=True) for each in (exact, decoded))
    probs = np.exp(exact)
    with np.errstate(invalid="ignore"):
        return float(np.where(probs > 0, probs * (exact - decoded), 0).sum(1).mean())


def column_names(encoding: str) -> list[str]:
    """List the names of an encoding's columns, without the level."""
    return list(ENCODINGS[encoding].encode(np.zeros((1, 1), np.float32)))


def decode_level(columns: Columns, encoding: str, level: int, size: int, rows: Rows = slice(None)) -> np.ndarray:
    """Decode one level of a shard's columns.

    Args:
        columns: arrays of n rows, named with the level (`roots_0`).
        encoding: a key of `ENCODINGS`.
        level: from 0.
        size: V, codewords a row.
        rows: the m rows to decode.

    Returns:
        float32 log-probabilities [m, V].
    """
    parts = {name: columns[f"{name}_{level}"][rows] for name in column_names(encoding)}
    return ENCODINGS[encoding].decode(parts, size)
