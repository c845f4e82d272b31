"""How the evaluation asks students: mixtures with memories against a student that has the memories itself."""

from types import SimpleNamespace

import numpy as np
import pytest
from unit import test_counting
from unit.test_recommender import N_ITEMS, shop

from distill.baselines.content import Content, ContentSettings
from distill.baselines.counting import TransitionSettings
from distill.evaluation.config import EvaluationSettings
from distill.evaluation.evaluate import Evaluation
from distill.evaluation.systems import rank_examples
from distill.metrics import hit_ranks, ndcg
from student.content_memory import ContentMemory
from student.memory_mixture import MixtureWeights
from student.memory_tuning import DISCOUNTS, WEIGHTS
from student.systems import MemoryMixture
from student.transition_memory import TransitionMemory

COUNTING = TransitionSettings(2, 0.7, 0.7, 5)
CONTENT = Content(np.random.default_rng(5).normal(size=(N_ITEMS, 6)), ContentSettings(0.6, 3))


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    sequences = [(start + np.arange(rng.integers(3, 8))) % N_ITEMS for start in rng.integers(0, N_ITEMS, 40)]
    return test_counting.make(tmp_path, sequences, n_items=N_ITEMS)


def with_memories(student, dataset, weight, discount, content_weight=0.0, temperature=0.08):
    memory = TransitionMemory.of(dataset, COUNTING, top=10, weight=weight, discount=discount)
    content = ContentMemory.of(CONTENT, top=10, weight=content_weight, temperature=temperature)
    return student.with_transition_memory(memory).with_content_memory(content)


@pytest.mark.parametrize("with_content", [False, True])
@pytest.mark.parametrize("exclude_bought", [True, False])
def test_the_mixture_ranks_as_a_student_with_that_memory(dataset, exclude_bought, with_content):
    student = shop()
    system = SimpleNamespace(name="student", rank=student.rank_items, score_candidates=student.score_candidates)
    valid, test = dataset.examples("valid", 6), dataset.examples("test", 6)
    mixture = MemoryMixture(dataset, COUNTING, CONTENT if with_content else None, top=10, batch_size=7)
    assert mixture.names == ["transitions", "counter+content"][: 1 + with_content]

    def lists_of(examples, *weights):
        return with_memories(student, dataset, *weights).rank_items(examples.histories, 12, exclude_bought)[0]

    beams = rank_examples(system, test, 12, exclude_bought, batch_size=9)
    proposals = mixture.propose(system, beams, test, exclude_bought, "")
    mixture.weights["transitions"] = MixtureWeights(0.4, 0.1)
    result = mixture.rank("transitions", proposals, 12)
    assert result.tolist() == lists_of(test, 0.4, 0.1).tolist()
    if with_content:
        mixture.weights["counter+content"] = MixtureWeights(0.4, 0.1, 0.3, 0.12)
        result = mixture.rank("counter+content", proposals, 12)
        assert result.tolist() == lists_of(test, 0.4, 0.1, 0.3, 0.12).tolist()

    beams = rank_examples(system, valid, 12, exclude_bought, batch_size=9)
    on_valid = mixture.propose(system, beams, valid, exclude_bought, "")
    for name in mixture.names:
        choice = mixture.tune(name, on_valid, valid.targets)
        values = {
            (weight, discount): ndcg(hit_ranks(lists_of(valid, weight, discount), valid.targets), 10).mean()
            for weight in WEIGHTS[::4]
            for discount in DISCOUNTS[::3]
        }
        weights = mixture.weights[name]
        chosen = lists_of(valid, *weights)
        assert ndcg(hit_ranks(chosen, valid.targets), 10).mean() >= max(values.values()) - 1e-9
        assert choice == weights.in_words()
        if name == "transitions":
            assert choice == f"the counter's share is {weights.weight}, the discount {weights.discount}"

    # given items are scored as the student with these memories scores all of them
    items, histories = np.tile([3, 0, -1, 17], (len(test), 1)), test.histories
    scores = mixture.ranking_scores(name, system.score_candidates, histories, items, exclude_bought)
    exact = with_memories(student, dataset, *weights).score_items(histories, exclude_bought)
    assert (scores[:, 2] == -np.inf).all()
    np.testing.assert_allclose(np.exp(scores[:, [0, 1, 3]]), np.exp(exact[:, [3, 0, 17]]), rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize(("texts", "content"), [(True, True), (True, False), (False, True)])
def test_rows_of_the_teacher_with_memories(dataset, texts, content):
    """`teacher+counter+content` is evaluated where there are texts, and the teacher searches only once for both."""
    student, searched = shop(), []

    def rank(histories, beam_width, exclude_bought, constrained):
        searched.append(len(histories) if constrained else 0)
        return student.rank_items(histories, beam_width, exclude_bought, constrained)

    teacher = SimpleNamespace(
        name="teacher",
        kind="teacher",
        parameters=1,
        needs_trie=False,
        rank=rank,
        score_candidates=student.score_candidates,
    )
    teacher.ranking_scores = student.ranking_scores
    settings = EvaluationSettings(
        transitions=COUNTING, content=content, exact_users=0, mixture_users=15, mixture_top=10, exclude_bought=True
    )
    vectors = np.random.default_rng(5).normal(size=(N_ITEMS, 6))
    evaluation = Evaluation(settings, dataset, vectors, vectors if texts else None, {"dataset": "shop"})
    rows = {row["system"]: row for row in evaluation.run([], [teacher], MemoryMixture).rows}
    mixtures = ["teacher+transitions", "teacher+counter+content"][: 1 + (texts and content)]
    assert list(rows) == ["teacher", *mixtures]
    assert sum(searched) == len(dataset.examples("test")) + 15
    for name in mixtures:
        assert rows[name]["ndcg@10"] > rows["teacher"]["ndcg@10"]  # counting sees these sequences at once
        assert "the counter's share is" in rows[name]["note"] and "15 validation examples" in rows[name]["note"]
        assert "recall@10_cold_among_cold" in rows[name]
