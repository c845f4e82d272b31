"""How the evaluation asks students: the mixture with the counter against a student that has the memory itself."""

from types import SimpleNamespace

import numpy as np
import pytest
from unit import test_counting
from unit.test_recommender import N_ITEMS, shop

from distill.baselines.counting import Transitions, TransitionSettings
from distill.evaluation.systems import rank_examples
from distill.metrics import hit_ranks, ndcg
from student.systems import MemoryMixture
from student.transition_memory import DISCOUNTS, WEIGHTS, TransitionMemory

COUNTING = TransitionSettings(2, 0.7, 0.7, 5)


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    sequences = [(start + np.arange(rng.integers(3, 8))) % N_ITEMS for start in rng.integers(0, N_ITEMS, 40)]
    return test_counting.make(tmp_path, sequences, n_items=N_ITEMS)


@pytest.mark.parametrize("exclude_bought", [True, False])
def test_the_mixture_ranks_as_a_student_with_that_memory(dataset, exclude_bought):
    student = shop()
    system = SimpleNamespace(name="student", rank=student.rank_items, score_candidates=student.score_candidates)
    valid, test = dataset.examples("valid", 6), dataset.examples("test", 6)
    mixture = MemoryMixture(dataset, Transitions(dataset, COUNTING), top=10, batch_size=7)

    def lists_of(examples, weight, discount):
        memory = TransitionMemory.of(dataset, COUNTING, top=10, weight=weight, discount=discount)
        return student.with_transition_memory(memory).rank_items(examples.histories, 12, exclude_bought)[0]

    beams = rank_examples(system, test, 12, exclude_bought, batch_size=9)
    mixture.weight, mixture.discount = 0.4, 0.1
    result = mixture.rank(system, beams, test, 12, exclude_bought)
    assert result.tolist() == lists_of(test, 0.4, 0.1).tolist()

    beams = rank_examples(system, valid, 12, exclude_bought, batch_size=9)
    choice = mixture.tune(system, beams, valid, exclude_bought)
    values = {
        (weight, discount): ndcg(hit_ranks(lists_of(valid, weight, discount), valid.targets), 10).mean()
        for weight in WEIGHTS[::4]
        for discount in DISCOUNTS[::3]
    }
    chosen = lists_of(valid, mixture.weight, mixture.discount)
    assert ndcg(hit_ranks(chosen, valid.targets), 10).mean() >= max(values.values()) - 1e-9
    assert choice == f"the counter's share is {mixture.weight}, the discount {mixture.discount}"
