"""Mix a model with a transition memory and, on request, a content memory.

kNN-LM (Khandelwal et al., 2020) does the same for text:

    p(v|S) = (1 − w − c) · p_model(v|S) + w · p_counter(v|S) + c · p_content(v|S)

over the union of the model's beams and the top items of the memories; those that the beams lack are scored by the model
exactly. Items are ranked by log p(v|S) − β · log(1 + d(v)), d(v) being the sum of an item's counts: model and counter
both overrate items that are bought often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from distill.baselines.mixture import TEMPERATURES
from distill.data.dataset import PAD
from distill.ranking import scores_of, top_items
from student.content_memory import ContentMemory
from student.transition_memory import TransitionMemory


class MixtureWeights(NamedTuple):
    """What is chosen on validation: w, β, c and τ of the module's formula."""

    weight: float
    discount: float = 0.0
    content_weight: float = 0.0
    temperature: float = TEMPERATURES[0]

    def in_words(self) -> str:
        """The weights in words, for a note."""
        words = f"the counter's share is {self.weight}, the discount {self.discount}"
        if self.content_weight:
            words += f", the content's share {self.content_weight} at temperature {self.temperature}"
        return words


class Candidates(NamedTuple):
    """Items that the model or a memory proposes, each once; all arrays are [users, any].

    Attributes:
        items: item numbers, -1 for none.
        log_probs: the model's log P(v|S), -inf for none.
        counter: the counter's probabilities.
        familiarity: log(1 + d(v)).
        content: the content's probabilities by temperature; None without a content memory.
        by_content: whether only the content proposes the item; None without a content memory.
    """

    items: np.ndarray
    log_probs: np.ndarray
    counter: np.ndarray
    familiarity: np.ndarray
    content: dict[float, np.ndarray] | None = None
    by_content: np.ndarray | None = None

    def ranked(self, weights: MixtureWeights, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Rank by the mixture: items, best first, -1 for none, and log p − β · log(1 + d); both [users, up to width].

        Args:
            weights: w, β, c and τ; without c, items that only the content proposes are left out.
            width: items per user.
        """
        if self.by_content is not None and not weights.content_weight:
            return self.without_content().ranked(weights, width)
        content = self.content[weights.temperature] if weights.content_weight else None
        scores = mixed(self.log_probs, self.counter, weights.weight, content, weights.content_weight)
        scores = scores - weights.discount * self.familiarity
        order = np.argsort(-scores, axis=1, kind="stable")[:, :width]
        scores = np.take_along_axis(scores, order, axis=1)
        return np.where(scores > -np.inf, np.take_along_axis(self.items, order, axis=1), PAD), scores

    def without_content(self) -> Candidates:
        """Leave out what only the content proposes."""
        if self.by_content is None:
            return self
        items = np.where(self.by_content, PAD, self.items)
        log_probs = np.where(self.by_content, -np.inf, self.log_probs)
        return Candidates(items, log_probs, np.where(self.by_content, 0.0, self.counter), self.familiarity)


def mixed(
    log_probs: np.ndarray,
    counter: np.ndarray,
    weight: float,
    content: np.ndarray | None = None,
    content_weight: float = 0.0,
) -> np.ndarray:
    """Compute log((1 − w − c) · exp(log_probs) + w · counter + c · content), elementwise."""
    share = model_share(weight, content_weight)
    with np.errstate(divide="ignore"):
        result = np.logaddexp(np.log(share) + log_probs, np.log(weight) + np.log(counter))
        if content is not None and content_weight:
            result = np.logaddexp(result, np.log(content_weight) + np.log(content))
    return result


def model_share(weight: float, content_weight: float) -> float:
    """Compute 1 − w − c, exactly 0 where rounding leaves it beside 0."""
    share = 1 - weight - content_weight
    return share if abs(share) > 1e-12 else 0.0


def score_mixture(
    log_probs: np.ndarray,
    memory: TransitionMemory,
    content: ContentMemory | None,
    histories: np.ndarray,
    items: np.ndarray | None,
    exclude_bought: bool,
) -> np.ndarray:
    """Compute the scores by which a mixture ranks: log p − β · log(1 + d).

    Args:
        log_probs: the model's log P(v|S) of the items [users, k].
        memory, content: the memories.
        histories: item numbers, oldest first, padded with -1 on the right [users, length].
        items: item numbers, -1 for none [users, k]; None: all items.
        exclude_bought: no probability of the memories for items of the history.
    """
    counter = memory.probabilities(histories, exclude_bought).toarray()
    similar = None
    if items is not None:
        counter = scores_of(counter, items, 0.0)
        similar = content.probabilities_of(histories, items, exclude_bought) if content else None
    elif content:
        similar = content.probabilities(histories, exclude_bought)
    scores = mixed(log_probs, counter, memory.weight, similar, content.weight if content else 0.0)
    return scores - memory.discount * memory.familiarity(items)


def candidates(
    beams: tuple[np.ndarray, np.ndarray],
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    memory: TransitionMemory,
    histories: np.ndarray,
    exclude_bought: bool = True,
    content: ContentMemory | None = None,
    temperatures: Sequence[float] | None = None,
    allowed: np.ndarray | None = None,
) -> Candidates:
    """Collect what a model and its memories propose, with the probabilities of all of them.

    Args:
        beams: the model's items, -1 for none, and their log P(v|S); both [users, width].
        score: (histories, items [users, k], -1 for none) -> log P(v|S) [users, k].
        memory: the counter.
        histories: item numbers, oldest first, padded with -1 on the right [users, length].
        exclude_bought: no probability of the memories for items of the history.
        content: the content memory, if there is one.
        temperatures: of the content's probabilities; None: the content memory's.
        allowed: the only items that the memories may propose, a mask [n_items]; None: all. Probabilities remain those
            among all items.
    """
    items, log_probs = beams
    counter = memory.probabilities(histories, exclude_bought)
    proposable = counter if allowed is None else (counter @ sp.diags_array(allowed.astype(float))).tocsr()
    proposed = [new_items(top_items(proposable, memory.top), items)]
    if content:
        known = np.concatenate([items, *proposed], axis=1)
        nearest = content.search(histories, known, temperatures, exclude_bought, allowed)
        new = np.where((nearest.items[:, :, None] == known[:, None, :]).any(2), PAD, nearest.items)
        is_used = (new != PAD).any(0)
        proposed.append(new[:, is_used])
        cosines = np.concatenate([nearest.of_known, np.where(new == PAD, -np.inf, nearest.cosines)[:, is_used]], axis=1)
    further = np.concatenate(proposed, axis=1)
    items = np.concatenate([items, further], axis=1)
    if further.shape[1]:
        log_probs = np.concatenate([log_probs, score(histories, further)], axis=1)
    users = np.broadcast_to(np.arange(len(items))[:, None], items.shape)
    counted = np.where(items == PAD, 0, counter[users, np.maximum(items, 0)].toarray())
    log_probs = np.where(items == PAD, -np.inf, log_probs).astype(float)
    result = Candidates(items, log_probs, counted, memory.familiarity(items))
    if not content:
        return result
    by_content = np.zeros(items.shape, dtype=bool)
    by_content[:, items.shape[1] - proposed[1].shape[1] :] = True
    similar = {temperature: np.exp(cosines / temperature - total) for temperature, total in nearest.totals.items()}
    return result._replace(content=similar, by_content=by_content)


def join_candidates(parts: Sequence[tuple[np.ndarray, Candidates]]) -> Candidates:
    """Join the candidates of batches: (row numbers, candidates of these rows), all rows once."""
    users = sum(len(rows) for rows, _ in parts)
    width = max(part.items.shape[1] for _, part in parts)

    def join(arrays: Sequence[np.ndarray], filling: float) -> np.ndarray:
        whole = np.full((users, width), filling, dtype=arrays[0].dtype)
        for (rows, _), array in zip(parts, arrays, strict=True):
            whole[rows, : array.shape[1]] = array
        return whole

    fields = [
        join([part[place] for _, part in parts], filling) for place, filling in enumerate((PAD, -np.inf, 0.0, 0.0))
    ]
    if parts[0][1].content is None:
        return Candidates(*fields)
    content = {
        temperature: join([part.content[temperature] for _, part in parts], 0.0) for temperature in parts[0][1].content
    }
    return Candidates(*fields, content, join([part.by_content for _, part in parts], False))


def new_items(items: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Replace known items by -1, and drop the columns that are then empty for all users [users, up to k]."""
    items = np.where((items[:, :, None] == known[:, None, :]).any(2), PAD, items)
    return items[:, (items != PAD).any(0)]
