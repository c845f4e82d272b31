"""The valid semantic IDs as a prefix tree in flat arrays (paper, Appendix A; layout as in STATIC).

The codes are sorted once; the nodes of a level are then the distinct prefixes in order, and the children of a node are
a contiguous run on the next level. So a level is two arrays: where each node's run starts, and the children's codes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Trie:
    """Valid IDs and the items behind them.

    Attributes:
        offsets: per level, start of each node's children [n_nodes + 1].
        codes: per level, codes of all children, run after run [n_children]; a child's number is its place here.
        max_children: per level, the longest run.
        leaf_of_item: leaf number of each item [n_items].
        leaf_offsets, leaf_items: the items of each leaf, run after run; more than one where items share an ID.
    """

    def __init__(self, codes: np.ndarray, codebook_size: int, device: torch.device | str = "cpu"):
        """Build from the codes of all items [n_items, levels]."""
        order = np.lexsort(codes.T[::-1])
        ordered = codes[order]
        self.levels, self.codebook_size = codes.shape[1], codebook_size
        self.offsets: list[Tensor] = []
        self.codes: list[Tensor] = []
        self.max_children: list[int] = []
        starts = np.zeros(1, dtype=np.int64)  # first sorted row of each node
        new = np.zeros(len(ordered), dtype=bool)
        new[:1] = True
        for level in range(self.levels):
            new[1:] |= ordered[1:, level] != ordered[:-1, level]
            children = np.flatnonzero(new)
            offsets = np.append(np.searchsorted(children, starts), len(children))
            self.offsets.append(torch.from_numpy(offsets).to(device))
            self.codes.append(torch.from_numpy(ordered[children, level].astype(np.int64)).to(device))
            self.max_children.append(int(np.diff(offsets).max()))
            starts = children
        leaf_of_row = np.cumsum(new) - 1
        leaf_of_item = np.empty(len(codes), dtype=np.int64)
        leaf_of_item[order] = leaf_of_row
        self.leaf_of_item = torch.from_numpy(leaf_of_item).to(device)
        self.leaf_offsets = torch.from_numpy(np.append(starts, len(order))).to(device)
        self.leaf_items = torch.from_numpy(order).to(device)
        self.max_items = int(np.diff(np.append(starts, len(order))).max())

    def children(self, level: int, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Children of nodes of a level.

        Args:
            level: 0 is the root's.
            nodes: node numbers [...].

        Returns:
            Child numbers on the next level, their codes, and which of them exist, each [..., max_children[level]].
        """
        first, end = self.offsets[level][nodes], self.offsets[level][nodes + 1]
        child = first[..., None] + torch.arange(self.max_children[level], device=nodes.device)
        exists = child < end[..., None]
        child = torch.where(exists, child, 0)
        return child, self.codes[level][child], exists

    def find(self, codes: Tensor) -> Tensor:
        """Leaf number of each ID [..., levels], -1 where there is no such item."""
        node = torch.zeros(codes.shape[:-1], dtype=torch.long, device=codes.device)
        valid = torch.ones_like(node, dtype=torch.bool)
        for level in range(self.levels):
            child, code, exists = self.children(level, node)
            match = exists & (code == codes[..., level, None])
            valid &= match.any(-1)
            node = torch.where(match, child, 0).sum(-1)
        return torch.where(valid, node, -1)

    def first_item(self, leaves: Tensor) -> Tensor:
        """The item behind each leaf, the first where several share it; -1 for leaf -1 [...]."""
        return torch.where(leaves >= 0, self.leaf_items[self.leaf_offsets[leaves.clamp(min=0)]], -1)

    def closed_leaves(self, histories: Tensor) -> Tensor:
        """Leaves with nothing new to a user: all of their items are in the history.

        Args:
            histories: item numbers padded with -1 [batch, length].

        Returns:
            Leaf numbers, -1 elsewhere, sorted by row [batch, length].
        """
        leaves = torch.where(histories >= 0, self.leaf_of_item[histories.clamp(min=0)], -1)
        if self.max_items > 1:
            same_item = histories[:, :, None] == histories[:, None, :]
            first = ~torch.tril(same_item, diagonal=-1).any(-1)  # a repeated item counts once
            same_leaf = leaves[:, :, None] == leaves[:, None, :]
            bought = (same_leaf & first[:, None, :]).sum(-1)
            size = self.leaf_offsets[leaves.clamp(min=0) + 1] - self.leaf_offsets[leaves.clamp(min=0)]
            leaves = torch.where(bought >= size, leaves, -1)
        return leaves.sort(dim=1).values

    def items(self, leaves: Tensor, bought: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Distinct items behind a ranked list of leaves.

        Args:
            leaves: leaf numbers, -1 for none [batch, width].
            bought: item numbers to leave out, padded with -1 [batch, length].

        Returns:
            Item numbers in the order of the leaves (those that share an ID by item number), padded with -1, and the
            place in `leaves` that each came from; both [batch, width].
        """
        width = leaves.shape[1]
        first, end = self.leaf_offsets[leaves.clamp(min=0)], self.leaf_offsets[leaves.clamp(min=0) + 1]
        row = first[..., None] + torch.arange(self.max_items, device=leaves.device)
        exists = (row < end[..., None]) & (leaves >= 0)[..., None]
        items = torch.where(exists, self.leaf_items[torch.where(exists, row, 0)], -1).flatten(1)
        if bought is not None:
            items = torch.where((items[:, :, None] == bought[:, None, :]).any(-1), -1, items)
        order = (items < 0).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
        return items.gather(1, order), order // self.max_items


class FullTree:
    """Every sequence of codewords is allowed: measures how many invalid IDs a model makes without the trie."""

    def __init__(self, levels: int, codebook_size: int):
        self.levels, self.codebook_size = levels, codebook_size
        self.max_children = [codebook_size] * levels

    def children(self, level: int, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Trie.children`; a node's number is its prefix read as a number in base `codebook_size`."""
        codes = torch.arange(self.codebook_size, device=nodes.device).expand(*nodes.shape, -1)
        return nodes[..., None] * self.codebook_size + codes, codes, torch.ones_like(codes, dtype=torch.bool)
