"""A student that answers: its lists, why they are so, and an item's neighbours."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from cachetools import LRUCache

from distill.data.dataset import PAD
from distill.ranking import top_items
from distill.runtime.artifacts import read_any
from distill.runtime.errors import UserError
from student.config import GraphFormat
from student.graph_cache import default_cache, with_graphs
from student.histories import pad_histories
from student.item_recommender import ItemRecommender
from student.load_student import dataset_of, load_student
from student.memory_mixture import model_share
from student.models.setrec import SETRec
from student.recommender import Recommender
from student.search_graph import EXPORTED
from student.serving.beam_tree import Prefix, beam_tree
from student.serving.catalogue import Catalogue
from student.serving.filters import AllowedItems, kept_filters


class Explanation(NamedTuple):
    """A list and why it is so.

    Attributes:
        items, scores: the list, -1 for none [width].
        shares: parts of each listed item's probability by source; None without memories.
        beams: kept prefixes of each level; None for item models.
    """

    items: np.ndarray
    scores: np.ndarray
    shares: list[dict[str, float]] | None
    beams: list[list[Prefix]] | None


@dataclass(frozen=True)
class LoadSettings:
    """How students are loaded, at the start and by every reload.

    Attributes:
        dataset: their data set, for titles and categories; None: the folder `dataset` of each student's run, if there
            is one.
        device: cpu or cuda.
        graph_format: search by exported graphs; None: by the networks.
        graph_cache: folder of kept graphs.
    """

    dataset: Path | None = None
    device: str = "cpu"
    graph_format: GraphFormat | None = None
    graph_cache: Path | None = None


@dataclass(frozen=True)
class ServedStudent:
    """A student that answers; never altered, so that a batch under way keeps the one it began with.

    Attributes:
        name: the folder's name.
        folder: where it was loaded from.
        fingerprint: hash of its content.
        recommender: the student with its memories.
        catalogue: its items.
        dataset: fingerprint of the data set that its memory counted; of the student where that is unknown.
        filters: what was asked for last.
    """

    name: str
    folder: Path
    fingerprint: str
    recommender: Recommender | ItemRecommender
    catalogue: Catalogue
    dataset: str
    filters: LRUCache[Hashable, AllowedItems] = field(default_factory=kept_filters, compare=False, repr=False)

    @staticmethod
    def load(folder: Path, settings: LoadSettings) -> ServedStudent:
        """Load a student or item model.

        Args:
            folder: a student's or baseline's artifact.
            settings: how; item models and large students have no graphs.

        Raises:
            UserError: a damaged folder, another data set, an item model without its data set, or what exports or runs
                graphs is missing.
        """
        artifact = read_any(folder, ("student", "baseline"))
        data = dataset_of(folder, settings.dataset)
        recommender = load_student(folder, data, settings.device)
        is_exported = isinstance(recommender, Recommender) and recommender.facts["backbone"] in EXPORTED
        if settings.graph_format is not None and is_exported:
            cache = settings.graph_cache or default_cache()
            recommender = with_graphs(recommender, settings.graph_format, cache)
        item_ids = recommender.item_ids
        categories: list[str | None] = [None] * len(item_ids)
        if data is not None:
            known = zip(data.items["item_id"].to_pylist(), data.items["categories"].to_pylist(), strict=True)
            by_item = dict(known)
            categories = [by_item.get(item_id) for item_id in item_ids]
        catalogue = Catalogue.of(item_ids, recommender.titles, categories)
        counted = artifact.inputs.get("dataset", artifact.fingerprint)
        return ServedStudent(folder.name, folder, artifact.fingerprint, recommender, catalogue, counted)

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

    def allowed(self, categories: Sequence[str] | None, item_ids: Sequence[str] | None) -> AllowedItems | None:
        """Look up what a filter leaves, as `Catalogue.allowed`; None: all items."""
        if categories is None and item_ids is None:
            return None
        key = tuple(None if part is None else frozenset(part) for part in (categories, item_ids))
        if key not in self.filters:
            self.filters[key] = AllowedItems(self.catalogue.allowed(categories, item_ids))
        return self.filters[key]

    def rank(
        self, histories: Sequence[Sequence[int]], width: int, exclude_bought: bool, allowed: AllowedItems | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank items after histories of item numbers, as `rank_items`."""
        student = self.recommender if allowed is None else allowed.restrict(self.recommender)
        return student.rank_items(pad_histories(histories), width, exclude_bought)

    def explain(
        self, history: Sequence[int], k: int, width: int, exclude_bought: bool, allowed: AllowedItems | None
    ) -> Explanation:
        """Rank k items after a history, and tell which source and which codewords brought them there."""
        items, scores = (part[0, :k] for part in self.rank([history], width, exclude_bought, allowed))
        listed = items[items != PAD]
        shares = self.shares(history, listed, exclude_bought) if len(listed) else None
        beams = None
        if isinstance(self.recommender, Recommender):
            student = self.recommender if allowed is None else allowed.restrict(self.recommender)
            beams = beam_tree(student, np.array(history), width, exclude_bought)
        return Explanation(items, scores, shares, beams)

    def codewords(self, item: int) -> list[int] | None:
        """Codewords of an item's semantic ID; None for item models."""
        return self.recommender.codes[item].tolist() if isinstance(self.recommender, Recommender) else None

    def shares(self, history: Sequence[int], items: np.ndarray, exclude_bought: bool) -> list[dict[str, float]] | None:
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
            parts["content"] = content_weight * content.probabilities_of(rows, items[None], exclude_bought)[0]
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
            vectors = item_vectors(recommender)
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            by, scores = "embeddings", (vectors @ vectors[item])[None]
        scores = np.array(scores, dtype=float)
        scores[0, item] = -np.inf
        lowest = -np.inf if by in ("content", "embeddings") else 0.0
        items = top_items(scores, k, above=lowest)[0]
        items = items[items != PAD]
        return by, items, scores[0, items]


@torch.inference_mode()
def item_vectors(recommender: ItemRecommender) -> np.ndarray:
    """Return the vectors whose inner products with a history's are the scores [n_items, any]."""
    model = recommender.model
    if not isinstance(model, SETRec):
        return model.items.weight.detach().cpu().numpy()
    tokens, n_cf = model.catalogue(), int(model.config.cf_dim > 0)
    weights = torch.full((model.n_tokens, 1), model.config.beta, device=tokens.device)
    weights[:n_cf] = 1 - model.config.beta
    return (tokens * weights.sqrt()).flatten(1).cpu().numpy()
