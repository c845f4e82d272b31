"""Category paths as IDs: the semantic indexing of Hua et al. (SIGIR-AP 2023), SETRec's baseline SemID."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from distill.runtime.errors import UserError
from distill.semantic_ids.numbering import digits

NO_CATEGORY = 0  # codeword of the levels that an item's path does not reach
CategoryPath = tuple[str, ...]


def category_codes(categories: Sequence[str | None], levels: int, codebook_size: int, seed: int) -> np.ndarray:
    """Write items as their category path, a codeword each step, then a number that tells the items of a path apart.

    As in the paper, categories are tokens of their own and the last one makes the ID unique. Codewords of a level count
    on from one parent to the next, so that children of different parents share one only where the codebook is used up.

    Here every item has `levels` codewords: longer paths are cut after `levels` − 1 steps, shorter ones are filled with
    codeword 0. Items without categories get codeword 0 (our choice), then a random number in digits.

    Args:
        categories: of the items (`path_of`), None or empty where unknown.
        levels: codewords of an item.
        codebook_size: codewords of a level.
        seed: of the numbers of items that share a path; the catalogue's order may be that of held-out interactions.

    Returns:
        Codes without collision [n_items, levels] (int64).

    Raises:
        UserError: no item has a category, or a level has too few codewords.
    """
    if levels < 2:
        raise UserError(f"Quantiser semid needs --levels of at least 2, a category and a number; found {levels}.")
    paths = [path_of(text or "")[: levels - 1] for text in categories]
    if not any(paths):
        raise UserError("Quantiser semid writes categories as IDs, and no item of the data set has one.")
    codeword_of = _codewords(set(paths), codebook_size)
    members: dict[CategoryPath, list[int]] = defaultdict(list)
    for item, path in enumerate(paths):
        members[path].append(item)
    codes, rng = np.full((len(paths), levels), NO_CATEGORY, dtype=np.int64), np.random.default_rng(seed)
    for path in sorted(members):
        items = rng.permutation(members[path])
        start = levels - 1 if path else 1  # no path begins with codeword 0: all levels after it are free for the number
        if len(items) > codebook_size ** (levels - start):
            raise UserError(_too_many_items(path, len(items), codebook_size))
        codes[items, : len(path)] = [codeword_of[path[: step + 1]] for step in range(len(path))]
        codes[items, start:] = digits(np.arange(len(items)), levels - start, codebook_size)
    return codes


def path_of(text: str) -> CategoryPath:
    """Read a category path, the widest first: "A > B" is A, B.

    Of several paths with commas between, the first is taken. Where nothing has a ">", the commas stand between the
    steps of one path, as in Amazon's metadata.
    """
    steps = text.split(",")[0].split(">") if ">" in text else text.split(",")
    return tuple(step.strip() for step in steps if step.strip())


def _codewords(paths: set[CategoryPath], codebook_size: int) -> dict[CategoryPath, int]:
    """Number the categories of each level: path → codeword of its last step, from 1."""
    children: dict[CategoryPath, set[CategoryPath]] = defaultdict(set)
    for path in paths:
        for step in range(len(path)):
            children[path[:step]].add(path[: step + 1])
    counted: dict[int, int] = defaultdict(int)  # categories of a level so far
    codeword_of = {}
    for parent in sorted(children):
        if len(children[parent]) > codebook_size - 1:
            where = f"{' > '.join(parent)!r} has" if parent else "The data set has"
            raise UserError(
                f"{where} {len(children[parent])} categories, a level {codebook_size - 1} codewords besides codeword "
                f"0. Use --codebook_size {len(children[parent]) + 1} or more."
            )
        for child in sorted(children[parent]):
            codeword_of[child] = 1 + counted[len(parent)] % (codebook_size - 1)
            counted[len(parent)] += 1
    return codeword_of


def _too_many_items(path: CategoryPath, count: int, codebook_size: int) -> str:
    if not path:
        return f"{count} items have no category: more than begin with codeword 0. Raise --codebook_size or --levels."
    return (
        f"{count} items share the category {' > '.join(path)!r} as far as --levels reaches, the last level has "
        f"{codebook_size} codewords. Use --codebook_size {count} or more, or raise --levels."
    )
