"""Counts that grow by rows against a dense table."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from student import count_table
from student.count_table import CountTable

PLACES = st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from([0.25, 0.5, 1.0]))  # sums are exact


@pytest.mark.parametrize("cuts", [[], [1, 4, 4]])  # between shards of rows
@pytest.mark.parametrize("fold", [0, 2, 10**9])  # shards made anew: never, now and then, always
@given(st.lists(st.lists(PLACES, min_size=1, max_size=6), min_size=1, max_size=5), st.integers(0, 2**20))
@settings(max_examples=40, deadline=None)
def test_added_counts_are_those_of_a_dense_table(fold, cuts, batches, seed):
    rng = np.random.default_rng(seed)
    dense = rng.integers(0, 3, (6, 6)) * (rng.random((6, 6)) < 0.4) * 1.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(count_table, "FOLD", fold)
        matrix = sp.csr_array(dense)
        table = CountTable([matrix[start:end] for start, end in itertools.pairwise([0, *cuts, 6])])
        steps = [(table, dense.copy())]
        for batch in batches:
            rows, columns, counts = map(np.array, zip(*batch, strict=True))
            np.add.at(dense, (rows, columns), counts)
            table = table.add(rows, columns, counts)
            steps.append((table, dense.copy()))
        for each, expected in steps:  # earlier tables too: another thread may read them still
            assert each.whole().toarray().tolist() == expected.tolist()
            assert each.sums.tolist() == expected.sum(1).tolist()
            assert each._n_changed == sum(len(row.columns) for row in each._changed.values())
            numbers = rng.permutation(6)[:4]
            assert each.rows(numbers).toarray().tolist() == expected[numbers].tolist()
            assert each.rows(numbers[:0]).shape == (0, 6)


def test_only_named_rows_are_copied():
    matrix = sp.csr_array(np.eye(1000))
    table = CountTable([matrix]).add(np.array([3, 3]), np.array([4, 4]), np.array([1.0, 0.5]))
    assert table.rows(np.array([3])).toarray()[0, 3:5].tolist() == [1.0, 1.5]
    assert table._shards[0] is matrix and list(table._changed) == [3]
