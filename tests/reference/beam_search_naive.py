"""Slow, readable versions of distill/decoding/beam_search.py: Python lists and numbers only."""


def sequence_log_prob(codes, log_prob):
    """log P of a whole ID; `log_prob(prefix)` lists the log-probabilities of the next codeword."""
    return sum(log_prob(tuple(codes[:level]))[code] for level, code in enumerate(codes))


def best_ids(valid, log_prob, closed=()):
    """All open IDs by log-probability, best first, as (ID, log-probability)."""
    scored = [(codes, sequence_log_prob(codes, log_prob)) for codes in valid if codes not in closed]
    return sorted(scored, key=lambda pair: -pair[1])


def beam_search(valid, log_prob, levels, width, closed=()):
    """Constrained beam search: at every level the `width` best prefixes of valid IDs that extend a kept one."""
    beams = [((), 0.0)]
    for level in range(levels):
        prefixes = {codes[: level + 1] for codes in valid}
        longer = [
            ((*prefix, code), score + value)
            for prefix, score in beams
            for code, value in enumerate(log_prob(prefix))
            if (*prefix, code) in prefixes
        ]
        if level == levels - 1:
            longer = [(codes, score) for codes, score in longer if codes not in closed]
        beams = sorted(longer, key=lambda pair: -pair[1])[:width]
    return beams
