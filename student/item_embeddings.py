"""Read the item embeddings of a trained network over items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from distill.runtime.errors import UserError
from student.item_recommender import ItemRecommender
from student.models.item_models.e4srec import E4SRec
from student.models.setrec import SETRec


def read_item_embeddings(folder: Path, n_items: int, option: str = "--sasrec") -> Tensor:
    """Read the item embeddings of a trained network [n_items, dim].

    Args:
        folder: of the network.
        n_items: of the catalogue.
        option: that names the folder, for messages.

    Raises:
        UserError: it has none, or they are of another catalogue.
    """
    model: Any = ItemRecommender.from_pretrained(folder).model
    if isinstance(model, SETRec | E4SRec):
        kind = "a setrec" if isinstance(model, SETRec) else "an e4srec"
        raise UserError(f"{option} {folder} is {kind} itself; name a SASRec, GRU4Rec or FMLP-Rec.")
    weight = model.items.weight.detach()
    if len(weight) != n_items:
        raise UserError(f"{option} {folder} has {len(weight)} items, the data set {n_items}.")
    return weight
