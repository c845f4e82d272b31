"""Items withheld from training: by hand, and against the definition on random sequences."""

from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.test_dataset import make

from distill.data.config import PrepareSettings
from distill.data.prepare import prepare, raw_identity
from distill.data.splits import leave_one_out
from distill.data.withholding import draw_items, remove_from_training
from distill.runtime.errors import UserError


def remove(sequences, withheld, ends=None, min_train=1, n_items=6):
    """The remaining sequences (None: the user is left out) and the ends of the users who remain."""
    offsets = np.cumsum([0, *map(len, sequences)])
    mask = np.isin(np.arange(n_items), withheld)
    ends = leave_one_out(offsets) if ends is None else np.array(ends)
    values = np.concatenate(sequences)
    keep, new_ends = remove_from_training(values, offsets, ends, mask, min_train)
    rest = [values[a:b][keep[a:b]].tolist() or None for a, b in pairwise(offsets)]
    return rest, new_ends.tolist()


def test_leave_one_out_by_hand():
    """Only the training part loses items; the last two positions are those of the original sequence."""
    sequences = [
        [0, 1, 2, 3, 4],  # 1 is withheld: training part 0, 2
        [1, 0, 2, 1, 1],  # withheld items remain as validation and test targets
        [1, 2, 3],  # nothing left to train on: the user is left out
        [5, 3, 5],  # not concerned
    ]
    rest, ends = remove(sequences, [1])
    assert rest == [[0, 2, 3, 4], [0, 2, 1, 1], None, [5, 3, 5]]
    assert ends == [[2, 3], [2, 3], [1, 2]]


def test_split_by_time_by_hand():
    sequences = [
        [1, 0, 2, 3, 1],  # train 1 0 2, valid 3, test 1
        [1, 1, 1, 4],  # train 1 1, valid 1, test 4: comes without training part
        [1, 2],  # train 1, valid 2: one interaction would be left, so the user is left out
        [3, 1],  # all test: nothing to remove
        [0, 1],  # valid 0 1
    ]
    rest, ends = remove(sequences, [1], [[3, 4], [2, 3], [1, 2], [0, 0], [0, 2]], min_train=0)
    assert rest == [[0, 2, 3, 1], [1, 4], None, [3, 1], [0, 1]]
    assert ends == [[2, 3], [0, 1], [0, 0], [0, 2]]


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=9), min_size=1, max_size=6), st.sets(st.integers(0, 5))
)
@settings(max_examples=100, deadline=None)
def test_leave_one_out_by_definition(sequences, withheld):
    expected = []
    for sequence in sequences:
        training = [item for item in sequence[:-2] if item not in withheld]
        expected.append([*training, *sequence[-2:]] if training else None)
    if not any(row and len(row) > 3 for row in expected):
        with pytest.raises(UserError, match="the training part has no target left"):
            remove(sequences, list(withheld))
        return
    rest, ends = remove(sequences, list(withheld))
    assert rest == expected
    assert ends == [[len(row) - 2, len(row) - 1] for row in expected if row]


def test_a_part_without_targets_is_refused():
    with pytest.raises(UserError, match="without 2 of the 6 items the training part has no target left"):
        remove([[0, 1, 2, 3], [1, 0, 2, 2]], [0, 1])
    # split by time: the only validation target would have no history
    ends = [[1, 2], [2, 2]]
    assert remove([[1, 2, 3], [0, 0, 4]], [5], ends, min_train=0)[1] == ends
    with pytest.raises(UserError, match="the validation part has no target left"):
        remove([[1, 2, 3], [0, 0, 4]], [1], ends, min_train=0)


def test_draw():
    for n_items, share, count in ((600, 0.05, 30), (10, 0.3, 3), (5, 0.01, 1), (10, 0.99, 10)):
        withheld = draw_items(n_items, share, seed=0)
        assert withheld.dtype == bool and len(withheld) == n_items and withheld.sum() == count
        assert (draw_items(n_items, share, seed=0) == withheld).all()
    assert (draw_items(600, 0.05, seed=0) != draw_items(600, 0.05, seed=1)).any()


def test_cold_items(tmp_path):
    """Items that stand in no training part: 0 is a test target, 2 a validation target, 4 has no interaction."""
    data = make(tmp_path, [[1, 3, 5, 1], [3, 3, 2, 0]])
    assert data.cold_items().tolist() == [0, 2, 4, 5]
    assert make(tmp_path / "all", [[0, 1, 2, 3, 4, 5, 0, 0]]).cold_items().tolist() == []


def test_column_and_cold_items(tmp_path):
    make(tmp_path / "plain")
    assert "withheld" not in pq.read_table(tmp_path / "plain/dataset/items.parquet").column_names
    data = make(tmp_path, withheld=np.array([False, True, False, False, False, True]))
    assert data.items["withheld"].to_pylist() == [False, True, False, False, False, True]
    assert data.texts() == ["A. x", "B", "", "D. y", "E", "F"]


@pytest.mark.parametrize("split", ["leave_one_out", "global_cut"])
def test_prepared_data(tmp_path, split):
    """Targets of validation and test are those without withholding; no training part holds a withheld item."""
    rng = np.random.default_rng(0)
    rows = [f"u{user},i{item},{time}" for user in range(40) for time, item in enumerate(rng.integers(0, 30, 8))]
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    common = {"format": "table", "input": tmp_path, "split": split}
    plain, withheld = prepare(PrepareSettings(**common)), prepare(PrepareSettings(**common, withhold=0.2, seed=3))
    assert plain.withheld is None and "withheld_items" not in plain.facts()
    assert withheld.withheld.sum() == withheld.facts()["withheld_items"] == 6
    assert withheld.source.items.equals(plain.source.items)

    def parts(prepared):
        """User id -> training items, and the items after them."""
        source = prepared.source
        ends = leave_one_out(source.offsets) if prepared.ends is None else prepared.ends
        rows = [source.values[a:b].tolist() for a, b in pairwise(source.offsets)]
        return {
            user: (row[: end[0]], row[end[0] :], (end[1] - end[0]))
            for user, row, end in zip(source.user_ids.to_pylist(), rows, ends.tolist(), strict=True)
        }

    before, after = parts(plain), parts(withheld)
    assert len(after) > 30
    for user, (training, rest, n_valid) in after.items():
        assert training == [item for item in before[user][0] if not withheld.withheld[item]]
        assert (rest, n_valid) == before[user][1:]
    assert any(withheld.withheld[item] for _, rest, _ in after.values() for item in rest)
    times = withheld.source.times
    assert len(times) == len(withheld.source.values) == withheld.facts()["interactions"]


def test_identity_names_the_share_only_where_it_is_used():
    assert "withhold" not in raw_identity(PrepareSettings())
    assert raw_identity(PrepareSettings(withhold=0.1))["withhold"] == 0.1
