"""The served students: loaded beside the old one, checked, and swapped in one assignment."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from distill.data.dataset import PAD, Dataset
from distill.ranking import top_items
from distill.runtime.artifacts import read_any
from distill.runtime.errors import UserError
from student.histories import pad_histories
from student.item_recommender import ItemRecommender
from student.memory_mixture import model_share
from student.recommender import Recommender
from student.restriction import rank_within
from student.serving.events import EventStore, GrowingMemory


@dataclass(frozen=True)
class Catalogue:
    """What is known of the items, by item number.

    Attributes:
        item_ids, titles: of all items.
        numbers: item id to item number.
        categories: category to item numbers, ascending.
    """

    item_ids: list[str]
    titles: list[str]
    numbers: dict[str, int]
    categories: dict[str, np.ndarray]

    @staticmethod
    def of(item_ids: list[str], titles: list[str], categories: list[str | None]) -> Catalogue:
        """Build a catalogue; an item's categories are paths ("Office > Desk Lamp") with commas between."""
        members: dict[str, list[int]] = {}
        for number, text in enumerate(categories):
            for name in _categories(text or ""):
                members.setdefault(name, []).append(number)
        numbers = {item_id: number for number, item_id in enumerate(item_ids)}
        return Catalogue(item_ids, titles, numbers, {name: np.array(rows) for name, rows in members.items()})


@dataclass(frozen=True)
class ServedStudent:
    """A student that answers; never altered, so that a batch under way keeps the one it began with.

    Attributes:
        name: the folder's name.
        folder: where it was loaded from.
        fingerprint: hash of its content.
        recommender: the student with its memories.
        catalogue: its items.
    """

    name: str
    folder: Path
    fingerprint: str
    recommender: Recommender | ItemRecommender
    catalogue: Catalogue

    @staticmethod
    def load(folder: Path, dataset: Path | None, device: str) -> ServedStudent:
        """Load a student or item model.

        Args:
            folder: a student's or baseline's artifact.
            dataset: its data set, for titles and categories; None: the folder `dataset` of its run, if there is one.
            device: cpu or cuda.

        Raises:
            UserError: a damaged folder, another data set, or an item model without its data set.
        """
        artifact = read_any(folder, ("student", "baseline"))
        if dataset is None and (folder.parent.parent / "dataset").is_dir():
            dataset = folder.parent.parent / "dataset"
        data = Dataset.load(dataset) if dataset is not None else None
        if data is not None and artifact.inputs.get("dataset") not in (None, data.artifact.fingerprint):
            raise UserError(f"{folder} was not trained on {dataset}: name its data set by --dataset.")
        if artifact.kind == "baseline":
            if data is None:
                raise UserError(f"{folder} names no items: give its data set by --dataset.")
            recommender: Recommender | ItemRecommender = ItemRecommender.from_pretrained(folder, device)
            item_ids = data.items["item_id"].to_pylist()
            titles = [title or "" for title in data.items["title"].to_pylist()]
        else:
            recommender = Recommender.from_pretrained(folder, device)
            item_ids, titles = recommender.item_ids, recommender.titles
        categories: list[str | None] = [None] * len(item_ids)
        if data is not None:
            known = zip(data.items["item_id"].to_pylist(), data.items["categories"].to_pylist(), strict=True)
            by_item = dict(known)
            categories = [by_item.get(item_id) for item_id in item_ids]
        catalogue = Catalogue.of(item_ids, titles, categories)
        return ServedStudent(folder.name, folder, artifact.fingerprint, recommender, catalogue)

    @property
    def exclude_bought(self) -> bool:
        """Whether items of the history are left out unless a request says otherwise."""
        return self.recommender.facts.get("exclude_bought", True)

    def check(self) -> None:
        """Ask for a list after the first item.

        Raises:
            UserError: the list is empty or holds scores that are no numbers.
        """
        items, scores = self.recommender.rank_items(np.zeros((1, 1), np.int64), 20, False)
        if not (items != PAD).any() or not np.isfinite(scores[items != PAD]).all():
            raise UserError(f"{self.folder} gives no list after its first item; train or copy it again.")

    def rank(
        self, histories: list[list[int]], width: int, exclude_bought: bool, items: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank items after histories of item numbers, as `rank_within`."""
        return rank_within(self.recommender, pad_histories(histories), width, exclude_bought, items)

    def codewords(self, item: int) -> list[int] | None:
        """Codewords of an item's semantic ID; None for item models."""
        return self.recommender.codes[item].tolist() if isinstance(self.recommender, Recommender) else None

    def shares(self, history: list[int], items: np.ndarray, exclude_bought: bool) -> list[dict[str, float]] | None:
        """Compute which part of each item's probability comes from model, counter and content; None without memories.

        Args:
            history: item numbers, oldest first.
            items: item numbers [k].
            exclude_bought: as the list was made.
        """
        recommender, memory = self.recommender, self.recommender.transition_memory
        if memory is None:
            return None
        rows, content = pad_histories([history]), recommender.active_content
        content_weight = content.weight if content else 0.0
        parts = {
            "model": model_share(memory.weight, content_weight)
            * np.exp(recommender.score_candidates(rows, items[None])[0].astype(float)),
            "counter": memory.weight * memory.probabilities(rows, exclude_bought).toarray()[0, items],
        }
        if content:
            parts["content"] = content_weight * content.probabilities(rows, exclude_bought)[0, items]
        total = np.maximum(sum(parts.values()), np.finfo(float).tiny)
        return [
            {name: float(part[place] / total[place]) for name, part in parts.items()} for place in range(len(items))
        ]

    def similar(self, item: int, k: int) -> tuple[str, np.ndarray, np.ndarray]:
        """Rank the neighbours of an item by text, by transitions, or by codewords, the first that the student has.

        Returns:
            By what; item numbers; scores.
        """
        recommender, row = self.recommender, np.array([[item]])
        if recommender.content_memory is not None:
            by, scores = "content", recommender.content_memory.cosines(row)
        elif recommender.transition_memory is not None:
            by, scores = "transitions", recommender.transition_memory.probabilities(row).toarray()
        elif isinstance(recommender, Recommender):
            codes = recommender.codes.cpu().numpy()
            by, scores = "codewords", np.cumprod(codes == codes[item], axis=1).sum(1)[None].astype(float)
        else:
            vectors = recommender.model.items.weight.detach().cpu().numpy()
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            by, scores = "embeddings", (vectors @ vectors[item])[None]
        scores = np.array(scores, dtype=float)
        scores[0, item] = -np.inf
        lowest = -np.inf if by in ("content", "embeddings") else 0.0
        items = top_items(scores, k, above=lowest)[0]
        items = items[items != PAD]
        return by, items, scores[0, items]


class Models:
    """The served students by name; the first is the default.

    Args:
        students: at least one, of different names.
        store: events that their memories count; None: memories stay as they are.
        dataset, device: as for `ServedStudent.load`.

    Raises:
        UserError: two students of one name, or one that gives no lists.
    """

    def __init__(
        self, students: list[ServedStudent], store: EventStore | None, dataset: Path | None = None, device: str = "cpu"
    ):
        if len({student.name for student in students}) < len(students):
            raise UserError("Two students have the same folder name; rename one.")
        self.store, self.dataset, self.device = store, dataset, device
        self._lock = threading.Lock()  # of swaps and growth; readers need none
        self._growing: dict[str, GrowingMemory] = {}
        self.students: dict[str, ServedStudent] = {}
        for student in students:
            student.check()
            self._put(student)

    def get(self, name: str | None) -> ServedStudent:
        """Look up a student.

        Raises:
            UserError: there is none of this name.
        """
        if name is None:
            return next(iter(self.students.values()))
        if name not in self.students:
            raise UserError(f"No student {name!r} is served; there are {', '.join(self.students)}.")
        return self.students[name]

    def grow(self) -> int:
        """Count new events into all memories and return the last event's number that they hold."""
        with self._lock:
            for name, growing in self._growing.items():
                before = growing.memory
                if growing.read(self.store) is not before:
                    student = self.students[name]
                    self.students[name] = replace(student, recommender=_with_memory(student.recommender, growing))
            return min((growing.last_event for growing in self._growing.values()), default=0)

    def reload(self, name: str | None) -> ServedStudent:
        """Load a student's folder again, check it, and swap it in; on any error the old one goes on.

        Raises:
            UserError: the folder holds no student that gives lists.
        """
        old = self.get(name)
        student = ServedStudent.load(old.folder, self.dataset, self.device)
        student.check()
        with self._lock:
            self._put(student)
        return student

    def _put(self, student: ServedStudent) -> None:
        memory = student.recommender.transition_memory
        growing = None
        if memory is not None and self.store is not None:
            growing = GrowingMemory(memory, student.catalogue.numbers)
            growing.read(self.store)
            student = replace(student, recommender=_with_memory(student.recommender, growing))
        self._growing.pop(student.name, None)
        if growing is not None:
            self._growing[student.name] = growing
        self.students[student.name] = student


def _with_memory(recommender: Recommender | ItemRecommender, growing: GrowingMemory) -> Recommender | ItemRecommender:
    """Return the student with the grown memory and the content memory that it has, if any."""
    return recommender.with_transition_memory(growing.memory)


def _categories(text: str) -> dict[str, None]:
    """List the categories of an item in order, each once; "A > B" is in A and in A > B."""
    names = {}
    for path in text.split(","):
        steps = [step.strip() for step in path.split(">")]
        if all(steps):
            names |= dict.fromkeys(" > ".join(steps[: depth + 1]) for depth in range(len(steps)))
    return names
