"""What the task `titles` writes for an item: its title (BIGRec), or a textual ID (IDGenRec)."""

from __future__ import annotations

import numpy as np

from distill.data.dataset import PAD, Dataset
from distill.semantic_ids.textual_ids import build_textual_ids
from teacher.config import TitleSettings

SEPARATOR = "; "


class ItemTitles:
    """The text that stands for each item in the task `titles`.

    An item without a title has the rest of its text, one without any text has none: it is left out of histories and
    never recommended. Items of one title share it; textual IDs are unique.

    Args:
        dataset: the items.
        tokenizer: its tokens are counted, where titles are cut.
        settings: titles or textual IDs, and their longest length.

    Attributes:
        texts: of each item, "" for none.
    """

    def __init__(self, dataset: Dataset, tokenizer, settings: TitleSettings):
        titles = zip(dataset.items["title"].to_pylist(), dataset.texts(), strict=True)
        texts = [(title or text).strip() for title, text in titles]
        if settings.textual_ids:
            self.texts = build_textual_ids(texts, settings.textual_ids)
            return
        tokens = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        longest = settings.title_tokens
        cut = {row: row_tokens[:longest] for row, row_tokens in enumerate(tokens) if len(row_tokens) > longest}
        self.texts = [tokenizer.decode(cut[row]).strip() if row in cut else text for row, text in enumerate(texts)]

    def history_text(self, history: np.ndarray) -> str:
        """Texts of the items of a padded history, separated by semicolons."""
        return SEPARATOR.join(self.texts[item] for item in history if item != PAD and self.texts[item])
