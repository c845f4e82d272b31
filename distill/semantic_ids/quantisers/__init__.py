"""Quantisers: an embedding becomes a few codes.

`fit` trains a quantiser, `save` and `load` store it as `quantiser.safetensors` and `quantiser.json`. To add one, write
a class with the methods of `Quantiser` and a line in `fit` and `_class_of`. torch is imported late.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from distill.runtime.artifacts import write_json
from distill.runtime.errors import UserError
from distill.semantic_ids.quantisers.settings import KMeansConfig, LetterConfig, RQVAEConfig, check

TENSORS, SETTINGS = "quantiser.safetensors", "quantiser.json"


class Quantiser(Protocol):
    """The interface of every quantiser.

    Attributes:
        name: rqvae, rkmeans or pq.
        levels: codes per item.
        codebook_size: codewords per level.
        input_dim: size of an embedding.
    """

    name: str
    levels: int
    codebook_size: int
    input_dim: int

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Encode embeddings [n, dim] as codes [n, levels] (int64): the nearest codeword at each level."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode codes [n, up to levels] to embeddings [n, dim] (float32); fewer levels are coarser."""

    def target(self, x: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
        """Compute what `level` (from 0) quantises, given embeddings [n, dim] and the codes before it: [n, d]."""

    def words(self, level: int) -> np.ndarray:
        """Return the level's codewords [codebook_size, d], comparable with `target`."""

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return tensors and settings, from which the static `from_state(name, tensors, settings)` restores it."""


def fit(
    name: str,
    x: np.ndarray,
    levels: int,
    codebook_size: int,
    seed: int = 0,
    rqvae: RQVAEConfig | None = None,
    kmeans: KMeansConfig | None = None,
    sample: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
    device: str = "cpu",
    letter: LetterConfig | None = None,
    collaborative: np.ndarray | None = None,
) -> Quantiser:
    """Train a quantiser on the rows of x, or on a random sample of them.

    Args:
        name: rqvae, rkmeans or pq.
        x: embeddings [n, dim], finite; may be a memory map.
        levels: codes per item.
        codebook_size: codewords per level.
        seed: of everything random.
        rqvae: settings of the RQ-VAE; None: the defaults.
        kmeans: settings of rkmeans and pq; None: the defaults.
        sample: train on this many rows; 0: on all.
        progress: called with steps done, steps in all, and a note.
        device: where an RQ-VAE trains.
        letter: weights of LETTER's losses, for rqvae; None: none.
        collaborative: embeddings of the rows of x by interactions, for its collaborative loss [n, any].

    Raises:
        UserError: settings that cannot work, more items than codes.
    """
    check(len(x), levels, codebook_size)
    report = progress or (lambda done, total, note: None)
    if 0 < sample < len(x):
        rows = np.sort(np.random.default_rng(seed).choice(len(x), sample, replace=False))
        x, collaborative = x[rows], None if collaborative is None else collaborative[rows]
    if name == "rqvae":
        from distill.semantic_ids.quantisers import rqvae as rqvae_module

        settings = rqvae or RQVAEConfig()

        def epoch(number: int, losses: dict[str, float]) -> None:
            report(number, settings.epochs, ", ".join(f"{part} {loss:.3g}" for part, loss in losses.items()))

        further = None
        if letter is not None and (letter.collaborative or letter.diversity):
            from distill.semantic_ids.quantisers.letter import Letter

            further = Letter(letter, collaborative, settings.latent_dim, seed)
        return rqvae_module.fit(x, levels, codebook_size, seed, settings, epoch, device, further)
    from distill.semantic_ids.quantisers import codebooks

    train = {"rkmeans": codebooks.fit_rkmeans, "pq": codebooks.fit_pq}[name]
    return train(x, levels, codebook_size, seed, kmeans or KMeansConfig(), lambda level: report(level + 1, levels, ""))


def save(quantiser: Quantiser, folder: Path) -> None:
    """Write `quantiser.safetensors` and `quantiser.json`."""
    tensors, settings = quantiser.state()
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / TENSORS)
    write_json(folder / SETTINGS, {"quantiser": quantiser.name, **settings})


def load(folder: Path) -> Quantiser:
    """Read what `save` wrote.

    Raises:
        UserError: missing or damaged files.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_text())
        name = settings.pop("quantiser")
        return _class_of(name).from_state(name, load_file(folder / TENSORS), settings)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no readable quantiser ({str(error).splitlines()[0]}).") from None


def _class_of(name: str) -> Any:
    if name == "rqvae":
        from distill.semantic_ids.quantisers.rqvae import RQVAE

        return RQVAE
    from distill.semantic_ids.quantisers.codebooks import Codebooks

    return Codebooks
