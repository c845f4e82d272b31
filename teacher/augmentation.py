"""Training sequences of a stream teacher, changed at random: cropped, reversed, thinned out."""

from __future__ import annotations

import numpy as np

from distill.data.dataset import Dataset
from teacher.config import AugmentationSettings


def augmented_sequences(
    dataset: Dataset, lengths: np.ndarray, augmentation: AugmentationSettings, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Change users' training sequences at random; they stay in the memory-mapped file where nothing is asked for.

    Args:
        dataset: the sequences.
        lengths: of their training parts [users].
        augmentation: what is changed.
        rng: decides.

    Returns:
        Item numbers, the place of each sequence's first item among them [users], and its length [users].
    """
    first = dataset.offsets[:-1]
    if not (augmentation.crop or augmentation.reverse or augmentation.drop_items):
        return dataset.values, first, lengths
    parts = (dataset.values[start : start + length] for start, length in zip(first, lengths, strict=True))
    sequences = [_augmented(part, augmentation, rng).astype(np.int32) for part in parts]
    lengths = np.array([len(sequence) for sequence in sequences])
    return np.concatenate(sequences), np.cumsum(lengths) - lengths, lengths


def _augmented(sequence: np.ndarray, augmentation: AugmentationSettings, rng: np.random.Generator) -> np.ndarray:
    """Crop, reverse and thin out one user's sequence at random; at least two items are kept."""
    if augmentation.crop and rng.random() < augmentation.crop:
        sequence = sequence[rng.integers(max(len(sequence) - 1, 1)) :]
    if augmentation.reverse and rng.random() < augmentation.reverse:
        sequence = sequence[::-1]
    if augmentation.drop_items:
        kept = rng.random(len(sequence)) >= augmentation.drop_items
        sequence = sequence[kept] if kept.sum() > 1 else sequence
    return sequence
