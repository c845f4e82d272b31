import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.dataset import Examples
from distill.labels import encodings, hub
from distill.labels.encodings import ENCODINGS, kl
from distill.labels.labeller import correct
from distill.labels.schema import write_index
from distill.labels.store import LabelStore, export_command
from distill.labels.writer import read_shard, write_shard
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.checksums import seal
from distill.runtime.errors import UserError

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
    probs = 0.9 * rng.dirichlet(np.ones(SIZE), (n, LEVELS))
    return rng.integers(0, SIZE, (n, LEVELS)), candidates, scores, np.log(probs)


def write_set(folder, shards, encoding="fp16", **facts):
    """A finished set of these examples, shard by shard."""
    with ArtifactJob("soft_labels", Nothing(), folder).write() as part:
        (part / "data").mkdir()
        said = [
            write_shard(part / "data" / f"{number:05d}.parquet", rows, *labels_of(rows, number), encoding)
            for number, rows in enumerate(shards)
        ]
        facts = {"levels": LEVELS, "codebook_size": SIZE, "scope": "level", "encoding": encoding, "keep": K} | facts
        write_index(part, said, **facts)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_set(tmp_path / "labels", (FIRST, SECOND))


def expected(place):
    return np.concatenate([labels_of(rows, number)[place] for number, rows in enumerate((FIRST, SECOND))])


def test_round_trip(folder):
    found = LabelStore.open(folder).load()
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["00000.parquet", "00001.parquet"]
    assert found.users.tolist() == [0, 0, 2, 3, 3]
    assert found.positions.tolist() == [1, 2, 1, 1, 2]
    assert found.targets.tolist() == [5, 6, 7, 8, 9]
    assert found.candidates().dtype == np.int64
    np.testing.assert_array_equal(found.candidates(), expected(1))
    log_probs = found.log_probs()
    assert log_probs.dtype == np.float16 and log_probs.shape == (5, LEVELS, SIZE)
    np.testing.assert_allclose(log_probs, expected(3), rtol=1e-3)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_block_decodes_the_rows_asked_for(tmp_path, encoding):
    store = LabelStore.open(write_set(tmp_path / "labels", (FIRST, SECOND), encoding))
    facts = store.rows, store.candidates, store.levels, store.codebook_size, store.scope
    assert facts == (5, K, LEVELS, SIZE, "level")
    block, rows = store.load(), np.array([4, 0, 4])
    assert len(block) == 5
    log_probs = block.log_probs(rows)
    assert log_probs.dtype == np.float16 and log_probs.shape == (3, LEVELS, SIZE)
    np.testing.assert_array_equal(log_probs, block.log_probs()[rows])
    probs = np.exp(log_probs.astype(np.float64))
    np.testing.assert_allclose(probs, np.exp(expected(3)[rows]), atol=0.02)
    np.testing.assert_allclose(probs.sum(-1), 0.9, atol=2e-3)  # the mass elsewhere is kept
    np.testing.assert_array_equal(block.candidates(rows), expected(1)[rows])
    np.testing.assert_allclose(block.scores(rows), expected(2)[rows], rtol=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_datasets_reads_them(tmp_path, encoding):
    folder = write_set(tmp_path / "labels", (FIRST, SECOND), encoding)
    hub.push(folder, str(tmp_path / "pushed"))
    table = hub.load(str(tmp_path / "pushed"), decode=False, cache_dir=str(tmp_path / "cache"))
    assert len(table) == 5
    columns = {name: np.stack([np.asarray(value) for value in table[name]]) for name in table.column_names}
    shapes = {name: values.shape for name, values in columns.items()}
    own = {
        "fp16": {"log_probs": (5, SIZE)},
        "u8": {"roots": (5,), "mass": (5,), "tail": (5,)},
        "topk+tail": {"top": (5, SIZE), "top_log_probs": (5, SIZE), "tail": (5,)},
    }[encoding]
    assert shapes == {
        "user": (5,),
        "position": (5,),
        "target": (5,),
        "target_codes": (5, LEVELS),
        "candidates": (5, K),
        "candidate_scores": (5, K),
        **{f"{name}_{level}": shape for level in range(LEVELS) for name, shape in own.items()},
    }
    np.testing.assert_array_equal(columns["target_codes"], expected(0))
    np.testing.assert_array_equal(columns["candidates"], expected(1))
    np.testing.assert_allclose(columns["candidate_scores"], expected(2), rtol=1e-6)
    for level in range(LEVELS):
        if encoding == "fp16":
            np.testing.assert_allclose(columns[f"log_probs_{level}"], expected(3)[:, level], rtol=1e-3)
        if encoding == "u8":
            roots = np.stack([np.frombuffer(value, np.uint8) for value in table[f"roots_{level}"]])
            np.testing.assert_array_equal(roots, np.rint(208 * np.sqrt(np.exp(expected(3)[:, level]) / 0.9)))
    assert LabelStore.open(tmp_path / "pushed").rows == 5
    (tmp_path / "pushed" / "index.json").write_text("of another set")
    with pytest.raises(UserError, match="is not empty"):
        hub.push(folder, str(tmp_path / "pushed"))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_loaded_rows_are_decoded(tmp_path, encoding):
    """Probabilities, whatever the encoding; not the bytes of u8."""
    folder = write_set(tmp_path / "labels", (FIRST, SECOND), encoding)
    table = hub.load(str(folder), cache_dir=str(tmp_path / "cache"))
    row, rows = table[3], table[1:4]
    assert rows["probabilities"].shape == (3, LEVELS, SIZE)
    assert row["probabilities"].dtype == np.float32 and row["probabilities"].shape == (LEVELS, SIZE)
    np.testing.assert_allclose(rows["probabilities"], np.exp(expected(3)[1:4]), atol=0.01)
    np.testing.assert_allclose(row["probabilities"], np.exp(expected(3)[3]), atol=0.01)
    stored = LabelStore.open(folder).load().log_probs([1, 2, 3]).astype(np.float32)
    np.testing.assert_allclose(rows["probabilities"], np.exp(stored), rtol=1e-2)
    assert set(rows) == {
        "user", "position", "target", "target_codes", "candidates", "candidate_scores", "probabilities",
    }  # fmt: skip
    np.testing.assert_array_equal(rows["candidates"], expected(1)[1:4])
    assert rows["target"].tolist() == [6, 7, 8]
    assert set(table.select_columns(["user", "target"])[:2]) == {"user", "target"}


def test_a_set_that_was_just_exported_is_loaded(tmp_path):
    """One shard beside three JSON files: `datasets` alone would take these for the data."""
    folder = write_set(tmp_path / "labels", (FIRST,), "u8")
    (folder / "report.json").write_text("{}")
    assert len(list(folder.glob("*.json"))) == 3 and len(list(folder.glob("data/*"))) == 1
    table = hub.load(str(folder), cache_dir=str(tmp_path / "cache"))
    assert table[0]["probabilities"].shape == (LEVELS, SIZE)
    with pytest.raises(UserError, match=r"holds no soft labels: no data/\*\.parquet"):
        hub.load(str(tmp_path))


def test_decoding_by_hand(monkeypatch):
    """Two levels of three codewords; scope "all" puts the levels side by side."""
    index = {"encoding": "fp16", "levels": 2, "codebook_size": 3, "scope": "level"}
    first, second = np.log([0.5, 0.25, 0.25]).tolist(), np.log([0.125, 0.125, 0.5]).tolist()
    batch = hub.decoder(index)({"user": [7], "log_probs_0": [first], "log_probs_1": [second]})
    assert batch["user"].tolist() == [7]
    np.testing.assert_allclose(batch["probabilities"], [[[0.5, 0.25, 0.25], [0.125, 0.125, 0.5]]], rtol=1e-3)
    monkeypatch.setattr(encodings.TopK, "K", 1)
    index = {"encoding": "topk+tail", "levels": 1, "codebook_size": 4, "scope": "level"}
    stored = {"top_0": [[2]], "top_log_probs_0": [[np.log(0.4)]], "tail_0": [np.log(0.3)]}
    np.testing.assert_allclose(hub.decoder(index)(stored)["probabilities"], [[[0.1, 0.1, 0.4, 0.1]]], rtol=1e-3)
    index = {"encoding": "u8", "levels": 1, "codebook_size": 3, "scope": "level"}
    stored = {"roots_0": [bytes([104, 104, 0])], "mass_0": [np.log(0.8)], "tail_0": [np.log(0.5)]}
    np.testing.assert_allclose(hub.decoder(index)(stored)["probabilities"], [[[0.2, 0.2, 0.4]]], rtol=1e-3)
    wide = {"encoding": "fp16", "levels": 2, "codebook_size": 1, "scope": "all"}
    stored = {"log_probs_0": [np.log([0.5, 0.25]).tolist()], "log_probs_1": [np.log([0.125, 0.5]).tolist()]}
    np.testing.assert_allclose(hub.decoder(wide)(stored)["probabilities"], [[[0.5, 0.25], [0.125, 0.5]]], rtol=1e-3)


def test_u8_by_hand():
    # 208·√share: 147.08, 104, 104, 0.2; what rounds to 0 is in the tail
    probs = 0.8 * np.array([[0.5, 0.25, 0.249999, 1e-6]])
    found = ENCODINGS["u8"].encode(np.log(probs).astype(np.float32))
    assert found["roots"].tolist() == [[147, 104, 104, 0]] and found["roots"].dtype == np.uint8
    np.testing.assert_allclose(np.exp(found["mass"].astype(float)), [0.8], rtol=1e-3)
    np.testing.assert_allclose(np.exp(found["tail"].astype(float)), [1e-6], rtol=1e-2)
    squares = np.array([147, 104, 104]) ** 2
    decoded = np.exp(ENCODINGS["u8"].decode(found, 4)[0])
    np.testing.assert_allclose(decoded[:3], 0.8 * squares / squares.sum(), rtol=1e-3)
    np.testing.assert_allclose(decoded[3], 0.8e-6, rtol=1e-2)


def test_a_level_without_any_mass():
    nothing = np.full((2, 1, 5), -np.inf, np.float32)
    for kind in ENCODINGS.values():
        assert (kind.decode(kind.encode(nothing[:, 0]), 5) == -np.inf).all()


def test_topk_by_hand(monkeypatch):
    monkeypatch.setattr(encodings.TopK, "K", 2)
    probs = np.array([[0.1, 0.5, 0.1, 0.2]])
    found = ENCODINGS["topk+tail"].encode(np.log(probs))
    assert found["top"].tolist() == [[1, 3]]
    np.testing.assert_allclose(np.exp(ENCODINGS["topk+tail"].decode(found, 4)), probs, rtol=2e-3)


@pytest.mark.parametrize(("codebook_size", "dtype"), [(1 << 14, np.int16), ((1 << 14) + 1, np.int32)])
def test_topk_of_many_codewords(codebook_size, dtype, tmp_path, monkeypatch):
    """Two levels side by side: the last of 2^15 codewords is the largest int16."""
    monkeypatch.setattr(encodings.TopK, "K", 2)
    last = 2 * codebook_size - 1
    log_probs = np.full((1, 2, last + 1), -np.inf, np.float32)
    log_probs[0, :, [0, last]] = np.log([[0.25], [0.5]])
    assert kl(log_probs, "topk+tail") == pytest.approx(0, abs=1e-3)
    labels = np.array([[0, 0]]), np.array([[5]]), np.zeros((1, 1)), log_probs
    with ArtifactJob("soft_labels", Nothing(), tmp_path / "labels").write() as part:
        (part / "data").mkdir()
        shard = write_shard(part / "data/00000.parquet", examples([0], [1], [5]), *labels, "topk+tail")
        facts = {"levels": 2, "codebook_size": codebook_size, "scope": "all", "encoding": "topk+tail", "keep": 1}
        write_index(part, [shard], **facts)
    store = LabelStore.open(tmp_path / "labels")
    top = store.shard(0)["top_1"]
    assert top.tolist() == [[last, 0]] and top.dtype == dtype
    np.testing.assert_allclose(np.exp(store.load().log_probs()[0, 1, [0, 1, last]]), [0.25, 0, 0.5], rtol=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0, 12),
    mass=st.floats(0.05, 1),
    size=st.sampled_from([1, 2, 64, 256]),
    missing=st.floats(0, 1),
)
def test_u8_loses_less_than_a_thousandth_of_a_nat(seed, spread, mass, size, missing):
    """Whatever the distribution, averaged over some rows; also where a counting teacher rules codewords out."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (40, size))
    logits[:, 1:][rng.random((40, size - 1)) < missing] = -np.inf
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) + np.log(mass)
    assert 0 <= kl(log_probs[:, None], "u8") + 1e-7 < 1.1e-3
    assert 0 <= kl(log_probs[:, None], "fp16") + 1e-7 < 1e-5
    for kind in ENCODINGS.values():
        decoded = kind.decode(kind.encode(log_probs.astype(np.float32)), size)
        assert not np.isnan(decoded).any()
        np.testing.assert_allclose(np.exp(decoded).sum(1), mass, rtol=4e-3)


def test_kl_by_hand(monkeypatch):
    monkeypatch.setattr(encodings.TopK, "K", 1)  # .75 is kept, .2 and .05 become .125 each
    probs = np.array([0.75, 0.2, 0.05])
    by_hand = 0.2 * np.log(0.2 / 0.125) + 0.05 * np.log(0.05 / 0.125)
    assert kl(np.log(0.9 * probs)[None, None], "topk+tail") == pytest.approx(by_hand, rel=1e-2)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """12 shards of 3 to 8 rows; a user is in one shard alone."""
    rng, shards, user = np.random.default_rng(0), [], 0
    for _ in range(12):
        counts = rng.integers(1, 5, 3)
        users = np.repeat(np.arange(user, user + 3), counts)
        positions = np.concatenate([np.arange(1, count + 1) for count in counts])
        shards.append(examples(users, positions, rng.integers(0, 50, len(users))))
        user += 3
    return write_set(tmp_path_factory.mktemp("many") / "labels", shards)


@settings(max_examples=30, deadline=None)
@given(buffer_rows=st.integers(1, 100), seed=st.one_of(st.none(), st.integers(0, 99)))
def test_blocks_hold_every_row_once_and_users_whole(many, buffer_rows, seed):
    store, whole = LabelStore.open(many), LabelStore.open(many).load()
    blocks = list(store.blocks(buffer_rows, None if seed is None else np.random.default_rng(seed)))
    largest = max(shard["rows"] for shard in store.index["shards"])
    assert all(len(block) <= max(buffer_rows, largest) for block in blocks)
    row_of = {key: row for row, key in enumerate(zip(whole.users, whole.positions, whole.targets, strict=True))}
    order = np.array([row_of[key] for b in blocks for key in zip(b.users, b.positions, b.targets, strict=True)])
    assert sorted(order.tolist()) == list(range(store.rows))
    assert len(np.unique(np.concatenate([np.unique(b.users) for b in blocks]))) == sum(
        len(np.unique(b.users)) for b in blocks
    )
    np.testing.assert_array_equal(np.concatenate([b.log_probs() for b in blocks]), whole.log_probs()[order])
    np.testing.assert_array_equal(np.concatenate([b.candidates() for b in blocks]), whole.candidates()[order])
    if seed is None:
        assert order.tolist() == list(range(store.rows))
    else:
        again = [block.users.tolist() for block in store.blocks(buffer_rows, np.random.default_rng(seed))]
        assert again == [block.users.tolist() for block in blocks]


def test_blocks_are_shuffled(many):
    store = LabelStore.open(many)
    first, second = ([b.users[0] for b in store.blocks(1, np.random.default_rng(seed))] for seed in (0, 1))
    assert sorted(first) == sorted(second) and first != second


def test_reading_opens_one_buffer_of_shards_at_a_time(many, monkeypatch):
    opened = []

    def counting(path, *arguments):
        opened.append(path.name)
        return read_shard(path, *arguments)

    monkeypatch.setattr("distill.labels.store.read_shard", counting)
    labels = LabelStore.open(many)
    assert opened == []
    blocks = labels.blocks(1)
    for number in range(3):
        next(blocks)
        assert len(opened) == number + 1


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
    with pytest.raises(UserError, match="holds no parquet shards"):
        LabelStore.open(write_set(tmp_path / "labels", ()))


@pytest.mark.parametrize("content", ["{}", "nothing", '{"schema": 99}'])
def test_a_bad_index(folder, content):
    (folder / "index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json.*--overwrite"):
        LabelStore.open(folder)


@pytest.mark.parametrize("damage", ["cut", "altered", "gone"])
def test_a_damaged_shard(folder, damage):
    path = folder / "data" / "00001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "altered" else content[:100])
    store = LabelStore.open(folder)
    blocks = store.blocks(1)
    assert len(next(blocks)) == 3  # the others are still good
    command = rf"export_soft_labels\.py --run {folder.parent} --output {folder}$"
    with pytest.raises(UserError, match=r"00001\.parquet is damaged .*only damaged shards are made: .*" + command):
        next(blocks)


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ("python distill/export_soft_labels.py --config my.yaml --run 'my run'", None),
        (
            "accelerate launch distill/export_soft_labels.py --overwrite --run r --push ./p --shard 3/8 --keep 4",
            "accelerate launch distill/export_soft_labels.py --run r --keep 4",
        ),
        (
            "python distill/export_soft_labels.py --shard=3/8 --push=./p --run r",
            "python distill/export_soft_labels.py --run r",
        ),
        ("python my_script.py", "python distill/export_soft_labels.py --run {run}"),
        ("distill/export_soft_labels.py --run 'r", "python distill/export_soft_labels.py --run {run}"),
        ("", "python distill/export_soft_labels.py --run {run}"),
    ],
)
def test_messages_name_the_command_of_these_labels(tmp_path, recorded, expected):
    """With run and config, as the manifest has them; --overwrite would make everything, --shard perhaps nothing."""
    folder = write_set(tmp_path / "soft_labels", (FIRST, SECOND))
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", seal(manifest | {"command": recorded}))
    command = (expected or recorded).format(run=tmp_path)
    assert export_command(LabelStore.open(folder).artifact) == command
    (folder / "data" / "00000.parquet").unlink()
    with pytest.raises(UserError, match=f"{command}$"):
        LabelStore.open(folder).load()
    (folder / "index.json").unlink()
    with pytest.raises(UserError, match=f"Export again with: {command} --overwrite$"):
        LabelStore.open(folder)
