"""Slow versions of distill/divergences.py and distill/list_losses.py, one codeword, pair or place at a time."""

import math


def kl(p, q):
    """Σ p log(p / q) of two lists of probabilities."""
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def mixture(share, p, q):
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def divergence(name, p, q, beta, skew):
    """A divergence between the teacher's p and the student's q, by its definition."""
    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    if name == "jensen_shannon":
        middle = mixture(beta, p, q)
        return beta * kl(p, middle) + (1 - beta) * kl(q, middle)
    if name == "skewed_kl":
        return kl(p, mixture(skew, p, q))
    if name == "skewed_reverse_kl":
        return kl(q, mixture(1 - skew, p, q))
    return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2


def ranknet(scores, scale):
    """Mean of −log σ over all pairs of a list, best first."""
    pairs = [(i, j) for i in range(len(scores)) for j in range(i + 1, len(scores))]
    chances = [1 / (1 + math.exp(-scale * (scores[i] - scores[j]))) for i, j in pairs]
    return sum(-math.log(chance) for chance in chances) / max(1, len(pairs))


def plackett_luce(scores, scale):
    """Draw place by place without replacement; the mean of −log of the chances of all places but the last."""
    total = 0.0
    for place in range(len(scores) - 1):
        left = [math.exp(scale * score) for score in scores[place:]]
        total -= math.log(left[0] / sum(left))
    return total / max(1, len(scores) - 1)


def softmax_first(scores, scale):
    """−log of the first candidate's share."""
    weights = [math.exp(scale * score) for score in scores]
    return -math.log(weights[0] / sum(weights))


def listnet(scores, teacher, scale, temperature):
    """Cross-entropy between two softmaxes over the list."""
    wanted = [math.exp(value / temperature) for value in teacher]
    weights = [math.exp(scale * score) for score in scores]
    return -sum(w / sum(wanted) * math.log(q / sum(weights)) for w, q in zip(wanted, weights, strict=True))


def item_kl(log_probs, teacher):
    """KL over the items of the list and one outcome for all others."""
    p, q = ([math.exp(value) for value in values] for values in (teacher, log_probs))
    return kl([*p, 1 - sum(p)], [*q, 1 - sum(q)])


def grpo(scores, reward, reference, beta, length):
    """−mean(A · M) + β · mean of exp(d) − d − 1 over the beams of a group."""
    mean = sum(reward) / len(reward)
    spread = math.sqrt(sum((value - mean) ** 2 for value in reward) / len(reward))
    total = 0.0
    for score, value, other in zip(scores, reward, reference, strict=True):
        d = length * (other - score)
        total += beta * (math.exp(d) - d - 1) - (value - mean) / max(spread, 1e-6) * score
    return total / len(scores)
