import math

import pytest
import torch
from reference import losses_naive as naive

from distill import losses

BATCH, LEVELS, SIZE = 3, 4, 6


def random_logits(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_codes(seed, *shape, size=SIZE):
    return torch.randint(size, shape, generator=torch.Generator().manual_seed(seed))


def same(fast, slow, start):
    """Two functions of a tensor, one value an example: equal in value and in gradient."""
    sides = []
    for function in (fast, slow):
        logits = start.clone().requires_grad_()
        values = function(logits)
        # unequal weights, so that a mix-up of examples shows in the gradient
        (values * torch.arange(1, len(values) + 1)).sum().backward()
        sides.append((values.detach(), logits.grad))
    torch.testing.assert_close(sides[0][0], sides[1][0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(sides[0][1], sides[1][1], rtol=1e-6, atol=1e-7)
    assert sides[0][1].abs().max() > 0


def each(function, *columns):
    return torch.stack([function(*row) for row in zip(*columns, strict=True)])


def test_nll():
    targets = random_codes(1, BATCH, LEVELS)
    same(
        lambda x: losses.nll(x.log_softmax(-1), targets),
        lambda x: each(naive.nll, x.log_softmax(-1), targets),
        random_logits(0, BATCH, LEVELS, SIZE),
    )


def test_nll_by_hand():
    log_probs = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]]).log()
    loss = losses.nll(log_probs, torch.tensor([[1, 2]]))
    assert loss.item() == pytest.approx(-(math.log(0.25) + math.log(0.7)) / 2)


@pytest.mark.parametrize("xi", [0.0, 0.1, 0.5])
def test_smooth(xi):
    targets = random_codes(1, BATCH, LEVELS)
    same(
        lambda x: losses.smooth(x.log_softmax(-1), targets, xi),
        lambda x: each(lambda p, t: naive.smooth(p, t, xi), x.log_softmax(-1), targets),
        random_logits(2, BATCH, LEVELS, SIZE),
    )


def test_smooth_weights():
    """The loss is linear in the log-probabilities: minus its gradient, times the levels, are the weights."""
    log_probs = torch.zeros(1, 2, SIZE, dtype=torch.float64, requires_grad=True)
    losses.smooth(log_probs, torch.tensor([[3, 0]]), xi=0.1).sum().backward()
    weights = -2 * log_probs.grad[0]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, dtype=torch.float64))
    assert weights[0].tolist() == pytest.approx([0.02, 0.02, 0.02, 0.9, 0.02, 0.02])
    assert weights[1].tolist() == pytest.approx([0.9, 0.02, 0.02, 0.02, 0.02, 0.02])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_distill(temperature):
    # the teacher's rows do not sum to 1: part of its mass lies on other tokens
    teacher = random_logits(3, BATCH, LEVELS, SIZE + 2).log_softmax(-1)[..., :SIZE]
    same(
        lambda x: losses.distill(x.log_softmax(-1), teacher, temperature),
        lambda x: each(lambda p, t: naive.distill(p, t, temperature), x.log_softmax(-1), teacher),
        random_logits(4, BATCH, LEVELS, SIZE),
    )


def test_distill_with_impossible_codewords():
    """−inf of the teacher (another level's codewords) weighs nothing and makes no NaN."""
    teacher = random_logits(5, 1, LEVELS, SIZE).log_softmax(-1)
    wide = torch.cat([teacher, torch.full_like(teacher, -torch.inf)], dim=-1)
    logits = random_logits(6, 1, LEVELS, 2 * SIZE).requires_grad_()
    log_probs = logits.log_softmax(-1)
    loss = losses.distill(log_probs, wide)
    torch.testing.assert_close(loss, losses.distill(log_probs[..., :SIZE], teacher))
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_distill_is_least_at_the_teacher():
    teacher = random_logits(7, BATCH, LEVELS, SIZE)
    logits = teacher.clone().requires_grad_()
    loss = losses.distill(logits.log_softmax(-1), teacher)
    loss.sum().backward()
    assert logits.grad.abs().max() < 1e-7
    p = teacher.softmax(-1)
    torch.testing.assert_close(loss.detach(), -(p * p.log()).sum(-1).mean(-1), rtol=1e-6, atol=0)  # its entropy
    off = losses.distill((teacher + 0.1 * random_logits(8, *teacher.shape)).log_softmax(-1), teacher)
    assert (off > loss).all()


def test_distill_with_a_certain_teacher_is_nll():
    targets = random_codes(9, BATCH, LEVELS)
    teacher = torch.full((BATCH, LEVELS, SIZE), -torch.inf).scatter(-1, targets[..., None], 0.0)
    log_probs = random_logits(10, BATCH, LEVELS, SIZE).log_softmax(-1)
    torch.testing.assert_close(losses.distill(log_probs, teacher), losses.nll(log_probs, targets))


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_distill_with_a_share_of_the_hard_label(alpha, temperature):
    teacher = random_logits(17, BATCH, LEVELS, SIZE + 2).log_softmax(-1)[..., :SIZE]
    targets = random_codes(18, BATCH, LEVELS)
    same(
        lambda x: losses.distill(x.log_softmax(-1), teacher, temperature, targets, alpha),
        lambda x: each(
            lambda *row: naive.distill(*row[:2], temperature, row[2], alpha), x.log_softmax(-1), teacher, targets
        ),
        random_logits(19, BATCH, LEVELS, SIZE),
    )


def test_a_hard_label_alone_is_nll():
    log_probs, teacher = (random_logits(seed, BATCH, LEVELS, SIZE).log_softmax(-1) for seed in (20, 21))
    targets = random_codes(22, BATCH, LEVELS)
    found = losses.distill(log_probs, teacher, 1.0, targets, 1.0)
    torch.testing.assert_close(found, losses.nll(log_probs, targets))


def test_weights_with_a_share_of_the_hard_label():
    """By hand: half of (1/2, 1/4, 1/4), half on the third."""
    log_probs = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[[0.5, 0.25, 0.25]]]).log()
    losses.distill(log_probs, teacher, 1.0, torch.tensor([[2]]), 0.5).sum().backward()
    assert (-log_probs.grad).flatten().tolist() == pytest.approx([0.25, 0.125, 0.625])


@pytest.mark.parametrize("k", [1, 2, 5, 16])
def test_reference_rank(k):
    scores = random_logits(23 + k, 20, k)
    scores[::3, k // 2 + 1 :] = -torch.inf  # short lists
    scores[1::4, -1] = scores[1::4, 0]  # as good as the reference is not better
    expected = torch.tensor([naive.reference_rank(row) for row in scores])
    assert torch.equal(losses.reference_rank(scores), expected)
    if k > 2:
        assert len(expected.unique()) > 2


def test_reference_rank_by_hand():
    scores = torch.tensor([[-2.0, -1.0, -3.0], [-1.0, -1.0, -1.0], [-5.0, -1.0, -2.0], [-9.0, -1.0, -torch.inf]])
    assert losses.reference_rank(scores).tolist() == [2, 1, 3, 2]
    assert losses.reference_rank(scores[:, :1]).tolist() == [1, 1, 1, 1]  # alone it is first


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_confidence(power):
    ranks = torch.arange(1, 17)
    expected = torch.tensor([naive.confidence(rank, power) for rank in ranks], dtype=torch.float64)
    torch.testing.assert_close(losses.confidence(ranks, power), expected, rtol=1e-12, atol=0)


def test_confidence_by_hand():
    assert losses.confidence(torch.tensor([1, 2, 4]), 1.0).tolist() == [1, 0.5, 0.25]
    assert losses.confidence(torch.tensor([1, 4, 9]), 0.5).tolist() == pytest.approx([1, 1 / 2, 1 / 3])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
def test_mean_score(eta):
    same(
        lambda x: losses.mean_score(x, eta).sum(-1),
        lambda x: each(lambda rows: sum(naive.mean_score(row, eta) for row in rows), x),
        random_logits(24, BATCH, 5, LEVELS),
    )


def test_mean_score_is_the_score_of_the_codewords_own_log_probabilities():
    log_probs, codes = random_logits(25, BATCH, 5, LEVELS, SIZE).log_softmax(-1), random_codes(26, BATCH, 5, LEVELS)
    own = log_probs.gather(-1, codes[..., None]).squeeze(-1)
    torch.testing.assert_close(losses.mean_score(own, 0.7), losses.sequence_score(log_probs, codes, 0.7))
    assert losses.mean_score(torch.tensor([-1.0, -2.0, -3.0])).item() == pytest.approx(-2)


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.0])
def test_sequence_score(eta):
    k = 5
    candidates = random_codes(11, BATCH, k, LEVELS)
    same(
        lambda x: losses.sequence_score(x.log_softmax(-1), candidates, eta).sum(-1),
        lambda x: each(
            lambda p, c: sum(naive.sequence_score(p[i], c[i], eta) for i in range(k)), x.log_softmax(-1), candidates
        ),
        random_logits(12, BATCH, k, LEVELS, SIZE),
    )


def test_score_is_minus_nll():
    log_probs, codes = random_logits(13, 2, LEVELS, SIZE).log_softmax(-1), random_codes(14, 2, LEVELS)
    torch.testing.assert_close(losses.sequence_score(log_probs, codes), -losses.nll(log_probs, codes))


@pytest.mark.parametrize("k", [2, 3, 7, 16, 32])
@pytest.mark.parametrize("margin", [0.0, 0.001, 0.1])
@pytest.mark.parametrize("absent", [False, True])
def test_rank(k, margin, absent):
    present = torch.ones(8, k, dtype=torch.bool)
    if absent:
        present[0, k // 2 :] = False
        present[1, 1::3] = False  # not only at the end
    same(
        lambda x: losses.rank(x, margin, present if absent else None),
        lambda x: each(lambda s, p: naive.rank(s, margin, p), x, present),
        random_logits(15 + k, 8, k),
    )


def test_rank_by_hand():
    # pairs: (1,2): .5 − 1 + .1 < 0; (1,3): .9 − 1 + .2 = .1; (2,3): .9 − .5 + .1 = .5
    scores = torch.tensor([[1.0, 0.5, 0.9]])
    assert losses.rank(scores, margin=0.1).item() == pytest.approx(0.6)
    assert losses.rank(scores, 0.1, torch.tensor([[True, False, True]])).item() == pytest.approx(0.1)


def test_rank_is_zero_where_the_order_is_right():
    margin, k = 0.01, 16
    scores = -1.1 * margin * torch.arange(k, dtype=torch.float64)[None]  # each gap is a little more than asked for
    scores.requires_grad_()
    loss = losses.rank(scores, margin)
    loss.sum().backward()
    assert loss.item() == 0 and (scores.grad == 0).all()
    assert losses.rank(scores.flip(1), margin).item() > 0
    assert losses.rank(0.8 * scores, margin).item() > 0


def test_absent_candidates_have_no_gradient():
    scores = random_logits(16, 1, 8).requires_grad_()
    present = torch.arange(8)[None] < 1
    loss = losses.rank(scores, 0.1, present)
    loss.sum().backward()
    assert loss.item() == 0 and (scores.grad == 0).all()


def test_features_by_hand():
    """One level in the same direction, one at right angles, one opposite: 0, 1 and 2. A second layer: 2, 2 and 2."""
    states = torch.tensor([[[[1.0, 0.0]], [[0.0, 3.0]], [[2.0, 2.0]]]])
    guesses = torch.tensor([[[[5.0, 0.0]], [[1.0, 0.0]], [[-1.0, -1.0]]]])
    torch.testing.assert_close(losses.features(guesses, states), torch.tensor([1.0]))
    two = torch.cat([guesses, -states], dim=2), torch.cat([states, states], dim=2)
    torch.testing.assert_close(losses.features(*two), torch.tensor([1.5]))


def test_features_gradient():
    torch.manual_seed(0)
    guesses, states = torch.randn(2, 2, 3, 2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda each: losses.features(each, states), guesses.requires_grad_())


def test_prefix_loss_by_hand():
    """Codewords of ½, ¼, ⅛: prefixes lose ln 2 and (ln 2 + ln 4) / 2 = 1.5 ln 2; the last codeword is no prefix."""
    log_probs = torch.full((1, 3, 2), -1.0)
    log_probs[0, :, 0] = torch.tensor([0.5, 0.25, 0.125]).log()
    first, second = math.log(2), 1.5 * math.log(2)
    targets = torch.zeros(1, 3, dtype=torch.long)
    weights = [1 / 2.5, 1.5 / 2.5]
    assert losses.prefix(log_probs, targets).item() == pytest.approx(weights[0] * first + weights[1] * second)
    powers = [first * math.exp(2 * first), second * math.exp(2 * second)]
    expected = (powers[0] * first + powers[1] * second) / sum(powers)
    assert losses.prefix(log_probs, targets, focus=2.0).item() == pytest.approx(expected)


def test_prefix_loss_takes_no_gradient_through_its_weights():
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])
    logits.requires_grad_()
    losses.prefix(logits.log_softmax(-1), targets, focus=1.0).sum().backward()
    chosen = -logits.detach().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    known = chosen[:, :3].cumsum(1) / torch.arange(1, 4)
    weights = known * known.exp() / (known * known.exp()).sum(1, keepdim=True)
    share = torch.stack([(weights[:, t:] / torch.arange(t + 1, 4)).sum(1) for t in range(3)], dim=1)
    expected = logits.detach().softmax(-1)
    expected.scatter_add_(-1, targets[..., None], torch.full((2, 4, 1), -1.0, dtype=torch.float64))
    torch.testing.assert_close(logits.grad[:, :3], expected[:, :3] * share[..., None])
    assert logits.grad[:, 3].abs().max() == 0
