"""Recommend by item ids: histories of item ids in, lists of item ids out, with any trained student."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.data.dataset import PAD
from distill.runtime.errors import UserError
from student.histories import check_histories, pad_histories, whole_number
from student.memories import WithMemories

DEFAULT_WIDTH = 20  # beams (paper: 20)


@dataclass(frozen=True)
class Recommendation:
    """One recommended item: its id, its score (log-probability of its ID, or the ranker's M), its title or ''."""

    item_id: str
    score: float
    title: str


class ByItemId(WithMemories):
    """A student whose items have ids and titles.

    Attributes:
        item_ids, titles: of all items; a network over items has none until its data set names them.
        unknown_because: why an item id may be unknown, for the message.
    """

    item_ids: list[str]
    titles: list[str]
    unknown_because: str

    @abstractmethod
    def rank_items(
        self, histories: np.ndarray, width: int, exclude_bought: bool = True, constrained: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank items after histories of item numbers.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            width: items per list, and beams where there are any.
            exclude_bought: exclude all items of the history.
            constrained: search valid IDs only.

        Returns:
            Items, best first, -1 for none, and scores; both [users, width].
        """

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        width: int = DEFAULT_WIDTH,
        exclude_bought: bool | None = None,
        skip_unknown: bool = False,
    ) -> list[list[Recommendation]]:
        """Recommend the k best next items after each history.

        Args:
            histories: item ids, oldest first. The network reads the last `max_history` of each.
            k: items per list, at most the whole catalogue.
            width: beams; at least k are used, and at most as many as there are items.
            exclude_bought: exclude all items of the history; by default where no user of the training part has an item
                twice.
            skip_unknown: ignore unknown item ids; a history of nothing else gets an empty list.

        Raises:
            UserError: an unknown item id, a history without items, or an argument of another type.
        """
        if not self.item_ids:
            raise UserError("This network does not know its items' ids: name them by with_items(dataset).")
        check_histories(histories)
        k, width = (min(whole_number(*pair), self.n_items) for pair in (("k", k), ("width", width)))
        numbers = pad_histories(self.item_numbers(histories, skip_unknown))
        exclude_bought = self.facts.get("exclude_bought", True) if exclude_bought is None else exclude_bought
        known = numbers[:, 0] != PAD
        items = np.full((len(histories), max(width, k)), PAD)
        scores = np.full(items.shape, -np.inf, dtype=np.float32)
        if known.any():  # networks over items need a last item
            items[known], scores[known] = self.rank_items(numbers[known], items.shape[1], exclude_bought)
        return [
            [
                Recommendation(self.item_ids[item], float(score), self.titles[item])
                for item, score in zip(items[row, :k], scores[row, :k], strict=True)
                if item != PAD
            ]
            for row in range(len(histories))
        ]

    def item_numbers(self, histories: Sequence[Sequence[str]], skip_unknown: bool = False) -> list[list[int]]:
        """Look up the numbers of item ids; arguments and errors as for `recommend`."""
        number = {item_id: row for row, item_id in enumerate(self.item_ids)}
        for row, history in enumerate(histories):
            if len(history) == 0:
                raise UserError(f"History {row} is empty; a recommendation needs at least one item.")
            unknown = next((item_id for item_id in history if item_id not in number), None)
            if unknown is not None and not skip_unknown:
                raise UserError(
                    f"Unknown item id {unknown!r} in history {row}: {self.unknown_because} (skip_unknown omits it)."
                )
        return [[number[item_id] for item_id in history if item_id in number] for history in histories]
