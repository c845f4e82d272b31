"""Texts of what users want: intentions for `itemsearch`, preferences for `preferenceobtain`.

They are read from a file of LC-Rec's form, or derived from the items' texts by these rules:

- An item's *kind* is the last part of its categories (parts end at any of `> | ; ,`); of a part of more than four
  words, the last two (some catalogues join all levels by blanks).
- Its *words* are the three rarest words of its title (those in the fewest titles), in the title's order. Words have at
  least three letters and no digit; the brand's do not count.
- Its *queries* are "kind from brand", "kind, words" and "words", as far as it has these.
- A user's *preference* names the three kinds and the three brands that are most frequent in the history; where the
  items have neither, their words. Beside a query it is that of the purchases before the item.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.dataset import PAD, Dataset
from distill.runtime.errors import UserError

FORM = (
    'expected {"user_explicit_preference": {user: text or [text, …]}, '
    '"user_vague_intention": {"train": {user: {"item": number, "querys": [text, …]}}}}'
)


@dataclass(frozen=True)
class Intention:
    """A user's intention: the purchases before it, its texts, the item that was bought, and the user's preferences."""

    history: np.ndarray
    queries: list[str]
    item: int
    preferences: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Preference:
    """A user's purchases, and texts of what they have in common."""

    history: np.ndarray
    texts: list[str]


class ItemWords:
    """Kind, brand and words of every item, by the rules above; empty where there are none."""

    def __init__(self, dataset: Dataset):
        titles, brands, categories = (dataset.items[name].to_pylist() for name in ("title", "brand", "categories"))
        self.brands = [(brand or "").strip() for brand in brands]
        self.kinds = [kind(text or "") for text in categories]
        words = [re.findall(r"[^\W\d_]{3,}", title or "") for title in titles]
        n_titles = Counter(word for row in words for word in {word.lower() for word in row})
        self.words = []
        for row, brand in zip(words, self.brands, strict=True):
            candidates = list(dict.fromkeys(word for word in row if word.lower() not in brand.lower().split()))
            rarest = sorted(candidates, key=lambda word: n_titles[word.lower()])[:3]  # stable: the first of equals
            self.words.append(" ".join(word for word in candidates if word in rarest))

    def queries(self, item: int) -> list[str]:
        """Search queries for the item."""
        kind, brand, words = self.kinds[item], self.brands[item], self.words[item]
        queries = [(kind and brand, f"{kind} from {brand}"), (kind and words, f"{kind}, {words}"), (words, words)]
        return [text for known, text in queries if known]

    def preference(self, history: Iterable[int]) -> str:
        """What the items of a history have in common; empty where they have no texts."""
        history = list(history)
        tables = (self.kinds, self.brands, self.words)
        kinds, brands, words = (most_frequent([table[item] for item in history]) for table in tables)
        sentences = [f"Mostly buys {kinds}." if kinds else "", f"Prefers the brands {brands}." if brands else ""]
        return " ".join(filter(None, sentences)) or (f"Likes {words}." if words else "")


def kind(categories: str) -> str:
    """The narrowest category."""
    parts = [part.strip() for part in re.split(r"[>|;,]", categories) if part.strip()]
    words = parts[-1].split() if parts else []
    return " ".join(words[-2:] if len(words) > 4 else words)


def most_frequent(values: list[str], count: int = 3) -> str:
    """The most frequent values, equals in order of appearance, joined by commas."""
    return ", ".join(value for value, _ in Counter(value for value in values if value).most_common(count))


def derived_intentions(
    words: ItemWords, histories: np.ndarray, targets: np.ndarray, with_preferences: bool = False
) -> list[Intention]:
    """An intention for every training example whose target's text gives a query.

    Args:
        words: of the items.
        histories: item numbers, padded with -1 [examples, length].
        targets: item numbers [examples].
        with_preferences: give each intention the preference of its history.
    """
    queries = {item: words.queries(item) for item in np.unique(targets).tolist()}
    intentions = []
    for history, item in zip(histories, targets.tolist(), strict=True):
        if queries[item]:
            preference = words.preference(history[history != PAD]) if with_preferences else ""
            intentions.append(Intention(history, queries[item], item, [preference] if preference else []))
    return intentions


def derived_preferences(
    words: ItemWords, values: np.ndarray, offsets: np.ndarray, max_history: int
) -> list[Preference]:
    """A preference for every user with at least two items in the training part, some of which have texts.

    Args:
        words: of the items.
        values: item numbers of the training part, user after user.
        offsets: where each user's items begin in `values`, and its end [users + 1].
        max_history: items of history kept.
    """
    preferences = []
    for start, end in itertools.pairwise(offsets):
        history = values[max(start, end - max_history) : end]
        text = words.preference(history) if len(history) > 1 else ""
        if text:
            preferences.append(Preference(history, [text]))
    return preferences


def read_intentions(
    path: Path, dataset: Dataset, values: np.ndarray, offsets: np.ndarray, max_history: int
) -> tuple[list[Intention], list[Preference]]:
    """Read LC-Rec's `NAME.user.json`, of which only the "train" part is used.

    Users are named as in the data set, items by their number. The history of an intention is what the user had bought
    before the item, by the data set; the file's "inters" is not read.

    Args:
        path: the file.
        dataset: its users and items.
        values: item numbers of the training part, user after user.
        offsets: where each user's items begin in `values`, and its end [users + 1].
        max_history: items of history kept.

    Raises:
        UserError: no such file, no JSON, another form, unknown users or items, or an item that the user did not buy in
            the training part (its use would leak what is tested).
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"No file of intentions at {path}. Without --intentions they come from item texts.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        line = getattr(error, "lineno", 1)
        raise UserError(f"{path}:{line}: not readable as JSON ({error}); get the file again.") from None
    explicit = _object(path, content, "user_explicit_preference")
    vague = _object(path, _object(path, content, "user_vague_intention"), "train")
    number_of = {user: number for number, user in enumerate(dataset.user_ids.to_pylist())}

    intentions, preferences = [], []
    for user, entry in vague.items():
        bought = _bought(path, user, number_of, values, offsets)
        if dataset.held_out is not None and dataset.held_out[number_of[user]]:
            continue
        item, queries = _object(path, entry).get("item"), _object(path, entry).get("querys")
        if not str(item).isdigit() or not isinstance(queries, list):
            raise UserError(f"{path}: user {user!r} has {str(entry)[:80]}; {FORM}.")
        places = np.flatnonzero(bought == int(item))
        if not len(places):
            raise UserError(
                f"{path}: the intention of user {user!r} is about item {item}, which is not in the training part of "
                "that user's purchases. Make the file for this data set and this split."
            )
        texts = _texts(path, user, queries)
        if texts:
            history = bought[max(0, places[-1] - max_history) : places[-1]]
            intentions.append(Intention(history, texts, int(item), _texts(path, user, explicit.get(user, []))))
    for user, entry in explicit.items():
        history = _bought(path, user, number_of, values, offsets)[-max_history:]
        texts = _texts(path, user, entry) if len(history) else []
        if texts:
            preferences.append(Preference(history, texts))
    return intentions, preferences


def _object(path: Path, value: Any, key: str | None = None) -> dict[str, Any]:
    """The JSON object at `key` of a value (or the value itself), which must be one."""
    inner = value.get(key) if key and isinstance(value, dict) else value
    if not isinstance(value, dict) or not isinstance(inner, dict):
        raise UserError(f"{path}: got {str(inner)[:80]} for {key or 'a user'}; {FORM}.")
    return inner


def _bought(path: Path, user: str, number_of: dict[str, int], values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Item numbers of the user's training part."""
    if user not in number_of:
        raise UserError(f"{path} names user {user!r}, whom the data set does not have; was it made for another one?")
    return values[offsets[number_of[user]] : offsets[number_of[user] + 1]]


def _texts(path: Path, user: str, entry: Any) -> list[str]:
    """The texts of an entry, a text or a list of them, without those that are blank."""
    texts = entry if isinstance(entry, list) else [entry]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path}: user {user!r} has {str(texts)[:80]} where texts belong; {FORM}.")
    return [text.strip() for text in texts if text.strip()]
