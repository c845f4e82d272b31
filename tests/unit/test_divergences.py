"""Divergences and ranking losses beside the paper's, against slow versions and by hand."""

import math

import pytest
import torch
from reference import divergences_naive as naive
from torch.autograd import gradcheck

from distill import list_losses, losses
from distill.divergences import FLOOR, divergence, divergences
from distill.list_losses import list_loss

NAMES = list(divergences())
LISTS = ["ranknet", "plackett_luce", "softmax_first"]


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_divergences_by_their_definitions(name, temperature):
    """The teacher's rows do not sum to 1: part of its mass lies on other tokens."""
    teacher = random(0, 3, 4, 8).log_softmax(-1)[..., :6]
    student = random(1, 3, 4, 6).log_softmax(-1)
    expected = []
    for teacher_rows, student_rows in zip(teacher, student, strict=True):
        values = []
        for teacher_row, student_row in zip(teacher_rows, student_rows, strict=True):
            powers = [math.exp(value / temperature) for value in teacher_row.tolist()]
            p = [power / sum(powers) for power in powers]
            values.append(naive.divergence(name, p, student_row.exp().tolist(), beta=0.3, skew=0.2))
        expected.append(sum(values) / len(values))
    values = divergence(name, student, teacher, temperature, beta=0.3, skew=0.2)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_divergences(name):
    teacher = random(2, 2, 3, 5).log_softmax(-1)
    assert gradcheck(
        lambda logits: divergence(name, logits.log_softmax(-1), teacher), random(3, 2, 3, 5).requires_grad_()
    )


@pytest.mark.parametrize("name", NAMES)
def test_divergences_are_least_at_the_teacher(name):
    logits = random(4, 2, 3, 5)
    equal = divergence(name, logits.log_softmax(-1), logits)
    torch.testing.assert_close(equal, torch.zeros_like(equal), atol=1e-12, rtol=0)
    assert (divergence(name, (logits + 0.1 * random(5, 2, 3, 5)).log_softmax(-1), logits) > 1e-5).all()


def test_forward_kl_is_equation_11_less_the_entropy():
    teacher, student = random(6, 2, 3, 5), random(7, 2, 3, 5).log_softmax(-1)
    p = teacher.softmax(-1)
    entropy = -(p * p.log()).sum(-1).mean(-1)
    torch.testing.assert_close(divergence("forward_kl", student, teacher), losses.distill(student, teacher) - entropy,
                               rtol=1e-6, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_codewords_that_the_teacher_excludes(name):
    """Codewords of other levels have −∞: values and gradients stay finite, and only the student's mass there counts."""
    teacher = torch.cat([random(8, 1, 2, 4), torch.full((1, 2, 4), -torch.inf, dtype=torch.float64)], dim=-1)
    logits = random(9, 1, 2, 8).requires_grad_()
    value = divergence(name, logits.log_softmax(-1), teacher)
    value.sum().backward()
    assert value.isfinite().all() and logits.grad.isfinite().all()
    assert (logits.grad[..., 4:] > 0).all()  # descent takes mass away from them


def test_by_hand():
    p, q = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
    assert divergence("total_variation", q, p).item() == pytest.approx(0.25)
    assert divergence("forward_kl", q, p).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert divergence("reverse_kl", q, p).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    certain = torch.tensor([[[0.0, -torch.inf]]])
    assert divergence("reverse_kl", q, certain).item() == pytest.approx(
        0.25 * math.log(0.25) + 0.75 * (math.log(0.75) - FLOOR)
    )


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("name", LISTS)
def test_ranking_losses_by_their_definitions(name, scale):
    """Lists of 5, 3, 1 and no candidates; the absent ones' scores do not matter."""
    scores, lengths = random(10, 4, 5), [5, 3, 1, 0]
    present = torch.arange(5) < torch.tensor(lengths)[:, None]
    values = list_loss(name, scores, present, scale=scale)
    slow = getattr(naive, name)
    expected = [
        slow(row[:length].tolist(), scale) if length else 0.0 for row, length in zip(scores, lengths, strict=True)
    ]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(list_loss(name, scores[:1], scale=scale), values[:1])


@pytest.mark.parametrize(("name", "like"), [("dpo", naive.ranknet), ("s_dpo", naive.softmax_first)])
def test_losses_against_a_reference_read_the_gain_over_it(name, like):
    scores, reference = random(14, 2, 4), random(15, 2, 4)
    values = list_loss(name, scores, reference=reference, scale=2.0)
    expected = [like((row - other).tolist(), 2.0) for row, other in zip(scores, reference, strict=True)]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


def test_losses_against_the_teachers_scores():
    """Lists of 4, 2 and no candidates; half of the mass lies outside the list."""
    lengths = [4, 2, 0]
    present = torch.arange(4) < torch.tensor(lengths)[:, None]
    teacher, scores = (random(seed, 3, 4).log_softmax(-1) - math.log(2) for seed in (16, 17))
    gone = teacher.masked_fill(~present, -torch.inf)
    lists = [(row[:n].tolist(), other[:n].tolist()) for row, other, n in zip(scores, teacher, lengths, strict=True)]
    expected = [naive.listnet(row, other, 3.0, 0.7) if row else 0.0 for row, other in lists]
    values = list_loss("listnet", scores, present, gone, scale=3.0, temperature=0.7)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))
    expected = [naive.item_kl(row, other) for row, other in lists]
    values = list_loss("item_kl", scores / 4, present, gone, scale=9.0, length=4)  # M is a quarter of log Q(v|S)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


def test_grpo_by_its_definition():
    """Groups of 4, 2 and no beams."""
    lengths = [4, 2, 0]
    present = torch.arange(4) < torch.tensor(lengths)[:, None]
    scores, reward, reference = (random(seed, 3, 4) for seed in (20, 21, 22))
    values = list_loss("grpo", scores, present, reward, reference, length=3, kl_weight=0.2)
    rows = zip(*(each.tolist() for each in (scores, reward, reference)), lengths, strict=True)
    expected = [naive.grpo(row[:n], gains[:n], other[:n], 0.2, 3) if n else 0.0 for row, gains, other, n in rows]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


def test_rewards_by_hand():
    """Places cost 1 / log₂ 2 = 1, 1 / log₂ 4 = ½ …; shares of all wrong items add to −1."""
    items = torch.tensor([[7, 8, 9], [7, 8, 9], [5, -1, -1]])
    third = 1 / math.log2(3)
    expected = [
        [-1 / 1.5, 1.0, -0.5 / 1.5],
        [-1 / (1.5 + third), -third / (1.5 + third), -0.5 / (1.5 + third)],
        [1, 0, 0],
    ]
    torch.testing.assert_close(list_losses.rewards(items, torch.tensor([8, 1, 5])), torch.tensor(expected))


def test_item_kl_by_hand():
    """One candidate of ½ for the teacher and ¼ for the student, one that the teacher excludes."""
    teacher, student = torch.tensor([0.5, 0.0]).log(), torch.tensor([0.25, 0.25]).log()
    assert list_losses.item_kl(student, teacher).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(1.0))


@pytest.mark.parametrize("name", [*LISTS, "dpo", "s_dpo", "listnet", "item_kl", "grpo"])
def test_gradients_of_ranking_losses(name):
    present = torch.arange(4) < torch.tensor([4, 2, 0])[:, None]
    teacher, reference = random(18, 3, 4).log_softmax(-1) - 1, random(19, 3, 4)

    def loss(scores):
        return list_loss(name, scores.log_softmax(-1) - 1, present, teacher, reference, scale=2.0)

    assert gradcheck(loss, random(11, 3, 4).requires_grad_())
    scores = random(12, 3, 4).sub(4).requires_grad_()
    list_loss(name, scores, present, teacher, reference, scale=2.0).sum().backward()
    assert scores.grad[~present].abs().max() == 0


def test_margin_is_equation_14():
    scores, present = random(13, 2, 4), torch.tensor([[True] * 4, [True, True, False, False]])
    torch.testing.assert_close(list_loss("margin", scores, present, margin=0.1), losses.rank(scores, 0.1, present))
