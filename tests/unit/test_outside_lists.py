"""Rows of systems outside this project: lists read from parquet."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.data.dataset import Dataset, write_dataset
from distill.evaluation.outside_lists import check_names, content_hash, read_outside_lists
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import JobSettings
from distill.runtime.errors import UserError

SEQUENCES = [[0, 1, 2, 3], [3, 4, 5], [5, 4, 0, 1]]  # test targets 3, 5, 1


def dataset(folder, ends=None):
    with ArtifactJob("dataset", JobSettings(), folder).write() as output:
        items = pa.table({"item_id": [f"i{number}" for number in range(6)]})
        write_dataset(output, items, ["a", "b", "c"], [np.array(row) for row in SEQUENCES], ends=ends)
    return Dataset.load(folder)


@pytest.fixture
def shop(tmp_path):
    return dataset(tmp_path / "dataset")


def write(path, users, items, **more):
    pq.write_table(pa.table({"user_id": users, "items": pa.array(items, pa.list_(pa.string())), **more}), path)
    return path


def lists_of(shop, path, split="test", first=None):
    return read_outside_lists(path, shop, shop.examples(split).take(slice(0, first)), split)


def test_lists_of_users_in_any_order(shop, tmp_path):
    path = write(tmp_path / "x.parquet", ["c", "a", "b"], [["i1"], ["i4", "i3", "i5"], []])
    outside = lists_of(shop, path)
    assert outside.name == "x"
    assert outside.items.tolist() == [[4, 3, 5], [-1, -1, -1], [1, -1, -1]]
    assert lists_of(shop, path, first=2).items.tolist() == [[4, 3, 5], [-1, -1, -1]]


def test_several_examples_of_a_user(tmp_path):
    """Split by time: user c has two test examples, b none; c's rows are in time order."""
    shop = dataset(tmp_path / "dataset", np.array([[2, 3], [3, 3], [1, 2]]))
    path = write(tmp_path / "x.parquet", ["c", "a", "c"], [["i0"], ["i3"], ["i1"]])
    assert shop.examples("test").targets.tolist() == [3, 0, 1]
    assert lists_of(shop, path).items.tolist() == [[3], [0], [1]]
    assert lists_of(shop, path, first=2).items.tolist() == [[3], [0]]


def test_note(shop, tmp_path):
    """a has bought i2, c bought i4 and i5 (one list); b's list holds nothing of its history."""
    path = write(tmp_path / "x.parquet", ["a", "b", "c"], [["i2", "i5"], ["i0"], ["i4", "i5"]])
    outside, examples = lists_of(shop, path), shop.examples("test")
    assert (
        outside.note(examples, True) == "ranked outside this project; 2 lists hold bought items, which keep their ranks"
    )
    assert outside.note(examples, False) == "ranked outside this project"


A, B, C = [["i1"], ["i2"], ["i3"]]


@pytest.mark.parametrize(
    ("users", "items", "more", "message"),
    [
        (["a", "b", "z"], [A, B, C], {}, "names 1 users that the data set does not have, first 'z'"),
        (["a", "b", "c"], [A, ["i9"], C], {}, "names 1 items that the data set does not have, first 'i9'"),
        (["a", "b", "c"], [A, [None], C], {}, "names 1 items that the data set does not have, first None"),
        (["a", "b"], [A, B], {}, "lacks lists of 1 users or has too many: first user c, 0 instead of 1"),
        (["a", "b", "c", "b"], [A, B, C, A], {}, "first user b, 2 instead of 1"),
        (["a", "b", "c"], [A, ["i1", "i2", "i1"], C], {}, "the list of user b holds item 'i1' twice"),
        (["a", "b", "c"], [A, None, C], {}, "row 1 has no list"),
        (["a", "b", "c"], [A, ["i1", "i2"], C], {"scores": [[1.0], [0.5, 0.6], [0.0]]}, "scores of user b rise"),
        (["a", "b", "c"], [A, B, C], {"scores": [[1.0], [0.5, 0.6], [0.0]]}, "different lengths"),
        (
            ["a", "b", "c"],
            [A, B, C],
            {"scores": [1.0, 0.5, 0.6]},
            "'scores' must hold a list in each row, it holds double",
        ),
    ],
)
def test_refused(shop, tmp_path, users, items, more, message):
    with pytest.raises(UserError, match=message):
        lists_of(shop, write(tmp_path / "x.parquet", users, items, **more))


def test_scores_may_rise_from_one_list_to_the_next(shop, tmp_path):
    scores = [[2.0, 1.0], [], [3.0]]
    path = write(tmp_path / "x.parquet", ["a", "b", "c"], [["i1", "i2"], [], ["i3"]], scores=scores)
    assert lists_of(shop, path).items.tolist() == [[1, 2], [-1, -1], [3, -1]]


def test_files_that_are_refused(shop, tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        content_hash(tmp_path / "none.parquet")
    (tmp_path / "x.parquet").write_text("user_id,items")
    with pytest.raises(UserError, match="is no readable parquet file"):
        lists_of(shop, tmp_path / "x.parquet")
    pq.write_table(pa.table({"user": ["a"], "items": [["i1"]]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="has no column 'user_id'; it has user, items"):
        lists_of(shop, tmp_path / "x.parquet")
    for others, name in (([], "graph"), ([], "teacher"), ([], "teacher+transitions"), (["tiger"], "tiger")):
        with pytest.raises(UserError, match=re.escape(f"would be the row '{name}', which there is already")):
            check_names([tmp_path / f"{name}.parquet"], others)
    with pytest.raises(UserError, match=r"'target' names a column of lists\.parquet"):
        check_names([tmp_path / "target.parquet"], [])
    with pytest.raises(UserError, match="would be the row 'x'"):
        check_names([tmp_path / "x.parquet", tmp_path / "other/x.parquet"], [])
