"""A trained network over items that recommends: histories in, ranked items out; `Recommender`'s calls."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from distill.data.dataset import PAD, batches_by_length
from distill.runtime.artifacts import write_json
from distill.runtime.errors import UserError
from student.models.item_models import ITEM_MODELS


class ItemRecommender:
    """SASRec or GRU4Rec behind the calls of a `Recommender`.

    Args:
        model: a network of `ITEM_MODELS`.
        facts: saved beside the weights: network, loss, seed, exclude_bought.
    """

    ranker = None  # no second model re-scores the list

    def __init__(self, model: nn.Module, facts: dict[str, Any]):
        self.model, self.facts = model, facts

    @staticmethod
    def from_pretrained(folder: Path, device: str = "cpu") -> ItemRecommender:
        """Load what `save_pretrained` wrote.

        Raises:
            UserError: the folder is not a baseline.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
            raise UserError(f"{folder} is not a baseline: it needs config.json and model.safetensors.")
        facts = json.loads((folder / "config.json").read_text())
        network, sizes = ITEM_MODELS[facts["network"]]
        model = network(sizes(**facts.pop("model")))
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return ItemRecommender(model.to(device).eval(), facts)

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        save_file(self.model.state_dict(), folder / "model.safetensors")
        write_json(folder / "config.json", {**self.facts, "model": asdict(self.model.config)})

    @torch.inference_mode()
    def score_items(self, histories: np.ndarray) -> np.ndarray:
        """Log-probabilities of all items after histories padded with -1 on the right [users, n_items]."""
        weights, limit = self.model.items.weight, self.model.config.max_history
        scores = np.empty((len(histories), len(weights)), np.float32)
        for rows, batch in batches_by_length(histories, 256):
            lengths = (batch != PAD).sum(1)
            first = np.maximum(lengths - limit, 0)  # the network reads the last `limit` items
            columns = np.minimum(first[:, None] + np.arange(min(batch.shape[1], limit)), batch.shape[1] - 1)
            recent = torch.from_numpy(np.take_along_axis(batch, columns, axis=1)).to(weights.device)
            last = torch.from_numpy(lengths - first - 1).to(weights.device)
            states = self.model(recent)[torch.arange(len(rows)), last]
            scores[rows] = self.model.items(None, states).cpu().numpy()
        return scores

    def rank_items(
        self, histories: np.ndarray, width: int, exclude_bought: bool = True, constrained: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank all items.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            width: items per list.
            exclude_bought: leave out the history's items.
            constrained: ignored; every item is valid here. `Recommender` takes it too.

        Returns:
            Items, best first, -1 for none, and their log-probabilities; both [users, width].
        """
        items, scores = [], []
        for start in range(0, len(histories), 1024):
            part = histories[start : start + 1024]
            part_scores = self.score_items(part)
            if exclude_bought:
                rows, places = np.nonzero(part != PAD)
                part_scores[rows, part[rows, places]] = -np.inf
            best = np.argpartition(-part_scores, min(width, part_scores.shape[1]) - 1, axis=1)[:, :width]
            values = np.take_along_axis(part_scores, best, axis=1)
            order = np.lexsort((best, -values), axis=1)
            items.append(np.take_along_axis(best, order, axis=1))
            scores.append(np.take_along_axis(values, order, axis=1))
        items, scores = np.concatenate(items), np.concatenate(scores)
        return np.where(np.isfinite(scores), items, PAD), scores
