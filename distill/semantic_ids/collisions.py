"""Resolve collisions: items that share all their codes get other last codes; their prefixes remain."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from distill.runtime.errors import UserError
from distill.semantic_ids.ids import keys
from distill.semantic_ids.quantisers.sinkhorn import balanced_codes, squared_distances

CHUNK = 1 << 15  # items whose distances to all codewords are held at once
BATCH = 1 << 17  # distances a Sinkhorn step works on at once: a mebibyte in float64 stays in the cache


def groups(key: np.ndarray) -> list[np.ndarray]:
    """Group the row numbers of equal keys [n]; keys ascending, rows ascending within."""
    order = np.argsort(key, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(key[order])) + 1)


def resolve_collisions(
    codes: np.ndarray,
    target: Callable[[np.ndarray], np.ndarray],
    words: np.ndarray,
    rounds: int = 20,
    unique: bool = True,
    epsilon: float = 0.003,
    iterations: int = 50,
    fixed: np.ndarray | None = None,
) -> np.ndarray:
    """Give items that share all their codes other last codes; prefixes do not change.

    First as in LC-Rec: up to `rounds` times, the items of each collision are assigned anew by Sinkhorn among
    themselves. This spreads them, but they may collide with other items, and equal embeddings remain together; the best
    round is used. Then, with `unique`: in each prefix the nearest item keeps a shared code, and the others take free
    codes at the least total distance.

    Args:
        codes: [n, levels]; not changed.
        target: item numbers [m] → what the last level quantises [m, d].
        words: of the last level [codebook_size, d].
        rounds: rounds of Sinkhorn.
        unique: guarantee IDs without collision.
        epsilon: entropy weight of Sinkhorn; 0: no rounds.
        iterations: iterations of Sinkhorn.
        fixed: items that keep their codes [n] (bool); if there are some, there are no rounds.

    Returns:
        Codes [n, levels], equal to `codes` except in the last column.

    Raises:
        UserError: a prefix has more items than the last level has codewords (only with `unique`).
    """
    codes = codes.copy()
    prefix, size = keys(codes[:, :-1]), len(words)
    if unique:
        _refuse_full(codes, size)
    fixed = np.zeros(len(codes), dtype=bool) if fixed is None else fixed
    rounds = 0 if fixed.any() or epsilon <= 0 else rounds
    for rows in _colliding_chunks(prefix, codes[:, -1], size):
        distances = _distances(target(rows), words)
        last = _sinkhorn_rounds(prefix[rows], codes[rows, -1], distances, rounds, epsilon, iterations)
        if unique:
            last = _take_free_codes(prefix[rows], last, distances.numpy(), fixed[rows])
        codes[rows, -1] = last
    return codes


def move_surplus(
    codes: np.ndarray,
    target: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
    words: Callable[[int], np.ndarray],
    fixed: np.ndarray | None = None,
) -> np.ndarray:
    """Move items out of prefixes that have more items than the last level has codewords.

    The items that lose least move, each to the nearest code of the level before the last whose prefix has room. Their
    last code is then the nearest of the new prefix.

    Args:
        codes: [n, levels]; not changed.
        target: item numbers [m], their codes [m, levels] and a level → what the level quantises [m, d].
        words: a level → its codewords [codebook_size, d].
        fixed: items that do not move [n] (bool).

    Returns:
        Codes [n, levels].

    Raises:
        UserError: the last two levels together have too few codes, or there is one level only.
    """
    codes, level = codes.copy(), codes.shape[1] - 2
    size = len(words(level + 1))
    if level < 0:
        _refuse_full(codes, size)
        return codes
    parent = keys(codes[:, :level])
    full = np.bincount(keys(codes[:, :-1]))[keys(codes[:, :-1])] > size
    for group in groups(parent):
        if not full[group].any():
            continue
        spare = size - np.bincount(codes[group, level], minlength=size)
        if spare.sum() < 0:
            _refuse_full(codes, size)
        for crowded in np.flatnonzero(spare < 0):
            rows = group[(codes[group, level] == crowded) & (True if fixed is None else ~fixed[group])]
            distances = _distances(target(rows, codes[rows], level), words(level)).numpy()
            loss = np.delete(distances, crowded, axis=1).min(1) - distances[:, crowded]
            movers = np.argsort(loss, kind="stable")[: -spare[crowded]]
            for mover in movers:
                free = np.flatnonzero(spare > 0)
                codes[rows[mover], level] = chosen = free[distances[mover, free].argmin()]
                spare[chosen] -= 1
            spare[crowded] = 0
            moved = rows[movers]
            last = _distances(target(moved, codes[moved], level + 1), words(level + 1))
            codes[moved, level + 1] = last.argmin(1).numpy()
    return codes


def _distances(x: np.ndarray, words: np.ndarray) -> Tensor:
    return squared_distances(*(torch.from_numpy(np.array(rows, dtype=np.float32)) for rows in (x, words)))


def _refuse_full(codes: np.ndarray, size: int) -> None:
    prefix = keys(codes[:, :-1])
    counts = np.bincount(prefix)
    if counts.max() > size:
        worst, others = int(counts.argmax()), int((counts > size).sum()) - 1
        name = "-".join(map(str, codes[np.flatnonzero(prefix == worst)[0], :-1]))
        more = f" ({others} more prefixes are too full as well)" if others else ""
        raise UserError(
            f"{counts[worst]} items share the prefix {name}, but the last level has only {size} codes{more}. Check "
            "that these items' texts differ, raise codebook_size or levels, train for longer, let the surplus move to "
            "the next nearest prefix with --full_prefix move, or allow collisions with --unique false."
        )


def _colliding_chunks(prefix: np.ndarray, last: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield the items of prefixes with collisions, about CHUNK items at a time, whole prefixes together."""
    key = prefix * size + last
    order = np.argsort(key, kind="stable")
    repeated = np.flatnonzero(np.diff(key[order]) == 0)
    collides = np.zeros(int(prefix.max()) + 1, dtype=bool)
    collides[prefix[order[repeated]]] = True
    rows = order[collides[prefix[order]]]  # sorted by prefix
    starts = np.flatnonzero(np.diff(prefix[rows], prepend=-1))
    begin = 0
    while begin < len(rows):
        later = starts[starts >= begin + CHUNK]
        end = int(later[0]) if len(later) else len(rows)
        yield np.sort(rows[begin:end])
        begin = end


def _sinkhorn_rounds(
    prefix: np.ndarray, last: np.ndarray, distances: Tensor, rounds: int, epsilon: float, iterations: int
) -> np.ndarray:
    """Run LC-Rec's rounds on a chunk.

    Args:
        prefix: number of each item's prefix [m].
        last: last codes [m].
        distances: to all codewords of the last level [m, size].
        rounds, epsilon, iterations: as in `resolve_collisions`.

    Returns:
        The last codes of the round with the fewest collisions [m].
    """
    size = distances.shape[1]
    fewest, best, last = len(last) + 1, last, last.copy()
    for number in range(rounds + 1):
        key = prefix * size + last
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[order], prepend=-1))
        counts = np.diff(starts, append=len(key))
        if len(last) - len(starts) < fewest:
            fewest, best = len(last) - len(starts), last.copy()
        if fewest == 0 or number == rounds:
            break
        unchanged = last.copy()
        for count in np.unique(counts[counts > 1]):  # groups of equal size are one batch
            members = order[starts[counts == count][:, None] + np.arange(count)]
            step = max(1, BATCH // (int(count) * size))
            for part in np.split(members, range(step, len(members), step)):
                last[part] = balanced_codes(distances[torch.from_numpy(part)], epsilon, iterations).numpy()
        if (last == unchanged).all():  # equal embeddings: further rounds change nothing
            break
    return best


def _take_free_codes(prefix: np.ndarray, last: np.ndarray, distances: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Make the last codes [m] of a chunk unique within each prefix; arguments as in `_sinkhorn_rounds`."""
    from scipy.optimize import linear_sum_assignment

    last, size = last.copy(), distances.shape[1]
    for group in groups(prefix):
        used, counts = np.unique(last[group], return_counts=True)
        if counts.max() == 1:
            continue
        movers: list[int] = []
        for code in used[counts > 1]:
            sharing = group[last[group] == code]
            is_fixed = fixed[sharing]
            nearest = sharing[distances[sharing, code].argmin()]
            movers += [row for row in sharing[~is_fixed] if is_fixed.any() or row != nearest]
        free = np.setdiff1d(np.arange(size), used)
        chosen, column = linear_sum_assignment(distances[np.ix_(movers, free)])
        last[np.array(movers, dtype=np.int64)[chosen]] = free[column]
    return last
