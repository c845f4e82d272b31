"""Slow, readable version of distill/decoding/text_search.py: one user, lists and numbers only."""


def search_texts(log_prob, end, max_tokens, width, length_penalty=1.0):
    """The `width` best texts as (tokens with the end token, score); fewer where fewer ended.

    `log_prob(prefix)` lists the log-probabilities of all tokens.
    """
    beams, texts = [((), 0.0)], []
    for length in range(1, max_tokens + 1):
        longer = [
            ((*prefix, token), score + value) for prefix, score in beams for token, value in enumerate(log_prob(prefix))
        ]
        longer = sorted(longer, key=lambda pair: -pair[1])[: 2 * width]
        ending = [pair for pair in longer[:width] if pair[0][-1] == end or length == max_tokens]
        texts += [(prefix, score / length**length_penalty) for prefix, score in ending]
        texts = sorted(texts, key=lambda pair: -pair[1])[:width]
        beams = [pair for pair in longer if pair[0][-1] != end][:width]
        if not beams or (len(texts) == width and texts[-1][1] >= beams[0][1] / length**length_penalty):
            break
    return texts
