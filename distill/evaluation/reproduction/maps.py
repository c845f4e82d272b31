"""Figure 4, left: how teacher and students represent the items, in two dimensions by UMAP (McInnes et al., 2018).

The paper reduces the teacher's 4096 dimensions and the students' 384 to two and overlays the results. It does not say
what an item's vector is, nor how reductions of different spaces come to share a plane. Here the vector is the mean
state of the last layer at the item's codewords, the item read alone (`scripts/represent_items.py`). Each space is
reduced by itself; a student's map is then moved, scaled, turned and mirrored onto the teacher's by Procrustes analysis,
item by item. Distances between maps say little even so, because UMAP keeps neighbourhoods rather than distances; so the
share of common nearest neighbours in the original spaces stands beside.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from distill.evaluation.reproduction.output import Row
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
    maps = {name: reduce_to_plane(space, seed) for name, space in spaces.items()}
    rows, planes = [], {}
    for name in STUDENTS:
        planes[TEACHER], planes[name], disparity = align(maps[TEACHER], maps[name])
        rows.append({"system": name, "items": len(chosen), **compare_spaces(spaces[TEACHER], spaces[name], disparity)})
    points = [
        {"system": name, "item": int(item), "x": float(x), "y": float(y)}
        for name in (TEACHER, *STUDENTS)
        for item, (x, y) in zip(chosen, planes[name], strict=True)
    ]
    return rows, points


def reduce_to_plane(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Reduce vectors [n, dim] to [n, 2] by UMAP with its default settings, by cosine; the same for the same seed."""
    import umap

    neighbours = min(15, len(vectors) - 1)
    reducer = umap.UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1)
    return reducer.fit_transform(vectors.astype(np.float32))


def align(reference: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Move, scale, turn and mirror a map onto another, point by point (Procrustes analysis).

    Args:
        reference, points: [n, 2].

    Returns:
        The reference, centred and of norm 1; the points on it; the sum of squared distances that remains, from 0 (the
        same shape) to 1.
    """
    from scipy.spatial import procrustes

    return procrustes(reference, points)


def compare_spaces(teacher: np.ndarray, student: np.ndarray, disparity: float) -> Row:
    """Measure how alike two spaces are: disparity of their maps, and nearest neighbours in common.

    Args:
        teacher, student: vectors of the same items [n, dim], of any two dimensions.
        disparity: of the maps.

    Returns:
        `neighbours@10`, `by_chance` (of ten among n − 1 items), and `disparity`.
    """
    k = min(NEIGHBOURS, len(teacher) - 1)
    return {
        f"neighbours@{NEIGHBOURS}": common_neighbours(teacher, student, k),
        "by_chance": k / (len(teacher) - 1),
        "disparity": float(disparity),
    }


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
    heads = ["student", f"common of {NEIGHBOURS} neighbours", "by chance", "disparity of the maps"]
    cells = [
        [row["system"], f"{row[f'neighbours@{NEIGHBOURS}']:.4f}", f"{row['by_chance']:.4f}", f"{row['disparity']:.4f}"]
        for row in rows
    ]
    note = (
        f"Representations of {rows[0]['items']:,} items against the teacher's, first seed: the share of an item's "
        f"{NEIGHBOURS} nearest items by cosine that are the same, and what remains between the UMAP maps after "
        "Procrustes analysis (0: the same shape, 1: nothing in common). The paper shows the maps alone and says that "
        "DISTILL lies closer to the teacher than SMOOTH.\n"
    )
    return "\n".join([markdown_table(heads, cells), note])


def draw_maps(axes, points: Sequence[Row]) -> None:
    """Draw the aligned maps over each other."""
    for name in (TEACHER, *STUDENTS):
        xy = [(point["x"], point["y"]) for point in points if point["system"] == name]
        axes.plot(*zip(*xy, strict=True), "o", markersize=2.2, alpha=0.6, color=COLOURS[name], label=name)
    axes.set_title("Item representations, UMAP", loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(frameon=False, markerscale=2.5)
