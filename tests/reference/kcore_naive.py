"""Slow, readable version of distill/data/sources/refine.py: lists of interactions, removed one by one."""

from itertools import combinations


def k_core(pairs, user_core, item_core):
    """Remove interactions of users and items that have too few, one by one, until there are none."""
    rows = list(range(len(pairs)))
    while True:
        users = [pairs[row][0] for row in rows]
        items = [pairs[row][1] for row in rows]
        few = [
            row
            for row, user, item in zip(rows, users, items, strict=True)
            if users.count(user) < user_core or items.count(item) < item_core
        ]
        if not few:
            return rows
        rows.remove(few[0])


def largest(pairs, user_core, item_core):
    """The same from the definition: of all sets of rows in which everybody has enough, the largest."""
    for size in range(len(pairs), 0, -1):
        for rows in combinations(range(len(pairs)), size):
            users = [pairs[row][0] for row in rows]
            items = [pairs[row][1] for row in rows]
            if all(users.count(user) >= user_core for user in users) and all(
                items.count(item) >= item_core for item in items
            ):
                return list(rows)
    return []


def repeated(interactions, exact):
    """Of (user, item, time) in order: whether the same user had the item before (exact: at the same time)."""
    seen, result = set(), []
    for user, item, time in interactions:
        key = (user, item, time) if exact else (user, item)
        result.append(key in seen)
        seen.add(key)
    return result
