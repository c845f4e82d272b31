"""Beam search for texts: token sequences of any length over a model's whole vocabulary, ended by an end token."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.decoding.whole_vocabulary import TokenStep


@torch.no_grad()
def search_texts(
    step: TokenStep,
    end: int,
    max_tokens: int,
    batch: int,
    width: int,
    device="cpu",
    length_penalty: float = 1.0,
    stop_early: bool = True,
) -> tuple[Tensor, Tensor]:
    """Search the `width` best texts by score: log-probability / length^length_penalty, the end token included.

    The rules are those of Transformers' `generate`, but a step may share the prompt among the beams. A text ends where
    the end token is among the `width` best candidates of its step. A user's search stops when no beam has a better
    score than the worst of `width` ended texts, or after `max_tokens`, where the beams end as they stand.

    Args:
        step: the model; it must return 2 · width tokens of each beam, or the whole vocabulary.
        end: number of the end token.
        max_tokens: most tokens of a text, its end token included.
        batch: number of users.
        width: beam width.
        device: of the step's tensors.
        length_penalty: 1: the mean log-probability of a token; 0: the log-probability of the text.
        stop_early: ask the model no more when all users' searches have stopped; otherwise it is asked `max_tokens`
            times, for processes that must call it in step. The result is the same.

    Returns:
        Token numbers, filled up with the end token [batch, width, max_tokens], and scores, −inf where fewer texts
        ended [batch, width]; best first.
    """
    totals = torch.zeros(batch, 1, device=device)
    beams = torch.empty(batch, 1, 0, dtype=torch.long, device=device)
    texts = torch.full((batch, width, max_tokens), end, device=device)
    scores = torch.full((batch, width), -torch.inf, device=device)
    stopped = torch.zeros(batch, 1, dtype=torch.bool, device=device)
    parents = tokens = None
    for length in range(1, max_tokens + 1):
        log_probs, choices = step(length - 1, parents, tokens)
        divisor = length**length_penalty
        candidates = (totals[..., None] + log_probs.float()).flatten(1)
        # a beam has one end token at most, so `width` of these do not end
        best_totals, places = candidates.topk(min(2 * width, candidates.shape[1]), dim=1)
        parents, tokens = places // log_probs.shape[2], choices.flatten(1).gather(1, places)
        grown = torch.cat([_rows(beams, parents), tokens[..., None]], dim=2)

        at_end = tokens == end
        ending = at_end | (length == max_tokens)
        ending[:, width:] = False
        ended = best_totals.masked_fill(~ending | stopped, -torch.inf) / divisor
        padded = torch.nn.functional.pad(grown, (0, max_tokens - length), value=end)
        scores, best = torch.cat([scores, ended], dim=1).topk(width, dim=1)
        texts = _rows(torch.cat([texts, padded], dim=1), best)

        totals, best = best_totals.masked_fill(at_end, -torch.inf).topk(min(width, best_totals.shape[1]), dim=1)
        parents, tokens, beams = parents.gather(1, best), tokens.gather(1, best), _rows(grown, best)
        stopped |= scores[:, -1:] >= totals[:, :1] / divisor
        if stop_early and stopped.all():
            break
    return texts, scores


def _rows(table: Tensor, places: Tensor) -> Tensor:
    """Select rows of each user: table [batch, rows, length], places [batch, k] → [batch, k, length]."""
    return table.gather(1, places[..., None].expand(-1, -1, table.shape[2]))
