"""A content memory: text embeddings of the items beside a student (`student.memory_mixture` mixes them).

The distribution over the next item is softmax(cosine / τ), the cosine being that of an item's text with the texts of
the history, as in the baseline `content`. Nothing is trained, and items that nobody bought are recommended too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.special import logsumexp, softmax

from distill.baselines.content import LARGE, Content, ContentSettings
from distill.baselines.mixture import allowed_cosines
from distill.data.dataset import PAD
from distill.ranking import BLOCK, best_products, products_in_blocks, scores_of, top_items
from distill.runtime.errors import UserError
from student.loading import check_numbers
from student.transition_memory import TOP

FILE = "content_memory.safetensors"
BOUNDS = {
    **{name: (float, 0, 1) for name in ("weight", "recency")},
    **{name: (int, 1, 2**31) for name in ("top", "last")},
    "temperature": (float, 1e-6, 1e6),
}


class Similar(NamedTuple):
    """What `ContentMemory.search` finds.

    Attributes:
        items: the best items, -1 for none [users, top].
        cosines: theirs, -inf for none [users, top].
        of_known: cosines of the known items, -inf for none and for items that may not be recommended [users, k].
        totals: log Σ exp(cosine / τ) over all items, by τ [users, 1].
    """

    items: np.ndarray
    cosines: np.ndarray
    of_known: np.ndarray
    totals: dict[float, np.ndarray]


@dataclass(frozen=True)
class ContentMemory:
    """Text embeddings of all items and their share in the mixture.

    Attributes:
        vectors: centred and of length 1, float16 [n_items, dim].
        settings: how a history is read.
        weight: c, the content's share.
        temperature: τ of the softmax over cosines.
        top: how many of its items join the student's beams.
    """

    vectors: np.ndarray
    settings: ContentSettings
    weight: float = 0.3
    temperature: float = 0.08
    top: int = TOP

    @staticmethod
    def of(content: Content, **facts: Any) -> ContentMemory:
        """Take over a content baseline; `facts` are further attributes: weight, temperature, top."""
        return ContentMemory(content.unit.astype(np.float16), content.settings, **facts)

    @cached_property
    def content(self) -> Content:
        """The baseline with the same embeddings in float32."""
        return Content.of_unit_vectors(self.vectors.astype(np.float32), self.settings)

    def cosines(self, histories: np.ndarray, exclude_bought: bool = True) -> np.ndarray:
        """Compute the cosines of all items with each history, −∞ for items that may not be recommended.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            exclude_bought: whether items of the history may not be recommended.

        Returns:
            [users, n_items].
        """
        return allowed_cosines(self.content, histories, exclude_bought)

    def search(
        self,
        histories: np.ndarray,
        known: np.ndarray,
        temperatures: Sequence[float] | None = None,
        exclude_bought: bool = True,
        allowed: np.ndarray | None = None,
    ) -> Similar:
        """Find the items whose texts are the most like a history's; in large catalogues some items at a time.

        Args:
            histories: as for `cosines`.
            known: item numbers whose cosines are wanted as well, -1 for none [users, k].
            temperatures: of the softmax; None: the memory's own.
            exclude_bought: as for `cosines`.
            allowed: the only items that may be found, a mask [n_items]; None: all.
        """
        temperatures, top = temperatures or [self.temperature], min(self.top, len(self.vectors))
        if len(self.vectors) < LARGE:
            cosines = self.cosines(histories, exclude_bought)
            findable = cosines if allowed is None else np.where(allowed, cosines, -np.inf)
            items = top_items(findable, top, -np.inf)
            totals = {value: logsumexp(cosines / value, axis=1, keepdims=True) for value in temperatures}
            return Similar(items, scores_of(cosines, items), scores_of(cosines, known), totals)

        of_known = np.full(known.shape, -np.inf)
        totals = {value: np.full((len(histories), 1), -np.inf) for value in temperatures}

        def blocks() -> Iterator[tuple[int, np.ndarray]]:
            profiles, excluded = self.content.profiles(histories), histories if exclude_bought else None
            for start, products in products_in_blocks(profiles, self.content.unit, excluded, BLOCK):
                cosines, end = products.astype(np.float64), start + products.shape[1]
                for value in temperatures:
                    of_block = logsumexp(cosines / value, axis=1, keepdims=True)
                    totals[value] = np.logaddexp(totals[value], of_block)
                inside = (known >= start) & (known < end)
                block_cosines = scores_of(cosines, np.where(inside, known - start, PAD))
                np.copyto(of_known, block_cosines, where=inside)
                yield start, products if allowed is None else np.where(allowed[start:end], products, -np.inf)

        items, cosines = best_products(blocks(), len(histories), top)
        return Similar(items, cosines.astype(np.float64), of_known, totals)

    def probabilities_of(self, histories: np.ndarray, items: np.ndarray, exclude_bought: bool = True) -> np.ndarray:
        """Compute softmax(cosine / τ) of some items, 0 for -1 [users, k]; histories as for `cosines`."""
        if len(self.vectors) < LARGE:
            return scores_of(self.probabilities(histories, exclude_bought), items, 0.0)
        similar = self.search(histories, items, None, exclude_bought)
        return np.exp(similar.of_known / self.temperature - similar.totals[self.temperature])

    def probabilities(self, histories: np.ndarray, exclude_bought: bool = True) -> np.ndarray:
        """Compute softmax(cosine / τ) over the items [users, n_items]; arguments as `cosines`."""
        return softmax(self.cosines(histories, exclude_bought) / self.temperature, axis=1)

    def facts(self) -> dict[str, Any]:
        """Return what the student's config.json holds under "content_memory"."""
        facts = {"weight": self.weight, "temperature": self.temperature, "top": self.top}
        return {**asdict(self.settings), **facts}

    def save(self, folder: Path) -> None:
        """Write the embeddings; `facts` belong into the student's config.json."""
        save_file({"vectors": self.vectors}, folder / FILE)

    @staticmethod
    def load(folder: Path, facts: dict[str, Any]) -> ContentMemory:
        """Read what `save` wrote, with the `facts` of the student's config.json."""
        facts = dict(facts)
        check_numbers(facts, BOUNDS, folder / "config.json")
        shares = {name: facts.pop(name) for name in ("weight", "temperature", "top")}
        vectors = load_file(folder / FILE)["vectors"]
        if vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise UserError(f"{folder / FILE} is damaged: expected finite vectors [items, dim], found other numbers.")
        return ContentMemory(vectors, ContentSettings(**facts), **shares)
