"""What the server knows of the items: ids, titles, categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distill.runtime.errors import UserError


@dataclass(frozen=True)
class Catalogue:
    """What is known of the items, by item number.

    Attributes:
        item_ids, titles: of all items.
        numbers: item id to item number.
        categories: category to item numbers, ascending.
    """

    item_ids: list[str]
    titles: list[str]
    numbers: dict[str, int]
    categories: dict[str, np.ndarray]

    @staticmethod
    def of(item_ids: list[str], titles: list[str], categories: list[str | None]) -> Catalogue:
        """Build a catalogue; an item's categories are paths ("Office > Desk Lamp") with commas between."""
        texts = pa.array(categories, pa.string()).fill_null("").dictionary_encode()  # few differ
        text_of_item = texts.indices.to_numpy()
        items = np.split(np.argsort(text_of_item, kind="stable"), np.bincount(text_of_item).cumsum()[:-1])
        members: dict[str, list[np.ndarray]] = {}
        for text, of_text in zip(texts.dictionary.to_pylist(), items, strict=True):
            for name in _categories(text):
                members.setdefault(name, []).append(of_text)
        numbers = {item_id: number for number, item_id in enumerate(item_ids)}
        in_category = {name: np.sort(np.concatenate(parts)) for name, parts in members.items()}
        return Catalogue(item_ids, titles, numbers, in_category)

    def item_numbers(self, item_ids: Sequence[str]) -> list[int]:
        """Look up item numbers.

        Raises:
            UserError: an unknown item id.
        """
        unknown = next((item for item in item_ids if item not in self.numbers), None)
        if unknown is not None:
            raise UserError(f"Unknown item id {unknown!r}; the student knows {len(self.item_ids)} items.")
        return [self.numbers[item] for item in item_ids]

    def allowed(self, categories: Sequence[str] | None, item_ids: Sequence[str] | None) -> np.ndarray:
        """Look up the items that are in one of the categories and in the list, ascending; None: no condition.

        Raises:
            UserError: an unknown category or item id, or no item left.
        """
        mask = np.ones(len(self.item_ids), dtype=bool)
        if categories is not None:
            unknown = next((name for name in categories if name not in self.categories), None)
            if unknown is not None:
                examples = ", ".join(sorted(self.categories)[:5]) or "none; start the server with --dataset"
                raise UserError(f"Unknown category {unknown!r}; the catalogue's are, among others: {examples}.")
            mask &= self._mask(np.concatenate([self.categories[name] for name in categories]))
        if item_ids is not None:
            mask &= self._mask(self.item_numbers(item_ids))
        if not mask.any():
            raise UserError("No item meets all conditions of the filter.")
        return np.flatnonzero(mask)

    def _mask(self, items: np.ndarray | list[int]) -> np.ndarray:
        mask = np.zeros(len(self.item_ids), dtype=bool)
        mask[items] = True
        return mask


def _categories(text: str) -> dict[str, None]:
    """List the categories of an item in order, each once; "A > B" is in A and in A > B."""
    names = {}
    for path in text.split(","):
        steps = [step.strip() for step in path.split(">")]
        if all(steps):
            names |= dict.fromkeys(" > ".join(steps[: depth + 1]) for depth in range(len(steps)))
    return names
