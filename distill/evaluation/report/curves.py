"""Training curves, and metrics by beam width, as charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill.evaluation.report.files import read_json, remake_hint
from distill.evaluation.report.systems import Row
from distill.runtime.artifacts import Artifact
from distill.runtime.charts import Line, line_chart
from distill.runtime.errors import UserError

SYSTEMS_WITH_COLOUR = ("teacher", "tiger", "smooth", "distill", "dtr", "dwr")  # the same colour in every report
COLOURS = 8  # --line0 … --line7 of the page


@dataclass(frozen=True)
class Curve:
    """Values of one system by epoch or by beam width."""

    name: str
    colour: str
    """CSS value."""
    dashed: bool
    points: list[Row]

    def line(self, x: str, y: str) -> Line:
        """Select two keys of the points, without the points that lack the second."""
        points = [point for point in self.points if isinstance(point.get(y), int | float)]
        return Line([point[x] for point in points], [point[y] for point in points], self.colour, self.dashed)


@dataclass(frozen=True)
class Charts:
    """Drawn charts, as SVG, and the curves of their common legend."""

    drawn: list[str]
    legend: list[Curve]


def read_training_curves(artifacts: Mapping[str, Artifact]) -> list[Curve]:
    """Read the curves of all trainings that have one.

    Raises:
        UserError: a damaged curve.json.
    """
    curves: list[Curve] = []
    for name, artifact in artifacts.items():
        path = artifact.folder / "curve.json"
        if artifact.kind not in ("teacher", "student", "baseline") or not path.is_file():
            continue
        content = read_json(path, artifact.kind)
        system = name.removeprefix("students/").removeprefix("baselines/")
        colour = system_colour(system, len(curves))
        for phase, points in content.items() if isinstance(content, dict) else [("", content)]:
            if not isinstance(points, list) or not all(isinstance(p, dict) and "epoch" in p for p in points):
                raise UserError(f"{path} should hold a list of epochs. {remake_hint(artifact.kind, path.parent)}")
            is_ranker = phase == "ranker"
            curves.append(Curve(f"{system} (ranker)" if is_ranker else system, colour, is_ranker, points))
    return curves


def quality_chart(curves: Sequence[Curve]) -> Charts:
    """Draw the validation NDCG@10 of all trainings in one chart."""
    lines = [curve.line("epoch", "valid_ndcg@10") for curve in curves]
    chart = line_chart(lines, "validation NDCG@10", "epoch", (4.4, 2.6), "quality")
    return Charts([chart] if chart else [], list(curves))


def loss_charts(curves: Sequence[Curve]) -> Charts:
    """Draw one chart of the loss per training, because losses of different objectives cannot be compared."""
    drawn = [
        line_chart([curve.line("epoch", "loss")], curve.name, "epoch", (2.7, 1.8), f"loss{number}")
        for number, curve in enumerate(curves)
    ]
    return Charts([chart for chart in drawn if chart], [])


def beam_width_charts(rows: Sequence[Row]) -> Charts:
    """Draw diversity, share of invalid IDs and NDCG@10 by the number of beams (the paper's Figures 1 and 3)."""
    measured = [row for row in rows if isinstance(row.get("widths"), list)]
    curves = [
        Curve(row["system"], system_colour(row["system"], number), False, row["widths"])
        for number, row in enumerate(measured)
    ]
    titles = {
        "diversity": "diversity of all beams",
        "invalid": "invalid share without the trie",
        "ndcg@10": "NDCG@10",
    }
    drawn = [
        line_chart(
            [curve.line("width", key) for curve in curves], title, "beams", (3.4, 2.4), f"width-{key.replace('@', '')}"
        )
        for key, title in titles.items()
    ]
    return Charts([chart for chart in drawn if chart], curves)


def system_colour(system: str, number: int) -> str:
    """Choose a system's colour; systems without a fixed colour share the rest by their number."""
    if system in SYSTEMS_WITH_COLOUR:
        place = SYSTEMS_WITH_COLOUR.index(system)
    else:
        place = len(SYSTEMS_WITH_COLOUR) + number % (COLOURS - len(SYSTEMS_WITH_COLOUR))
    return f"var(--line{place})"
