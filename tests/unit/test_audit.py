"""The audit's measures on data made by hand, and its command."""

import importlib.util
import json
import sys
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distill.baselines import item_scorer
from distill.baselines.counting import Transitions, TransitionSettings, reachable
from distill.data.dataset import Dataset, Examples, write_dataset
from distill.evaluation import audit
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import run
from distill.semantic_ids import embeddings

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def make(root, sequences, n_items):
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        items = pa.table({"item_id": [f"i{number}" for number in range(n_items)]})
        write_dataset(folder, items, [f"u{user}" for user in range(len(sequences))], [np.array(s) for s in sequences])
    return Dataset.load(root / "dataset")


def tuned(shop):
    return Transitions.tune(shop, exclude_bought=False)[0]


def values_of(findings):
    return {finding.name: finding.value for finding in findings}


def test_branching_by_hand():
    # from 0: three times to 1, once to 2; from 1: once to 0
    pairs = np.array([[0, 1], [0, 1], [0, 2], [0, 1], [1, 0]])
    values = values_of(audit.branching(pairs, 3))
    assert values["next items of an item"] == pytest.approx((4 * 2 + 1 * 1) / 5)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert values["effective branching"] == pytest.approx(np.exp(0.8 * entropy))
    assert values["repeated transitions"] == pytest.approx(3 / 5)


def test_smoothness_tells_alike_from_unlike():
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 20, 200)
    vectors = np.eye(20)[kinds] + 0.1 * rng.normal(size=(200, 20))
    first = rng.integers(0, 200, 3000)
    alike = np.array([rng.choice(np.flatnonzero(kinds == kinds[item])) for item in first])
    unlike = rng.integers(0, 200, 3000)
    smooth, rough = (values_of(audit.smoothness(np.stack([first, then], 1), vectors)) for then in (alike, unlike))
    assert smooth["alike beyond chance"] > 0.9 and smooth["similarity of neighbours"] > 0.7
    assert rough["alike beyond chance"] == pytest.approx(0.5, abs=0.03)


def test_reach_and_dependence_by_hand(tmp_path):
    """Training parts 0 1 2 | 0 1 | 3 4 | 4 3; validation targets 3 (never met), 2 (met 0 and 1), 3 (met, bought), 0."""
    shop = make(tmp_path, [[0, 1, 2, 3, 5], [0, 1, 2, 5], [3, 4, 3, 5], [4, 3, 0, 5]], 6)
    examples = shop.examples("valid")
    values = values_of(audit.reach(*shop.training_sequences(), shop.n_items, examples))
    assert values["reachable by counting"] == 0.5
    assert values["next to the last item"] == 0.5
    assert values["bought before"] == 0.25
    assert values["targets seen under 5 times"] == 1
    assert values["cold targets"] == 0
    values = values_of(audit.dependence(shop, tuned(shop), examples, exclude_bought=False))
    assert 0 < values["counter's NDCG@10"] <= 1 and 0 <= values["kept with the last 1"] <= 1


@pytest.mark.parametrize("at_once", [1, 64, 10**6])
def test_targets_met_in_training_as_all_pairs_say(tmp_path, monkeypatch, at_once):
    """Against the counts of all pairs, for some targets that met nothing, or only themselves, or are repeated."""
    rng = np.random.default_rng(0)
    shop = make(tmp_path, [rng.integers(0, 40, rng.integers(3, 8)) for _ in range(25)], 42)
    values, offsets = shop.training_sequences()
    examples = shop.examples("valid")
    settings = TransitionSettings(window=int(np.diff(offsets).max()), decay=1.0, recency=1.0, last=20)
    expected = reachable(Transitions(shop, settings), examples).tolist()
    pairs = set()
    for user in range(shop.n_users):
        sequence = values[offsets[user] : offsets[user + 1]].tolist()
        pairs |= {(a, b) for i, a in enumerate(sequence) for j, b in enumerate(sequence) if i != j}
    met = [
        any((int(item), int(target)) in pairs for item in history if item >= 0)
        for history, target in zip(examples.histories, examples.targets, strict=True)
    ]
    assert met == expected and len(set(met)) == 2
    monkeypatch.setattr(item_scorer, "SCORES_AT_ONCE", at_once)
    assert audit.met_in_training(values, offsets, shop.n_items, examples).tolist() == expected


def test_an_item_has_met_itself_only_where_it_is_repeated():
    """0 1 | 2 3 3 | 4; what follows 1 2 3 4, of which only 3 is repeated."""
    values, offsets = np.array([0, 1, 2, 3, 3, 4]), np.array([0, 2, 5, 6])
    histories, targets = np.array([[1, -1], [1, 0], [3, -1], [4, -1], [4, 0]]), np.array([1, 1, 3, 4, 4])
    examples = Examples(np.zeros(5, int), np.zeros(5, int), histories, targets)
    assert audit.met_in_training(values, offsets, 5, examples).tolist() == [False, True, True, False, False]


def test_memory_does_not_follow_the_square_of_the_lengths(tmp_path):
    """Six sequences of 3,000 different items: 27 million pairs, of which the counters' window holds 0.4 million."""
    rng = np.random.default_rng(0)
    shop = make(tmp_path, [rng.permutation(20_000)[:3002] for _ in range(6)], 20_000)
    tracemalloc.start()
    audit.audit(shop, None, exclude_bought=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_the_training_part_is_read_once(tmp_path, monkeypatch):
    """By the audit itself; the counters read it for themselves."""
    rng = np.random.default_rng(0)
    shop = make(tmp_path, [rng.integers(0, 20, 8) for _ in range(30)], 20)
    counter, reads, read = tuned(shop), [], Dataset.training_sequences
    monkeypatch.setattr(Transitions, "tune", lambda *_: (counter, 0.0))
    monkeypatch.setattr(Dataset, "training_sequences", lambda *args: reads.append(1) or read(*args))
    audit.audit(shop, None, exclude_bought=False)
    assert len(reads) == 1


def test_what_lies_further_back_counts(tmp_path):
    """Everybody's last item is the same; what follows it is told by the one before."""
    firsts = np.random.default_rng(0).integers(0, 15, 200)
    taught = [[first, 30, first + 15, 31, 31] for first in firsts]  # of which the training part has three items
    asked = [[first, 30, first + 15, 31] for first in firsts]  # of which it has two, and the third is asked for
    shop = make(tmp_path, [*taught, *asked], 32)
    values = values_of(audit.dependence(shop, tuned(shop), shop.examples("valid"), exclude_bought=False))
    assert values["kept with the last 1"] < 0.8 and values["kept with the last 2"] > 0.95


def test_the_command(tmp_path, capsys):
    rng = np.random.default_rng(0)
    make(tmp_path, [rng.integers(0, 20, 8) for _ in range(30)], 20)
    with ArtifactJob("embeddings", Nothing(), tmp_path / "embeddings").write() as folder:
        embeddings.write(folder, rng.normal(size=(20, 4)).astype(np.float32), [f"i{number}" for number in range(20)])
    spec = importlib.util.spec_from_file_location("audit_entry", ROOT / "scripts/audit.py")
    entry = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = entry  # dataclasses look their module up
    spec.loader.exec_module(entry)
    entry.main(entry.Config(run=tmp_path))
    table = capsys.readouterr().out
    values = json.loads((tmp_path / "audit/audit.json").read_text())
    assert set(values) == {line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]}
    assert {"reachable by counting", "effective branching", "alike beyond chance"} <= values.keys()
    assert 0 < values["content's NDCG@10"] < 1 and 0 < values["counter and content's NDCG@10"] < 1
    entry.main(entry.Config(run=tmp_path))
    assert "finished" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        run(entry.main, entry.Config, None, ["--run", str(tmp_path), "--users", "0"])
    assert stop.value.code == 2 and "users" in capsys.readouterr().err
