"""Frozen text embeddings as input of the students' networks; only a linear map of them is trained.

An embedding e [dim] is centred and of length 1, as in the baseline `content`. Its projection W e joins the learned
embedding of a history's item, or replaces it. Items that no training sequence holds are read like all others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.baselines.content import Content
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text embeddings in a network.

    Attributes:
        rows: number of embeddings: of items, or of semantic IDs.
        dim: of an embedding.
        only: whether the text replaces the learned embedding of an item, instead of being added to it.
    """

    rows: int
    dim: int
    only: bool = False


def sizes_to_json(config: Any) -> dict[str, Any]:
    """Return a network's config for config.json; without texts there is no entry `text`."""
    sizes = asdict(config)
    if sizes.get("text", config) is None:
        del sizes["text"]
    return sizes


def sizes_from_json(config: type, sizes: dict[str, Any]) -> Any:
    """Build a network's config from what `sizes_to_json` returned."""
    text = sizes.get("text")
    return config(**(sizes | {"text": TextConfig(**text)} if text else sizes))


class ProjectedText(nn.Module):
    """A frozen embedding per row and a trained projection.

    Args:
        config: sizes.
        d_model: of the network.
    """

    vectors: Tensor

    def __init__(self, config: TextConfig, d_model: int):
        super().__init__()
        self.only = config.only
        self.register_buffer("vectors", torch.zeros(config.rows, config.dim, dtype=torch.float16))
        self.projection = nn.Linear(config.dim, d_model, bias=False)
        self.register_state_dict_post_hook(_save_as_float16)

    def set_vectors(self, unit: np.ndarray) -> None:
        """Take over embeddings of length 1 [rows, dim]."""
        self.vectors.copy_(torch.from_numpy(unit))

    def forward(self, rows: Tensor) -> Tensor:
        """Project the embeddings of rows [...] → [..., d_model]."""
        return self.projection(self.vectors[rows].to(self.projection.weight.dtype))


def _save_as_float16(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Save the embeddings in half precision, also after `Module.to` changed that of the network."""
    state[f"{prefix}vectors"] = state[f"{prefix}vectors"].half()


class HistoryText(ProjectedText):
    """Projected texts of a history's items, which are given by their semantic IDs.

    IDs are looked up, so that networks over codewords need no item numbers. Items that share an ID share the mean of
    their embeddings.

    Args:
        config: sizes.
        d_model: of the network.
        codebook_size: of the semantic IDs.
    """

    ids: Tensor

    def __init__(self, config: TextConfig, d_model: int, codebook_size: int):
        super().__init__(config, d_model)
        self.codebook_size = codebook_size
        self.register_buffer("ids", torch.zeros(config.rows, dtype=torch.long))

    def set_ids(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Take over what `text_of_ids` returned: numbers of the IDs [rows] and their embeddings [rows, dim]."""
        self.ids.copy_(torch.from_numpy(ids))
        self.set_vectors(vectors)

    def rows(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Look up the rows of items [..., levels], and tell which of them are known; both [...]."""
        ids = id_numbers(codes, self.codebook_size)
        rows = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        return rows, (codes[..., 0] >= 0) & (self.ids[rows] == ids)

    def forward(self, codes: Tensor) -> Tensor:
        """Project the texts of items [..., levels] → [..., d_model], zeros at padding (-1)."""
        rows, known = self.rows(codes)
        return super().forward(rows) * known[..., None]

    def check_catalogue(self, codes: Tensor) -> None:
        """Refuse a catalogue [n_items, levels] with items that have no text here.

        Raises:
            UserError: says how many.
        """
        missing = int((~self.rows(codes)[1]).sum())
        if missing:
            raise UserError(
                f"The student reads texts (--item_text), and {missing} of {len(codes)} items of this catalogue have "
                "none in it; train it again on a data set and embeddings that hold them."
            )


def id_numbers(codes: Tensor, codebook_size: int) -> Tensor:
    """Number semantic IDs [..., levels] by their codewords as digits [...]."""
    numbers = torch.zeros_like(codes[..., 0])
    for level in range(codes.shape[-1]):
        numbers = numbers * codebook_size + codes[..., level]
    return numbers


def text_of_ids(codes: np.ndarray, unit: np.ndarray, codebook_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Average the embeddings of items that share a semantic ID.

    Args:
        codes: of all items [n_items, levels].
        unit: embeddings of length 1 [n_items, dim].
        codebook_size: of the semantic IDs.

    Returns:
        Numbers of the IDs, ascending [ids], and an embedding of length 1 for each [ids, dim].

    Raises:
        UserError: there are more possible IDs than 64-bit numbers.
    """
    levels = codes.shape[1]
    if codebook_size**levels > np.iinfo(np.int64).max:
        raise UserError(f"--item_text cannot number IDs of {levels} levels of {codebook_size} codewords; at most 2^63.")
    numbers = id_numbers(torch.from_numpy(codes), codebook_size).numpy()
    ids, rows = np.unique(numbers, return_inverse=True)
    sums = np.zeros((len(ids), unit.shape[1]))
    np.add.at(sums, rows, unit)
    return ids, sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Centre text embeddings and scale them to length 1, in float32 [n_items, dim]."""
    return Content(vectors).unit


def last_token(item_states: Tensor, levels: int) -> Tensor:
    """Place a vector at the last of each item's tokens, zeros at the others.

    [batch, items, d_model] → [batch, items · levels, d_model].
    """
    return F.pad(item_states[:, :, None], (0, 0, levels - 1, 0)).flatten(1, 2)
