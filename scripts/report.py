"""A finished evaluation to a report: metrics.json, report.md and one self-contained page, report.html.

    python scripts/report.py --config configs/demo/report.yaml

The page gathers what lies in the run's folder: the evaluation it must have; curves, quality of IDs and labels, cost and
origin of every artifact it shows where they exist.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill.evaluation.ranked_lists import ASKED, RankedLists, read_ranked_lists
from distill.runtime import artifacts
from distill.runtime.artifacts import COMMANDS, MANIFEST, Artifact, ArtifactJob, check_agreement, write_json
from distill.runtime.config import JobSettings, run
from distill.runtime.errors import UserError
from distill.runtime.parquet import read_parquet

TEMPLATE = Path(__file__).with_name("report.html.jinja")
Row = dict[str, Any]

FLOOR = "transitions"
NOT_LEARNED = ("oracle", "popularity", FLOOR, "transitions+valid", "graph")
IN_EXAMPLES = (FLOOR, "tiger", "dwr")
HISTORY_SHOWN, ITEMS_SHOWN = 6, 10
FIXED = ("users", "seed", "parameters")  # facts of a row that no mean is taken of


@dataclass(frozen=True)
class Config(JobSettings):
    """Write the report of a run: table, curves, examples, cost and origin."""

    run: Path = Path("runs/demo")
    """Root of a run: stages put their results below it."""
    evaluation: Path | None = None
    """Folder of the evaluation; RUN/evaluation if not given."""
    output: Path | None = None
    """Folder of the report; RUN/report if not given."""
    seeds: list[Path] = field(default_factory=list)
    """Other runs of the same data with other seeds; the table then shows mean ± standard deviation."""
    examples: int = 12
    """How many users' recommendations to show with titles."""


@dataclass(frozen=True)
class Column:
    """One metric of the table; `better` is 1 (higher is better), -1 (lower is better) or 0 (no matter)."""

    key: str
    head: str
    meaning: str
    better: int
    show: Callable[[float], str]


def _four(value: float) -> str:
    return f"{value:.4f}"


def _three(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{value:.2%}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _size(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e4 else f"{value:,.0f}"


COLUMNS = (
    Column("recall@5", "R@5", "share of users whose next item is among the first 5", 1, _four),
    Column("recall@10", "R@10", "the same among the first 10", 1, _four),
    Column("ndcg@5", "N@5", "NDCG: a hit counts more the higher it stands", 1, _four),
    Column("ndcg@10", "N@10", "the same for the first 10", 1, _four),
    Column("diversity@10", "Div@10", "how different the 10 items of a list are", 1, _three),
    Column("invalid@10", "Invalid", "share of IDs that name no item when decoding without the trie", -1, _percent),
    Column("beam_missed@10", "Missed", "share of the truly best 10 that the beams miss (exact scores)", -1, _percent),
    Column("kl_to_truth", "KL", "distance from the known true distribution of the next item", -1, _three),
    Column("parameters", "Params", "weights of the model", 0, _size),
    Column("users_per_s", "Users/s", "users answered a second", 0, _count),
)
DETAILS = (
    Column("recall@1", "R@1", "share of users whose next item is the first", 1, _four),
    Column("recall@20", "R@20", "the same among the first 20", 1, _four),
    Column("ndcg@20", "N@20", "NDCG of the first 20", 1, _four),
    Column("mrr@20", "MRR", "mean of 1 / rank within the first 20", 1, _four),
    Column("catalogue@10", "Catalogue", "share of the catalogue that anybody is recommended", 1, _percent),
    Column("gini@10", "Gini", "how unevenly recommendations fall on items, 0 to 1", -1, _three),
    Column("novelty@10", "Novelty", "bits: how rare the recommended items are in the training part", 1, _three),
    Column("teacher_coverage", "Coverage", "share of the teacher's list that the list holds", 1, _three),
    Column("teacher_coordination", "Coordination", "the same in the teacher's order", 1, _three),
)
TIES = "recall@10_ties_won"
ABOVE = "ndcg@10_above_floor"
NO_TEACHER = "tiger"  # the student that learns without one


def main(config: Config) -> None:
    """Read and check everything, render, write, and print the table."""
    if config.examples < 0:
        raise UserError(f"examples: expected 0 or more, got {config.examples}.")
    evaluation = artifacts.read(config.evaluation or config.run / "evaluation", "evaluation")
    others = [artifacts.read(folder / "evaluation", "evaluation") for folder in config.seeds]
    check_seeds(evaluation, others)
    dataset = artifacts.read(Path(evaluation.config.get("dataset") or config.run / "dataset"), "dataset")
    check_agreement(dataset, evaluation)
    found = find_artifacts(config.run, dataset, evaluation)
    extra = {
        "other seeds": [other.fingerprint for other in others],
        "artifacts of the run": {name: [one.fingerprint, one.manifest["created"]] for name, one in found.items()},
        "page template": hashlib.sha256(TEMPLATE.read_bytes()).hexdigest()[:16],
    }
    output = config.output or config.run / "report"
    stage = ArtifactJob("report", config, output, inputs=[evaluation], extra=extra, overwrite=config.overwrite)
    if stage.is_finished():
        print_table(json.loads((output / "metrics.json").read_text()))
        _print_path(output)
        return
    # Everything is read and rendered before the first byte is written.
    runs = (evaluation, *others)
    rows, answers = merge_seeds([read_rows(one) for one in runs]), read_all_ranked_lists(runs)
    if others:
        to_floor = paired_to(FLOOR, rows, answers)
        for row in rows:
            if row["system"] in to_floor:
                row[ABOVE] = to_floor[row["system"]]
    differences = paired_table(rows, paired_to(NO_TEACHER, rows, answers))
    markdown = render_markdown(rows, found, differences)
    page = render_page(config, rows, found, differences, dataset, evaluation)
    with stage.write() as folder:
        write_json(folder / "metrics.json", rows)
        (folder / "report.md").write_text(markdown, encoding="utf-8")
        (folder / "report.html").write_text(page, encoding="utf-8")
    print_table(rows)
    _print_path(output)


# What is read


def check_seeds(main: Artifact, others: list[Artifact]) -> None:
    """Refuse runs that cannot be averaged with the main one.

    Raises:
        UserError: another data set, or one run named twice, which would make the spread look smaller than it is.
    """
    seen = {main.folder.resolve()}
    for other in others:
        mine, theirs = main.inputs.get("dataset"), other.inputs.get("dataset")
        if mine != theirs:
            raise UserError(
                f"{other.folder} was made from another data set ({theirs}) than {main.folder} ({mine}); "
                "only runs of the same data can be averaged."
            )
        if other.folder.resolve() in seen:
            raise UserError(f"{other.folder} is named twice; --seeds names the other runs, each once.")
        seen.add(other.folder.resolve())


def read_rows(evaluation: Artifact) -> list[Row]:
    """The rows of an evaluation's metrics.json.

    Raises:
        UserError: missing or damaged file, a row without a system, a metric that is not a number.
    """
    path = evaluation.folder / "metrics.json"
    rows = _read_json(path, "evaluation")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} should hold a list of rows, one a system. {_again('evaluation')}")
    names = set()
    for number, row in enumerate(rows):
        name = row.get("system")
        if not isinstance(name, str) or name in names:
            raise UserError(f"{path}, row {number}: expected a new name of a system, got {name!r}.")
        names.add(name)
        for key in [column.key for column in COLUMNS + DETAILS] + [TIES]:
            if not isinstance(row.get(key), int | float | None):
                raise UserError(f"{path}, row {number} ({name}): {key} should be a number, got {row[key]!r}.")
    return rows


def merge_seeds(runs: list[list[Row]]) -> list[Row]:
    """The rows themselves if there is one run, else their means, with KEY_std (sample deviation) and `seeds`.

    Raises:
        UserError: a system was evaluated on other users or another split in one of the runs.
    """
    if len(runs) == 1:
        return runs[0]
    by_system: dict[str, list[Row]] = {}
    for row in (row for rows in runs for row in rows):
        by_system.setdefault(row["system"], []).append(row)
    merged = []
    for system, rows in by_system.items():
        first = rows[0]
        for row in rows:
            for key in ("split", "users"):
                if row.get(key) != first.get(key):
                    raise UserError(f"{system}: {key} {first.get(key)!r} in one run, {row.get(key)!r} in another.")
        mean = dict(first)
        for key, value in first.items():
            values = [row[key] for row in rows if isinstance(row.get(key), int | float)]
            if key in FIXED or not values or isinstance(value, str):
                continue
            mean[key] = statistics.fmean(values)
            if len(values) > 1:
                mean[f"{key}_std"] = statistics.stdev(values)
        mean.pop(ABOVE, None)  # that of one run
        if isinstance(first.get("by_popularity"), list):
            parts = zip(*(row["by_popularity"] for row in rows), strict=True)
            mean["by_popularity"] = [
                {key: statistics.fmean(one[key] for one in part) if "@" in key else part[0][key] for key in part[0]}
                for part in parts
            ]
        merged.append(mean | {"seeds": [row.get("seed") for row in rows]})
    return merged


def find_artifacts(root: Path, dataset: Artifact, evaluation: Artifact) -> dict[str, Artifact]:
    """The finished artifacts of a run by name, in the order of the pipeline, the evaluation last."""
    found = {"dataset": dataset}
    order = list(COMMANDS)
    folders = [path.parent for under in ("", "baselines/", "students/") for path in root.glob(f"{under}*/{MANIFEST}")]
    for folder in sorted(folder for folder in folders if folder.suffix not in (".old", ".partial")):
        manifest = _read_json(folder / MANIFEST, None)
        kind = manifest.get("kind") if isinstance(manifest, dict) else None
        if kind in order and kind not in ("dataset", "evaluation", "report"):
            found[folder.relative_to(root).as_posix()] = artifacts.read(folder, kind)
    shown = [f"{place}/{row['system']}" for row in read_rows(evaluation) for place in ("baselines", "students")]

    def place(name: str) -> tuple[int, int, str]:
        return order.index(found[name].kind), shown.index(name) if name in shown else len(shown), name

    return {name: found[name] for name in sorted(found, key=place)} | {"evaluation": evaluation}


def _read_json(path: Path, kind: str | None) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"Missing file {path}. {_again(kind)}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). {_again(kind)}") from None


def _again(kind: str | None) -> str:
    return f"Make it again: {COMMANDS[kind]} --overwrite" if kind else "Make its artifact again with --overwrite."


# The table, in all three shapes


@dataclass(frozen=True)
class Cell:
    """A value as text, its spread over the seeds, whether it is the best of the learned systems, and where there is one
    run, its bootstrap interval over users."""

    text: str
    spread: str = ""
    best: bool = False
    interval: str = ""

    @property
    def whole(self) -> str:
        return f"{self.text} ± {self.spread}" if self.spread else self.text


@dataclass(frozen=True)
class Line:
    """One system's line of the table."""

    system: str
    cells: list[Cell]
    floor: bool
    bound: bool
    beats: bool


def lay_out(rows: list[Row], columns: tuple[Column, ...] = COLUMNS) -> tuple[list[Column], list[Line]]:
    """The columns that have any value, and the lines with the best learned systems and the floor marked."""
    columns = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    best = {}
    for column in columns:
        values = [row[column.key] for row in rows if is_learned(row) and row.get(column.key) is not None]
        if column.better and (len(values) == 1 or len(set(values)) > 1):  # where all are alike, none is best
            best[column.key] = max(values) if column.better > 0 else min(values)
    floor = next((row for row in rows if row["system"] == FLOOR), None)
    lines = []
    for row in rows:
        cells = []
        for column in columns:
            value, spread = row.get(column.key), row.get(f"{column.key}_std")
            if value is None:
                cells.append(Cell("–"))
                continue
            text = column.show(spread) if spread and column.better else ""  # counting has no seed and no spread
            is_best = is_learned(row) and best.get(column.key) == value
            low, high = row.get(f"{column.key}_low"), row.get(f"{column.key}_high")
            interval = "" if low is None or high is None or text else f"{column.show(low)} … {column.show(high)}"
            cells.append(Cell(column.show(value), text, is_best, interval))
        lines.append(
            Line(row["system"], cells, row is floor, row["system"] == "oracle", floor is not None and beats(row, floor))
        )
    return columns, lines


def is_learned(row: Row) -> bool:
    """True for the teacher, the students and whatever else was trained."""
    return row["system"] not in NOT_LEARNED


def beats(row: Row, floor: Row) -> bool:
    """NDCG@10 above the floor's: by more than chance among the users, where that was tested, and with several seeds by
    more than the spread of both."""
    if row is floor or row["system"] == "oracle" or row.get("ndcg@10") is None or floor.get("ndcg@10") is None:
        return False
    tested = row.get(ABOVE)
    spread = row.get("ndcg@10_std", 0.0) + floor.get("ndcg@10_std", 0.0)
    return row["ndcg@10"] - spread > floor["ndcg@10"] and (not isinstance(tested, dict) or tested["low"] > 0)


def headline(rows: list[Row]) -> str:
    """Which rows these are: data set, split, users and seeds."""
    first = rows[0]
    seeds = sorted({seed for row in rows for seed in row.get("seeds", [row.get("seed")]) if seed is not None})
    users = f"{first['users']:,} users" if isinstance(first.get("users"), int) else ""
    several = any("seeds" in row for row in rows)
    runs = max(len(row.get("seeds", [0])) for row in rows)
    seed = f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}" if seeds else ""
    spread = f"mean ± standard deviation of {runs} runs" if several else ""
    return ", ".join(part for part in (first.get("dataset"), first.get("split"), users, seed, spread) if part)


def verdict(rows: list[Row]) -> str:
    """The result in a sentence: the best learned system beside the floor."""
    learned = [row for row in rows if is_learned(row) and row.get("ndcg@10") is not None]
    floor = next((row for row in rows if row["system"] == FLOOR and row.get("ndcg@10")), None)
    if not learned:
        return "Nothing learned was evaluated: the table holds floors only."
    best = max(learned, key=lambda row: row["ndcg@10"])
    text = f"Best learned system by NDCG@10: {best['system']}, {best['ndcg@10']:.4f}"
    if floor is None:
        return text + "."
    change = best["ndcg@10"] / floor["ndcg@10"] - 1
    where = "above" if change >= 0 else "below"
    return f"{text}, {abs(change):.1%} {where} the floor ({FLOOR}, {floor['ndcg@10']:.4f})."


def footnotes(rows: list[Row]) -> list[str]:
    """How to read the table, and what the evaluation says about single rows."""
    notes = ["Bold: the best of the learned systems (neither oracle nor floors)."]
    if any(row["system"] == FLOOR for row in rows):
        several = any("seeds" in row for row in rows)
        tested = any(ABOVE in row for row in rows)
        beyond = ", by more than the spread of the seeds" if several else ""
        beyond += ", the 95% interval of the difference user by user included" if tested else ""
        notes.append(f"Floor: {FLOOR}, which only counts. ▲ marks rows whose NDCG@10 is above it{beyond}.")
    if any(row["system"] == "oracle" for row in rows):
        notes.append("Oracle: knows the simulator's true distribution, the bound for every model.")
    ties = [f"{row['system']} {row[TIES]:.4f}" for row in rows if row.get(TIES) is not None]
    if ties:
        notes.append(f"Recall@10 of the floors if the right item won every tie of equal scores: {', '.join(ties)}.")
    runs = max(len(row.get("seeds", [])) for row in rows)
    fewer = [f"{row['system']} {len(row['seeds'])}" for row in rows if "seeds" in row and len(row["seeds"]) < runs]
    if fewer:
        notes.append(f"Not in all {runs} runs: {', '.join(fewer)}.")
    return notes + [f"{row['system']}: {row['note']}" for row in rows if row.get("note")]


def print_table(rows: list[Row]) -> None:
    """The table at the terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file has no edge to fold at
    columns, lines = lay_out(rows)
    table = Table(title=headline(rows), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("system", no_wrap=True)
    for column in columns:
        table.add_column(column.head, justify="right")
    for line in lines:
        name = line.system + (" (floor)" if line.floor else " ▲" if line.beats else "")
        style = "dim" if line.bound else "yellow" if line.floor else "green" if line.beats else ""
        cells = [Text(cell.whole, style="bold" if cell.best else "") for cell in line.cells]
        table.add_row(Text(name, style=style), *cells)
    console.print(table)
    console.print(Text(verdict(rows)))


def _print_path(output: Path) -> None:
    print(f"report: {output / 'report.html'}")


def render_markdown(rows: list[Row], found: dict[str, Artifact], differences: list[dict[str, str]]) -> str:
    """report.md: the tables, the exact commands, time and memory of each stage."""
    columns, lines = lay_out(rows)
    parts = [f"# {headline(rows)}", "", verdict(rows), ""]
    parts += [f"| system | {' | '.join(column.head for column in columns)} |", "|---|" + "---:|" * len(columns)]
    for line in lines:
        name = line.system + (" (floor)" if line.floor else " ▲" if line.beats else "")
        cells = [f"**{cell.whole}**" if cell.best else cell.whole for cell in line.cells]
        parts.append(f"| {name} | {' | '.join(cells)} |")
    parts += ["", *(f"- {note}" for note in footnotes(rows))]
    parts += ["- " + "; ".join(f"{column.head}: {column.meaning}" for column in columns) + "."]
    targets, lines = by_target(rows)
    if targets:
        heads = [f"{column.head} ({column.meaning})" if column.meaning else column.head for column in targets]
        parts += ["", "## Recall@10 by the right item", "", f"| system | {' | '.join(heads)} |"]
        parts += ["|---|" + "---:|" * len(heads)]
        for line in lines:
            cells = [f"**{cell.whole}**" if cell.best else cell.whole for cell in line.cells]
            parts.append(f"| {line.system} | {' | '.join(cells)} |")
    if differences:
        parts += ["", "## NDCG@10 user by user", ""]
        for one in differences:
            parts.append(
                f"- {one['system']} − {one['reference']}: {one['difference']} ({one['interval']}), p = {one['p']}"
            )
    parts += ["", "## Commands", "", "```", *(one.manifest["command"] for one in found.values())]
    parts += [" ".join([Path(sys.executable).name, *sys.argv]), "```", "", "## Time and memory", ""]
    parts += ["| stage | time | peak memory | made |", "|---|---:|---:|---|"]
    for cost in costs(found):
        parts.append(f"| {cost['name']} | {cost['time']} | {cost['memory']} | {cost['created']} |")
    return "\n".join(parts) + "\n"


# Details


def read_all_ranked_lists(runs: Sequence[Artifact]) -> list[RankedLists]:
    """What each run's systems answered.

    Raises:
        UserError: the runs were evaluated on different users.
    """
    found = [read_ranked_lists(one.folder / "lists.parquet") for one in runs]
    for evaluation, answers in zip(runs, found, strict=True):
        if not found[0].same_users(answers):
            raise UserError(f"{evaluation.folder} was evaluated on other users than {runs[0].folder}.")
    return found


def paired_to(reference: str, rows: list[Row], runs: Sequence[RankedLists]) -> dict[str, dict[str, float]]:
    """Each system's NDCG@10 above another's, user by user (`metrics.paired`), a user's being the mean over the runs.

    A system is compared over the runs that have it. Not compared: the oracle, and what was not learned with a reference
    other than the floor.
    """
    from distill.metrics import hit_ranks, ndcg, paired  # with scipy, which takes long to import

    values: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for answers in runs:
        if reference not in answers.lists:
            continue
        own = {name: ndcg(hit_ranks(lists, answers.targets), 10) for name, lists in answers.lists.items()}
        for name in own:
            values.setdefault(name, []).append((own[name], own[reference]))
    compared = [
        row["system"]
        for row in rows
        if row["system"] in values
        and row["system"] not in (reference, "oracle")
        and (is_learned(row) or reference == FLOOR)
    ]
    return {name: paired(*np.mean(values[name], axis=0)) for name in compared}


def paired_table(rows: list[Row], to_tiger: dict[str, dict[str, float]]) -> list[dict[str, str]]:
    """Differences to the floor, which the rows hold, and to the student without a teacher."""
    told = [(row["system"], FLOOR, row[ABOVE]) for row in rows if isinstance(row.get(ABOVE), dict)]
    told += [(system, NO_TEACHER, one) for system, one in to_tiger.items()]
    return [
        {
            "system": system,
            "reference": reference,
            "difference": f"{one['difference']:+.4f}",
            "interval": f"{one['low']:+.4f} … {one['high']:+.4f}",
            "p": f"{one['p']:.2g}",
        }
        for system, reference, one in told
    ]


def by_target(rows: list[Row]) -> tuple[list[Column], list[Line]]:
    """Recall@10 where the floor's counts lead from the history to the right item ("reached") and where not, and by the
    item's popularity; a column's meaning is its size."""
    share = next((row["reachable"] for row in rows if row.get("reachable") is not None), None)
    sizes = ("", "") if share is None else (f"{share:.1%} of users", f"{1 - share:.1%} of users")
    columns = [
        Column("recall@10_reachable", "reached", sizes[0], 1, _four),
        Column("recall@10_unreachable", "others", sizes[1], 1, _four),
    ]
    groups = next((row["by_popularity"] for row in rows if isinstance(row.get("by_popularity"), list)), [])
    columns += [
        Column(
            f"group {part['group']}", str(part["group"]), f"{part['items']:,} items, {part['users']:,} users", 1, _four
        )
        for part in groups
    ]
    flat = [
        row | {f"group {part['group']}": part.get("recall@10") for part in row.get("by_popularity") or ()}
        for row in rows
    ]
    return lay_out(flat, tuple(columns))


# Cost and origin


def costs(found: dict[str, Artifact]) -> list[dict[str, Any]]:
    """Time and memory of each stage, and the sum of the times."""
    stages = []
    total = sum(one.manifest["seconds"] for one in found.values())
    for name, one in found.items():
        seconds, memory = one.manifest["seconds"], one.manifest["peak_mib"]
        share = 100 * seconds / total if total else 0
        stages.append({"name": name, "time": duration(seconds), "share": round(share, 1), "memory": f"{memory:,} MiB",
                       "created": one.manifest["created"]})  # fmt: skip
    return [*stages, {"name": "all", "time": duration(total), "share": None, "memory": "", "created": ""}]


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def chain(found: dict[str, Artifact]) -> list[dict[str, Any]]:
    """Which artifact was made from which; a parent that is not the one lying here now is marked as such."""
    here = {(one.name, one.fingerprint): name for name, one in found.items()}
    links = []
    for name, one in found.items():
        parents = [
            {"name": here.get(parent, parent[0]), "fingerprint": parent[1], "here": parent in here}
            for parent in one.manifest["identity"]["inputs"].items()
        ]
        links.append({"name": name, "kind": one.kind, "fingerprint": one.fingerprint, "parents": parents,
                      "command": one.manifest["command"], "commit": one.manifest.get("commit") or "–"})  # fmt: skip
    return links


# Quality of IDs and labels

MEANINGS = {
    "items": "items of the catalogue",
    "distinct_ids": "different IDs",
    "levels": "codes an ID has",
    "codebook_size": "codes to choose from at each level",
    "collision_rate_before": "share of items whose ID another item had as well, before repair",
    "collision_rate": "the same after repair",
    "source": "where the IDs come from",
    "reconstruction_error": "what the codes lose of the embeddings (share of their variance)",
    "mean_squared_error": "the same, a squared number",
    "targets": "labelled examples",
    "recall@10": "share of training targets that the teacher has among its first 10",
    "entropy_per_level": "uncertainty of the teacher's next code, in nats",
    "mass_off_level": "probability the teacher gives to tokens that are no code of the level",
    "reference_in_beams": "share of targets that are among the teacher's beams",
    "reference_rank": "their mean rank there",
    "invalid_beams": "share of beams that are no item's ID",
    "bytes_per_target": "room a label takes on disk",
    "kl_fp16": "what storing halves loses of the distributions, in nats",
    "kl_u8": "what storing square roots in bytes loses",
    "kl_topk+tail": "what storing the 48 likeliest codewords loses",
}


def facts(report: Any) -> list[tuple[str, str, str]]:
    """(name, meaning, value) of every plain value of a quality report."""
    if not isinstance(report, dict):
        return []
    rows = []
    for key, value in report.items():
        if isinstance(value, bool | str):
            text = str(value)
        elif isinstance(value, int):
            text = f"{value:,}"
        elif isinstance(value, float):
            text = f"{value:.4g}"
        else:
            continue
        rows.append((key.replace("_", " "), MEANINGS.get(key, ""), text))
    return rows


# Training curves


@dataclass(frozen=True)
class Curve:
    """One training: loss and validation NDCG@10 by epoch."""

    name: str
    colour: int
    dashed: bool
    points: list[Row]

    def line(self, key: str) -> tuple[list[float], list[float]]:
        """Epochs and values, without the epochs that have none."""
        points = [point for point in self.points if isinstance(point.get(key), int | float)]
        return [point["epoch"] for point in points], [point[key] for point in points]


COLOURS = ("teacher", "tiger", "smooth", "distill", "dtr", "dwr")  # a system keeps its colour, whoever else is there
N_COLOURS = 8


def read_curves(found: dict[str, Artifact]) -> list[Curve]:
    """The curves of all trainings that have one."""
    curves = []
    for name, one in found.items():
        path = one.folder / "curve.json"
        if one.kind not in ("teacher", "student", "baseline") or not path.is_file():
            continue
        read = _read_json(path, one.kind)
        system = name.removeprefix("students/").removeprefix("baselines/")
        shade = colour(system, len(curves))
        for part, points in read.items() if isinstance(read, dict) else [("", read)]:
            if not isinstance(points, list) or not all(isinstance(p, dict) and "epoch" in p for p in points):
                raise UserError(f"{path} should hold a list of epochs. {_again(one.kind)}")
            ranker = part == "ranker"
            curves.append(Curve(f"{system} (ranker)" if ranker else system, shade, ranker, points))
    return curves


# matplotlib wants fixed colours; these are exchanged for the page's own, which follow its light or dark dress.
INK, GRID = "#010203", "#010204"


Line2D = tuple[Curve, list[float], list[float]]


def draw(lines: list[Line2D], title: str, across: str, size: tuple[float, float], name: str) -> str:
    """A chart as inline SVG; empty if no line has a value.

    Args:
        lines: curve (for its looks), places and values.
        title: above the chart.
        across: what the horizontal axis counts.
        size: in inches.
        name: of no other chart of the page.
    """
    if not any(values for _, _, values in lines):
        return ""
    import matplotlib  # here, because `--help` should not wait for it
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings = {"svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 9, "text.color": INK,
                "axes.labelcolor": INK, "axes.edgecolor": GRID, "xtick.color": GRID, "ytick.color": GRID,
                "xtick.labelcolor": INK, "ytick.labelcolor": INK}  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for curve, places, values in lines:
            style = "--" if curve.dashed else "-"
            axes.plot(
                places, values, style, color=f"#0a0b{curve.colour:02x}", linewidth=1.8, marker="o", markersize=2.5
            )
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(across)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--rule)")
    svg = re.sub(r"#0a0b0(\d)", r"var(--line\1)", svg)
    # Ids must be unique in the page, which holds several charts.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{title} by {across}"', svg, count=1)


def charts(curves: list[Curve]) -> dict[str, Any]:
    """One chart of quality for all, and one of loss for each, because the losses are of different kinds."""
    losses = [
        draw([(curve, *curve.line("loss"))], curve.name, "epoch", (2.7, 1.8), f"loss{number}")
        for number, curve in enumerate(curves)
    ]
    lines = [(curve, *curve.line("valid_ndcg@10")) for curve in curves]
    quality = draw(lines, "validation NDCG@10", "epoch", (5.4, 3.0), "quality")
    return {"quality": quality, "losses": [loss for loss in losses if loss], "legend": curves}


def width_charts(rows: list[Row]) -> dict[str, Any]:
    """Diversity, share of invalid IDs and NDCG@10 by the number of beams (the paper's Figures 1 and 3)."""
    told = [row for row in rows if isinstance(row.get("widths"), list)]
    curves = [
        Curve(row["system"], colour(row["system"], place), False, row["widths"]) for place, row in enumerate(told)
    ]
    drawn = []
    for key, title in (("diversity", "diversity of all beams"), ("invalid", "invalid share without the trie"),
                       ("ndcg@10", "NDCG@10")):  # fmt: skip
        lines = [
            (curve, [point["width"] for point in curve.points], [point[key] for point in curve.points])
            for curve in curves
        ]
        drawn.append(draw(lines, title, "beams", (3.4, 2.4), f"width-{key.replace('@', '')}"))
    return {"charts": [one for one in drawn if one], "legend": curves}


def colour(system: str, place: int) -> int:
    """Number of a system's colour; those that have none of their own share the rest."""
    return COLOURS.index(system) if system in COLOURS else len(COLOURS) + place % (N_COLOURS - len(COLOURS))


# Examples


def read_examples(count: int, dataset: Artifact, evaluation: Artifact) -> list[dict[str, Any]]:
    """Recommendations with titles, for users evenly spread over the evaluated ones, so that nobody chose them."""
    path = evaluation.folder / "lists.parquet"
    lists = read_parquet(path, ASKED)
    items = read_parquet(dataset.folder / "items.parquet", ("item_id", "title"))
    count = min(count, lists.num_rows)
    names = [name for name in lists.column_names if name not in ASKED]
    shown = [name for name in IN_EXAMPLES if name in names] or names[: len(IN_EXAMPLES)]
    chosen = np.linspace(0, lists.num_rows - 1, count).round().astype(np.int64)
    ids, titles = items["item_id"].to_pylist(), items["title"].to_pylist()

    def title(item: int) -> dict[str, str]:
        if not 0 <= item < len(ids):
            raise UserError(f"{path} names item {item}, but the catalogue has {len(ids)}. {_again('evaluation')}")
        full = titles[item] or ids[item]
        return {"full": full, "short": textwrap.shorten(full, 90, placeholder=" …") or full[:90]}

    examples = []
    for row in lists.take(pa.array(chosen)).to_pylist():
        target, history = row["target"], row["history"]
        answers = []
        for name in shown:
            answer = [item for item in row[name] if item >= 0][:ITEMS_SHOWN]
            rank = answer.index(target) + 1 if target in answer else None
            answers.append(
                {"system": name, "rank": rank, "items": [title(item) | {"hit": item == target} for item in answer]}
            )
        examples.append({
            "user": row["user"], "target": title(target), "answers": answers,
            "history": [title(item) for item in history[-HISTORY_SHOWN:]],
            "earlier": max(0, len(history) - HISTORY_SHOWN),
        })  # fmt: skip
    return examples


def render_page(
    config: Config,
    rows: list[Row],
    found: dict[str, Artifact],
    differences: list[dict[str, str]],
    dataset: Artifact,
    evaluation: Artifact,
) -> str:
    """report.html: one page with everything inside."""
    import jinja2
    from markupsafe import Markup

    columns, lines = lay_out(rows)
    more_columns, more_lines = lay_out(rows, DETAILS)
    targets, target_lines = by_target(rows)
    quality = {}
    for kind in ("semantic_ids", "soft_labels"):
        path = found[kind].folder / "report.json" if kind in found else None
        quality[kind] = _read_json(path, kind) if path and path.is_file() else None
    chart, widths = charts(read_curves(found)), width_charts(rows)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    levels = quality["semantic_ids"].get("per_level") if isinstance(quality["semantic_ids"], dict) else None
    return environment.get_template(TEMPLATE.name).render(
        headline=headline(rows),
        verdict=verdict(rows),
        columns=columns,
        lines=lines,
        notes=footnotes(rows),
        has_intervals=any(cell.interval for line in lines for cell in line.cells),
        several=any("seeds" in row for row in rows),
        more_columns=more_columns,
        more_lines=more_lines,
        differences=differences,
        targets=targets,
        target_lines=target_lines,
        width_charts=[Markup(one) for one in widths["charts"]],
        width_legend=widths["legend"],
        quality_chart=Markup(chart["quality"]),
        loss_charts=[Markup(loss) for loss in chart["losses"]],
        legend=chart["legend"],
        id_facts=facts(quality["semantic_ids"]),
        levels=levels or [],
        codebook_size=(quality["semantic_ids"] or {}).get("codebook_size"),
        label_facts=facts(quality["soft_labels"]),
        costs=costs(found),
        chain=chain(found),
        examples=read_examples(config.examples, dataset, evaluation) if config.examples else [],
    )


if __name__ == "__main__":
    run(main, Config, "demo/report.yaml")
