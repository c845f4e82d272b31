"""Category paths as IDs: small trees by hand, and what cannot be numbered."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.runtime.errors import UserError
from distill.semantic_ids.category_paths import category_codes, path_of

# sorted: Music; Office, with Desk > Lamp and Pens below it
TREE = ["Office > Desk > Lamp", "Office > Pens", "Music", "Office > Pens", "Office > Desk > Lamp", "Office", "Music"]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("Office > Desk Lamp", ("Office", "Desk Lamp")),
        ("Office > Lamp, Home > Light", ("Office", "Lamp")),
        ("Industrial, Fasteners,Staples", ("Industrial", "Fasteners", "Staples")),
        ("A > > B", ("A", "B")),
        (" , ", ()),
        ("", ()),
    ],
)
def test_paths(text, path):
    assert path_of(text) == path


def test_codewords_are_the_steps_of_the_path():
    codes = category_codes(TREE, levels=4, codebook_size=8, seed=0)
    # level a: Music 1, Office 2; level b: Desk 1, Pens 2; level c: Lamp 1; 0 where the path has ended
    prefixes = [[2, 1, 1], [2, 2, 0], [1, 0, 0], [2, 2, 0], [2, 1, 1], [2, 0, 0], [1, 0, 0]]
    assert codes[:, :3].tolist() == prefixes
    for pair in ((0, 4), (1, 3), (2, 6)):
        assert sorted(codes[list(pair), 3]) == [0, 1]
    assert codes[5, 3] == 0


def test_longer_paths_are_cut():
    codes = category_codes(TREE, levels=2, codebook_size=8, seed=0)
    assert codes[:, 0].tolist() == [2, 2, 1, 2, 2, 2, 1]
    assert sorted(codes[[0, 1, 3, 4, 5], 1]) == [0, 1, 2, 3, 4]


def test_codewords_count_on_until_the_codebook_ends():
    codes = category_codes(["a > x", "a > y", "b > x", "b > z", "c > x"], levels=3, codebook_size=5, seed=0)
    assert codes[:, :2].tolist() == [[1, 1], [1, 2], [2, 3], [2, 4], [3, 1]]


def test_items_without_categories_are_numbered_under_codeword_0():
    codes = category_codes(["a", None, "", None, "a", None], levels=3, codebook_size=2, seed=0)
    assert codes[[0, 4], 0].tolist() == [1, 1]
    assert sorted(codes[[1, 2, 3, 5]].tolist()) == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]


def test_numbers_depend_on_the_seed_alone():
    first, again, other = (category_codes(["a"] * 9 + [""] * 9, 2, 9, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[:9, 1] != np.arange(9)).any()  # not the catalogue's order


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=4), min_size=1, max_size=25), st.integers(2, 5))
def test_items_share_a_prefix_if_they_share_the_path(paths, levels):
    texts = ["x > " + " > ".join(path) for path in paths]
    codes = category_codes(texts, levels, 64, seed=0)
    assert len(np.unique(codes, axis=0)) == len(texts)
    for row, path in zip(codes.tolist(), paths, strict=True):
        for other_row, other in zip(codes.tolist(), paths, strict=True):
            assert (row[:-1] == other_row[:-1]) == (["x", *path][: levels - 1] == ["x", *other][: levels - 1])


@pytest.mark.parametrize(
    ("categories", "levels", "size", "message"),
    [
        (["a", "b"], 1, 8, "needs --levels of at least 2"),
        (["", None], 3, 8, "no item of the data set has one"),
        (["a > x"] * 4, 3, 3, r"4 items share the category 'a > x' .* Use --codebook_size 4 or more"),
        (["a > x", "a > y", "a > z"], 3, 3, r"'a' has 3 categories, a level 2 codewords .* --codebook_size 4"),
        (["a", "b", "c"], 3, 3, "The data set has 3 categories"),
        (["a", *[""] * 10], 3, 3, "10 items have no category"),
    ],
)
def test_what_does_not_fit(categories, levels, size, message):
    with pytest.raises(UserError, match=message):
        category_codes(categories, levels, size, seed=0)
