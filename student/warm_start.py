"""Start a student from the weights of an earlier one, whose items have the same codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from distill.runtime.errors import UserError
from distill.runtime.logs import log
from distill.semantic_ids.ids import SemanticIDs
from student.recommender import Recommender


def load_weights(model: nn.Module, folder: Path, ids: SemanticIDs) -> None:
    """Load the weights of an earlier student into a new model; of a dtr those of its retriever.

    Args:
        model: a network over codewords.
        folder: the earlier student.
        ids: the new student's semantic IDs.

    Raises:
        UserError: another network, or items that have other codes now.
    """
    earlier = Recommender.from_pretrained(folder)
    sizes = replace(earlier.model.config, dropout=model.config.dropout)  # may change from day to day
    if type(earlier.model) is not type(model) or sizes != model.config:
        raise UserError(
            f"{folder} is another network than this student: {sizes}, here {model.config}. Give the --backbone and "
            "--preset that it has, or leave --warm_start out."
        )
    row_of = {item: row for row, item in enumerate(ids.item_ids)}
    rows = np.array([row_of.get(item, -1) for item in earlier.item_ids])
    kept = rows >= 0
    moved = (ids.codes[rows[kept]] != earlier.codes.cpu().numpy()[kept]).any(1)
    if moved.any() or not kept.any():
        raise UserError(
            f"{moved.sum()} of the {kept.sum()} items that {folder} knows have other semantic IDs now, so its weights "
            "mean nothing here. Extend its IDs: python scripts/build_semantic_ids.py --extend OLD_IDS"
        )
    model.load_state_dict(earlier.model.state_dict())
    log.info(f"starts from {folder}: {kept.sum():,} of its items are left, {len(row_of) - kept.sum():,} are new")
