"""Rank some of the items only: the restriction acts inside the search, so it costs no places of the list."""

from __future__ import annotations

import copy

import numpy as np

from distill.ranking import mask_history, scores_of, top_items
from student.item_recommender import ItemRecommender
from student.loading import check_scores
from student.recommender import Recommender


def restrict(recommender: Recommender, items: np.ndarray) -> Recommender:
    """Return the same student recommending these items only: a trie of their IDs, and memories that propose no other.

    Scores are those of the whole catalogue: nothing is renormalised.

    Args:
        recommender: a student that searches semantic IDs, not compiled.
        items: distinct item numbers, at least one, ascending.
    """
    student = copy.copy(recommender)
    student.trie = recommender.trie.restricted(recommender.codes.cpu().numpy(), items).to(recommender.device)
    student.allowed = np.isin(np.arange(recommender.n_items), items)
    return student


def rank_within(
    recommender: Recommender | ItemRecommender,
    histories: np.ndarray,
    width: int,
    exclude_bought: bool,
    items: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank all items, or these only, as `rank_items`.

    Args:
        recommender: any student.
        histories: item numbers, oldest first, padded with -1 on the right [users, length].
        width: beams, for item models places of the list.
        exclude_bought: leave out the history's items.
        items: distinct item numbers, at least one, ascending; None: all.
    """
    if items is None:
        return recommender.rank_items(histories, width, exclude_bought)
    if isinstance(recommender, Recommender):
        return restrict(recommender, items).rank_items(histories, width, exclude_bought)
    scores = recommender.score_items(histories, exclude_bought)
    check_scores(scores)
    if exclude_bought:
        mask_history(scores, histories, -np.inf)
    scores[:, ~np.isin(np.arange(scores.shape[1]), items)] = -np.inf
    ranked = top_items(scores, width, above=-np.inf)
    return ranked, scores_of(scores, ranked)
