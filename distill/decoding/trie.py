"""The valid semantic IDs as a prefix tree in flat arrays (paper, Appendix A; layout as in STATIC).

The items' codes are sorted once. The nodes of a level are then the distinct prefixes in order, and the children of a
node are a contiguous run on the next level, so a level needs two arrays: where each node's run starts, and the
children's codewords. The first two levels have few nodes with many children; there a dense table is faster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

DENSE_LEVELS = 2
DENSE_LIMIT = 1 << 20  # most entries of a level's table; larger codebooks have runs on all levels


@dataclass(frozen=True)
class Trie:
    """Valid IDs and their items; numbers are int32, codewords as small as the codebook allows.

    Attributes:
        codebook_size: codewords of a level.
        max_children: per level, the most children of a node.
        max_items: the most items that share an ID.
        offsets: per level, start of each node's run of children [n_nodes + 1].
        codes: per level, codewords of all children, run after run [n_children]; the index is the child's number.
        dense: for the first levels, the child of each node by codeword, -1 for none [n_nodes, codebook_size].
        leaf_of_item: leaf number of each item [n_items].
        leaf_offsets: start of each leaf's run in `leaf_items` [n_leaves + 1].
        leaf_items: item numbers, leaf after leaf [n_items]; a leaf has several where items share an ID.
    """

    codebook_size: int
    max_children: list[int]
    max_items: int
    offsets: list[Tensor]
    codes: list[Tensor]
    dense: list[Tensor]
    leaf_of_item: Tensor
    leaf_offsets: Tensor
    leaf_items: Tensor

    @staticmethod
    def build(codes: np.ndarray, codebook_size: int) -> Trie:
        """Build the trie of all items' codes [n_items, levels], on the CPU."""
        n_items, levels = codes.shape
        starts_prefix, items = _sort_items(codes, codebook_size)
        offsets, runs, max_children = [], [], []
        starts = np.zeros(1, dtype=np.int32)  # first sorted row of each node
        for level in range(levels):
            children = np.flatnonzero(starts_prefix[level]).astype(np.int32)
            bounds = np.append(np.searchsorted(children, starts), len(children)).astype(np.int32)
            offsets.append(torch.from_numpy(bounds))
            runs.append(torch.from_numpy(codes[items[children], level].astype(_code_type(codebook_size))))
            max_children.append(int(np.diff(bounds).max()))
            starts = children
        leaf_of_item = np.empty(n_items, dtype=np.int32)
        leaf_of_item[items] = np.cumsum(starts_prefix[-1], dtype=np.int32) - 1
        starts = np.append(starts, np.int32(n_items))
        return Trie(
            codebook_size=codebook_size,
            max_children=max_children,
            max_items=int(np.diff(starts).max()),
            offsets=offsets,
            codes=runs,
            dense=_dense_tables(offsets, runs, codebook_size),
            leaf_of_item=torch.from_numpy(leaf_of_item),
            leaf_offsets=torch.from_numpy(starts),
            leaf_items=torch.from_numpy(items),
        )

    def restricted(self, codes: np.ndarray, items: np.ndarray) -> Trie:
        """Build the trie of some of the items, on the CPU; item numbers remain those of the catalogue.

        Args:
            codes: of all items [n_items, levels].
            items: distinct item numbers, at least one, ascending [any].
        """
        part = Trie.build(codes[items], self.codebook_size)
        leaf_of_item = torch.full((len(codes),), -1, dtype=torch.int32)
        numbers = torch.from_numpy(items)
        leaf_of_item[numbers] = part.leaf_of_item
        return replace(part, leaf_of_item=leaf_of_item, leaf_items=numbers[part.leaf_items.long()].int())

    @property
    def levels(self) -> int:
        return len(self.codes)

    @property
    def n_leaves(self) -> int:
        return len(self.codes[-1])

    def to(self, device: torch.device | str) -> Trie:
        """Copy the trie to another device."""
        lists = {name: [level.to(device) for level in getattr(self, name)] for name in ("offsets", "codes", "dense")}
        leaves = {name: getattr(self, name).to(device) for name in ("leaf_of_item", "leaf_offsets", "leaf_items")}
        return Trie(self.codebook_size, self.max_children, self.max_items, **lists, **leaves)

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        tensors = {name: getattr(self, name) for name in ("leaf_of_item", "leaf_offsets", "leaf_items")}
        for level in range(self.levels):
            tensors |= {f"offsets.{level}": self.offsets[level], f"codes.{level}": self.codes[level]}
        facts = [self.codebook_size, self.max_items, *self.max_children]
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, path, {"sizes": " ".join(map(str, facts))})

    @staticmethod
    def load(path: Path) -> Trie:
        """Read a file of `save` through a memory map: pages are read from disk when they are first used."""
        with safe_open(path, "pt") as file:
            size, max_items, *max_children = map(int, file.metadata()["sizes"].split())
            offsets = [file.get_tensor(f"offsets.{level}") for level in range(len(max_children))]
            codes = [file.get_tensor(f"codes.{level}") for level in range(len(max_children))]
            names = ("leaf_of_item", "leaf_offsets", "leaf_items")
            leaves = {name: file.get_tensor(name) for name in names}
        return Trie(size, max_children, max_items, offsets, codes, _dense_tables(offsets, codes, size), **leaves)

    def is_of(self, codes: np.ndarray, codebook_size: int) -> bool:
        """Tell whether this is the trie of these codes [n_items, levels]; costs less than building it."""
        counts = [np.diff(part.numpy()) for part in (*self.offsets, self.leaf_offsets)]
        sizes = [1, *map(len, self.codes)]
        if self.codebook_size != codebook_size or self.levels != codes.shape[1] or len(self.leaf_items) != len(codes):
            return False
        for count, nodes, children in zip(counts, sizes, [*sizes[1:], len(codes)], strict=True):
            if len(count) != nodes or not (count > 0).all() or count.sum() != children:
                return False
        if self.max_children != [int(count.max()) for count in counts[:-1]] or self.max_items != counts[-1].max():
            return False
        prefixes = np.zeros((1, 0), np.int64)
        for count, run in zip(counts, self.codes, strict=False):
            prefixes = np.concatenate([np.repeat(prefixes, count, axis=0), run.numpy()[:, None]], axis=1)
        leaves, items = np.repeat(np.arange(self.n_leaves), counts[-1]), self.leaf_items.numpy()
        if not np.array_equal(np.sort(items), np.arange(len(codes))):
            return False
        return np.array_equal(self.leaf_of_item.numpy()[items], leaves) and np.array_equal(
            prefixes[leaves], codes[items]
        )

    def children(self, level: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Look up the children of nodes.

        Args:
            level: of the children's codewords; 0 for the children of the root.
            nodes: node numbers [...].

        Returns:
            The children's numbers, -1 in unused places, and their codewords; both [..., max_children[level]].
        """
        first, end = self.offsets[level][nodes], self.offsets[level][nodes + 1]
        child = first[..., None] + torch.arange(self.max_children[level], dtype=torch.int32, device=nodes.device)
        exists = child < end[..., None]
        code = self.codes[level][torch.where(exists, child, 0)]
        return torch.where(exists, child, -1), code.long()

    def candidates(self, level: int, nodes: Tensor, log_probs: Tensor, closed: Tensor | None = None) -> Tensor:
        """Mask the log-probabilities of codewords that no valid ID has after the nodes.

        Args:
            level: of the codewords; 0 for the children of the root.
            nodes: node numbers [batch, beams].
            log_probs: of all codewords of the level [batch, beams, codebook_size].
            closed: leaves to mask on the last level, -1 for none, each row sorted [batch, any].

        Returns:
            −∞ where masked [batch, beams, codebook_size or max_children[level]]; `choose` turns a place in the last
            dimension into codeword and child.
        """
        if level < len(self.dense):
            child = self.dense[level][nodes]
        else:
            child, code = self.children(level, nodes)
            log_probs = log_probs.gather(2, code)
        masked = child < 0
        if closed is not None and level == self.levels - 1:
            place = torch.searchsorted(closed, child.flatten(1)).clamp(max=closed.shape[1] - 1)
            masked = masked | (closed.gather(1, place).view_as(child) == child)
        return log_probs.masked_fill(masked, -torch.inf)

    def choose(self, level: int, nodes: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Look up the codewords and children at places of `candidates`; they are arbitrary where that is −∞.

        Args:
            level: as for `candidates`.
            nodes: node numbers [...].
            place: a place in the last dimension of `candidates` for each node [...].

        Returns:
            Codewords and child numbers, both [...].
        """
        if level < len(self.dense):
            return place, self.dense[level][nodes, place].clamp(min=0)
        child = (self.offsets[level][nodes] + place).clamp(max=len(self.codes[level]) - 1).int()
        return self.codes[level][child].long(), child

    def child(self, level: int, nodes: Tensor, codes: Tensor) -> Tensor:
        """Look up each node's child with a codeword of `level`, below the codebook size; -1 for none; all [...]."""
        if level < len(self.dense):
            return self.dense[level][nodes, codes]
        child, code = self.children(level, nodes)
        match = (child >= 0) & (code == codes[..., None])
        return torch.where(match.any(-1), torch.where(match, child, 0).sum(-1, dtype=torch.int32), -1)

    def child_mask(self, level: int, nodes: Tensor) -> Tensor:
        """Mark the codewords of a level that nodes [...] have a child with, bool [..., codebook_size]."""
        if level < len(self.dense):
            return self.dense[level][nodes] >= 0
        child, code = self.children(level, nodes)
        counts = torch.zeros(*nodes.shape, self.codebook_size, dtype=torch.int8, device=nodes.device)
        return counts.scatter_add(-1, code, (child >= 0).to(torch.int8)) > 0

    def allowed(self, codes: Tensor) -> Tensor:
        """Mark the codewords that continue the prefixes of valid IDs.

        Args:
            codes: of valid IDs [..., levels].

        Returns:
            bool [..., levels, codebook_size]; at each level with the ID's own codeword, and its siblings.
        """
        nodes = torch.zeros(codes.shape[:-1], dtype=torch.int32, device=codes.device)
        masks = []
        for level in range(self.levels):
            masks.append(self.child_mask(level, nodes))
            nodes = self.child(level, nodes, codes[..., level]).clamp(min=0)
        return torch.stack(masks, dim=-2)

    def find(self, codes: Tensor) -> Tensor:
        """Look up the nodes of prefixes [..., length] → [...], of whole IDs the leaves; -1 where no ID begins so."""
        node = torch.zeros(codes.shape[:-1], dtype=torch.int32, device=codes.device)
        valid = torch.ones_like(node, dtype=torch.bool)
        for level in range(codes.shape[-1]):
            child, code = self.children(level, node)
            match = (child >= 0) & (code == codes[..., level, None])
            valid &= match.any(-1)
            node = torch.where(match, child, 0).sum(-1, dtype=torch.int32)
        return torch.where(valid, node, -1)

    def first_item(self, leaves: Tensor) -> Tensor:
        """Look up the item of each leaf, the first where several share it, -1 for leaf -1; [...] → [...]."""
        return torch.where(leaves >= 0, self.leaf_items[self.leaf_offsets[leaves.clamp(min=0)]], -1)

    def closed_leaves(self, histories: Tensor) -> Tensor:
        """Find the leaves whose items are all in a user's history.

        Args:
            histories: item numbers padded with -1 [batch, length].

        Returns:
            Leaf numbers, padded with -1, each row sorted [batch, length].
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

    def items(self, leaves: Tensor, width: int, bought: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """List the items of ranked leaves.

        Args:
            leaves: leaf numbers, distinct in a row, -1 for none [batch, beams].
            width: most items of a user.
            bought: item numbers to leave out, padded with -1 [batch, length].

        Returns:
            Item numbers in the order of the leaves, padded with -1 (items that share an ID by item number), and the
            place in `leaves` of each; both [batch, min(width, beams · max_items)].
        """
        first, end = self.leaf_offsets[leaves.clamp(min=0)], self.leaf_offsets[leaves.clamp(min=0) + 1]
        row = first[..., None] + torch.arange(self.max_items, device=leaves.device)
        exists = (row < end[..., None]) & (leaves >= 0)[..., None]
        items = torch.where(exists, self.leaf_items[torch.where(exists, row, 0)], -1).flatten(1).long()
        if bought is not None:
            items = torch.where((items[:, :, None] == bought[:, None, :]).any(-1), -1, items)
        order = (items < 0).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
        return items.gather(1, order), order // self.max_items


class FullTree:
    """A tree of all codeword sequences, to measure how many invalid IDs a model generates without the trie.

    A node's number is its prefix read as a number in base `codebook_size`.

    Args:
        levels: codewords of an ID.
        codebook_size: codewords of a level.
    """

    def __init__(self, levels: int, codebook_size: int):
        self.levels, self.codebook_size = levels, codebook_size

    def candidates(self, level: int, nodes: Tensor, log_probs: Tensor, closed: Tensor | None = None) -> Tensor:
        """As `Trie.candidates`, with nothing masked."""
        return log_probs

    def choose(self, level: int, nodes: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """As `Trie.choose`."""
        return place, nodes * self.codebook_size + place


def _sort_items(codes: np.ndarray, codebook_size: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Sort items by ID, then by number.

    Returns:
        Per level, which sorted items start a new prefix [n_items]; and the sorted item numbers [n_items].
    """
    n_items, levels = codes.shape
    bits, item_bits = (codebook_size - 1).bit_length(), (n_items - 1).bit_length()
    if levels * bits + item_bits > 64:
        items = np.lexsort(codes.T[::-1])
        differs = np.ones((levels, n_items), dtype=bool)
        differs[:, 1:] = (codes[items[1:]] != codes[items[:-1]]).T
        return list(np.logical_or.accumulate(differs)), items.astype(np.int32)
    # ID and item number in one integer: sorting values is ten times as fast as an index sort by four keys
    key = np.zeros(n_items, dtype=np.uint64)
    for column in codes.T:
        key <<= np.uint64(bits)
        key |= column.astype(np.uint64)
    key <<= np.uint64(item_bits)
    key |= np.arange(n_items, dtype=np.uint64)
    key.sort()
    items = (key & np.uint64((1 << item_bits) - 1)).astype(np.int32)
    starts_prefix = []
    for level in range(levels):
        prefix = key >> np.uint64(item_bits + (levels - 1 - level) * bits)
        starts_prefix.append(np.append(True, prefix[1:] != prefix[:-1]))
    return starts_prefix, items


def _code_type(codebook_size: int) -> type:
    return np.uint8 if codebook_size <= 1 << 8 else np.int16 if codebook_size <= 1 << 15 else np.int32


def _dense_tables(offsets: list[Tensor], codes: list[Tensor], codebook_size: int) -> list[Tensor]:
    """Build `Trie.dense` for the first levels, as long as the tables are small."""
    tables = []
    for bounds, code in list(zip(offsets, codes, strict=True))[:DENSE_LEVELS]:
        nodes = len(bounds) - 1
        if nodes * codebook_size > DENSE_LIMIT:
            break
        parent = torch.repeat_interleave(torch.arange(nodes), bounds.diff())
        table = torch.full((nodes, codebook_size), -1, dtype=torch.int32)
        table[parent, code.long()] = torch.arange(len(code), dtype=torch.int32)
        tables.append(table)
    return tables
