"""Start a student from the weights of an earlier one, whose items have the same codes."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from distill.runtime.errors import UserError
from distill.runtime.logs import log
from distill.semantic_ids.ids import SemanticIDs
from student.models.item_text import HistoryText
from student.recommender import Recommender

# from day to day: how a network is trained and stored, not what it is
MAY_CHANGE = ("dropout", "checkpointing", "lora_rank", "_name_or_path", "dtype", "transformers_version")
LEAST_COSINE = 0.9  # of an ID's text yesterday and today; their centre moves a little with the catalogue


def load_weights(model: nn.Module, folder: Path, ids: SemanticIDs) -> None:
    """Load the weights of an earlier student into a new model; of a dtr those of its retriever.

    Args:
        model: a network over codewords.
        folder: the earlier student.
        ids: the new student's semantic IDs.

    Raises:
        UserError: another network, items that have other codes now, or texts that are embedded otherwise.
    """
    earlier = Recommender.from_pretrained(folder)
    old_sizes, sizes = lasting_sizes(earlier.model), lasting_sizes(model)
    if old_sizes != sizes:
        other = [name for name in old_sizes | sizes if old_sizes.get(name) != sizes.get(name)]
        differences = ", ".join(f"{name} {old_sizes.get(name)}, here {sizes.get(name)}" for name in other)
        raise UserError(
            f"{folder} is another network than this student: {differences}. Give the options that it was trained with "
            "(--backbone, --preset, --init, --item_text and so on), or leave --warm_start out."
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
    weights, texts = earlier.model.state_dict(), getattr(model, "text", None)
    if texts is not None:
        check_same_texts(earlier.model.text, texts, folder)
        weights |= {f"text.{name}": value for name, value in texts.named_buffers()}  # of this day's items
    # a large student is saved with its adapters merged: it starts from these weights, and new adapters train
    model.load_state_dict(
        {name: weights.get(name.replace(".base_layer.", "."), initial) for name, initial in model.state_dict().items()}
    )
    log.info(f"starts from {folder}: {kept.sum():,} of its items are left, {len(row_of) - kept.sum():,} are new")


def lasting_sizes(model: nn.Module) -> dict[str, Any]:
    """Return the sizes of a network that the weights of another day must share: not how many texts it holds."""
    sizes = {field.name: getattr(model.config, field.name) for field in fields(model.config)}
    if sizes.get("text"):
        sizes["text"] = sizes["text"].dim, sizes["text"].only
    sizes |= sizes.pop("network", {})  # the config of a large student's language model
    sizes = {"network": type(model).__name__} | {name: sizes[name] for name in sizes if name not in MAY_CHANGE}
    return json.loads(json.dumps(sizes))  # as it is read from a file


def check_same_texts(earlier: HistoryText, texts: HistoryText, folder: Path) -> None:
    """Refuse text embeddings that do not mean what the earlier student's did.

    Raises:
        UserError: those of the IDs that both know differ.
    """
    _, old_rows, rows = np.intersect1d(earlier.ids.numpy(), texts.ids.numpy(), return_indices=True)
    old_vectors, vectors = (vectors.float().numpy() for vectors in (earlier.vectors[old_rows], texts.vectors[rows]))
    cosine = float((old_vectors * vectors).sum(1).mean()) if len(rows) else 0.0
    if cosine < LEAST_COSINE:
        raise UserError(
            f"The texts of the items that {folder} knows are embedded otherwise now (mean cosine {cosine:.2f}), so "
            "what it learned of texts means nothing here. Embed as before: scripts/embed_items.py --like OLD_EMBEDDINGS"
        )
