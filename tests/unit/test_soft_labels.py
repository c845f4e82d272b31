from dataclasses import dataclass

import numpy as np
import pytest

from distill.artifacts import Stage, UserError
from distill.catalog import Examples
from distill.soft_labels import SoftLabels, correct, write_shard

LEVELS, SIZE, K = 2, 3, 4


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def examples(users, positions, targets):
    n = len(users)
    return Examples(np.array(users), np.array(positions), np.zeros((n, 5), int), np.array(targets))


FIRST, SECOND = examples([0, 0, 2], [1, 2, 1], [5, 6, 7]), examples([3, 3], [1, 2], [8, 9])


def labels_of(rows, seed):
    """Codes, candidates, their scores, and log-probabilities of some rows."""
    rng = np.random.default_rng(seed)
    n = len(rows)
    candidates = np.concatenate([rows.targets[:, None], rng.integers(0, 50, (n, K - 1))], axis=1)
    candidates[-1, -1] = -1
    scores = np.where(candidates >= 0, -rng.random((n, K)), -np.inf)
    return rng.integers(0, SIZE, (n, LEVELS)), candidates, scores, -9 * rng.random((n, LEVELS, SIZE))


@pytest.fixture
def folder(tmp_path):
    with Stage("soft_labels", Nothing(), tmp_path / "labels").write() as part:
        (part / "data").mkdir()
        for number, rows in enumerate((FIRST, SECOND)):
            write_shard(part / "data" / f"{number:05d}.parquet", rows, *labels_of(rows, number))
    return tmp_path / "labels"


def expected(place):
    return np.concatenate([labels_of(rows, number)[place] for number, rows in enumerate((FIRST, SECOND))])


def test_round_trip(folder):
    found = SoftLabels.load(folder)
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["00000.parquet", "00001.parquet"]
    assert found.users.tolist() == [0, 0, 2, 3, 3]
    assert found.positions.tolist() == [1, 2, 1, 1, 2]
    assert found.targets.tolist() == [5, 6, 7, 8, 9]
    assert found.candidates.dtype == np.int64
    np.testing.assert_array_equal(found.candidates, expected(1))
    log_probs = np.asarray(found.log_probs)
    assert log_probs.dtype == np.float16 and log_probs.shape == (5, LEVELS, SIZE)
    np.testing.assert_allclose(log_probs, expected(3), rtol=1e-3)


def test_datasets_reads_them(folder, tmp_path):
    from datasets import load_dataset

    table = load_dataset("parquet", data_files=str(folder / "data" / "*.parquet"), cache_dir=str(tmp_path / "cache"))
    table = table["train"].with_format("numpy")
    assert len(table) == 5
    shapes = {name: np.stack(table[name][:]).shape for name in table.column_names}
    assert shapes == {
        "user": (5,),
        "position": (5,),
        "target": (5,),
        "target_codes": (5, LEVELS),
        "candidates": (5, K),
        "candidate_scores": (5, K),
        "log_probs_0": (5, SIZE),
        "log_probs_1": (5, SIZE),
    }
    np.testing.assert_array_equal(np.stack(table["target_codes"][:]), expected(0))
    np.testing.assert_array_equal(np.stack(table["candidates"][:]), expected(1))
    np.testing.assert_allclose(np.stack(table["candidate_scores"][:]), expected(2), rtol=1e-6)
    for level in range(LEVELS):
        np.testing.assert_allclose(np.stack(table[f"log_probs_{level}"][:]), expected(3)[:, level], rtol=1e-3)


def test_rows_of(folder):
    found = SoftLabels.load(folder)
    asked = examples([3, 0, 1, 2, 0, 2], [2, 1, 1, 1, 7, 2], [9, 5, 4, 7, 3, 2])
    # (0, 7) must not be taken for (1, …), nor (2, 2) for (2, 1)
    assert found.rows_of(asked).tolist() == [4, 0, -1, 2, -1, -1]
    with pytest.raises(UserError, match="labels other targets"):
        found.rows_of(examples([3, 0], [2, 1], [9, 6]))


def test_correct_by_hand():
    beams = np.array([[4, 7, 2, 9], [4, -1, 2, -1], [1, 2, 3, 4], [-1, -1, -1, -1]])
    scores = np.array([[-1.0, -2, -3, -4], [-1, -2, -3, -np.inf], [-1, -2, -3, -4], [-1, -1, -1, -1]])
    candidates, found = correct(beams, scores, np.array([7, 8, 9, 5]), np.array([-2.0, -9, -8, -7]), keep=4)
    assert candidates.tolist() == [
        [7, 4, 2, 9],  # the reference to the front, once
        [8, 4, 2, -1],  # it was in no beam; invalid ones are dropped
        [9, 1, 2, 3],  # the last one finds no place
        [5, -1, -1, -1],
    ]
    nothing = -np.inf
    assert found.tolist() == [
        [-2, -1, -3, -4],
        [-9, -1, -3, nothing],
        [-8, -1, -2, -3],
        [-7, nothing, nothing, nothing],
    ]


def test_correct_fills_up_to_keep():
    candidates, scores = correct(np.array([[3, 1]]), np.array([[-1.0, -2]]), np.array([1]), np.array([-2.0]), keep=5)
    assert candidates.tolist() == [[1, 3, -1, -1, -1]]
    assert scores.tolist() == [[-2, -1, -np.inf, -np.inf, -np.inf]]


def test_correct_keeps_the_reference_alone():
    candidates, scores = correct(np.array([[3, 1]]), np.array([[-1.0, -2]]), np.array([2]), np.array([-5.0]), keep=1)
    assert candidates.tolist() == [[2]] and scores.tolist() == [[-5]]


def test_correct_by_definition():
    rng = np.random.default_rng(0)
    beams = np.stack([rng.permutation(12)[:8] for _ in range(40)])
    beams[rng.random(beams.shape) < 0.2] = -1
    scores = -np.sort(rng.random(beams.shape))
    targets, keep = rng.integers(0, 12, 40), 6
    candidates, _ = correct(beams, scores, targets, np.zeros(40), keep)
    for row in range(40):
        rest = [item for item in beams[row].tolist() if item not in (-1, targets[row])]
        wanted = [int(targets[row]), *rest][:keep]
        assert candidates[row].tolist() == wanted + [-1] * (keep - len(wanted))


def test_labels_without_shards(tmp_path):
    with Stage("soft_labels", Nothing(), tmp_path / "labels").write() as part:
        (part / "data").mkdir()
    with pytest.raises(UserError, match="holds no parquet shards"):
        SoftLabels.load(tmp_path / "labels")


def test_a_truncated_shard(folder):
    path = folder / "data" / "00001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"00001\.parquet is not a readable parquet file"):
        SoftLabels.load(folder)
