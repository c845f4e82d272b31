"""A trained network over items that recommends: histories in, ranked items out; `Recommender`'s calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from distill.data.dataset import PAD, Dataset, batches_by_length
from distill.data.histories import last_items
from distill.ranking import mask_history, scores_of, top_items
from distill.runtime.artifacts import write_json
from distill.runtime.devices import check_device
from distill.runtime.errors import UserError
from distill.runtime.json_files import read_object
from distill.runtime.verification import verify_folder
from student.by_item_id import ByItemId
from student.loading import check_scores, load_network, report_damage
from student.models.item_models import ITEM_MODELS
from student.models.item_text import sizes_to_json


class ItemRecommender(ByItemId):
    """A network over items behind the calls of a `Recommender`, with memories if there are any.

    Its folder does not name the items: `recommend` needs `with_items` before.

    Args:
        model: a network of `ITEM_MODELS`.
        facts: saved beside the weights: network, loss, seed, exclude_bought.
    """

    ranker = None  # no second model re-scores the list
    unknown_because = "the data set lacks it"

    def __init__(self, model: nn.Module, facts: dict[str, Any]):
        self.model, self.facts = model, facts
        self.item_ids, self.titles = [], []

    def with_items(self, dataset: Dataset) -> ItemRecommender:
        """Return the same network with the ids and titles of its data set's items.

        Raises:
            UserError: the data set has another number of items.
        """
        if dataset.n_items != self.n_items:
            folder = dataset.artifact.folder
            raise UserError(f"The network ranks {self.n_items} items, and {folder} has {dataset.n_items}.")
        student = copy.copy(self)
        student.item_ids = dataset.items["item_id"].to_pylist()
        student.titles = [title or "" for title in dataset.items["title"].to_pylist()]
        return student

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
            return ItemRecommender(model.to(device).eval(), facts).load_memories(folder)

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json, model.safetensors, and memories if there are any."""
        self.save_memories(folder)
        model = self.model.merged() if hasattr(self.model, "merged") else self.model  # setrec may have adapters
        save_file(model.state_dict(), folder / "model.safetensors")
        write_json(folder / "config.json", {**self.facts, "model": sizes_to_json(model.config)})

    @property
    def n_items(self) -> int:
        return self.model.config.n_items

    @property
    def max_history(self) -> int:
        return self.model.config.max_history

    @torch.inference_mode()
    def network_scores(self, histories: np.ndarray) -> np.ndarray:
        """Compute the network's log-probabilities of all items; it reads the last `max_history` items of a history.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].

        Returns:
            float32 [users, n_items].
        """
        device = next(self.model.parameters()).device
        scores = np.empty((len(histories), self.n_items), np.float32)
        for rows, recent in batches_by_length(last_items(histories, self.max_history), 256):
            inputs = (torch.from_numpy(array).to(device) for array in (recent, last_places(recent)))
            scores[rows] = self.model(*inputs).cpu().numpy()
        return scores

    def score_items(self, histories: np.ndarray, exclude_bought: bool | None = None) -> np.ndarray:
        """Score all items, with the memories; arguments and result as `Recommender.score_items`."""
        exclude_bought = self.facts.get("exclude_bought", True) if exclude_bought is None else exclude_bought
        scores = self.mixed_scores(self.network_scores(histories), histories, None, exclude_bought)
        return scores.astype(np.float32, copy=False)

    def score_candidates(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Score a few items by the network alone, as `WithMemories.score_candidates`."""
        return scores_of(self.network_scores(histories), items)

    def rank_items(
        self, histories: np.ndarray, width: int, exclude_bought: bool = True, constrained: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank all items, with the memories.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            width: items per list.
            exclude_bought: leave out the history's items.
            constrained: ignored; every item is valid here. `Recommender` takes it too.

        Returns:
            Items, best first, -1 for none, and their scores, without memories log-probabilities; both [users, width].
        """
        return self._best(lambda part: self.score_items(part, exclude_bought), histories, width, exclude_bought)

    def network_lists(
        self, histories: np.ndarray, width: int, exclude_bought: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank all items by the network alone, as `WithMemories.network_lists`."""
        return self._best(self.network_scores, histories, width, exclude_bought)

    def _best(
        self, score: Callable[[np.ndarray], np.ndarray], histories: np.ndarray, width: int, exclude_bought: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        items, scores = [], []
        for start in range(0, len(histories), 1024):
            part = histories[start : start + 1024]
            part_scores = score(part)
            check_scores(part_scores)
            if exclude_bought:
                mask_history(part_scores, part, -np.inf)
            if self.allowed is not None:
                part_scores[:, ~self.allowed] = -np.inf
            items.append(top_items(part_scores, width, above=-np.inf))
            scores.append(scores_of(part_scores, items[-1]))
        return np.concatenate(items), np.concatenate(scores)


def last_places(histories: np.ndarray) -> np.ndarray:
    """Mark the last item of each history, padded with -1 on the right; bool [users, length]."""
    places = np.zeros(histories.shape, dtype=bool)
    places[np.arange(len(histories)), (histories != PAD).sum(1) - 1] = True
    return places
