"""A trained baseline that ranks: histories in, items out; the same calls as a `Recommender`'s."""

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
from student.baselines.gru4rec import GRU4Rec, GRUConfig
from student.baselines.sasrec import SASRec, SASRecConfig

NETWORKS = {"sasrec": (SASRec, SASRecConfig), "gru4rec": (GRU4Rec, GRUConfig)}  # name -> (network, its sizes)


class Scorer:
    """A network that scores all items.

    Args:
        model: of `NETWORKS`.
        facts: what is saved beside the weights: the network's name, seed and the like.
    """

    def __init__(self, model: nn.Module, facts: dict[str, Any]):
        self.model, self.facts = model, facts

    @staticmethod
    def from_pretrained(folder: Path, device: str = "cpu") -> Scorer:
        """Load what `save_pretrained` wrote.

        Raises:
            UserError: the folder is not a baseline.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
            raise UserError(f"{folder} is not a baseline: it needs config.json and model.safetensors.")
        facts = json.loads((folder / "config.json").read_text())
        network, config = NETWORKS[facts["network"]]
        model = network(config(**facts.pop("model")))
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return Scorer(model.to(device).eval(), facts)

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        save_file(self.model.state_dict(), folder / "model.safetensors")
        write_json(folder / "config.json", {**self.facts, "model": asdict(self.model.config)})

    @torch.inference_mode()
    def score_items(self, histories: np.ndarray) -> np.ndarray:
        """Log-probabilities of all items after histories padded with -1 on the right [users, n_items]."""
        weights, limit = self.model.items.weight, self.model.config.max_history
        out = np.empty((len(histories), len(weights)), np.float32)
        for rows, part in batches_by_length(histories, 256):
            lengths = (part != PAD).sum(1)
            first = np.maximum(lengths - limit, 0)  # only the last items have a place
            take = np.minimum(first[:, None] + np.arange(min(part.shape[1], limit)), part.shape[1] - 1)
            recent = torch.from_numpy(np.take_along_axis(part, take, axis=1)).to(weights.device)
            last = torch.from_numpy(lengths - first - 1).to(weights.device)
            hidden = self.model(recent)[torch.arange(len(rows)), last]
            out[rows] = (hidden @ weights.T).log_softmax(-1).cpu().numpy()
        return out

    def rank_items(
        self, histories: np.ndarray, width: int, exclude_bought: bool = True, constrained: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items and their log-probabilities [users, width]; `constrained` is for the callers' sake."""
        items, scores = [], []
        for start in range(0, len(histories), 1024):
            part = histories[start : start + 1024]
            found = self.score_items(part)
            if exclude_bought:
                rows, places = np.nonzero(part != PAD)
                found[rows, part[rows, places]] = -np.inf
            best = np.argpartition(-found, min(width, found.shape[1]) - 1, axis=1)[:, :width]
            values = np.take_along_axis(found, best, axis=1)
            order = np.lexsort((best, -values), axis=1)
            items.append(np.take_along_axis(best, order, axis=1))
            scores.append(np.take_along_axis(values, order, axis=1))
        items, scores = np.concatenate(items), np.concatenate(scores)
        return np.where(np.isfinite(scores), items, PAD), scores
