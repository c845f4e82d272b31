"""Ranked lists in shards of users: how examples are divided, and the files of the results.

Shards are cut where one process cuts its batches (`batches_by_length`), so that no number depends on who ranks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill.data.dataset import Examples, order_by_length
from distill.evaluation.measures import Searched
from distill.evaluation.shard_work import PROPOSED, PROPOSED_SECONDS, Work
from distill.evaluation.systems import Mixture, Ranked
from distill.runtime import shard_files

EVALUATED = "evaluated"  # parts: all examples that are evaluated
VALIDATION = "validation"  # those by which mixtures are chosen
COLD = "cold"  # those for whom the cold items are scored


class Part(NamedTuple):
    """Examples, and what is done for them."""

    examples: Examples
    work: Work


def part_of_width(width: int) -> str:
    """Name the part of the users who are ranked with another beam width."""
    return f"width-{width}"


class RankShard(NamedTuple):
    """Some examples that one system ranks.

    Attributes:
        system: its name.
        part: which examples these are some of.
        start: place of the first of them: the shortest history first, those with cold targets in their order.
        rows: numbers of the examples [examples of the shard].
    """

    system: str
    part: str
    start: int
    rows: np.ndarray


class RankedShards:
    """The ranked lists of several systems, in a file for each shard.

    Args:
        folder: of the files.
        parts: of each system, the examples and what is done for them.
        shard_rows: users of a shard, about: it holds whole batches.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Mapping[str, Part]], shard_rows: int):
        self.folder, self.parts, self.shard_rows = folder, parts, shard_rows
        self._orders: dict[str, np.ndarray] = {}
        for of_system in parts.values():
            for name, (examples, work) in of_system.items():
                if name not in self._orders:  # the same for all systems
                    in_order = np.arange(len(examples))
                    self._orders[name] = order_by_length(examples.histories) if work.width else in_order

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

    def read(self, system: str, part: str = EVALUATED, constrained: bool = True) -> Ranked:
        """Read the lists of a system; those without the trie have no scores.

        The seconds are those of all shards together, as if one actor had ranked them.
        """
        names = ("items", "scores", "seconds") if constrained else ("free", "seconds")
        items, *scores, seconds = self._read(system, part, names)
        lists = items.astype(np.int64)
        return Ranked(lists, scores[0] if scores else np.zeros((len(lists), 0)), float(seconds.sum()))

    def read_proposals(self, system: str, part: str, mixture: Mixture) -> tuple[Any, float]:
        """Read what the mixture proposes for a part, as `Mixture.propose` returns it, and the seconds that it took."""
        packed, seconds = [], 0.0
        for shard in self._shards(system, part):
            with np.load(self._path(shard)) as arrays:
                seconds += float(arrays[PROPOSED_SECONDS])
                names = [name for name in arrays if name.startswith(PROPOSED)]
                packed.append((shard.rows, {name.removeprefix(PROPOSED): arrays[name] for name in names}))
        return mixture.unpack(packed), seconds

    def read_width(self, system: str, width: int) -> Searched:
        """Read the lists of a system with another beam width."""
        items, free, whole = self._read(system, part_of_width(width), ("items", "free", "whole"))
        return Searched(items.astype(np.int64), free if free.size else None, whole if whole.size else None)

    def read_cold_scores(self, system: str) -> np.ndarray | None:
        """Read the scores of the cold items [users with a cold target, cold items]; None where there are none."""
        return self._read(system, COLD, ("scores",))[0] if COLD in self.parts[system] else None

    def _read(self, system: str, part: str, names: Sequence[str]) -> list[np.ndarray]:
        """Join arrays of all shards of a part: rows in the order of the examples, numbers in that of the shards."""
        shards, lists = self._shards(system, part), [[] for _ in names]
        for shard in shards:
            with np.load(self._path(shard)) as arrays:
                for array, name in zip(lists, names, strict=True):
                    array.append(arrays[name])
        order = np.argsort(np.concatenate([shard.rows for shard in shards])) if shards else slice(0, 0)
        joined = []
        for parts in lists:
            if not parts or parts[0].ndim == 0:
                joined.append(np.array(parts))
            else:
                joined.append(np.concatenate(parts)[order])
        return joined

    def _shards(self, system: str, part: str) -> list[RankShard]:
        order, work = self._orders[part], self.parts[system][part].work
        # the cold items are scored for few users at a time, which takes long
        size = -(-self.shard_rows // work.batch_size) * work.batch_size if work.width else work.batch_size
        return [RankShard(system, part, start, order[start : start + size]) for start in range(0, len(order), size)]

    def _path(self, shard: RankShard) -> Path:
        """Name a file by whatever decides its content beside the job's identity."""
        batch_size = self.parts[shard.system][shard.part].work.batch_size
        name = f"{shard.part}-{shard.start}-{shard.start + len(shard.rows)}-by-{batch_size}.npz"
        return self.folder / shard.system / name
