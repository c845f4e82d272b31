"""Shared by the tests of students that read texts: networks that know a text for every possible semantic ID."""

import dataclasses

import numpy as np

from student.models.item_text import TextConfig

DIM = 5


def text_network(network, config, only=False, seed=4):
    """Build a network over codewords that reads random texts of all IDs."""
    count = config.codebook_size**config.levels
    vectors = np.random.default_rng(seed).normal(size=(count, DIM))
    model = network(dataclasses.replace(config, text=TextConfig(count, DIM, only)))
    model.text.set_ids(np.arange(count), vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return model
