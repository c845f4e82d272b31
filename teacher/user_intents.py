"""What users want, in words: intentions for `itemsearch`, preferences for `preferenceobtain`.

Either read from a file of LC-Rec's form, or derived from the items' texts by these rules:

- An item's *kind* is the last part of its categories (parts end at any of `> | ; ,`); of a part of more than four
  words, the last two (some catalogues join all levels by blanks).
- Its *words* are the three words of its title that the fewest titles hold, in the title's order; words have at least
  three letters and no digit, and the brand's do not count.
- Its *queries* are "kind from brand", "kind, words" and "words", as far as it has these.
- A user's *preference* names the three kinds and the three brands that occur most in the history; where the items have
  neither, the three words.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.dataset import Dataset
from distill.runtime.errors import UserError

FORM = (
    'expected {"user_explicit_preference": {user: text or [text, …]}, '
    '"user_vague_intention": {"train": {user: {"item": number, "querys": [text, …]}}}}'
)


@dataclass(frozen=True)
class Intention:
    """Someone's wish: the purchases before, the texts that say it, and the item that fulfilled it."""

    history: np.ndarray
    queries: list[str]
    item: int


@dataclass(frozen=True)
class Preference:
    """The purchases of a user and the texts that say what they have in common."""

    history: np.ndarray
    texts: list[str]


class ItemWords:
    """Kind, brand and words of every item, by the rules above; empty where there are none."""

    def __init__(self, dataset: Dataset):
        titles, brands, categories = (dataset.items[name].to_pylist() for name in ("title", "brand", "categories"))
        self.brands = [(brand or "").strip() for brand in brands]
        self.kinds = [kind(text or "") for text in categories]
        words = [re.findall(r"[^\W\d_]{3,}", title or "") for title in titles]
        held = Counter(word for row in words for word in {word.lower() for word in row})
        self.words = []
        for row, brand in zip(words, self.brands, strict=True):
            own = list(dict.fromkeys(word for word in row if word.lower() not in brand.lower().split()))
            rare = sorted(own, key=lambda word: held[word.lower()])[:3]  # stable: the first of equals
            self.words.append(" ".join(word for word in own if word in rare))

    def queries(self, item: int) -> list[str]:
        """What someone who wants the item may type."""
        kind, brand, words = self.kinds[item], self.brands[item], self.words[item]
        said = [(kind and brand, f"{kind} from {brand}"), (kind and words, f"{kind}, {words}"), (words, words)]
        return [text for holds, text in said if holds]

    def preference(self, history: Iterable[int]) -> str:
        """What the items of a history have in common; empty where their texts say nothing."""
        history = list(history)
        kinds, brands, words = (most([table[i] for i in history]) for table in (self.kinds, self.brands, self.words))
        said = [f"Mostly buys {kinds}." if kinds else "", f"Prefers the brands {brands}." if brands else ""]
        return " ".join(filter(None, said)) or (f"Likes {words}." if words else "")


def kind(categories: str) -> str:
    """The narrowest category."""
    parts = [part.strip() for part in re.split(r"[>|;,]", categories) if part.strip()]
    words = parts[-1].split() if parts else []
    return " ".join(words[-2:] if len(words) > 4 else words)


def most(values: list[str], count: int = 3) -> str:
    """The values that occur most, equals in order of appearance, as one phrase."""
    return ", ".join(value for value, _ in Counter(value for value in values if value).most_common(count))


def derived_intentions(words: ItemWords, histories: np.ndarray, targets: np.ndarray) -> list[Intention]:
    """One for every training example whose target's text gives a query."""
    queries = {item: words.queries(item) for item in np.unique(targets).tolist()}
    pairs = zip(histories, targets.tolist(), strict=True)
    return [Intention(history, queries[item], item) for history, item in pairs if queries[item]]


def derived_preferences(
    words: ItemWords, values: np.ndarray, offsets: np.ndarray, max_history: int
) -> list[Preference]:
    """One for every user with at least two items in the training part, whose texts say something."""
    found = []
    for start, end in itertools.pairwise(offsets):
        history = values[max(start, end - max_history) : end]
        text = words.preference(history) if len(history) > 1 else ""
        if text:
            found.append(Preference(history, [text]))
    return found


def read_intentions(
    path: Path, dataset: Dataset, values: np.ndarray, offsets: np.ndarray, max_history: int
) -> tuple[list[Intention], list[Preference]]:
    """LC-Rec's `NAME.user.json`, of which the "train" part alone is used.

    Users are named as in the data set, items by their number. The history of an intention is taken from the data set:
    what the user had bought before the item; the file's own "inters" is not read.

    Args:
        path: the file.
        dataset: whose users and items it names.
        values: item numbers of the training part.
        offsets: where each user's begin there.
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
    preferences = _object(path, content, "user_explicit_preference")
    vague = _object(path, _object(path, content, "user_vague_intention"), "train")
    number_of = {user: number for number, user in enumerate(dataset.user_ids.to_pylist())}

    intentions, found = [], []
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
            intentions.append(Intention(bought[max(0, places[-1] - max_history) : places[-1]], texts, int(item)))
    for user, texts in preferences.items():
        history = _bought(path, user, number_of, values, offsets)[-max_history:]
        if len(history) and (said := _texts(path, user, texts if isinstance(texts, list) else [texts])):
            found.append(Preference(history, said))
    return intentions, found


def _object(path: Path, value: Any, key: str | None = None) -> dict[str, Any]:
    inner = value.get(key) if key and isinstance(value, dict) else value
    if not isinstance(value, dict) or not isinstance(inner, dict):
        raise UserError(f"{path}: got {str(inner)[:80]} for {key or 'a user'}; {FORM}.")
    return inner


def _bought(path: Path, user: str, number_of: dict[str, int], values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    if user not in number_of:
        raise UserError(f"{path} names user {user!r}, whom the data set does not have; was it made for another one?")
    return values[offsets[number_of[user]] : offsets[number_of[user] + 1]]


def _texts(path: Path, user: str, texts: list) -> list[str]:
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path}: user {user!r} has {str(texts)[:80]} where texts belong; {FORM}.")
    return [text.strip() for text in texts if text.strip()]
