"""Textual IDs: a few words of an item's own text that name it and no other item.

IDGenRec (Tan et al., SIGIR 2024) trains a generator of such IDs together with the recommender. Here the words are
chosen without learning: those of the text with the highest TF-IDF, in the order of the text.
"""

from __future__ import annotations

import re

from sklearn.feature_extraction.text import TfidfVectorizer

WORD = re.compile(r"[^\W_]+")


def build_textual_ids(texts: list[str], n_words: int) -> list[str]:
    """Choose a unique sequence of words for every item with a text.

    An ID has the `n_words` words of the text with the highest TF-IDF (the earlier of equals), in the order of their
    first place in the text and in small letters. Where an item before has taken it, words of less weight join, one at a
    time, up to twice `n_words`; after that, or where the text has no more, a number from 2 is added.

    Args:
        texts: of the items.
        n_words: words of an ID, if the text has as many and nothing collides.

    Returns:
        The IDs; "" for a text without words.
    """
    words = [list(dict.fromkeys(WORD.findall(text.lower()))) for text in texts]
    if not any(words):
        return [""] * len(texts)
    vectorizer = TfidfVectorizer(analyzer=lambda text: WORD.findall(text.lower()))
    weights, columns = vectorizer.fit_transform(texts).tocsr(), vectorizer.vocabulary_
    used: set[str] = set()
    ids = []
    for row, row_words in enumerate(words):
        row_weights = weights[row]
        weight = dict(zip(row_weights.indices.tolist(), row_weights.data.tolist(), strict=True))
        ranked = sorted(range(len(row_words)), key=lambda place: -weight[columns[row_words[place]]])
        ids.append(_unique_id(row_words, ranked, n_words, used))
    return ids


def _unique_id(words: list[str], ranked: list[int], n_words: int, used: set[str]) -> str:
    """Choose words until no earlier item has the ID, and add it to `used`.

    Args:
        words: distinct words of the text, in its order.
        ranked: their places, the weightiest first.
        n_words: words to begin with.
        used: IDs of the items before.
    """
    if not words:
        return ""
    for size in range(min(n_words, len(words)), min(2 * n_words, len(words)) + 1):
        textual_id = " ".join(words[place] for place in sorted(ranked[:size]))
        if textual_id not in used:
            break
    number, plain = 2, textual_id
    while textual_id in used:
        textual_id, number = f"{plain} {number}", number + 1
    used.add(textual_id)
    return textual_id
