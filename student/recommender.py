"""A trained student that recommends: history of item ids in, ranked item ids out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.artifacts import UserError, write_json
from distill.beam import beam_search
from distill.catalog import read_parquet
from distill.objectives import sequence_score
from distill.trie import FullTree, Trie
from student.models.seq2seq import Seq2Seq, Seq2SeqConfig

DEFAULT_WIDTH = 20  # beams (paper: 20)


@dataclass(frozen=True)
class Recommendation:
    """One recommended item: its id, its score (log-probability of its ID, or the ranker's M), its title or ''."""

    item_id: str
    score: float
    title: str


class Recommender:
    """A student with its semantic IDs, and a second one that ranks where the variant has it.

    Args:
        model: the retriever.
        codes: of all items [n_items, levels].
        item_ids, titles: of all items.
        ranker: re-scores the retriever's beams (`dtr`).
        facts: what is saved beside the weights: variant, seed and the like.
    """

    def __init__(
        self,
        model: Seq2Seq,
        codes: np.ndarray,
        item_ids: list[str],
        titles: list[str],
        ranker: Seq2Seq | None = None,
        facts: dict[str, Any] | None = None,
    ):
        self.model, self.ranker, self.facts = model, ranker, facts or {}
        self.device = model.head.device
        self.item_ids, self.titles = item_ids, titles
        self.codes = torch.from_numpy(codes).to(self.device)
        self.trie = Trie(codes, model.config.codebook_size, self.device)

    @staticmethod
    def from_pretrained(folder: Path | str, device: str = "cpu") -> Recommender:
        """Load what `save_pretrained` wrote.

        Raises:
            UserError: the folder is not a student.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
            raise UserError(f"{folder} is not a student: it needs config.json and model.safetensors.")
        facts = json.loads((folder / "config.json").read_text())
        sizes = Seq2SeqConfig(**facts.pop("model"))
        models = []
        for name in ("model", "ranker"):
            if (folder / f"{name}.safetensors").is_file():
                model = Seq2Seq(sizes)
                model.load_state_dict(load_file(folder / f"{name}.safetensors"))
                models.append(model.to(device).eval())
        table = read_parquet(folder / "items.parquet", ("item_id", "title", "codes"))
        codes = np.array(table["codes"].to_pylist(), dtype=np.int64)
        return Recommender(
            models[0], codes, table["item_id"].to_pylist(), table["title"].to_pylist(), *models[1:], facts=facts
        )

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json, model.safetensors, ranker.safetensors if there is one, and items.parquet."""
        save_file(self.model.state_dict(), folder / "model.safetensors")
        if self.ranker is not None:
            save_file(self.ranker.state_dict(), folder / "ranker.safetensors")
        codes = pa.array(self.codes.cpu().tolist(), pa.list_(pa.int16()))
        columns = {"item_id": pa.array(self.item_ids, pa.string()), "title": pa.array(self.titles, pa.string())}
        pq.write_table(pa.table({**columns, "codes": codes}), folder / "items.parquet")
        write_json(folder / "config.json", {**self.facts, "model": asdict(self.model.config)})

    def recommend(
        self, histories: Sequence[Sequence[str]], k: int = 10, width: int = DEFAULT_WIDTH, exclude_bought: bool = True
    ) -> list[list[Recommendation]]:
        """The k best next items after each history of item ids, oldest first.

        Raises:
            UserError: an unknown item id, or a history without items.
        """
        number = {item_id: row for row, item_id in enumerate(self.item_ids)}
        limit = self.facts.get("max_history", 20)
        padded = np.full((len(histories), limit), -1, dtype=np.int64)
        for row, history in enumerate(histories):
            if not history:
                raise UserError(f"History {row} is empty; a recommendation needs at least one item.")
            for item_id in history:
                if item_id not in number:
                    raise UserError(f"Unknown item id {item_id!r} in history {row}; it has no semantic ID.")
            recent = [number[item_id] for item_id in history][-limit:]
            padded[row, : len(recent)] = recent
        items, scores = self.rank_items(padded, max(width, k), exclude_bought)
        return [
            [
                Recommendation(self.item_ids[item], float(score), self.titles[item])
                for item, score in zip(items[row, :k], scores[row, :k], strict=True)
                if item >= 0
            ]
            for row in range(len(histories))
        ]

    @torch.inference_mode()
    def rank_items(
        self, histories: np.ndarray, width: int = DEFAULT_WIDTH, exclude_bought: bool = True, constrained: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ranked item numbers.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            width: beams; at least the number of items makes the ranking exact.
            exclude_bought: leave out the history's items.
            constrained: only valid IDs; otherwise places with an invalid one are -1.

        Returns:
            Items, best first, -1 for none, and scores; both [users, width].
        """
        bought = torch.from_numpy(histories).to(self.device)
        codes = self.history_codes(bought)
        step = self.model.step(self.model.encode(codes))
        closed = self.trie.closed_leaves(bought) if exclude_bought and constrained else None
        tree = self.trie if constrained else FullTree(self.trie.levels, self.trie.codebook_size)
        beams = beam_search(step, tree, len(histories), width, closed, self.device)
        leaves, scores = beams.leaves, beams.scores
        if self.ranker is not None:
            log_probs = self.ranker.log_probs(self.ranker.encode(codes), beams.codes)
            scores = sequence_score(log_probs, beams.codes).masked_fill(scores == -torch.inf, -torch.inf)
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            leaves, beams = leaves.gather(1, order), beams._replace(codes=take(beams.codes, order))
        if not constrained:
            return self.trie.first_item(self.trie.find(beams.codes)).cpu().numpy(), scores.cpu().numpy()
        items, place = self.trie.items(leaves, bought if exclude_bought else None)
        return items.cpu().numpy(), scores.gather(1, place).cpu().numpy()

    def history_codes(self, histories: Tensor) -> Tensor:
        """Codes of padded item numbers [users, length] → [users, length, levels], -1 where padded."""
        return torch.where((histories >= 0)[..., None], self.codes[histories.clamp(min=0)], -1)


def take(values: Tensor, order: Tensor) -> Tensor:
    """Reorder the second dimension of [batch, width, any] by [batch, width]."""
    return values.gather(1, order[..., None].expand_as(values))
