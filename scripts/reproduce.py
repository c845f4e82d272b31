"""The paper's tables from our runs, the paper's figures beside: csv, Markdown and PNG.

    python scripts/reproduce.py table1 --dataset instruments --input DIR --index DIR/Instruments.index.json
    python scripts/reproduce.py table2 --dataset demo --seeds "[0, 1, 2]"

table1 is accuracy on the test split: floors, SASRec and GRU4Rec, the teacher, all students, one with a memory; with
several seeds it also writes the report over all of them. table2 is the ablation of DWR on the validation split.
Whatever stage is finished is not repeated. The paper's teacher is LLaMA-7B; ours is what the config says.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distill.runtime import artifacts
from distill.runtime.config import CONFIGS, run, suggest
from distill.runtime.errors import UserError
from distill.runtime.logs import log

ROOT = CONFIGS.parent
SYSTEM_METRICS = {
    "table1": (
        "recall@5",
        "recall@10",
        "ndcg@5",
        "ndcg@10",
        "diversity@10",
        "recall@10_reachable",
        "recall@10_unreachable",
    ),
    "table2": ("recall@10", "ndcg@10", "diversity@10"),
}
HEADS = {"recall@5": "R@5", "recall@10": "R@10", "ndcg@5": "N@5", "ndcg@10": "N@10", "diversity@10": "Div@10",
         "recall@10_reachable": "R@10 reached", "recall@10_unreachable": "R@10 others"}  # fmt: skip
ABLATION = {"dwr": "DWR", "dwr-without-distill": "w/o DISTILL", "distill": "w/o RANK", "tiger": "w/o all"}
EXTRA = "dwr-without-distill"  # the one student that the pipeline does not train

# LOHRec (EMNLP Findings 2025), Tables 1 and 2, in the order of SYSTEM_METRICS
PAPER: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {
    "table1": {
        "instruments": {
            "tiger": (0.0863, 0.1064, 0.0738, 0.0803),
            "smooth": (0.0882, 0.1086, 0.0752, 0.0810),
            "distill": (0.0949, 0.1151, 0.0814, 0.0870),
            "dtr": (0.1021, 0.1254, 0.0875, 0.0920),
            "dwr": (0.1013, 0.1230, 0.0868, 0.0912),
            "teacher": (0.1002, 0.1220, 0.0856, 0.0926),
        },
        "arts": {
            "tiger": (0.0788, 0.1012, 0.0631, 0.0703),
            "smooth": (0.0807, 0.1030, 0.0645, 0.0717),
            "distill": (0.0914, 0.1113, 0.0725, 0.0799),
            "dtr": (0.0970, 0.1212, 0.0795, 0.0860),
            "dwr": (0.0945, 0.1202, 0.0766, 0.0842),
            "teacher": (0.1011, 0.1266, 0.0828, 0.0906),
        },
        "games": {
            "tiger": (0.0599, 0.0939, 0.0392, 0.0501),
            "smooth": (0.0618, 0.0962, 0.0415, 0.0522),
            "distill": (0.0680, 0.1018, 0.0435, 0.0540),
            "dtr": (0.0729, 0.1103, 0.0515, 0.0586),
            "dwr": (0.0716, 0.1088, 0.0499, 0.0569),
            "teacher": (0.0800, 0.1174, 0.0560, 0.0681),
        },
    },
    "table2": {
        "instruments": {
            "dwr": (0.1278, 0.0944, 0.3711),
            "dwr-without-distill": (0.1092, 0.0821, 0.3423),
            "distill": (0.1169, 0.0877, 0.3525),
            "tiger": (0.1078, 0.0797, 0.2913),
        },
        "arts": {
            "dwr": (0.1288, 0.0892, 0.3740),
            "dwr-without-distill": (0.1036, 0.0724, 0.3490),
            "distill": (0.1176, 0.0808, 0.3533),
            "tiger": (0.1030, 0.0712, 0.2971),
        },
        "games": {
            "dwr": (0.1179, 0.0639, 0.3553),
            "dwr-without-distill": (0.0964, 0.0534, 0.3161),
            "distill": (0.1090, 0.0535, 0.3355),
            "tiger": (0.0928, 0.0492, 0.3116),
        },
    },
}


@dataclass(frozen=True)
class Config:
    """Reproduce a table of the paper: python scripts/reproduce.py table1|table2 --dataset NAME [--field value ...]."""

    table: Literal["table1", "table2"] = "table1"
    """Which; may stand alone before all options."""
    dataset: str = "demo"
    """A folder of configs/."""
    run: Path | None = None
    """Folder of the first seed's run (default: runs/DATASET); the others' are RUN-seedN."""
    input: Path | None = None
    """Raw data, for prepare_data."""
    index: Path | None = None
    """Semantic IDs as LC-Rec publishes them, for build_semantic_ids."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Of everything that is trained."""
    make: bool = True
    """Run what is missing; otherwise only gather evaluations that exist."""
    output: Path | None = None
    """Where table1.csv, .md and .png go (default: RUN/reproduce)."""


def main(config: Config) -> None:
    """Run the stages, gather the evaluations, write three files."""
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"seeds: expected at least one, each once, got {config.seeds}.")
    known = sorted(path.parent.name for path in CONFIGS.glob("*/student.yaml"))
    if config.dataset not in known:
        raise UserError(f"Unknown dataset {config.dataset!r}. {suggest(config.dataset, known)}")
    first = config.run or Path("runs") / config.dataset
    runs = [first, *(first.with_name(f"{first.name}-seed{seed}") for seed in config.seeds[1:])]
    for folder, seed in zip(runs, config.seeds, strict=True):
        if config.make:
            make(config, folder, seed)
    evaluations = [[read_rows(folder / name) for name in EVALUATIONS[config.table]] for folder in runs]
    names = list(ABLATION) if config.table == "table2" else None
    rows = gather([[row for part in parts for row in part] for parts in evaluations], names, config)
    output = config.output or first / "reproduce"
    output.mkdir(parents=True, exist_ok=True)
    if config.table == "table1" and config.make and len(runs) > 1:
        call(sys.executable, ROOT / "scripts/report.py", "--config", CONFIGS / config.dataset / "report.yaml", "--run",
             first, "--seeds", f"[{', '.join(map(str, runs[1:]))}]", "--output", output / "report")  # fmt: skip
    write_csv(output / f"{config.table}.csv", rows)
    (output / f"{config.table}.md").write_text(markdown(config, rows), encoding="utf-8")
    draw(output / f"{config.table}.png", config, rows)
    print(markdown(config, rows))
    log.info(f"wrote {output / config.table}.csv, .md and .png")


EVALUATIONS = {"table1": ("evaluation",), "table2": ("evaluation-valid", "evaluation-ablation")}


def make(config: Config, folder: Path, seed: int) -> None:
    """All stages that a table needs; finished ones skip themselves."""
    configs = CONFIGS / config.dataset
    raw = [f"--{name}={getattr(config, name)}" for name in ("input", "index") if getattr(config, name)]
    raw = [word for one in raw for word in one.split("=", 1)]
    extras = ["--extras"] if config.table == "table1" else []
    call("bash", ROOT / "scripts/run_pipeline.sh", configs, "--run", folder, "--seed", seed, *raw, *extras)
    if config.table == "table1":
        return
    launch = os.environ.get("ACCELERATE_CONFIG", CONFIGS / "accelerate/cpu.yaml")
    common = ("--run", folder, "--seed", seed)
    call("accelerate", "launch", "--quiet", "--config_file", launch, ROOT / "student/train.py", "--variant", EXTRA,
         "--config", configs / "student.yaml", *common, "--output", folder / "ablation" / EXTRA)  # fmt: skip
    for name, students, systems in (
        ("evaluation-valid", "students", "[tiger, distill, dwr]"),
        ("evaluation-ablation", "ablation", f"[{EXTRA}]"),
    ):
        call(sys.executable, ROOT / "scripts/evaluate.py", "--config", configs / "evaluate.yaml", *common, "--split",
             "valid", "--students", folder / students, "--systems", systems, "--output", folder / name)  # fmt: skip


def call(*words: Any) -> None:
    """Run a command, its output to ours.

    Raises:
        UserError: it failed; it has said why.
    """
    words = [str(word) for word in words]
    if subprocess.run(words, check=False).returncode:
        raise UserError(f"This failed, see above: {shlex.join(words)}")


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of an evaluation."""
    evaluation = artifacts.read(folder, "evaluation")
    return json.loads((evaluation.folder / "metrics.json").read_text(encoding="utf-8"))


def gather(runs: list[list[dict[str, Any]]], names: list[str] | None, config: Config) -> list[dict[str, Any]]:
    """One row a system: means over the runs, KEY_std where there are several, the paper's figures as paper_KEY.

    Args:
        runs: the evaluations' rows, one list a seed.
        names: which systems, in this order; none: all of the first run.
        config: see there.

    Raises:
        UserError: a system that not all runs have, or one evaluated on different users or splits.
    """
    by_name = [{row["system"]: row for row in rows} for rows in runs]
    rows = []
    for name in names or list(by_name[0]):
        missing = [seed for seed, found in zip(config.seeds, by_name, strict=True) if name not in found]
        if missing:
            raise UserError(f"The run of seed {missing[0]} has no {name}.")
        ours = [found[name] for found in by_name]
        facts = {(row["users"], row["split"], row["dataset"] if len(ours) == 1 else "") for row in ours}
        if len(facts) > 1:
            raise UserError(f"{name} was evaluated on different users in the runs: {sorted(facts)}.")
        row: dict[str, Any] = {"system": name, "seeds": len(ours), "users": ours[0]["users"], "split": ours[0]["split"]}
        for key in SYSTEM_METRICS[config.table]:
            values = [one[key] for one in ours if one.get(key) is not None]
            row[key] = statistics.fmean(values) if values else None
            if len(values) > 1:
                row[f"{key}_std"] = statistics.stdev(values)
        published = PAPER[config.table].get(config.dataset, {}).get(name, ())
        if ours[0].get("reachable") is not None:
            row["reachable"] = ours[0]["reachable"]
        row |= {f"paper_{key}": value for key, value in zip(SYSTEM_METRICS[config.table], published, strict=False)}
        rows.append(row)
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """All columns that any row has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def markdown(config: Config, rows: list[dict[str, Any]]) -> str:
    """The table for people: ours, and the paper's beside where it has the data set."""
    metrics = SYSTEM_METRICS[config.table]
    published = [key for key in metrics if any(f"paper_{key}" in row for row in rows)]
    heads = [HEADS[key] for key in metrics] + [f"paper {HEADS[key]}" for key in published]
    seeds = f"mean ± standard deviation of seeds {', '.join(map(str, config.seeds))}"
    about = seeds if len(config.seeds) > 1 else f"seed {config.seeds[0]}"
    lines = [f"# {config.table}: {config.dataset}, {rows[0]['split']}, {rows[0]['users']:,} users, {about}", ""]
    lines += [f"| system | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for row in rows:
        name = ABLATION[row["system"]] if config.table == "table2" else row["system"]
        cells = [number(row.get(key), row.get(f"{key}_std")) for key in metrics]
        cells += [number(row.get(f"paper_{key}")) for key in published]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    share = next((row["reachable"] for row in rows if "reachable" in row), None)
    if config.table == "table1" and share is not None:
        lines += [
            "",
            f"Reached: the {share:.1%} of users whose right item the floor's counts of the training part lead to.",
        ]
    if published:
        lines += ["", "The paper's teacher is LC-Rec on LLaMA-7B; ours is the one of this run."]
    return "\n".join(lines) + "\n"


def number(value: float | None, spread: float | None = None) -> str:
    """.1234 ± .0012, or – for none."""
    if value is None:
        return "–"
    return f"{value:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")


def draw(path: Path, config: Config, rows: list[dict[str, Any]]) -> None:
    """Recall@10 and NDCG@10 of all systems; the paper's as dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.32 * len(rows) + 1.2), layout="constrained")
    place = range(len(rows))
    for axes, key in zip(figure.subplots(1, 2, sharey=True), ("recall@10", "ndcg@10"), strict=True):
        spread = [row.get(f"{key}_std", 0) for row in rows]
        axes.barh(place, [row[key] or 0 for row in rows], xerr=spread if any(spread) else None, color="#8fb0d8")
        paper = [(row[f"paper_{key}"], at) for at, row in zip(place, rows, strict=True) if f"paper_{key}" in row]
        if paper:
            axes.plot(*zip(*paper, strict=True), "o", color="#b8337f", label="paper")
            axes.legend(frameon=False)
        axes.set_title(HEADS[key], loc="left")
        axes.grid(axis="x", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    names = [ABLATION[row["system"]] if config.table == "table2" else row["system"] for row in rows]
    figure.axes[0].set_yticks(list(place), names)
    figure.axes[0].invert_yaxis()
    figure.savefig(path, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words = ["--table", *words]
    run(main, Config, None, words)
