import json
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.dataset import PAD, Dataset, as_lists, statistics, write_dataset
from distill.data.mapped_sequences import ITEMS as ITEMS_FILE
from distill.data.mapped_sequences import STARTS, SequenceWriter, map_sequences
from distill.data.splits import assign_folds, cut_by_time
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.checksums import SEAL, seal
from distill.runtime.errors import UserError

SEQUENCES = [[0, 1, 2, 3, 4], [4, 2, 0], [5, 3, 1, 5]]
TITLES, BRANDS = ["A", "B", "", "D", "E", "F"], ["x", "", "", "y", "", ""]
ITEMS = pa.table({"item_id": list("abcdef"), "title": TITLES, "brand": BRANDS})


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def make(root, sequences=SEQUENCES, items=ITEMS, times=None, ends=None, withheld=None):
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        users = [f"u{number}" for number in range(len(sequences))]
        write_dataset(folder, items, users, [np.array(sequence) for sequence in sequences], times, ends, withheld)
    return Dataset.load(root / "dataset")


def listed(examples):
    """Examples as (user, position, history, target)."""
    histories = [[int(item) for item in row if item != PAD] for row in examples.histories]
    for row, history in zip(examples.histories, histories, strict=True):
        assert row[: len(history)].tolist() == history  # padding on the right only
    columns = (examples.users.tolist(), examples.positions.tolist(), histories, examples.targets.tolist())
    return list(zip(*columns, strict=True))


def test_leave_one_out_by_hand(tmp_path):
    data = make(tmp_path)
    assert (data.n_items, data.n_users, data.user_ids.to_pylist()) == (6, 3, ["u0", "u1", "u2"])
    assert listed(data.examples("test")) == [(0, 4, [0, 1, 2, 3], 4), (1, 2, [4, 2], 0), (2, 3, [5, 3, 1], 5)]
    assert listed(data.examples("valid")) == [(0, 3, [0, 1, 2], 3), (1, 1, [4], 2), (2, 2, [5, 3], 1)]
    assert listed(data.examples("train")) == [(0, 1, [0], 1), (0, 2, [0, 1], 2), (2, 1, [5], 3)]


def test_history_is_cut_to_the_last_items(tmp_path):
    data = make(tmp_path, [[0, 1, 2, 3, 4, 5, 0], [3, 4, 5]])
    assert data.examples("test", 3).histories.tolist() == [[3, 4, 5], [3, 4, PAD]]
    assert data.examples("valid", 3).histories.tolist() == [[2, 3, 4], [3, PAD, PAD]]
    assert [row[2] for row in listed(data.examples("train", 2))] == [[0], [0, 1], [1, 2], [2, 3]]
    assert data.examples("test").histories.shape == (2, 20)


def test_training_sequences(tmp_path):
    values, offsets = make(tmp_path).training_sequences()
    assert values.tolist() == [0, 1, 2, 4, 5, 3] and offsets.tolist() == [0, 3, 4, 6]


@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=9), min_size=1, max_size=6), st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_splits_by_definition(sequences, longest):
    offsets = np.cumsum([0, *map(len, sequences)])
    data = Dataset(None, ITEMS, [f"u{u}" for u in range(len(sequences))], np.concatenate(sequences), offsets)
    for split in ("train", "valid", "test"):
        expected = []
        for user, sequence in enumerate(sequences):
            last = len(sequence) - 1
            positions = {"test": [last], "valid": [last - 1], "train": range(1, last - 1)}[split]
            expected += [(user, p, sequence[max(p - longest, 0) : p], sequence[p]) for p in positions]
        assert listed(data.examples(split, longest)) == expected
    for with_validation, end in ((False, -2), (True, -1)):
        values, starts = data.training_sequences(with_validation)
        assert [values[a:b].tolist() for a, b in pairwise(starts)] == [s[:end] for s in sequences]


def test_global_cut_by_hand(tmp_path):
    times = [[1, 2, 5, 8, 9], [6, 7, 8], [1, 9, 9, 9], [2, 3]]
    sequences = [*SEQUENCES, [1, 0]]
    offsets = np.cumsum([0, *map(len, sequences)])
    ends, moments = cut_by_time(np.concatenate(times), offsets, 5, 8)
    assert moments == (5, 8) and ends.tolist() == [[2, 3], [0, 2], [1, 1], [2, 2]]
    data = make(tmp_path, sequences, times=times, ends=ends)
    values, starts = data.training_sequences()
    assert values.tolist() == [0, 1, 5, 1, 0] and starts.tolist() == [
        0,
        2,
        2,
        3,
        5,
    ]  # u1 comes later: an empty sequence
    assert data.training_sequences(with_validation=True)[0].tolist() == [0, 1, 2, 4, 2, 5, 1, 0]
    assert listed(data.examples("train")) == [(0, 1, [0], 1), (3, 1, [1], 0)]
    assert listed(data.examples("valid")) == [(0, 2, [0, 1], 2), (1, 1, [4], 2)]
    assert listed(data.examples("test")) == [
        (0, 3, [0, 1, 2], 3),
        (0, 4, [0, 1, 2, 3], 4),
        (1, 2, [4, 2], 0),
        (2, 1, [5], 3),
        (2, 2, [5, 3], 1),
        (2, 3, [5, 3, 1], 5),
    ]
    # the columns are there for this split only
    assert pq.read_table(tmp_path / "dataset/sequences.parquet").column_names[3:] == ["train_end", "valid_end"]
    assert pq.read_table(make(tmp_path / "other").artifact.folder / "sequences.parquet").num_columns == 3


timed = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), min_size=2, max_size=9)


@given(st.lists(timed, min_size=1, max_size=6), st.integers(1, 12), st.integers(1, 12), st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_global_cut_by_definition(users, one, other, longest):
    """Every interaction is in the part of its time, and a target wherever it is not its user's first."""
    cuts = sorted((one, other))
    users = [sorted(user, key=lambda pair: pair[1]) for user in users]
    expected = {"train": [], "valid": [], "test": []}
    for user, pairs in enumerate(users):
        items = [item for item, _ in pairs]
        for p, (item, time) in enumerate(pairs):
            part = ("train", "valid", "test")[(time >= cuts[0]) + (time >= cuts[1])]
            if p:
                expected[part].append((user, p, items[max(p - longest, 0) : p], item))
    flat = np.array([pair for user in users for pair in user])
    offsets = np.cumsum([0, *map(len, users)])
    if not all(expected.values()):
        names = {"train": "training", "valid": "validation", "test": "test"}
        empty = next(names[part] for part in expected if not expected[part])
        with pytest.raises(UserError, match=f"the {empty} part has no target"):
            cut_by_time(flat[:, 1], offsets, *cuts)
        return
    ends, _ = cut_by_time(flat[:, 1], offsets, *cuts)
    data = Dataset(None, ITEMS, pa.array([f"u{u}" for u in range(len(users))]), flat[:, 0], offsets, ends)
    assert {split: listed(data.examples(split, longest)) for split in expected} == expected
    for with_validation in (False, True):
        values, starts = data.training_sequences(with_validation)
        early = [[item for item, time in user if time < cuts[with_validation]] for user in users]
        assert [values[a:b].tolist() for a, b in pairwise(starts)] == early


def test_shares_of_the_interactions():
    times, offsets = np.arange(100, 200), np.arange(0, 101, 10)  # ten users, ten each
    ends, moments = cut_by_time(times, offsets, 0.55, 0.95)
    assert moments == (155, 195)
    assert ends.sum(0).tolist() == [55, 95]
    assert cut_by_time(times, offsets, 155, 0.95)[0].tolist() == ends.tolist()
    with pytest.raises(UserError, match=r"validation part has no target.* 1970-01-01T00:01:40 UTC to 1970-01-01T00:03"):
        cut_by_time(times, offsets, 0.9, 0.8)


def test_statistics(tmp_path):
    expected = {"users": 3, "items": 6, "interactions": 12, "sparsity": 1 - 12 / 18, "mean_length": 4.0}
    assert make(tmp_path).statistics() == expected == statistics(6, np.array([0, 5, 8, 12]))


def test_flat_lists_are_written_alike(tmp_path):
    """Arrow lists and arrays give the same bytes."""
    first = make(tmp_path / "a", times=[[1, 2, 3, 4, 5], [6, 7, 8], [9, 9, 9, 10]])
    offsets = np.array([0, 5, 8, 12])
    with ArtifactJob("dataset", Nothing(), tmp_path / "b").write() as folder:
        values = as_lists(np.concatenate(SEQUENCES), offsets, pa.int32())
        times = as_lists(np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 10]), offsets, pa.int64())
        write_dataset(folder, ITEMS, pa.array(["u0", "u1", "u2"]), values, times)
    assert Dataset.load(tmp_path / "b").artifact.fingerprint == first.artifact.fingerprint


def test_nobody_to_train_on(tmp_path):
    examples = make(tmp_path, [[0, 1, 2]]).examples("train", 4)
    assert len(examples) == 0 and examples.histories.shape == (0, 4)


def test_take(tmp_path):
    examples = make(tmp_path).examples("train")
    assert listed(examples.take(np.array([2, 0]))) == [(2, 1, [5], 3), (0, 1, [0], 1)]
    assert listed(examples.take(slice(1, 2))) == [(0, 2, [0, 1], 2)]


def test_texts(tmp_path):
    assert make(tmp_path).texts() == ["A. x", "B", "", "D. y", "E", "F"]


def test_times_and_missing_columns(tmp_path):
    make(tmp_path, times=[[1, 2, 3, 4, 5], [6, 7, 8], [9, 9, 9, 10]])
    table = pq.read_table(tmp_path / "dataset" / "sequences.parquet")
    assert table["timestamps"].to_pylist()[1] == [6, 7, 8]
    items = pq.read_table(tmp_path / "dataset" / "items.parquet")
    assert set(items["description"].to_pylist()) == {""}


def test_without_times(tmp_path):
    make(tmp_path)
    table = pq.read_table(tmp_path / "dataset" / "sequences.parquet")
    assert table["timestamps"].to_pylist() == [None, None, None]


@pytest.mark.parametrize(
    ("items", "users", "sequences", "message"),
    [
        (["a", "b", "a"], ["u"], [[0, 1, 2]], "Duplicate item id 'a' in items (row 2)"),
        (["a", "b", "c"], ["u", "v", "u"], [[0, 1, 2]] * 3, "Duplicate user id 'u' in sequences (row 2)"),
        (["a", "b", "c"], ["u"], [[0, 1, 3]], "User u names an item outside the catalogue of 3 items"),
        (["a", "b", "c"], ["u"], [[0, -1, 1]], "User u names an item outside the catalogue of 3 items"),
        (["a", "b", "c"], ["u", "v"], [[0, 1, 2], [0, 1]], "User v has 2 interactions"),
        (["a", "b", "c"], ["u"], [[]], "User u has 0 interactions"),
        (["a", "b", "c"], ["u", "v"], [[0, 1, 2], [0, 1, 2, 3]], "User v names an item outside"),
    ],
)
def test_refusals(tmp_path, items, users, sequences, message):
    with pytest.raises(UserError) as error:
        write_dataset(tmp_path, pa.table({"item_id": items}), users, [np.array(s, dtype=int) for s in sequences])
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_damaged_files(tmp_path, monkeypatch):
    make(tmp_path)
    monkeypatch.setenv("LOHREC_NO_VERIFY", "1")  # as of earlier versions, whose manifests have no checksums
    path = tmp_path / "dataset" / "sequences.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"sequences\.parquet is not a readable parquet file"):
        Dataset.load(tmp_path / "dataset")
    pq.write_table(pa.table({"user_id": ["u"]}), path)
    with pytest.raises(UserError, match="has no column 'items'; it has user_id"):
        Dataset.load(tmp_path / "dataset")
    path.unlink()
    with pytest.raises(UserError, match="Missing file"):
        Dataset.load(tmp_path / "dataset")


def without_mapped_files(root):
    """Make the data set as earlier versions wrote it."""
    path = root / "dataset/manifest.json"
    manifest = json.loads(path.read_text())
    for name in (ITEMS_FILE, STARTS):
        (root / "dataset" / name).unlink()
        del manifest["files"][name]
    path.write_text(json.dumps(seal({name: value for name, value in manifest.items() if name != SEAL})))
    return Dataset.load(root / "dataset")


@pytest.mark.parametrize("ends", [None, np.array([[3, 4], [1, 2], [2, 4]])])
def test_mapped_sequences_are_those_of_parquet_alone(tmp_path, ends):
    mapped = make(tmp_path, ends=ends)
    assert mapped.values.base is not None and not mapped.values.flags.writeable and mapped.values.dtype == np.int32
    plain = without_mapped_files(tmp_path)
    assert plain.values.tolist() == mapped.values.tolist() == [item for row in SEQUENCES for item in row]
    assert plain.offsets.tolist() == mapped.offsets.tolist() == [0, 5, 8, 12]
    results = []
    for data in (mapped, plain):
        arrays = [*data.training_sequences(), *data.training_sequences(True), data.sequence(2), data.cold_items()]
        for split in ("train", "valid", "test"):
            arrays += vars(data.examples(split, 3)).values()
        results.append([(array.dtype, array.tolist()) for array in arrays])
    assert results[0] == results[1] and {dtype for dtype, _ in results[0]} == {np.dtype(np.int64)}


def test_damaged_mapped_files(tmp_path, monkeypatch):
    folder = make(tmp_path).artifact.folder
    items, starts = (folder / ITEMS_FILE).read_bytes(), (folder / STARTS).read_bytes()

    def refused(name, content, message):
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            Dataset.load(folder)
        (folder / ITEMS_FILE).write_bytes(items)
        (folder / STARTS).write_bytes(starts)

    refused(ITEMS_FILE, items[:-4] + b"\1\0\0\0", r"sequence_items\.npy is damaged: its checksum")
    monkeypatch.setenv("LOHREC_NO_VERIFY", "1")
    refused(ITEMS_FILE, items[:-4], r"sequence_items\.npy is not a readable NumPy file")
    refused(ITEMS_FILE, starts, r"sequence_items\.npy is damaged: expected int32")
    refused(ITEMS_FILE, items[:-4] + b"\6\0\0\0", "row 2 names an item outside the catalogue of 6 items")
    refused(STARTS, starts[:-8] + b"\x0b" + bytes(7), r"its starts do not divide the 12 interactions")
    short = tmp_path / "short"
    short.mkdir()
    with SequenceWriter(short, 1, 12) as writer:
        writer.append(np.arange(12), np.array([12]))
    refused(STARTS, (short / STARTS).read_bytes(), r"sequences\.parquet has 3 users, sequence_starts\.npy beside it 1")
    (folder / ITEMS_FILE).unlink()
    assert Dataset.load(folder).values.tolist() == [item for row in SEQUENCES for item in row]  # from parquet


def test_mapped_files_in_pieces_have_the_same_bytes(tmp_path):
    lengths, values = np.array([2, 0, 3]), np.array([4, 1, 7, 0, 2])
    for name, cuts in (("whole", [0, 3]), ("pieces", [0, 1, 2, 3])):
        (tmp_path / name).mkdir()
        with SequenceWriter(tmp_path / name, 3, 5) as writer:
            for start, end in pairwise(cuts):
                part = slice(lengths[:start].sum(), lengths[:end].sum())
                writer.append(values[part], lengths[start:end])
    for name in (ITEMS_FILE, STARTS):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "pieces" / name).read_bytes()
    items, starts = map_sequences(tmp_path / "pieces")
    assert items.tolist() == [4, 1, 7, 0, 2] and starts.tolist() == [0, 2, 2, 5]


def test_repeats_looks_at_the_training_part_alone(tmp_path):
    assert not make(tmp_path / "tested", [[5, 3, 1, 5], [0, 1, 2]]).repeats()
    assert make(tmp_path / "trained", [[5, 5, 1, 3], [0, 1, 2]]).repeats()
    assert not make(tmp_path / "different users", [[5, 3, 1, 2], [5, 3, 2, 1]]).repeats()


def test_folds():
    """Every user in one fold, always the same, of about equal size whatever the order of the users."""
    for folds in (2, 5):
        fold = assign_folds(np.arange(10_000), folds)
        assert assign_folds(np.arange(5000, 6000), folds).tolist() == fold[5000:6000].tolist()
        for part in (fold, fold[:1000], fold[::2]):
            assert np.bincount(part, minlength=folds).min() > 0.8 * len(part) / folds
        assert set(fold.tolist()) == set(range(folds))


def test_without_a_fold(tmp_path):
    """Its users have no training part; the others, and everybody's validation and test, stay."""
    rng = np.random.default_rng(5)
    sequences = [rng.integers(0, 9, rng.integers(3, 9)) for _ in range(20)]
    with ArtifactJob("dataset", Nothing(), tmp_path / "dataset").write() as folder:
        items = pa.table({"item_id": [f"i{number}" for number in range(9)]})
        write_dataset(folder, items, [f"u{number}" for number in range(20)], sequences)
    data = Dataset.load(tmp_path / "dataset")
    fold = assign_folds(np.arange(20), 3)
    for left_out in range(3):
        rest = data.without_fold(3, left_out)
        for with_validation in (False, True):
            values, offsets = rest.training_sequences(with_validation)
            for user, row in enumerate(sequences):
                expected = [] if fold[user] == left_out else row[: len(row) - 2 + with_validation].tolist()
                assert values[offsets[user] : offsets[user + 1]].tolist() == expected
        seen, every = rest.examples("train"), data.examples("train")
        kept = every.take(fold[every.users] != left_out)
        assert 0 < len(kept) < len(every)
        for split, found, expected in (
            ("train", seen, kept),
            *((split, rest.examples(split), data.examples(split)) for split in ("valid", "test")),
        ):
            for one, other in zip(vars(found).values(), vars(expected).values(), strict=True):
                assert one.tolist() == other.tolist(), split
