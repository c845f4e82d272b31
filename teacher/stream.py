"""The running string of purchases that the `stream` task trains on and the prompt "stream" asks with.

BOS, then each item's codewords. With `--stream_titles`, the codewords of an item of the history are followed by its
title, cut to so many tokens, and a newline. An item without any text has neither. The titles come behind the ID, so one
pass over a sequence still scores every item after exactly the items before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.data.dataset import PAD, Dataset
from distill.runtime.errors import UserError
from teacher.config import StreamSettings


@dataclass(frozen=True)
class Stream:
    """A sequence of items as tokens.

    Attributes:
        tokens: token numbers [length].
        codewords: which of them are codewords, bool [length].
    """

    tokens: np.ndarray
    codewords: np.ndarray


class StreamWriter:
    """Writes sequences of items as tokens.

    Args:
        bos: token number of BOS.
        item_tokens: token numbers of every item's ID [n_items, levels].
        titles: token numbers of every item's title and its newline, empty for an item without text; None: streams of
            codewords alone.
        title_items: how many last items of a history carry their titles; 0: all.

    Attributes:
        longest_title: tokens of the longest title with its newline.
    """

    def __init__(self, bos: int, item_tokens: np.ndarray, titles: list[np.ndarray] | None = None, title_items: int = 0):
        self.bos, self.item_tokens, self.titles, self.title_items = bos, item_tokens, titles, title_items
        self.longest_title = max(map(len, titles), default=0) if titles else 0

    @staticmethod
    def build(settings: StreamSettings, dataset: Dataset, tokenizer, item_tokens: np.ndarray) -> StreamWriter:
        """Tokenise the titles that the settings ask for; an item without a title has the rest of its text instead.

        Raises:
            UserError: titles are asked for, and no item has a text.
        """
        if not settings.stream_titles:
            return StreamWriter(tokenizer.bos_token_id, item_tokens)
        pairs = zip(dataset.items["title"].to_pylist(), dataset.texts(), strict=True)
        texts = [(title or text).strip() for title, text in pairs]
        if not any(texts):
            raise UserError(
                f"--stream_titles {settings.stream_titles}: no item of {dataset.artifact.folder} has a text. Leave the "
                "option out, or give the data set titles."
            )
        newline = tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]  # some put a blank before it
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        titles = [[*tokens[: settings.stream_titles], *newline] if tokens else [] for tokens in encoded]
        arrays = [np.array(title, dtype=np.int64) for title in titles]
        return StreamWriter(tokenizer.bos_token_id, item_tokens, arrays, settings.stream_title_items)

    def prompt(self, history: np.ndarray) -> np.ndarray:
        """Token numbers of the prompt after these items, oldest first [tokens]."""
        return self._write(history, self._first_titled(len(history)), len(history)).tokens

    def sequence(self, items: np.ndarray, last_title: bool = False) -> Stream:
        """A sequence whose last item is only a target: its own title is left out, unless `last_title`."""
        n_history = max(len(items) - 1, 0)
        return self._write(items, self._first_titled(n_history), len(items) if last_title else n_history)

    def longest(self, n_items: int, last_title: bool = False) -> int:
        """Tokens that a sequence of so many items may take."""
        titled = min(n_items - 1, self.title_items or n_items) + last_title
        return 1 + n_items * self.item_tokens.shape[1] + titled * self.longest_title

    def _first_titled(self, n_history: int) -> int:
        """The first item of a history that carries its title."""
        return max(n_history - self.title_items, 0) if self.title_items else 0

    def _write(self, items: np.ndarray, first_titled: int, end_titled: int) -> Stream:
        """Write the items, those from `first_titled` to before `end_titled` with their titles."""
        if self.titles is None:
            tokens = np.append(self.bos, self.item_tokens[items])
            codewords = np.ones(len(tokens), bool)
            codewords[0] = False
            return Stream(tokens.astype(np.int64), codewords)
        tokens, codewords = [self.bos], [False]
        for place, item in enumerate(items):
            tokens.extend(self.item_tokens[item])
            codewords.extend([True] * self.item_tokens.shape[1])
            if first_titled <= place < end_titled:
                tokens.extend(self.titles[item])
                codewords.extend([False] * len(self.titles[item]))
        return Stream(np.array(tokens, dtype=np.int64), np.array(codewords))


def real_items(history: np.ndarray) -> np.ndarray:
    """The items of a padded history."""
    return history[history != PAD]
