"""Reproduce tables and figures of the paper from runs of this project, published values beside: csv, Markdown and PNG.

    python scripts/reproduce.py table1 --dataset instruments --input DIR --index DIR/Instruments.index.json
    python scripts/reproduce.py table2 --dataset demo --seeds "[0, 1, 2]"
    python scripts/reproduce.py table1 --dataset demo --settings paper
    python scripts/reproduce.py figure3 --dataset demo

table1 is accuracy on the test split: baselines, SASRec and GRU4Rec, the teacher, all students, one of them with a
memory; with several seeds it also writes the report over all of them. table2 is the ablation of DWR on the validation
split. --settings paper adds the students with the paper's values (configs/paper/student.yaml) to both. table3 is the
statistics of the data set. figure1 shows accuracy, diversity and invalid IDs of TIGER over the beam width, figure3 the
diversity of all students. Finished artifacts are not made again.
"""

from __future__ import annotations

import sys

from distill.evaluation.reproduction.config import Config
from distill.evaluation.reproduction.pipeline import make_dataset, make_evaluations, make_report
from distill.evaluation.reproduction.statistics import draw_statistics, gather_statistics, render_statistics
from distill.evaluation.reproduction.tables import draw, gather, read_run, render_markdown, write_csv
from distill.evaluation.reproduction.widths import draw_widths, gather_widths, render_widths
from distill.runtime.config import CONFIGS, run, suggest
from distill.runtime.errors import UserError
from distill.runtime.logs import log


def main(config: Config) -> None:
    """Run the commands, gather their results, write three files."""
    check(config)
    runs = config.runs()
    if config.make and config.table == "table3":
        make_dataset(config, runs[0])
    elif config.make:
        for folder, seed in zip(runs, config.seeds, strict=True):
            make_evaluations(config, folder, seed)
    if config.table == "table3":
        rows, render, draw_png = gather_statistics(runs[0], config), render_statistics, draw_statistics
    elif config.table in ("figure1", "figure3"):
        rows, render, draw_png = gather_widths(runs, config), render_widths, draw_widths
    else:
        rows, render, draw_png = gather([read_run(folder, config) for folder in runs], config), render_markdown, draw
    output = config.output or runs[0] / "reproduce"
    output.mkdir(parents=True, exist_ok=True)
    if config.table == "table1" and config.make and len(runs) > 1:
        make_report(config, runs, output / "report")
    markdown = render(config, rows)
    write_csv(output / f"{config.table}.csv", rows)
    (output / f"{config.table}.md").write_text(markdown, encoding="utf-8")
    draw_png(output / f"{config.table}.png", config, rows)
    print(markdown)
    log.info(f"wrote {output / config.table}.csv, .md and .png")


def check(config: Config) -> None:
    """Refuse unknown data sets, repeated seeds, and the paper's settings where nothing is trained.

    Raises:
        UserError: see above.
    """
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"seeds: expected at least one, each once, got {config.seeds}.")
    if config.settings == "paper" and config.table not in ("table1", "table2"):
        raise UserError(f"--settings paper is for table1 and table2; {config.table} has no such students.")
    known = sorted(path.parent.name for path in CONFIGS.glob("*/student.yaml") if path.parent.name != "paper")
    if config.dataset not in known:
        raise UserError(f"Unknown dataset {config.dataset!r}. {suggest(config.dataset, known)}")


if __name__ == "__main__":
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words = ["--table", *words]
    run(main, Config, None, words)
