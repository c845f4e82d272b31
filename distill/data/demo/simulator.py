"""Simulate a shop whose next-item distribution is known exactly.

The items are those of `catalogue`. Their texts name their companions, so a model that reads can place items that are
too rare to count. The distribution of the next item depends on the visible history alone, so the KL divergence of any
model from the true distribution can be computed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from distill.data.dataset import PAD
from distill.data.demo.catalogue import DEPARTMENTS, LINES, describe_item, product_types
from distill.runtime.commands import command_for
from distill.runtime.errors import UserError

FILE = "simulator.safetensors"
VERSION = 2  # part of the data set's identity: raise it when the same seed would give another shop


@dataclass(frozen=True)
class Weights:
    """Weights of the motives by which a user picks the next item; the first four sum to 1.

    The mix needs every kind of knowledge, and none suffices alone. Complements and interests are the structure to
    learn, popularity is known to any counter, and the uniform noise keeps every item possible, so that KL is finite.
    """

    complement: float = 0.45
    """A companion of the last item: one of two companion types, mostly of the same line. The text names the tie; counts
    show it only for items that were bought often. This rewards reading and shared codewords."""
    interest: float = 0.35
    """Departments and lines of the recent history: rewards models that use more than the last item."""
    popularity: float = 0.12
    """Popular items, known to any counter."""
    uniform: float = 0.08
    """Noise, which no model can predict."""
    first_companion: float = 0.7
    """Share of the first of the two companion types. The order of the two can be learnt, so soft labels know more than
    the item that was bought."""
    same_brand: float = 0.3
    """Weight of a companion of the brand's other line; the same line has weight 1."""
    other_line: float = 0.05
    """Weight of a companion of any other line."""
    decay: float = 0.7
    """Factor per step back in the history: interests drift within about three purchases."""
    damping: float = 0.5
    """Exponent of popularity among companions and within an interest: below 1, rare items keep a share."""
    zipf: float = 1.0
    """Popularity of the item of rank r is 1 / r^zipf, which gives a long tail of rare items, as in real shops."""
    memory: int = 20
    """Only this many last items matter, as many as the models see."""
    shortest: int = 5
    """Fewest items a user buys (5-core, as in the paper)."""
    mean_extra: float = 4.0
    """Mean of the geometric number of purchases beyond `shortest`: sequences of about 9, as on Amazon."""
    longest: int = 21
    """Most items a user buys: `memory` + 1, so that the whole history is always visible and no item is bought twice."""


@dataclass(frozen=True)
class Simulator:
    """A shop and the distribution by which its users buy.

    Attributes:
        seed: of popularity, drift, order of the items and their texts.
        types: index into `product_types()` [n_items].
        departments: department number [n_items].
        lines: design line [n_items].
        popularity: sums to 1 [n_items].
        ties: ties[a, b] = share of b among the companions of a; rows sum to 1 [n_items, n_items].
        drift: drift[a, b] = share of an interest in department a that turns to b; rows sum to 1 [6, 6].
        weights: see `Weights`.
    """

    seed: int
    types: np.ndarray
    departments: np.ndarray
    lines: np.ndarray
    popularity: np.ndarray
    ties: np.ndarray
    drift: np.ndarray
    weights: Weights = Weights()

    @staticmethod
    def build(seed: int, n_items: int = 600) -> Simulator:
        """Create a shop.

        Args:
            seed: any integer >= 0.
            n_items: a multiple of the 60 product types; one line for every 60.

        Raises:
            UserError: another number of items, or a negative seed.
        """
        n_types, most = len(product_types()), len(product_types()) * len(LINES)
        if n_items % n_types or not 0 < n_items <= most:
            raise UserError(f"The demo shop has a multiple of {n_types} items, at most {most}; got {n_items}.")
        if seed < 0:
            raise UserError(f"seed must not be negative; got {seed}.")
        weights = Weights()
        rng = np.random.default_rng([seed, 1])
        # shuffled, so that an item's number tells nothing about it
        order = rng.permutation(n_items)
        types, lines = order % n_types, order // n_types
        popularity = 1.0 / (1 + rng.permutation(n_items)) ** weights.zipf
        ties = _ties(types, lines, popularity, weights)
        # a ring in random order: most of an interest remains, the rest moves on to the next two departments
        ring = rng.permutation(len(DEPARTMENTS))
        drift = 0.6 * np.eye(len(DEPARTMENTS))
        drift[ring, np.roll(ring, -1)] = 0.3
        drift[ring, np.roll(ring, -2)] = 0.1
        departments = np.array([kind.department for kind in product_types()])[types]
        return Simulator(seed, types, departments, lines, popularity / popularity.sum(), ties, drift, weights)

    @property
    def n_items(self) -> int:
        return len(self.types)

    def next_item_probabilities(self, histories: np.ndarray) -> np.ndarray:
        """Compute the exact distribution from which `sample` draws.

        Args:
            histories: item numbers, oldest first, padded on the right with -1 [n, H]. Only the last
                `weights.memory` items count; an empty history gets the distribution of the first purchase.

        Returns:
            float64 [n, n_items]; rows sum to 1, items in the history have 0.
        """
        w = self.weights
        recent = _last(np.asarray(histories, dtype=np.int64), w.memory)
        n, width = recent.shape
        bought = recent != PAD
        lengths = bought.sum(1)
        probabilities = np.tile(w.popularity * self.popularity + w.uniform / self.n_items, (n, 1))

        age = lengths[:, None] - 1 - np.arange(width)
        share = np.where(bought, w.decay ** np.maximum(age, 0), 0.0)
        share /= np.maximum(share.sum(1, keepdims=True), 1e-300)
        department = _share_by(self.departments[recent], share, len(self.drift)) @ self.drift
        line = _share_by(self.lines[recent], share, int(self.lines.max()) + 1)
        interest = department[:, self.departments] * line[:, self.lines]
        interest *= self.popularity**w.damping
        total = interest.sum(1, keepdims=True)
        probabilities += w.interest * np.divide(interest, total, out=interest, where=total > 0)

        last = recent[np.arange(n), np.maximum(lengths - 1, 0)]
        probabilities += w.complement * self.ties[last]

        row, column = np.nonzero(bought)
        probabilities[row, recent[row, column]] = 0.0
        probabilities[lengths == 0] = self.popularity
        return probabilities / probabilities.sum(1, keepdims=True)

    def sample(self, n_users: int, seed: int) -> list[np.ndarray]:
        """Draw users' purchases.

        Returns:
            One int64 array of item numbers a user, in time order; no item twice.
        """
        w = self.weights
        rng = np.random.default_rng([seed, 2])
        longest = min(w.longest, self.n_items)
        lengths = np.minimum(w.shortest + rng.geometric(1 / (1 + w.mean_extra), n_users) - 1, longest)
        histories = np.full((n_users, longest), PAD, dtype=np.int64)
        for step in range(int(lengths.max(initial=0))):
            active = np.flatnonzero(lengths > step)
            cumulative = np.cumsum(self.next_item_probabilities(histories[active, :step]), axis=1)
            draw = rng.random((len(active), 1)) * cumulative[:, -1:]
            # the first item whose cumulative probability exceeds the draw: its probability is never 0
            histories[active, step] = (cumulative <= draw).sum(1)
        return [row[:length] for row, length in zip(histories, lengths, strict=True)]

    def items_table(self) -> pa.Table:
        """Write the catalogue: item_id, title, description, brand, categories (strings); row = item number."""
        rows = [
            describe_item(number, int(kind), int(line), np.random.default_rng([self.seed, 3, number]))
            for number, (kind, line) in enumerate(zip(self.types, self.lines, strict=True))
        ]
        return pa.Table.from_pylist(rows)

    def save(self, folder: Path) -> None:
        """Write `simulator.safetensors` into an existing folder."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        facts = json.dumps({"version": VERSION, "seed": self.seed, "weights": asdict(self.weights)}, sort_keys=True)
        # one key only: safetensors writes several in any order, and the same shop must give the same bytes
        save_file(arrays, Path(folder) / FILE, metadata={"facts": facts})

    @staticmethod
    def load(folder: Path) -> Simulator:
        """Read what `save` wrote.

        Raises:
            UserError: missing (not a demo data set), damaged, or of another version.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise UserError(f"No {FILE} in {folder}: only demo data sets have a known distribution.")
        try:
            with safe_open(str(path), "numpy") as file:
                facts = json.loads(file.metadata()["facts"])
                arrays = {name: file.get_tensor(name) for name in _ARRAYS}
            if facts["version"] != VERSION:
                raise UserError(
                    f"{path} has version {facts['version']}, this program reads {VERSION}. "
                    f"Make it again: {command_for('dataset', path.parent)} --overwrite"
                )
            return Simulator(seed=facts["seed"], weights=Weights(**facts["weights"]), **arrays)
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise UserError(
                f"{path} is damaged ({error}). Make it again: {command_for('dataset', path.parent)} --overwrite"
            ) from None


_ARRAYS = ("types", "departments", "lines", "popularity", "ties", "drift")


def _ties(types: np.ndarray, lines: np.ndarray, popularity: np.ndarray, w: Weights) -> np.ndarray:
    """Compute the share of each item among the companions of each: by type, closeness of lines, and popularity."""
    brands = lines // 2
    weight = np.where(brands[:, None] == brands, w.same_brand, w.other_line)
    weight[lines[:, None] == lines] = 1.0
    weight = weight * popularity**w.damping
    ties = np.zeros(weight.shape)
    companion_types = np.array([kind.companions for kind in product_types()])[types]
    for place, share in enumerate((w.first_companion, 1 - w.first_companion)):
        of_type = np.where(types == companion_types[:, place, None], weight, 0.0)
        ties += share * of_type / of_type.sum(1, keepdims=True)
    return ties


def _share_by(groups: np.ndarray, share: np.ndarray, count: int) -> np.ndarray:
    """Sum `share` [n, H] by `groups` [n, H] (numbers below `count`; any value where the share is 0): [n, count]."""
    n = len(groups)
    flat = (np.arange(n)[:, None] * count + groups).ravel()
    return np.bincount(flat, weights=share.ravel(), minlength=n * count).reshape(n, count)


def _last(histories: np.ndarray, memory: int) -> np.ndarray:
    """Keep the last `memory` items of each row, moved to the left: [n, H] -> [n, min(H, memory)], at least [n, 1]."""
    n, width = histories.shape
    if width == 0:
        return np.full((n, 1), PAD, dtype=np.int64)
    if width <= memory:
        return histories
    lengths = (histories != PAD).sum(1, keepdims=True)
    index = np.maximum(lengths - memory, 0) + np.arange(memory)
    return np.take_along_axis(histories, index, axis=1)
