"""Teachers that are no language model: item-level distributions as labels, and mixtures of several teachers.

An item-level teacher says P(v|S) for every item v. Its codeword labels are then exact: the probability of a codeword
after a prefix is the summed probability of the items below it over that of the prefix. The same holds for a mixture of
teachers, from the parts' labels alone. The student does not know who taught.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from distill.catalog import PAD, Dataset, Examples, fold_of
from distill.floors import (
    Popularity,
    Transitions,
    TransitionSettings,
    count_transitions,
    hide_bought,
    reading_weights,
    top_items,
)
from distill.labelling import Ask, Labeller, Labels, Progress
from distill.semantic_ids import SemanticIDs
from distill.soft_labels import correct
from distill.trie import Trie

CHUNK = 256  # examples whose distributions over all items are in memory at once
POWERS = (0.5, 0.75, 1.0, 1.5, 2.0)
SHARES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7)
RESIDUE = 1e-10  # what rounding leaves of a count that was taken out


class ItemTeacher(Protocol):
    """Says how likely every item is."""

    def probabilities(self, examples: Examples, hide: bool) -> np.ndarray:
        """P(v|S) of all items; the target's is above zero.

        Args:
            examples: n examples; of a training example nothing from its target on may have been looked at.
            hide: items of the history will not be recommended.

        Returns:
            float64 [n, n_items], rows sum to 1.
        """

    def facts(self) -> dict[str, Any]:
        """What decides the labels, for the manifest."""


class TransitionTeacher:
    """The counting floor as a distribution: scores^power, normalised, mixed with popularity.

    A training example is labelled leave-one-out: as if its user's sequence had ended before the target. What that user
    bought from the target on is taken out of the counts, their row sums and the popularity.

    Args:
        dataset: whose training part is counted.
        settings: how it is counted and read.
        power: of the scores; above 1 sharper.
        share: of popularity, so that nothing is impossible.
    """

    def __init__(self, dataset: Dataset, settings: TransitionSettings, power: float = 1.0, share: float = 0.1):
        self.settings, self.power, self.share = settings, power, share
        self.values, self.offsets = dataset.training_sequences()
        self.n_items = dataset.n_items
        self.counts = count_transitions(self.values, self.offsets, self.n_items, settings.window, settings.decay)
        self.totals = self.counts.sum(1)
        self.bought = np.bincount(self.values, minlength=self.n_items).astype(float)

    @staticmethod
    def tune(dataset: Dataset, hide: bool, max_users: int = 2000) -> TransitionTeacher:
        """Settings by validation NDCG@10; then power and share by the likelihood of validation targets."""
        teacher = TransitionTeacher(dataset, Transitions.tune(dataset)[0].settings)
        examples = dataset.examples("valid")
        if len(examples) > max_users:
            rows = np.random.default_rng(0).choice(len(examples), max_users, replace=False)
            examples = examples.take(np.sort(rows))
        own = np.zeros((len(POWERS), len(examples)))  # of the targets
        found = np.zeros(len(examples), bool)  # whether the counts say anything
        for start in range(0, len(examples), CHUNK):
            part = examples.take(slice(start, start + CHUNK))
            scores = teacher.scores(part)
            if hide:
                hide_bought(scores, part.histories, 0.0)
            rows = np.arange(start, start + len(part))
            found[rows] = scores.any(1)
            for number, power in enumerate(POWERS):
                own[number, rows] = _normalised(scores**power)[rows - start, part.targets]
        popularity = ((teacher.bought + 0.5) / (teacher.bought + 0.5).sum())[examples.targets]
        likelihood = {
            (power, share): np.log(np.where(found, (1 - share) * chance + share * popularity, popularity)).mean()
            for power, chance in zip(POWERS, own, strict=True)
            for share in SHARES
        }
        teacher.power, teacher.share = max(likelihood, key=likelihood.get)
        return teacher

    def on(self, dataset: Dataset) -> TransitionTeacher:
        """The same settings, other counts."""
        return TransitionTeacher(dataset, self.settings, self.power, self.share)

    def probabilities(self, examples: Examples, hide: bool) -> np.ndarray:
        """As `ItemTeacher.probabilities`; hidden items keep their share of the popularity."""
        scores = self.scores(examples)
        if hide:
            hide_bought(scores, examples.histories, 0.0)
        share = np.where(scores.any(1), self.share, 1.0)[:, None]
        return (1 - share) * _normalised(scores**self.power) + share * self.popularity(examples)

    def scores(self, examples: Examples) -> np.ndarray:
        """What `Transitions.scores` would be, had each user's sequence ended before the target [n, n_items]."""
        shape = (len(examples), self.n_items)
        read = reading_weights(examples.histories, self.settings, self.n_items)
        read.sort_indices()
        row = np.repeat(np.arange(shape[0]), np.diff(read.indptr))
        keys = row * self.n_items + read.indices  # ascending
        place, other, weight = self._own_pairs(examples, keys)
        left = self.totals[read.indices] - np.bincount(place, weight, minlength=len(keys))
        scale = np.divide(read.data, np.sqrt(left.clip(0)), out=np.zeros(len(keys)), where=left > RESIDUE)
        scores = (sp.csr_array((scale, read.indices, read.indptr), shape=shape) @ self.counts).toarray()
        scores -= sp.coo_array((scale[place] * weight, (row[place], other)), shape=shape).toarray()
        scores[scores < RESIDUE] = 0
        return scores

    def popularity(self, examples: Examples) -> np.ndarray:
        """How often each item is bought, the user's purchases from the target on taken out, normalised [n, n_items]."""
        first, length = self._own(examples)
        row, back = _ragged(np.maximum(length - examples.positions, 0))
        items = self.values[first[row] + examples.positions[row] + back]
        own = sp.coo_array((np.ones(len(row)), (row, items)), shape=(len(examples), self.n_items)).toarray()
        return _normalised(self.bought - own + 0.5)

    def facts(self) -> dict[str, Any]:
        """Settings, power and share."""
        return {"teacher": "transitions", **vars(self.settings), "power": self.power, "share": self.share}

    def _own(self, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """Where each example's user begins in `values`, and how many of the user's items were counted; both [n]."""
        first = self.offsets[examples.users]
        return first, self.offsets[examples.users + 1] - first

    def _own_pairs(self, examples: Examples, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The user's own counts that a sequence ending before the target would lack, in rows of A that are read.

        Args:
            examples: n examples.
            keys: example · n_items + item of the rows that are read, ascending.

        Returns:
            Place of the row in `keys`, column, and count; one entry a pair and direction.
        """
        first, length = self._own(examples)
        row, here = _ragged(np.where(length > examples.positions, length, 0))
        wanted = row * self.n_items + self.values[first[row] + here]
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        read = keys[place] == wanted
        row, here, place = row[read], here[read], place[read]
        parts = []
        for gap in range(1, self.settings.window + 1):
            for there in (here - gap, here + gap):
                late = np.maximum(here, there) >= examples.positions[row]
                keep = np.flatnonzero((there >= 0) & (there < length[row]) & late)
                others = self.values[first[row[keep]] + there[keep]]
                parts.append((place[keep], others, np.full(len(keep), self.settings.decay ** (gap - 1))))
        places, others, weights = map(np.concatenate, zip(*parts, strict=True))
        return places, others, weights


class DistanceTeacher:
    """Appendix B's heuristic distance, equation (18): near to the *target* is likely, whatever the history.

    P(v) ∝ exp(−Σ_i 2^(D−i)·[c_i ≠ target's c_i] / temperature).

    Args:
        codes: of all items [n_items, levels].
        temperature: in units of the last level.
    """

    def __init__(self, codes: np.ndarray, temperature: float = 1.0):
        self.codes, self.temperature = codes, temperature

    def probabilities(self, examples: Examples, hide: bool) -> np.ndarray:
        """As `ItemTeacher.probabilities`."""
        levels = self.codes.shape[1]
        distance = np.zeros((len(examples), len(self.codes)))
        for level in range(levels):
            differs = self.codes[examples.targets, level][:, None] != self.codes[:, level]
            distance += 2.0 ** (levels - 1 - level) * differs
        return _normalised(_without_bought(np.exp(-distance / self.temperature), examples, hide))

    def facts(self) -> dict[str, Any]:
        """Its temperature."""
        return {"teacher": "distance", "temperature": self.temperature}


class StatisticsTeacher:
    """Appendix B's global statistics: what the users who bought the *target* bought, a row of A = MᵀM.

    M is the user-item matrix of the training part. A share of popularity is mixed in, so that nothing is impossible.

    Args:
        dataset: whose training part is counted.
        share: of popularity.
    """

    def __init__(self, dataset: Dataset, share: float = 0.1):
        values, offsets = dataset.training_sequences()
        owner = np.repeat(np.arange(dataset.n_users), np.diff(offsets))
        bought = sp.coo_array((np.ones(len(values)), (owner, values)), shape=(dataset.n_users, dataset.n_items)).tocsr()
        bought.data[:] = 1  # bought or not, however often
        self.together = (bought.T @ bought).tocsr()
        counts = Popularity(dataset).counts + 0.5
        self.popularity, self.share = counts / counts.sum(), share

    def probabilities(self, examples: Examples, hide: bool) -> np.ndarray:
        """As `ItemTeacher.probabilities`."""
        rows = self.together[examples.targets].toarray()
        share = np.where(rows.any(1), self.share, 1.0)[:, None]
        return _normalised(_without_bought((1 - share) * _normalised(rows) + share * self.popularity, examples, hide))

    def facts(self) -> dict[str, Any]:
        """Its share of popularity."""
        return {"teacher": "statistics", "share": self.share}


class ScoreTeacher:
    """Any model that scores all items: P ∝ exp(score / temperature).

    Args:
        score: histories padded with -1 [n, length] → scores or log-probabilities [n, n_items].
        name: for the manifest.
        temperature: divides the scores.
    """

    def __init__(self, score: Callable[[np.ndarray], np.ndarray], name: str, temperature: float = 1.0):
        self.score, self.name, self.temperature = score, name, temperature

    def probabilities(self, examples: Examples, hide: bool) -> np.ndarray:
        """As `ItemTeacher.probabilities`."""
        scores = self.score(examples.histories).astype(float) / self.temperature
        scores = np.exp(scores - scores.max(1, keepdims=True)).clip(1e-30)
        return _normalised(_without_bought(scores, examples, hide))

    def facts(self) -> dict[str, Any]:
        """Name and temperature."""
        return {"teacher": self.name, "temperature": self.temperature}


def leaf_probabilities(probabilities: np.ndarray, trie: Trie) -> np.ndarray:
    """Probabilities of the semantic IDs from those of the items [n, n_items] → [n, n_leaves]; shared IDs add up."""
    return np.add.reduceat(probabilities[:, trie.leaf_items.numpy()], trie.leaf_offsets.numpy()[:-1], axis=1)


def codeword_marginals(leaves: np.ndarray, trie: Trie, targets: np.ndarray, scope: str = "level") -> np.ndarray:
    """Log-probabilities of every codeword after each prefix of the targets, exactly.

    Args:
        leaves: probabilities of all semantic IDs, from `leaf_probabilities` [n, n_leaves].
        trie: the semantic IDs.
        targets: the items that are forced; their probability is above zero [n].
        scope: "level": the level's codewords alone; "all": the codewords of all levels, -inf for the others'.

    Returns:
        float64 [n, levels, codebook_size] or [n, levels, levels · codebook_size]; -inf where no item is below.
    """
    levels, size = trie.levels, trie.codebook_size
    offsets = [one.numpy().astype(np.int64) for one in trie.offsets]
    masses = [leaves]  # of the nodes, from the leaves up to the root's children
    for level in range(levels - 1, 0, -1):
        masses.insert(0, np.add.reduceat(masses[0], offsets[level][:-1], axis=1))
    out = np.full((len(targets), levels, levels if scope == "all" else 1, size), -np.inf)
    node = trie.leaf_of_item.numpy()[targets].astype(np.int64)
    for level in range(levels - 1, -1, -1):
        node = np.searchsorted(offsets[level], node, side="right") - 1  # the parent: the prefix
        first = offsets[level][node]
        row, back = _ragged(offsets[level][node + 1] - first)
        child = first[row] + back
        mass = masses[level][row, child]
        total = np.bincount(row, mass, minlength=len(targets))
        with np.errstate(divide="ignore"):
            own = np.log(mass) - np.log(total)[row]
        out[row, level, level if scope == "all" else 0, trie.codes[level].numpy()[child]] = own
    return out.reshape(len(targets), levels, -1)


class ItemLabeller:
    """Labels of an item-level teacher: codewords exactly, candidates its top items (`labelling.Labeller`).

    Items that share an ID score alike, the sum of their probabilities, as with teachers that only see IDs.

    Args:
        teacher: says how likely every item is.
        trie: the semantic IDs.
        hide: whether the teacher may know that items of the history will not be recommended.
    """

    def __init__(self, teacher: ItemTeacher, trie: Trie, hide: bool):
        self.teacher, self.trie, self.hide = teacher, trie, hide
        self.leaf_of_item = trie.leaf_of_item.numpy()

    def label(self, examples: Examples, ask: Ask, progress: Progress) -> Labels:
        """As `labelling.Labeller.label`."""
        parts = []
        for start in range(0, len(examples), CHUNK):
            part = examples.take(slice(start, start + CHUNK))
            leaves = leaf_probabilities(self.teacher.probabilities(part, self.hide), self.trie)
            log_probs = codeword_marginals(leaves, self.trie, part.targets, ask.scope)
            scores = leaves[:, self.leaf_of_item]
            own = scores[np.arange(len(part)), part.targets]
            if ask.exclude_bought:
                hide_bought(scores, part.histories, 0.0)
            best = top_items(scores, ask.width)
            with np.errstate(divide="ignore"):
                found = np.log(np.take_along_axis(scores, best.clip(0), axis=1))
                kept = correct(best, found, part.targets, np.log(own), ask.keep)
            parts.append(Labels(*kept, log_probs.astype(np.float32), places(best, part.targets)))
            progress(len(part))
        return joined(parts)

    def log_prob(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        """As `labelling.Labeller.log_prob`."""
        out = np.full(items.shape, -np.inf)
        for start in range(0, len(examples), CHUNK):
            rows = slice(start, start + CHUNK)
            leaves = leaf_probabilities(self.teacher.probabilities(examples.take(rows), self.hide), self.trie)
            with np.errstate(divide="ignore"):
                found = np.log(np.take_along_axis(leaves, self.leaf_of_item[items[rows].clip(0)], axis=1))
            out[rows] = np.where(items[rows] == PAD, -np.inf, found)
        return out

    def facts(self) -> dict[str, Any]:
        """The teacher's."""
        return self.teacher.facts()


class MixtureLabeller:
    """Labels of Σ_m w_m P_m, exact from the parts' labels (`labelling.Labeller`).

    A part's say on the codeword at a level is weighted by w_m · P_m(prefix of the target): who did not expect the
    prefix has little to say about what follows. Candidates are those of all parts, scored by every part; an item that
    is among nobody's first `width` is not considered.

    Args:
        parts: the teachers.
        weights: theirs, above zero; they are normalised.
        codes: of all items [n_items, levels].
    """

    def __init__(self, parts: Sequence[Labeller], weights: Sequence[float], codes: np.ndarray):
        self.parts, self.codes = list(parts), codes
        self.log_weights = np.log(np.array(weights, dtype=float) / sum(weights))

    def label(self, examples: Examples, ask: Ask, progress: Progress) -> Labels:
        """As `labelling.Labeller.label`; the first part reports the progress."""
        wide = replace(ask, keep=ask.width + 1)  # the reference takes a place
        several = [part.label(examples, wide, progress if n == 0 else silent) for n, part in enumerate(self.parts)]
        columns = self.codes[examples.targets]
        if ask.scope == "all":
            levels = columns.shape[1]
            columns = columns + np.arange(levels) * (several[0].log_probs.shape[2] // levels)
        log_probs = mix_codewords([labels.log_probs for labels in several], self.log_weights, columns)
        union = distinct(np.concatenate([labels.candidates for labels in several], axis=1))
        every = [_scores(part, labels, examples, union) for part, labels in zip(self.parts, several, strict=True)]
        scores = mix(every, self.log_weights)
        own = np.where(union == examples.targets[:, None], scores, -np.inf).max(1)
        if ask.exclude_bought:  # the reference is among the candidates whether or not it was bought before
            scores = np.where((union[:, :, None] == examples.histories[:, None, :]).any(2), -np.inf, scores)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : ask.width]
        best, found = np.take_along_axis(union, order, axis=1), np.take_along_axis(scores, order, axis=1)
        best = np.where(np.isfinite(found), best, PAD)
        kept = correct(best, found, examples.targets, own, ask.keep)
        invalid = next((labels.invalid for labels in several if labels.invalid is not None), None)
        return Labels(*kept, log_probs, places(best, examples.targets), invalid)

    def log_prob(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        """As `labelling.Labeller.log_prob`."""
        return mix([part.log_prob(examples, items) for part in self.parts], self.log_weights)

    def facts(self) -> dict[str, Any]:
        """Every part's facts and weight."""
        weights = np.exp(self.log_weights).round(6).tolist()
        parts = zip(weights, self.parts, strict=True)
        return {"teacher": "mixture", "parts": [{"weight": weight, **part.facts()} for weight, part in parts]}


class FoldedLabeller:
    """Cross-fitting: examples of fold i are labelled by the i-th teacher, who never saw their users' training part."""

    def __init__(self, labellers: Sequence[Labeller]):
        self.labellers = list(labellers)

    def label(self, examples: Examples, ask: Ask, progress: Progress) -> Labels:
        """As `labelling.Labeller.label`."""
        found = [(rows, labeller.label(examples.take(rows), ask, progress)) for rows, labeller in self._folds(examples)]
        return joined([labels for _, labels in found], np.argsort(np.concatenate([rows for rows, _ in found])))

    def log_prob(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        """As `labelling.Labeller.log_prob`."""
        out = np.empty(items.shape)
        for rows, labeller in self._folds(examples):
            out[rows] = labeller.log_prob(examples.take(rows), items[rows])
        return out

    def facts(self) -> dict[str, Any]:
        """The first fold's facts, and how many folds there are."""
        return self.labellers[0].facts() | {"folds": len(self.labellers)}

    def _folds(self, examples: Examples):
        fold = fold_of(examples.users, len(self.labellers))
        rows = [np.flatnonzero(fold == number) for number in range(len(self.labellers))]
        return [pair for pair in zip(rows, self.labellers, strict=True) if len(pair[0])]


def make_labeller(
    mix: dict[str, float],
    folds: int,
    dataset: Dataset,
    ids: SemanticIDs,
    hide: bool,
    llm: Callable[[int | None], Labeller],
) -> Labeller:
    """The teacher that `mix` describes: one, or several by weights; cross-fitted where there are folds.

    Args:
        mix: weights above zero by name: llm, transitions, distance, statistics.
        folds: how many folds, 0 for none.
        dataset: what is counted; settings are tuned on its validation part.
        ids: the semantic IDs.
        hide: items of the history will not be recommended.
        llm: fold → the language model's labeller, tuned without that fold; None → the one tuned on all users.
    """
    trie = Trie.build(ids.codes, ids.codebook_size)
    tuned = TransitionTeacher.tune(dataset, hide) if "transitions" in mix else None

    def part(name: str, data: Dataset, fold: int | None) -> Labeller:
        if name == "llm":
            return llm(fold)
        if name == "transitions":
            return ItemLabeller(tuned.on(data), trie, hide)
        return ItemLabeller(DistanceTeacher(ids.codes) if name == "distance" else StatisticsTeacher(data), trie, hide)

    def whole(fold: int | None) -> Labeller:
        data = dataset if fold is None else dataset.without_fold(folds, fold)
        parts = [part(name, data, fold) for name in mix]
        return parts[0] if len(parts) == 1 else MixtureLabeller(parts, list(mix.values()), ids.codes)

    return FoldedLabeller([whole(fold) for fold in range(folds)]) if folds else whole(None)


def mix(log_probs: Sequence[np.ndarray], log_weights: np.ndarray) -> np.ndarray:
    """log Σ_m w_m exp(log_probs_m), element by element."""
    return np.logaddexp.reduce([one + weight for one, weight in zip(log_probs, log_weights, strict=True)])


def mix_codewords(log_probs: Sequence[np.ndarray], log_weights: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Codeword labels of a mixture from those of its parts.

    P(c | prefix) = Σ_m w_m P_m(prefix) P_m(c | prefix) / Σ_m w_m P_m(prefix), and P_m(prefix) is the product of the
    part's own labels along the target.

    Args:
        log_probs: of each part [n, levels, V].
        log_weights: log w_m.
        targets: columns of the targets' codewords in V [n, levels].

    Returns:
        float32 [n, levels, V].
    """
    weighted, prefixes = [], []
    for one, weight in zip(log_probs, log_weights, strict=True):
        along = np.take_along_axis(one, targets[..., None], axis=2)[..., 0].astype(float)
        prefix = weight + np.pad(np.cumsum(along, axis=1)[:, :-1], ((0, 0), (1, 0)))  # before the level [n, levels]
        prefixes.append(prefix)
        weighted.append(one + prefix[..., None])
    return (np.logaddexp.reduce(weighted) - np.logaddexp.reduce(prefixes)[..., None]).astype(np.float32)


def distinct(items: np.ndarray) -> np.ndarray:
    """Each row's distinct items in ascending order, padded with -1 [n, width] → [n, at most width]."""
    ordered = np.sort(items, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = PAD
    order = np.argsort(ordered == PAD, axis=1, kind="stable")
    return np.take_along_axis(ordered, order, axis=1)[:, : max((ordered != PAD).sum(1).max(), 1)]


def places(lists: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Place of each target in its list, -1 where it is not there [n]."""
    found = lists == targets[:, None]
    return np.where(found.any(1), found.argmax(1), -1).astype(np.int32)


def joined(parts: Sequence[Labels], order: np.ndarray | None = None) -> Labels:
    """Labels of several sets of examples as one, in the order asked for."""
    columns = {}
    for name in (field.name for field in fields(Labels)):
        values = [getattr(part, name) for part in parts]
        known = all(value is not None for value in values)
        columns[name] = np.concatenate(values)[slice(None) if order is None else order] if known else None
    return Labels(**columns)


def silent(done: int) -> None:
    """A progress that nobody sees."""


def _scores(part: Labeller, labels: Labels, examples: Examples, items: np.ndarray) -> np.ndarray:
    """`part.log_prob`, asked for those items alone that its own labels do not score already."""
    out = np.full(items.shape, -np.inf)
    missing = items != PAD
    for candidate, score in zip(labels.candidates.T, labels.scores.T, strict=True):
        here = (items == candidate[:, None]) & missing
        out[here] = np.broadcast_to(score[:, None], items.shape)[here]
        missing &= ~here
    if missing.any():
        left = np.argsort(~missing, axis=1, kind="stable")[:, : missing.sum(1).max()]
        asked = np.where(np.take_along_axis(missing, left, axis=1), np.take_along_axis(items, left, axis=1), PAD)
        found = part.log_prob(examples, asked)
        rows = np.arange(len(items))[:, None]
        out[rows, left] = np.where(asked != PAD, found, out[rows, left])
    return out


def _normalised(values: np.ndarray) -> np.ndarray:
    """Rows that sum to 1; rows of zeros stay."""
    total = values.sum(1, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values, dtype=float), where=total > 0)


def _without_bought(values: np.ndarray, examples: Examples, hide: bool) -> np.ndarray:
    """Items of the history at zero, but for the target, which these teachers are told anyway."""
    if hide:
        rows = np.arange(len(examples))
        own = values[rows, examples.targets]
        hide_bought(values, examples.histories, 0.0)
        values[rows, examples.targets] = own
    return values


def _ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row i `counts[i]` times, and 0, 1, … within each row."""
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
