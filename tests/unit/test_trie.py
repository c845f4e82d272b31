from dataclasses import replace

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distill.decoding.trie import FullTree, Trie

#  item: 0          1          2          3          4 (= 1)    5
HAND = [[2, 0, 1], [0, 1, 1], [0, 1, 0], [2, 2, 2], [0, 1, 1], [0, 0, 2]]
# leaves in order of codes: 002 → 0, 010 → 1, 011 → 2, 201 → 3, 222 → 4


@st.composite
def catalogues(draw):
    """Codes of random items; small codebooks make full nodes and shared IDs, one level of size 1 a chain."""
    levels, size, n = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 24))
    codes = draw(arrays(np.int64, (n, levels), elements=st.integers(0, size - 1)))
    return codes, size


def walk(tree, level=0, node=0, prefix=()):
    """All (leaf, codes) below a node, through `children` alone."""
    if level == tree.levels:
        return [(node, prefix)]
    child, code = tree.children(level, torch.tensor(node))
    found = []
    for number in range(len(child)):
        if child[number] >= 0:
            found += walk(tree, level + 1, int(child[number]), (*prefix, int(code[number])))
    return found


def groups(codes):
    """Items by ID, in order of codes: what the leaves have to be."""
    behind = {}
    for item, row in enumerate(codes.tolist()):
        behind.setdefault(tuple(row), []).append(item)
    return [behind[key] for key in sorted(behind)]


def test_hand_made():
    tree = Trie.build(np.array(HAND), codebook_size=3)
    assert [offsets.tolist() for offsets in tree.offsets] == [[0, 2], [0, 2, 4], [0, 1, 3, 4, 5]]
    assert [codes.tolist() for codes in tree.codes] == [[0, 2], [0, 1, 0, 2], [2, 0, 1, 1, 2]]
    assert tree.max_children == [2, 2, 2]
    assert tree.leaf_of_item.tolist() == [3, 2, 1, 4, 2, 0]
    assert tree.max_items == 2
    assert tree.first_item(torch.tensor([0, 1, 2, 3, 4, -1])).tolist() == [5, 2, 1, 0, 3, -1]
    child, code = tree.children(2, torch.tensor([[0, 1]]))
    assert child.tolist() == [[[0, -1], [1, 2]]]
    assert code[child >= 0].tolist() == [2, 0, 1]
    assert [table.tolist() for table in tree.dense] == [[[0, -1, 1]], [[0, 1, -1], [2, -1, 3]]]


@given(catalogues())
def test_allowed_codewords_are_those_of_the_ids_with_the_same_prefix(catalogue):
    codes, size = catalogue
    for dense in (True, False):
        tree = Trie.build(codes, size)
        allowed = (tree if dense else replace(tree, dense=[])).allowed(torch.from_numpy(codes))
        for row, mask in zip(codes, allowed, strict=True):
            for level in range(codes.shape[1]):
                siblings = codes[(codes[:, :level] == row[:level]).all(1), level]
                assert mask[level].nonzero().flatten().tolist() == sorted(set(siblings.tolist()))


def test_children_by_hand():
    tree = Trie.build(np.array(HAND), codebook_size=3)
    for used in (tree, replace(tree, dense=[])):
        assert used.child(1, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 0, 2])).tolist() == [0, -1, 2, 3]


def test_prefixes_by_hand():
    """Nodes of one level: 0, 2; of two: 00, 01, 20, 22."""
    tree = Trie.build(np.array(HAND), codebook_size=3)
    assert tree.find(torch.tensor([[0], [1], [2]])).tolist() == [0, -1, 1]
    assert tree.find(torch.tensor([[0, 1], [0, 2], [2, 2], [1, 0]])).tolist() == [1, -1, 3, -1]


def test_find_by_hand():
    tree = Trie.build(np.array(HAND), codebook_size=3)
    asked = torch.tensor([[[2, 2, 2], [0, 1, 1]], [[2, 1, 1], [1, 0, 0]], [[0, 0, 0], [0, 0, 2]]])
    assert tree.find(asked).tolist() == [[4, 2], [-1, -1], [-1, 0]]


def test_closed_leaves_by_hand():
    tree = Trie.build(np.array(HAND), codebook_size=3)
    histories = torch.tensor([[1, 1, 3, -1], [4, 0, 1, -1], [5, 2, -1, -1], [-1, -1, -1, -1]])
    # item 1 shares its ID with item 4: its leaf closes only when both are bought, however often one is
    expected = [[-1, -1, -1, 4], [-1, 2, 2, 3], [-1, -1, 0, 1], [-1, -1, -1, -1]]
    assert tree.closed_leaves(histories).tolist() == expected


def test_items_by_hand():
    tree = Trie.build(np.array(HAND), codebook_size=3)
    leaves = torch.tensor([[2, 0, -1], [3, 2, 1]])
    items, place = tree.items(leaves, 3)
    assert items.tolist() == [[1, 4, 5], [0, 1, 4]]
    assert place.tolist() == [[0, 0, 1], [0, 1, 1]]
    assert tree.items(torch.tensor([[2, -1]]), 4)[0].tolist() == [[1, 4, -1, -1]]  # one ID, two items
    items, place = tree.items(leaves, 3, torch.tensor([[1, -1], [0, 4]]))
    assert items.tolist() == [[4, 5, -1], [1, 2, -1]]
    assert place[:, :2].tolist() == [[0, 1], [1, 2]]


@given(catalogues(), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_a_trie_knows_its_codes(catalogue, seed):
    codes, size = catalogue
    rng, trie = np.random.default_rng(seed), Trie.build(codes, size)
    assert trie.is_of(codes, size) and not trie.is_of(codes, size + 1) and not trie.is_of(codes[:, :-1], size)
    other = codes[rng.permutation(len(codes))]
    assert trie.is_of(other, size) == (other == codes).all()
    names = ("leaf_of_item", "leaf_offsets", "leaf_items")
    parts = [(name, getattr(trie, name)) for name in names] + [("codes", trie.codes[-1]), ("offsets", trie.offsets[-1])]
    name, part = parts[rng.integers(len(parts))]
    damaged = part.clone()
    damaged[rng.integers(len(part))] += 1
    changed = damaged if name in names else [*getattr(trie, name)[:-1], damaged]
    assert not replace(trie, **{name: changed}).is_of(codes, size)


@given(catalogues())
@example((np.array([[0, 1, 2, 3]]), 4))  # one chain
@example((np.array([[a, b] for a in range(3) for b in range(3)]), 3))  # every node full
@example((np.array([[1, 1]] * 5), 2))  # one ID for all
@settings(max_examples=60, deadline=None)
def test_paths_are_the_codes(catalogue):
    codes, size = catalogue
    tree = Trie.build(codes, size)
    behind = groups(codes)
    paths = walk(tree)
    assert [leaf for leaf, _ in paths] == list(range(len(behind)))
    assert [path for _, path in paths] == sorted({tuple(row) for row in codes.tolist()})
    for leaf, items in enumerate(behind):
        start, end = tree.leaf_offsets[leaf], tree.leaf_offsets[leaf + 1]
        assert tree.leaf_items[start:end].tolist() == items
        assert tree.first_item(torch.tensor([leaf])).tolist() == items[:1]
    assert tree.max_items == max(map(len, behind))


@given(catalogues())
@settings(max_examples=60, deadline=None)
def test_find_is_the_inverse(catalogue):
    codes, size = catalogue
    tree = Trie.build(codes, size)
    assert tree.find(torch.from_numpy(codes)).tolist() == tree.leaf_of_item.tolist()
    everything = np.stack(np.meshgrid(*[np.arange(size)] * codes.shape[1], indexing="ij"), -1).reshape(-1, tree.levels)
    numbers = {path: leaf for leaf, path in walk(tree)}
    expected = [numbers.get(tuple(row), -1) for row in everything.tolist()]
    assert tree.find(torch.from_numpy(everything)).tolist() == expected


@given(catalogues(), st.data())
@settings(max_examples=100, deadline=None)
def test_closed_leaves_and_items(catalogue, data):
    codes, size = catalogue
    tree = Trie.build(codes, size)
    behind = groups(codes)
    length, width = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    histories = data.draw(arrays(np.int64, (2, length), elements=st.integers(-1, len(codes) - 1)))
    ranked = data.draw(st.lists(st.permutations(range(len(behind))), min_size=2, max_size=2))
    leaves = np.full((2, width), -1)
    for row, order in enumerate(ranked):
        leaves[row, : len(order)] = order[:width]

    closed = tree.closed_leaves(torch.from_numpy(histories))
    assert (closed.diff(dim=1) >= 0).all()
    for row in range(2):
        bought = set(histories[row].tolist())
        expected = {leaf for leaf, items in enumerate(behind) if set(items) <= bought}
        assert set(closed[row].tolist()) - {-1} == expected

    for bought in (None, torch.from_numpy(histories)):
        items, place = tree.items(torch.from_numpy(leaves), width, bought)
        for row in range(2):
            gone = set() if bought is None else set(histories[row].tolist())
            expected = [
                (item, number)
                for number, leaf in enumerate(leaves[row].tolist())
                if leaf >= 0
                for item in behind[leaf]
                if item not in gone
            ][:width]
            found = [(i, p) for i, p in zip(items[row].tolist(), place[row].tolist(), strict=True) if i >= 0]
            assert found == expected
            assert items[row, len(expected) :].tolist() == [-1] * (width - len(expected))


@given(catalogues(), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_candidates_and_choices_are_the_children(catalogue, seed):
    """Tables (the first levels) and runs (the others) say the same as `children`."""
    codes, size = catalogue
    tree = Trie.build(codes, size)
    runs_only = replace(tree, dense=[])
    rng = np.random.default_rng(seed)
    for level in range(tree.levels):
        nodes = torch.from_numpy(rng.integers(0, len(tree.offsets[level]) - 1, (2, 3)))
        log_probs = torch.from_numpy(rng.normal(size=(2, 3, size)))
        child, code = tree.children(level, nodes)
        expected = {
            (
                row,
                beam,
                int(child[row, beam, m]),
                int(code[row, beam, m]),
                float(log_probs[row, beam, code[row, beam, m]]),
            )
            for row, beam, m in np.argwhere(child.numpy() >= 0).tolist()
        }
        for layout in (tree, runs_only):
            found = layout.candidates(level, nodes, log_probs)
            codes_there, child_there = layout.choose(
                level, nodes[..., None].expand(found.shape), torch.arange(found.shape[2]).expand(found.shape)
            )
            assert expected == {
                (*place[:2], int(child_there[tuple(place)]), int(codes_there[tuple(place)]), float(found[tuple(place)]))
                for place in np.argwhere(found.numpy() > -np.inf).tolist()
            }


@given(catalogues())
@settings(max_examples=30, deadline=None)
def test_both_sorts_agree(catalogue):
    """One integer an item, or four keys where they do not fit into one."""
    codes, size = catalogue
    narrow, wide = Trie.build(codes, size), Trie.build(codes, 1 << 20 if codes.shape[1] > 3 else 1 << 40)
    assert wide.leaf_items.tolist() == narrow.leaf_items.tolist()
    assert [one.tolist() for one in wide.codes] == [one.tolist() for one in narrow.codes]
    assert [one.tolist() for one in wide.offsets] == [one.tolist() for one in narrow.offsets]


@given(codes=catalogues())
@settings(max_examples=10, deadline=None)
def test_save_and_load(tmp_path_factory, codes):
    tree = Trie.build(*codes)
    path = tmp_path_factory.mktemp("trie") / "trie.safetensors"
    tree.save(path)
    loaded = Trie.load(path)
    for name, value in vars(tree).items():
        other = getattr(loaded, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other), name
        elif name in ("offsets", "codes", "dense"):
            assert all(map(torch.equal, value, other)), name
        else:
            assert value == other, name


def test_full_tree():
    tree = FullTree(levels=3, codebook_size=3)
    log_probs = torch.randn(1, 2, 3)
    nodes = torch.tensor([[4, 7]])
    assert tree.candidates(1, nodes, log_probs) is log_probs
    code, child = tree.choose(1, nodes, torch.tensor([[2, 0]]))
    assert code.tolist() == [[2, 0]] and child.tolist() == [[3 * 4 + 2, 3 * 7]]
