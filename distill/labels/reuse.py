"""Rows of an earlier day's labels that still hold on a later one, so that only changed targets are labelled.

A label follows from the teacher, the items of the history that it reads, and the target. Users and items may have other
numbers from day to day, so they are matched by their ids. The candidates of a copied row are those of its day: items
that were launched since are not among them.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.data.dataset import PAD, Dataset, Examples
from distill.data.examples import TargetRanges
from distill.labels.config import Config, ExampleSettings
from distill.labels.labeller import LAST_LAYER
from distill.labels.schema import Columns
from distill.labels.selection import select_targets, shard_bounds
from distill.labels.store import LabelStore
from distill.labels.writer import concatenate_columns
from distill.runtime import artifacts
from distill.runtime.artifacts import Artifact
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs
from distill.semantic_ids.lineage import knows

DECIDING = ("mix", "folds", "engine", "dtype", "width", "keep", "unconstrained", "scope", "encoding")  # settings
UNKNOWN = -2  # an item that equals none
OPEN_SHARDS = 4  # shards of the earlier set in memory: neighbours in one set are mostly neighbours in the other


class EarlierLabels:
    """The labels of an earlier data set, looked up by examples of a later one.

    Args:
        store: the labels.
        targets: the targets that they label, of their data set.
        shard_rows: their shards' size, as it was set.
        dataset: the earlier data set.
        later: the later one.
        reads_titles: whether the teacher reads titles of the history's items, which then must be the same.

    Raises:
        UserError: the labels are not those of these targets.
    """

    def __init__(
        self,
        store: LabelStore,
        targets: TargetRanges,
        shard_rows: int,
        dataset: Dataset,
        later: Dataset,
        reads_titles: bool = False,
    ):
        self.store, self.targets, self.bounds = store, targets, shard_bounds(targets.ends, shard_rows)
        if np.diff(self.bounds).tolist() != [shard["rows"] for shard in store.index["shards"]]:
            raise self._other_targets()
        self.user_then = places(later.user_ids, dataset.user_ids)
        # the last entry is that of PAD, -1
        self.item_now = np.append(places(dataset.items["item_id"], later.items["item_id"]), PAD)
        self.item_now[:-1][self.item_now[:-1] == -1] = UNKNOWN
        self.history_item_now = self.item_now.copy()
        if reads_titles:
            self.history_item_now[:-1][~same_titles(dataset, later, self.item_now[:-1])] = UNKNOWN
        self._shard = functools.lru_cache(OPEN_SHARDS)(self._read_shard)

    def find(self, examples: Examples) -> np.ndarray:
        """Find the rows of the same user, position, history and target; -1 where there is none [n]."""
        rows = self.targets.find(self.user_then[examples.users], examples.positions)
        exists = np.flatnonzero(rows >= 0)
        then = self.targets.take(rows[exists])
        is_same = (self.history_item_now[then.histories] == examples.histories[exists]).all(1)
        is_same &= self.item_now[then.targets] == examples.targets[exists]
        rows[exists[~is_same]] = -1
        return rows

    def read(self, rows: np.ndarray, examples: Examples, codes: np.ndarray) -> Columns:
        """Read rows as columns of a later shard: users and items have their later numbers, the rest is as stored.

        Args:
            rows: from `find` [n].
            examples: for which they were found [n].
            codes: of the later data set's items [items, levels].

        Raises:
            UserError: a shard is damaged, or items have other codes than then.
        """
        shard_of = np.searchsorted(self.bounds, rows, side="right") - 1
        order, parts = [], []
        for number in np.unique(shard_of).tolist():
            places_in_rows = np.flatnonzero(shard_of == number)
            local = rows[places_in_rows] - self.bounds[number]
            parts.append({name: values[local] for name, values in self._shard(number).items()})
            order.append(places_in_rows)
        columns = concatenate_columns(parts, np.argsort(np.concatenate(order)))
        columns |= {"user": examples.users, "position": examples.positions, "target": examples.targets}
        columns["candidates"] = self.item_now[columns["candidates"]]
        if (columns["target_codes"] != codes[examples.targets]).any() or (columns["candidates"] == UNKNOWN).any():
            raise UserError(f"Items of {self.store.artifact.folder} have other semantic IDs now; leave --reuse out.")
        return columns

    def _read_shard(self, number: int) -> Columns:
        """Read a shard of the earlier labels, after comparing its targets with those that it should have."""
        columns = self.store.shard(number)
        expected = self.targets.take(slice(self.bounds[number], self.bounds[number + 1]))
        names = {"user": expected.users, "position": expected.positions, "target": expected.targets}
        if not all(np.array_equal(columns[name], values) for name, values in names.items()):
            raise self._other_targets()
        return columns

    def _other_targets(self) -> UserError:
        return UserError(
            f"{self.store.artifact.folder} labels other targets than its manifest's settings select, so nothing of it "
            "can be reused; leave --reuse out."
        )


def places(ids: pa.Array | pa.ChunkedArray, among: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Find the place of each id among others; -1 where it is not there [n]."""
    rows = pc.index_in(ids, value_set=among.combine_chunks() if isinstance(among, pa.ChunkedArray) else among)
    return pc.fill_null(rows, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def same_titles(dataset: Dataset, later: Dataset, item_now: np.ndarray) -> np.ndarray:
    """Tell which items of a data set have the same title and text in a later one, bool [items].

    Args:
        dataset: the earlier one.
        later: the later one.
        item_now: their later numbers, below 0 for none [items].
    """
    then, now = (list(zip(each.items["title"].to_pylist(), each.texts(), strict=True)) for each in (dataset, later))
    return np.array([number >= 0 and now[number] == then[item] for item, number in enumerate(item_now.tolist())])


def open_earlier(
    config: Config,
    teacher: str,
    dataset: Dataset,
    ids: SemanticIDs,
    max_history: int,
    reads_titles: bool,
) -> EarlierLabels:
    """Open the labels that `config.reuse` names, for targets of a later data set.

    Args:
        config: of the export, as `load_inputs` returns it.
        teacher: what the index will name as the teacher.
        dataset: the later data set.
        ids: its semantic IDs.
        max_history: items of history that the teacher reads.
        reads_titles: whether it reads titles.

    Raises:
        UserError: labels of another teacher, other settings or semantic IDs that these do not extend; or their data set
            is missing.
    """
    assert config.reuse is not None
    store = LabelStore.open(config.reuse)
    refuse_difference(config.reuse, find_difference(store, config, teacher, ids.artifact))
    earlier = read_earlier_dataset(config.reuse_dataset or earlier_dataset(store.artifact), store)
    then = store.artifact.config
    excluded = earlier.resolve_exclude_bought(then.get("exclude_bought"))
    if excluded != config.exclude_bought:
        refuse_difference(config.reuse, f"--exclude_bought {excluded}, not {config.exclude_bought}")
    selected = ExampleSettings(then["split"], then["limit"], then["users"])
    targets = select_targets(earlier, selected, max_history)
    return EarlierLabels(store, targets, then["shard_rows"], earlier, dataset, reads_titles)


def find_difference(store: LabelStore, config: Config, teacher: str, ids: Artifact) -> str:
    """Name what decides labels and is another for these than for those of an export; "" if nothing is."""
    if store.index.get("teacher") != teacher:
        return f"the teacher {store.index.get('teacher')}, not {teacher}"
    then = store.artifact.config
    for name in DECIDING:
        if then.get(name) != getattr(config, name):
            return f"--{name} {then.get(name)}, not {getattr(config, name)}"
    for name, value in (("features", config.features), ("feature_layers", config.feature_layers)):
        default = list(LAST_LAYER) if name == "feature_layers" else 0
        if store.index.get(name, default) != value:
            return f"--{name} {store.index.get(name, default)}, not {value}"
    return "" if knows(store.artifact, ids) else f"semantic IDs that {ids.folder} does not extend"


def refuse_difference(folder: Path, difference: str) -> None:
    """Refuse labels that another teacher, or other settings, made.

    Args:
        folder: of the labels.
        difference: from `find_difference`; "" refuses nothing.
    """
    if difference:
        raise UserError(
            f"--reuse {folder}: its labels were made by {difference}, so they do not hold here. Export with what they "
            "were made by, or leave --reuse out."
        )


def earlier_dataset(labels: Artifact) -> Path:
    """Name the folder of the data set of which labels were made."""
    return Path(labels.config.get("dataset") or Path(labels.config.get("run", ".")) / "dataset")


def read_earlier_dataset(folder: Path, store: LabelStore) -> Dataset:
    """Load the data set that labels were made of.

    Raises:
        UserError: it is not there, or another one is.
    """
    expected = store.artifact.inputs.get("dataset")
    try:
        actual = artifacts.read(folder, "dataset").fingerprint
    except UserError:
        actual = None
    if actual != expected:
        what = "is not there" if actual is None else f"is another one ({actual})"
        raise UserError(
            f"--reuse {store.artifact.folder} was made of the data set {expected}; at {folder} it {what}. Name its "
            "folder with --reuse_dataset."
        )
    return Dataset.load(folder)
