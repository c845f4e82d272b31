"""On-policy distillation: which prefixes are trained, what the student proposes, what the teacher is asked."""

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from breaking_off import BrokenOffError, break_at
from student_shop import ITEMS, LEVELS, SIZE, FakeTeacher, make_shop, make_teacher
from unit.test_student_trainer import CONFIG, LENGTHS, network, run, tiny  # noqa: F401 - tiny is a fixture

from distill import losses
from distill.data.dataset import Dataset
from distill.labels.store import LabelStore
from distill.runtime import artifacts
from distill.runtime.config import parse
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs
from distill.teachers.forced import CachedTeacher, EngineTeacher
from student import train
from student.batches import BatchSampler
from student.config import Config
from student.objective import batch_loss
from student.on_policy import OnPolicyTeacher, draw_items, rewarded_beams
from student.recommender import Recommender
from student.variants import Loss

DISTILL = Loss("distill")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    make_shop(folder, LENGTHS)
    make_teacher(folder)
    return folder


def sampler(root, one_pass=True, process=0, processes=1, **changes):
    config = dataclasses.replace(CONFIG, **{"on_policy": 1.0} | changes)
    dataset, store = Dataset.load(root / "dataset"), LabelStore.open(root / "soft_labels")
    return BatchSampler(dataset, store, DISTILL, one_pass, config, process, processes)


def student(root, backbone="nested"):
    codes = SemanticIDs.load(root / "semantic_ids", ITEMS).codes
    names = [str(item) for item in range(ITEMS)]
    return Recommender(network(backbone), codes, names, names, facts={"backbone": backbone, "max_history": 4})


def prefixes(batches):
    """(history, weight, draw) of each example that counts."""
    rows = []
    for batch in batches:
        assert batch.on_policy and not batch.one_pass
        for row, place in enumerate(batch.places.tolist()):
            history = batch.sequences[row]
            assert (history >= 0).sum() == place and (history[:place] >= 0).all()
            if batch.weights[row] > 0:
                rows.append((tuple(history[:place].tolist()), batch.weights[row].item(), batch.draws[row].item()))
    return sorted(rows)


@pytest.mark.parametrize("one_pass", [True, False])
def test_histories_are_prefixes_of_training_sequences_whatever_the_number_of_processes(root, one_pass):
    dataset = Dataset.load(root / "dataset")
    values, offsets = dataset.training_sequences()
    seen = {
        tuple(values[max(start, end - 4) : end].tolist())
        for start, stop in pairwise(offsets)
        for end in range(start + 1, stop)
    }
    options = {"long_histories": "prefixes", "batch_size": 8}
    alone = prefixes(sampler(root, one_pass, **options).batches(0))
    assert {history for history, _, _ in alone} <= seen
    shared = [sampler(root, one_pass, p, 2, **options | {"batch_size": 2, "accumulation": 2}) for p in (0, 1)]
    parts = [list(each.batches(0)) for each in shared]
    assert prefixes([batch for each in parts for batch in each]) == alone
    examples = sum(batch.count for batch in sampler(root, one_pass, **options).batches(0))
    assert sum(weight for _, weight, _ in alone) == examples == shared[0].total  # one place stands for its whole row


def test_a_share_of_the_batches_is_on_policy_and_the_others_are_as_before(root):
    mixed, plain = (list(sampler(root, batch_size=1, on_policy=share).batches(0)) for share in (0.5, 0.0))
    kinds = [batch.on_policy for batch in mixed]
    assert 0 < sum(kinds) < len(kinds) == len(plain)
    for own, before, other in zip(kinds, plain, mixed, strict=True):
        if not own:
            assert torch.equal(before.sequences, other.sequences) and torch.equal(before.log_probs, other.log_probs)


def test_draws_by_hand():
    items = np.array([[5, 6, 7]] * 4 + [[9, -1, -1]])
    scores = np.log(np.array([[0.3, 0.2, 0.1]] * 4 + [[0.5, 1.0, 1.0]]))  # shares 1/2, 1/3, 1/6
    assert draw_items(items, scores, np.array([0.0, 0.49, 0.51, 0.84, 0.99])).tolist() == [5, 5, 6, 7, 9]


@pytest.mark.parametrize("backbone", ["seq2seq", "nested"])
def test_the_loss_is_the_teachers_cross_entropy_along_the_proposed_ids(root, backbone):
    recommender, teacher = student(root, backbone), FakeTeacher()
    batch = next(sampler(root, backbone == "nested").batches(0))
    recommender.model.train()
    labelled = OnPolicyTeacher(recommender, teacher, width=4).relabel(batch)
    assert recommender.model.training
    lists, _ = recommender.rank_items(batch.sequences.numpy(), 4, True)
    items = labelled.targets.tolist()
    assert all(item in row for item, row in zip(items, lists.tolist(), strict=True))
    assert len(set(items)) > 1 and items != lists[:, 0].tolist()  # drawn, not the first
    codes = recommender.codes
    value = batch_loss(recommender.model, DISTILL, labelled, codes, False, dataclasses.replace(CONFIG, temperature=1.0))
    total = 0.0
    for row, (item, weight) in enumerate(zip(items, batch.weights.tolist(), strict=True)):
        history = batch.sequences[row][batch.sequences[row] >= 0]
        log_probs = recommender.model(codes[history][None], codes[item][None, None])[0, 0]
        told = torch.from_numpy(teacher.codeword_log_probs(history[None].numpy(), np.array([item])))[0]
        total += weight * losses.distill(log_probs, told).item()
    assert value.item() == pytest.approx(total / batch.total, rel=1e-5)


def test_beams_of_the_ranker_are_rewarded_by_the_real_next_item(root):
    recommender = student(root)
    recommender.ranker = network("nested", seed=1)
    config = dataclasses.replace(CONFIG, on_policy=0.0)
    dataset, loss = Dataset.load(root / "dataset"), Loss(None, rank=True, own_beams=True)
    batch = next(BatchSampler(dataset, None, loss, True, config).batches(0))
    assert batch.on_policy and batch.rank_total == batch.rank_weights.sum().item() > len(batch.rows)
    batch = dataclasses.replace(batch, targets=batch.targets.clone())
    alone = Recommender(
        recommender.ranker, recommender.codes.numpy(), *[recommender.item_ids] * 2, facts=recommender.facts
    )
    lists, _ = alone.rank_items(batch.sequences.numpy(), 5, True)
    batch.targets[0] = int(lists[0, 2])
    labelled = rewarded_beams(recommender, batch, 5)
    assert labelled.candidates.tolist() == lists.tolist()
    assert labelled.candidate_scores[0, 2] > 0 > labelled.candidate_scores[0, 0]
    assert recommender.ranker is not None and recommender.model is not recommender.ranker


def test_the_engine_reads_as_many_items_as_its_prompts_hold():
    teacher = FakeTeacher()
    histories, items = np.array([[1, 2, 3, 4, 5], [6, 7, -1, -1, -1]]), np.array([8, 9])
    EngineTeacher(teacher, batch_size=1).codeword_log_probs(histories, items)
    assert [call[0].tolist() for call in teacher.calls] == [[[3, 4, 5]], [[6, 7, -1]]]


def test_the_cache_asks_once_and_forgets_the_oldest():
    teacher = FakeTeacher()
    histories, items = np.array([[1, 2], [1, -1], [1, 2], [2, 1]]), np.array([3, 3, 3, 3])
    cached = CachedTeacher(teacher)
    first = cached.codeword_log_probs(histories, items)
    np.testing.assert_array_equal(first, FakeTeacher().codeword_log_probs(histories, items))
    assert len(teacher.calls) == 1 and len(teacher.calls[0][1]) == 3
    np.testing.assert_array_equal(cached.codeword_log_probs(histories[::-1], items), first[::-1])
    assert len(teacher.calls) == 1 and (cached.asked, cached.answered) == (8, 5)
    small = CachedTeacher(teacher, limit=2 * 2 * LEVELS * SIZE)  # two answers in float16
    for row in (0, 3, 0, 1):  # the last but one is used again, so [2, 1] goes
        small.codeword_log_probs(histories[row : row + 1], items[:1])
    calls = len(teacher.calls)
    small.codeword_log_probs(histories[:1], items[:1])
    assert len(teacher.calls) == calls
    small.codeword_log_probs(histories[3:], items[:1])
    assert len(teacher.calls) == calls + 1


def test_grpo_trains_a_ranker_without_labels_for_it(root, tmp_path):
    parsed = parse(Config, None, ["--list_loss", "grpo", "--kl_weight", "0.1"])
    options = {"list_loss": parsed.list_loss, "kl_weight": parsed.kl_weight, "soft_labels": tmp_path / "none"}
    run(root, tmp_path / "student", "dtr-smooth", **options)
    curve = json.loads((tmp_path / "student/curve.json").read_text())["ranker"]
    assert len(curve) == 1 and np.isfinite(curve[0]["loss"])


def test_the_command_asks_the_runs_teacher(root, tmp_path, monkeypatch):
    teacher = FakeTeacher()
    monkeypatch.setattr(train, "open_teacher", lambda *_: teacher)
    options = {"backbone": "nested", "on_policy": 0.5, "scope": "trie"}
    first = run(root, tmp_path / "student", "distill", **options)
    curve = json.loads((tmp_path / "student/curve.json").read_text())["retriever"]
    assert teacher.calls and all(np.isfinite(row["loss"]) for row in curve)
    assert first.inputs["teacher"] == artifacts.read(root / "teacher", "teacher").fingerprint
    with pytest.raises(UserError, match="--on_policy is for --variant distill, dtr and dwr"):
        run(root, tmp_path / "tiger", "tiger", **options)
    with pytest.raises(UserError, match="--scope level or trie"):
        run(root, tmp_path / "all", "distill", **options | {"scope": "all"})
    with pytest.raises(UserError, match="not sasrec"):
        run(root, tmp_path / "sasrec", "distill", **options | {"backbone": "sasrec"})


def test_an_interrupted_training_ends_as_an_unbroken_one(root, tmp_path, monkeypatch):
    """Its answers are forgotten and asked for again."""
    monkeypatch.setattr(train, "open_teacher", lambda *_: FakeTeacher())
    options = {"backbone": "nested", "on_policy": 0.5, "list_loss": "grpo"}
    whole = run(root, tmp_path / "whole", "dtr", **options)
    for step, phase in ((3, "retriever"), (2, "ranker")):
        with monkeypatch.context() as patch:
            break_at(patch, step, phase)
            with pytest.raises(BrokenOffError):
                run(root, tmp_path / "broken", "dtr", **options)
    assert run(root, tmp_path / "broken", "dtr", **options).fingerprint == whole.fingerprint
