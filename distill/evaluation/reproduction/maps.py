"""Figure 4, left: how teacher and students represent the items, in two dimensions by UMAP (McInnes et al., 2018).

The paper reduces the teacher's 4096 dimensions and the students' 384 to two and overlays the results. It does not say
what an item's vector is, nor how reductions of different spaces come to share a plane. Here the vector is the mean
state of the last layer at the item's codewords, the item read alone (`scripts/represent_items.py`). UMAP places
neighbourhoods anywhere, so a student's map starts from the teacher's, from which it moves where its neighbourhoods are
others, and is then rotated and reflected onto it (Procrustes analysis), both at the same size. Three figures beside say
how alike the spaces are: nearest neighbours in common and linear CKA, which need no map, and what remains between the
maps, with the same for items in random order as a control, because a map remembers where it started.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from distill.evaluation.reproduction.output import Row, format_value
from distill.runtime import artifacts
from distill.runtime.errors import UserError
from distill.runtime.markdown import markdown_table

TEACHER, STUDENTS = "teacher", ("smooth", "distill")  # as in the paper
NEIGHBOURS = 10
COLOURS = {TEACHER: "0.7", "smooth": "#d97a00", "distill": "#2f6db3"}


def check_umap() -> None:
    """Refuse to begin where UMAP is not installed.

    Raises:
        UserError: names the extra.
    """
    if importlib.util.find_spec("umap") is None:
        raise UserError("figure4 draws a map with UMAP: pip install 'lohrec-distill[figures]'.")


def gather_maps(run: Path, items: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Reduce the vectors of teacher and students to aligned maps.

    Args:
        run: folder with the artifact `item_vectors`.
        items: at most so many items, drawn by the seed.
        seed: of UMAP and of the draw.

    Returns:
        A row for each student (`compare_spaces`), and a row for each item and system with its coordinates.

    Raises:
        UserError: the vectors are missing, or there are too few items for a map.
    """
    folder = artifacts.read(run / "item_vectors", "item_vectors").folder
    vectors = load_file(folder / "vectors.safetensors")
    lacking = [name for name in (TEACHER, *STUDENTS) if name not in vectors]
    if lacking:
        raise UserError(f"{folder} has no vectors of {', '.join(lacking)}.")
    n_items = len(vectors[TEACHER])
    if n_items < NEIGHBOURS + 2:
        raise UserError(f"A map needs at least {NEIGHBOURS + 2} items; {folder} has {n_items}.")
    chosen = np.sort(np.random.default_rng(seed).permutation(n_items)[:items])
    spaces = {name: vectors[name][chosen] for name in (TEACHER, *STUDENTS)}
    planes = {TEACHER: at_unit_size(reduce_to_plane(spaces[TEACHER], seed))}
    shuffled = np.random.default_rng(seed).permutation(len(chosen))
    rows = []
    for name in STUDENTS:
        space = spaces[name]
        student_map, control = (reduce_to_plane(table, seed, planes[TEACHER]) for table in (space, space[shuffled]))
        planes[name], disparity = align(planes[TEACHER], student_map)
        row: Row = {"system": name, "items": len(chosen), **compare_spaces(spaces[TEACHER], space)}
        rows.append(row | {"disparity": disparity, "disparity_shuffled": align(planes[TEACHER], control)[1]})
    points = [
        {"system": name, "item": int(item), "x": float(x), "y": float(y)}
        for name in (TEACHER, *STUDENTS)
        for item, (x, y) in zip(chosen, planes[name], strict=True)
    ]
    return rows, points


def reduce_to_plane(vectors: np.ndarray, seed: int, start: np.ndarray | None = None) -> np.ndarray:
    """Reduce vectors [n, dim] to a plane [n, 2] by UMAP, by cosine and otherwise with its default settings.

    Args:
        vectors: of the items.
        seed: the same seed gives the same map.
        start: the map to start from [n, 2]; None: UMAP's spectral start.
    """
    import umap

    neighbours = min(15, len(vectors) - 1)
    init = "spectral" if start is None else start.astype(np.float32)
    reducer = umap.UMAP(n_neighbors=neighbours, metric="cosine", init=init, random_state=seed, n_jobs=1)
    return reducer.fit_transform(vectors.astype(np.float32))


def at_unit_size(points: np.ndarray) -> np.ndarray:
    """Centre a map [n, 2] and scale it to norm 1."""
    centred = points - points.mean(0)
    return centred / np.linalg.norm(centred)


def align(reference: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, float]:
    """Turn and mirror a map onto another, point by point, both centred and of norm 1 (Procrustes analysis).

    Args:
        reference, points: [n, 2].

    Returns:
        The points on the reference's plane, and the disparity: the sum of squared distances that remains where the
        points may also be scaled, from 0 (the same shape) to 1.
    """
    from scipy.linalg import orthogonal_procrustes

    reference, points = at_unit_size(reference), at_unit_size(points)
    rotation, agreement = orthogonal_procrustes(points, reference)
    return points @ rotation, float(1 - agreement**2)


def compare_spaces(teacher: np.ndarray, student: np.ndarray) -> Row:
    """Measure how alike two spaces of the same items are, without a map.

    Args:
        teacher, student: vectors of the same items [n, dim], of any two dimensions.

    Returns:
        `neighbours@10`, `by_chance` (ten of n − 1 items), and `cka`.
    """
    k = min(NEIGHBOURS, len(teacher) - 1)
    neighbours = common_neighbours(teacher, student, k)
    return {f"neighbours@{NEIGHBOURS}": neighbours, "by_chance": k / (len(teacher) - 1), "cka": cka(teacher, student)}


def cka(a: np.ndarray, b: np.ndarray) -> float:
    """Compute linear centred kernel alignment (Kornblith et al., 2019), from 0 to 1 (equal up to rotation and scale).

    Args:
        a, b: vectors of the same items [n, dim], of any two dimensions.
    """
    a, b = (vectors.astype(np.float64) - vectors.mean(0) for vectors in (a, b))
    return float(np.linalg.norm(a.T @ b) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


def common_neighbours(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """Compute the share of an item's k nearest items by cosine in space a that are so in b too, mean over items.

    Args:
        a, b: vectors of the same items [n, dim].
        k: neighbours of an item, itself not counted.
    """
    nearest = [_nearest(vectors, k) for vectors in (a, b)]
    return float((nearest[0][:, :, None] == nearest[1][:, None, :]).any(2).mean())


def _nearest(vectors: np.ndarray, k: int) -> np.ndarray:
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argpartition(-cosines, k - 1, axis=1)[:, :k]


def render_maps(rows: Sequence[Row]) -> str:
    """Render the comparison of the spaces as Markdown."""
    columns = {
        f"neighbours@{NEIGHBOURS}": f"common of {NEIGHBOURS} neighbours",
        "by_chance": "by chance",
        "cka": "linear CKA",
        "disparity": "disparity of the maps",
        "disparity_shuffled": "items shuffled",
    }
    cells = [[row["system"], *(format_value(row[key]) for key in columns)] for row in rows]
    note = (
        f"Representations of {rows[0]['items']:,} items against the teacher's, first seed: the share of an item's "
        f"{NEIGHBOURS} nearest items by cosine that are the same; linear CKA; and what remains between the UMAP maps "
        "after Procrustes analysis (0: the same shape, 1: nothing in common), also with the student's vectors given to "
        "the items at random. The paper shows the maps alone and says that DISTILL lies closer to the teacher than "
        "SMOOTH.\n"
    )
    return "\n".join([markdown_table(["student", *columns.values()], cells), note])


def draw_maps(axes, points: Sequence[Row]) -> None:
    """Draw the aligned maps over each other."""
    for name in (TEACHER, *STUDENTS):
        xy = [(point["x"], point["y"]) for point in points if point["system"] == name]
        axes.plot(*zip(*xy, strict=True), "o", markersize=2.2, alpha=0.6, color=COLOURS[name], label=name)
    axes.set_title("Item representations, UMAP", loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(frameon=False, markerscale=2.5)
