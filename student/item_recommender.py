"""A trained network over items that recommends: histories in, ranked items out; `Recommender`'s calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from distill.data.dataset import PAD, batches_by_length
from distill.data.histories import last_items
from distill.ranking import mask_history, scores_of, top_items
from distill.runtime.artifacts import verify_folder, write_json
from distill.runtime.devices import check_device
from distill.runtime.errors import UserError
from distill.runtime.json_files import read_object
from student.loading import check_scores, load_network, report_damage
from student.models.item_models import ITEM_MODELS
from student.models.item_text import sizes_to_json


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
            UserError: the folder is not a baseline or is damaged, or there is no such device.
        """
        check_device(device)
        folder = Path(folder)
        if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
            raise UserError(f"{folder} is not a baseline: it needs config.json and model.safetensors.")
        verify_folder(folder)
        facts = read_object(folder / "config.json", {"network": str, "model": dict})
        if facts["network"] not in ITEM_MODELS:
            raise UserError(f"{folder} is not a baseline: its network is {facts['network'][:60]!r}.")
        with report_damage(folder):
            path = folder / "model.safetensors"
            model = load_network(*ITEM_MODELS[facts["network"]], facts.pop("model"), path)
            return ItemRecommender(model.to(device).eval(), facts)

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        save_file(self.model.state_dict(), folder / "model.safetensors")
        write_json(folder / "config.json", {**self.facts, "model": sizes_to_json(self.model.config)})

    @torch.inference_mode()
    def score_items(self, histories: np.ndarray) -> np.ndarray:
        """Compute the log-probabilities of all items; the network reads the last `max_history` items of a history.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].

        Returns:
            float32 [users, n_items].
        """
        weights = self.model.items.weight
        scores = np.empty((len(histories), len(weights)), np.float32)
        for rows, recent in batches_by_length(last_items(histories, self.model.config.max_history), 256):
            last = torch.from_numpy((recent != PAD).sum(1) - 1).to(weights.device)
            states = self.model(torch.from_numpy(recent).to(weights.device))[torch.arange(len(rows)), last]
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
            check_scores(part_scores)
            if exclude_bought:
                mask_history(part_scores, part, -np.inf)
            items.append(top_items(part_scores, width, above=-np.inf))
            scores.append(scores_of(part_scores, items[-1]))
        return np.concatenate(items), np.concatenate(scores)
