"""A content memory: text embeddings of the items beside a student (`student.memory_mixture` mixes them).

The distribution over the next item is softmax(cosine / τ), the cosine being that of an item's text with the texts of
the history, as in the baseline `content`. Nothing is trained, and items that nobody bought are recommended too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.special import softmax

from distill.baselines.content import Content, ContentSettings
from distill.baselines.mixture import allowed_cosines
from distill.runtime.errors import UserError
from student.loading import check_numbers
from student.transition_memory import TOP

FILE = "content_memory.safetensors"
BOUNDS = {
    **{name: (float, 0, 1) for name in ("weight", "recency")},
    **{name: (int, 1, 2**31) for name in ("top", "last")},
    "temperature": (float, 1e-6, 1e6),
}


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
