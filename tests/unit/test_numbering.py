"""IDs without embeddings: SID, RID and IID by hand, P5-CID on graphs whose best cuts are plain to see."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from reference import numbering_naive as naive

from distill.data.dataset import Dataset, write_dataset
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from distill.semantic_ids import collaborative, numbering
from distill.semantic_ids.build import number_ids
from distill.semantic_ids.config import NUMBERINGS, IDSettings
from distill.semantic_ids.quantisers.settings import SpectralConfig

# pairs that are often bought together, in two groups with a weak bridge; item 8 is always bought alone
GROUPS = [*[[0, 1], [2, 3], [4, 5], [6, 7]] * 5, *[[1, 2], [5, 6]] * 2, [3, 4], [8]]


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def flat(sequences):
    return np.concatenate(sequences), np.cumsum([0, *map(len, sequences)])


def cid(sequences, n_items, levels, size, seed=0, **settings):
    return collaborative.collaborative_codes(*flat(sequences), n_items, levels, size, SpectralConfig(**settings), seed)


def test_digits_by_hand():
    assert numbering.digits(np.array([0, 5, 26]), 3, 3).tolist() == [[0, 0, 0], [0, 1, 2], [2, 2, 2]]
    assert numbering.digits(np.array([300]), 8, 32767)[0].tolist() == [0] * 7 + [300]


def test_sequential_ids_count_first_appearances():
    sequences = [[4, 2], [4, 0, 2], [5]]
    codes = numbering.sequential_codes(np.concatenate(sequences), 8, 3, 2, seed=0)
    numbers = codes @ [4, 2, 1]
    assert numbers[naive.first_appearances(sequences)].tolist() == [0, 1, 2, 3]
    assert sorted(numbers[[1, 3, 6, 7]]) == [4, 5, 6, 7]  # no training sequence holds these


def test_items_without_training_come_in_random_order():
    """The catalogue may be in the order of the held-out interactions."""
    orders = {tuple(numbering.sequential_codes(np.array([0]), 9, 1, 9, seed)[:, 0]) for seed in range(5)}
    assert len(orders) == 5 and all(order[0] == 0 for order in orders)


def test_random_ids_are_all_numbers_in_an_order_of_the_seed():
    one, two = (numbering.random_codes(25, 2, 5, seed) for seed in (0, 1))
    assert sorted((one @ [5, 1]).tolist()) == sorted((two @ [5, 1]).tolist()) == list(range(25))
    assert (one != two).any() and (one == numbering.random_codes(25, 2, 5, 0)).all()


def test_independent_ids_are_one_codeword():
    assert numbering.independent_codes(3, 1, 5).tolist() == [[0], [1], [2]]
    for levels, size in ((2, 5), (1, 2)):
        with pytest.raises(UserError, match=r"expected --levels 1 --codebook_size 3\."):
            numbering.independent_codes(3, levels, size)


def test_pairs_equal_the_definition():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(6, size=rng.integers(1, 6)).tolist() for _ in range(30)]  # with repeated items
    counts = collaborative.count_pairs(*flat(sequences), 7).toarray()
    np.testing.assert_array_equal(counts, naive.pairs(sequences, 7))


def test_collaborative_ids_are_the_path_of_clusters():
    codes = cid(GROUPS, 9, levels=3, size=8, clusters=2, leaf=2)
    groups, pairs = codes[:, 0], codes[:, 1]
    assert len(set(groups[:4])) == len(set(groups[4:8])) == 1 and {groups[0], groups[4]} == {1, 2}
    assert (pairs[0:8:2] == pairs[1:8:2]).all()
    assert set(pairs[:4:2]) | set(pairs[4:8:2]) == {1, 2, 3, 4}  # codewords count on from parent to parent
    assert {*pairs[:4]} in ({1, 2}, {3, 4})
    assert (codes[0:8:2, 2] != codes[1:8:2, 2]).all()
    assert codes[8, :2].tolist() == [0, 0]  # in no cluster


def test_codewords_are_used_again_where_the_codebook_ends():
    codes = cid(GROUPS, 9, levels=3, size=4, clusters=2, leaf=2)
    assert set(codes[:8, 1]) == {1, 2, 3}
    assert len(np.unique(codes, axis=0)) == 9


def test_a_small_cluster_is_not_divided():
    sequences = [*[[0, 1], [2, 3]] * 5, *[[1, 2]] * 2, *[[4, 5]] * 5]
    codes = cid(sequences, 6, levels=4, size=8, clusters=2, leaf=2)
    assert codes[4, 0] == codes[5, 0] != codes[0, 0]
    assert (codes[4:, 1:3] == 0).all()  # codeword 0 fills a path that ended
    assert (codes[:4, 1] > 0).all() and (codes[:4, 2] == 0).all()
    # the default: clusters of no more items than the last level has codewords stay whole
    assert (cid(sequences, 6, levels=4, size=8, clusters=2)[:, 1:3] == 0).all()


def test_collaborative_ids_depend_on_the_seed_alone():
    rng = np.random.default_rng(1)
    sequences = [rng.permutation(60)[:6].tolist() for _ in range(200)]
    one, two = (cid(sequences, 64, levels=3, size=8, clusters=5, leaf=4, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert len(np.unique(one, axis=0)) == 64 and one.min() == 0 and one.max() < 8


def test_nothing_is_bought_together():
    codes = cid([[item] for item in range(9)], 9, levels=3, size=3, clusters=2)
    assert (codes[:, 0] == 0).all() and len(np.unique(codes, axis=0)) == 9


@pytest.mark.parametrize(
    ("levels", "size", "settings", "message"),
    [
        (1, 8, {"clusters": 2}, "--levels of at least 2"),
        (3, 8, {"clusters": 8}, r"spectral\.clusters is 8; it must be from 2 to 7"),
        (3, 8, {"clusters": 1}, r"spectral\.clusters is 1"),
        (2, 3, {"clusters": 2}, "divided any more holds 4 items, the last level has 3 codes"),
    ],
)
def test_settings_that_cannot_work(levels, size, settings, message):
    with pytest.raises(UserError, match=message):
        cid(GROUPS, 9, levels, size, **settings)


def test_more_isolated_items_than_codes_of_codeword_0():
    with pytest.raises(UserError, match="10 items were never bought with another one; only 3 codes"):
        cid([[0, 1], [10, 11], [1, 10]], 14, levels=2, size=3, clusters=2)


@pytest.mark.parametrize("name", NUMBERINGS)
def test_held_out_interactions_are_not_counted(name, tmp_path):
    """Two shops that differ only in what users bought last."""
    rng, codes = np.random.default_rng(0), []
    train = [rng.permutation(20)[:5] for _ in range(40)]
    for number in range(2):
        last = [rng.permutation(24)[:2] for _ in train]
        with ArtifactJob("dataset", Nothing(), tmp_path / f"shop{number}").write() as folder:
            sequences = [np.concatenate(parts) for parts in zip(train, last, strict=True)]
            items = pa.table({"item_id": [str(item) for item in range(24)], "categories": ["a > b", "a", "c"] * 8})
            write_dataset(folder, items, [str(user) for user in range(40)], sequences)
        size = {"levels": 1, "codebook_size": 24} if name == "iid" else {"levels": 3, "codebook_size": 8}
        settings = IDSettings(quantiser=name, spectral=SpectralConfig(clusters=3, leaf=4), **size)
        ids = number_ids(Dataset.load(tmp_path / f"shop{number}"), settings)
        codes.append(ids.codes)
        assert len(np.unique(ids.codes, axis=0)) == 24
    np.testing.assert_array_equal(*codes)
