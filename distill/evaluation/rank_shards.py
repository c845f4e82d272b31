"""Ranked lists in shards of users: how examples are divided, how a shard is ranked, and the files of the results.

Shards are cut where one process cuts its batches (`batches_by_length`), so that no number depends on who ranks them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from distill.baselines.item_scorer import longest_history
from distill.data.dataset import Dataset, Examples, Split, order_by_length
from distill.evaluation.systems import Ranked, System, is_searched_freely, rank_examples
from distill.runtime import shard_files

Part = Literal["evaluated", "validation"]  # the examples that are evaluated; those by which mixtures are chosen


class RankShard(NamedTuple):
    """Some examples that one system ranks.

    Attributes:
        system: its name.
        part: which examples these are some of.
        start: place of the first of them, the shortest history first.
        rows: numbers of the examples [examples of the shard].
    """

    system: str
    part: Part
    start: int
    rows: np.ndarray


class RankedShards:
    """The ranked lists of several systems, in a file for each shard.

    Args:
        folder: of the files.
        parts: of each system, the examples to rank.
        batch_size: users at once.
        shard_rows: users of a shard, about: it holds whole batches.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Mapping[Part, Examples]], batch_size: int, shard_rows: int):
        self.folder, self.parts, self.batch_size = folder, parts, batch_size
        self.shard_rows = -(-shard_rows // batch_size) * batch_size
        self._orders = {}
        for of_system in parts.values():
            for part, examples in of_system.items():
                if part not in self._orders:  # the same for all systems
                    self._orders[part] = order_by_length(examples.histories)

    def shards(self) -> list[RankShard]:
        """List all shards, those of a system one after the other."""
        return [shard for system, parts in self.parts.items() for part in parts for shard in self._shards(system, part)]

    @property
    def users(self) -> int:
        """Number of lists of all systems."""
        return sum(len(shard.rows) for shard in self.shards())

    def is_ranked(self, shard: RankShard) -> bool:
        """Tell whether the file of a shard is there."""
        return self._path(shard).is_file()

    def write(self, shard: RankShard, content: bytes) -> None:
        """Write the file of a shard, what `SystemRanker.rank` returned, whole or not at all."""
        shard_files.write(self._path(shard), content)

    def discard_damaged(self) -> None:
        """Delete the files of shards that were cut or altered: they are ranked again."""
        shard_files.discard_damaged(self._path(shard) for shard in self.shards())

    def read(self, system: str, part: Part = "evaluated", constrained: bool = True) -> Ranked:
        """Read the lists of a system; those without the trie have no scores.

        The seconds are those of all shards together, as if one actor had ranked them.
        """
        users = len(self.parts[system][part])
        lists: list[np.ndarray | None] = [None, None]
        seconds = 0.0
        for shard in self._shards(system, part):
            with np.load(self._path(shard)) as arrays:
                seconds += float(arrays["seconds"])
                for place, name in enumerate(("items", "scores") if constrained else ("free",)):
                    array, whole = arrays[name], lists[place]
                    if whole is None:
                        whole = lists[place] = np.empty((users, array.shape[1]), array.dtype)
                    whole[shard.rows] = array
        items, scores = (np.zeros((users, 0)) if array is None else array for array in lists)
        return Ranked(items.astype(np.int64), scores, seconds)

    def _shards(self, system: str, part: Part) -> list[RankShard]:
        order = self._orders[part]
        starts = range(0, len(order), self.shard_rows)
        return [RankShard(system, part, start, order[start : start + self.shard_rows]) for start in starts]

    def _path(self, shard: RankShard) -> Path:
        """Name a file by whatever decides its content beside the job's identity."""
        name = f"{shard.part}-{shard.start}-{shard.start + len(shard.rows)}-by-{self.batch_size}.npz"
        return self.folder / shard.system / name


@dataclass
class SystemRanker:
    """Ranks examples with one system at a time.

    Attributes:
        dataset: of the examples.
        load: loads a system by its name.
        width, exclude_bought: as for `System.rank`.
        batch_size: users at once.
    """

    dataset: Dataset
    load: Callable[[str], System]
    width: int
    exclude_bought: bool
    batch_size: int
    _loaded: dict[str, System] = field(default_factory=dict)

    def rank(self, name: str, split: Split, users: np.ndarray, positions: np.ndarray, freely: bool) -> bytes:
        """Rank items for some examples.

        Args:
            name: of the system.
            split: of the examples.
            users, positions: of the examples; those of one length after the other, as in one batch.
            freely: search without the trie as well, where the system can.

        Returns:
            Content of a file in NumPy's npz format: `items`, `scores`, `free` (items without the trie; 0 columns where
            there are none) and `seconds`, those of `items`.
        """
        system = self._system(name)
        targets = self.dataset.targets(split, longest_history(self.dataset))
        examples = targets.take(targets.find(users, positions))
        ranked = self._rank(system, examples, constrained=True)
        free = np.zeros((len(examples), 0), np.int32)
        if freely and is_searched_freely(system):
            free = self._rank(system, examples, constrained=False).items.astype(np.int32)
        file = io.BytesIO()
        np.savez(
            file, items=ranked.items.astype(np.int32), scores=ranked.scores, free=free, seconds=np.array(ranked.seconds)
        )
        return file.getvalue()

    def _rank(self, system: System, examples: Examples, constrained: bool) -> Ranked:
        return rank_examples(system, examples, self.width, self.exclude_bought, constrained, self.batch_size)

    def _system(self, name: str) -> System:
        if name not in self._loaded:
            self._loaded.clear()  # two may not fit
            self._loaded[name] = self.load(name)
        return self._loaded[name]
