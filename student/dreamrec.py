"""Build a DreamRec, with item embeddings of its own or those of a trained network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from distill.runtime.errors import UserError
from student.config import BaselineConfig
from student.item_embeddings import read_item_embeddings
from student.models.item_models.dreamrec import DreamRec, DreamRecConfig


@torch.no_grad()
def build_dreamrec(config: BaselineConfig, n_items: int, source: Path | None) -> DreamRec:
    """Build a DreamRec.

    Args:
        config: of the command.
        n_items: of the catalogue.
        source: network whose item embeddings are taken, standardised as the noise is, and frozen; None: they are
            learned.

    Raises:
        UserError: that network has embeddings of another size, or none.
    """
    model = DreamRec(DreamRecConfig(n_items, **config.sizes, **asdict(config.dreamrec)))
    if source is not None:
        embeddings = read_item_embeddings(source, n_items)
        if embeddings.shape[1] != config.dim:
            raise UserError(
                f"--sasrec {source} has embeddings of {embeddings.shape[1]} dimensions; give --dim "
                f"{embeddings.shape[1]}, found {config.dim}."
            )
        centred = embeddings - embeddings.mean(0)
        model.items.weight.copy_(centred / centred.std(correction=0).clamp(min=1e-12))
        model.items.weight.requires_grad_(False)
    return model
