"""Slow, readable versions of distill/losses.py: one example, one level, one codeword at a time, float64 tensors.

Sums are built from tensor scalars, so that autograd gives reference gradients too.
"""


def nll(log_probs, targets):
    """Equation (8) for one example [levels, V]."""
    levels = len(targets)
    return -sum(log_probs[j, targets[j]] for j in range(levels)) / levels


def smooth_weights(size, target, xi):
    """Equation (10)."""
    return [1 - xi if code == target else xi / (size - 1) for code in range(size)]


def cross_entropy(log_probs, weights):
    """Equations (9) and (11): Σ_j Σ_k −w_jk log p_jk, averaged over the positions."""
    levels, size = log_probs.shape
    return -sum(weights[j][k] * log_probs[j, k] for j in range(levels) for k in range(size)) / levels


def smooth(log_probs, targets, xi):
    """Equations (9) and (10) for one example [levels, V]."""
    size = log_probs.shape[1]
    return cross_entropy(log_probs, [smooth_weights(size, int(target), xi) for target in targets])


def distill(log_probs, teacher_log_probs, temperature, targets=None, alpha=0.0):
    """Equations (11) and (12) for one example: q ∝ (teacher's p)^(1/T), renormalised over the codewords.

    A share α of each position's weight goes to the target codeword instead.
    """
    weights = []
    for j, row in enumerate(teacher_log_probs):
        powers = [(value / temperature).exp() for value in row]
        row_weights = [power / sum(powers) for power in powers]
        if alpha:
            row_weights = [
                (1 - alpha) * q + (alpha if k == int(targets[j]) else 0.0) for k, q in enumerate(row_weights)
            ]
        weights.append(row_weights)
    return cross_entropy(log_probs, weights)


def reference_rank(scores):
    """The reference's rank among one example's candidates, of which it is the first."""
    reference, others = float(scores[0]), [float(score) for score in scores[1:]]
    rank = 1
    for other in others:
        if other > reference:
            rank += 1
    return rank


def confidence(rank, power):
    """1 / rank^power, for one example."""
    return 1.0 / float(rank) ** power


def mean_score(codeword_log_probs, eta):
    """M of one candidate from the log-probabilities of its codewords [levels]."""
    levels = len(codeword_log_probs)
    return sum(codeword_log_probs[j] for j in range(levels)) / levels**eta


def sequence_score(log_probs, codes, eta):
    """M(v, S) of one candidate [levels, V]."""
    levels = len(codes)
    return sum(log_probs[j, codes[j]] for j in range(levels)) / levels**eta


def rank(scores, margin, present):
    """Equation (14) for one example: candidates 1 … k, best first."""
    total = 0 * scores[0]
    for i in range(len(scores)):
        for j in range(i + 1, len(scores)):
            if present[i] and present[j]:
                hinge = scores[j] - scores[i] + (j - i) * margin
                if hinge > 0:
                    total = total + hinge
    return total
