"""Figure 4 of the paper: item representations (`maps`) beside agreement with the teacher's lists (`alignment`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.evaluation.reproduction.alignment import draw_alignment, gather_alignment, render_alignment
from distill.evaluation.reproduction.config import Config
from distill.evaluation.reproduction.maps import check_umap, draw_maps, gather_maps, render_maps
from distill.evaluation.reproduction.output import Output


def make_figure4(runs: Sequence[Path], config: Config) -> Output:
    """Measure and draw both halves; the maps are of the first run.

    Raises:
        UserError: an evaluation, the vectors or UMAP is missing.
    """
    check_umap()
    rows = gather_alignment(runs, config)
    spaces, points = gather_maps(runs[0], config.map_items, config.seeds[0])
    markdown = "\n".join([f"# figure4: {config.dataset}\n", render_alignment(config, rows), render_maps(spaces)])

    def draw(path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_maps(left, points)
        draw_alignment(right, rows)
        figure.savefig(path, dpi=130, metadata={"Software": None})

    return Output(markdown, rows, draw, {"spaces": spaces, "map": points})
