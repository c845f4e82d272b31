"""Reproduce the paper's tables from runs of this project, with the published figures beside: csv, Markdown and PNG.

    python scripts/reproduce.py table1 --dataset instruments --input DIR --index DIR/Instruments.index.json
    python scripts/reproduce.py table2 --dataset demo --seeds "[0, 1, 2]"

table1 is accuracy on the test split: baselines, SASRec and GRU4Rec, the teacher, all students, one of them with a
memory; with several seeds it also writes the report over all of them. table2 is the ablation of DWR on the validation
split. Finished artifacts are not made again.
"""

from __future__ import annotations

import sys

from distill.evaluation.reproduction.config import Config
from distill.evaluation.reproduction.pipeline import make_evaluations, make_report
from distill.evaluation.reproduction.tables import draw, gather, read_run, render_markdown, write_csv
from distill.runtime.config import CONFIGS, run, suggest
from distill.runtime.errors import UserError
from distill.runtime.logs import log


def main(config: Config) -> None:
    """Run the commands, gather the evaluations, write three files."""
    check(config)
    runs = config.runs()
    if config.make:
        for folder, seed in zip(runs, config.seeds, strict=True):
            make_evaluations(config, folder, seed)
    rows = gather([read_run(folder, config.table) for folder in runs], config)
    output = config.output or runs[0] / "reproduce"
    output.mkdir(parents=True, exist_ok=True)
    if config.table == "table1" and config.make and len(runs) > 1:
        make_report(config, runs, output / "report")
    markdown = render_markdown(config, rows)
    write_csv(output / f"{config.table}.csv", rows)
    (output / f"{config.table}.md").write_text(markdown, encoding="utf-8")
    draw(output / f"{config.table}.png", config, rows)
    print(markdown)
    log.info(f"wrote {output / config.table}.csv, .md and .png")


def check(config: Config) -> None:
    """Refuse unknown data sets and repeated seeds.

    Raises:
        UserError: see above.
    """
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"seeds: expected at least one, each once, got {config.seeds}.")
    known = sorted(path.parent.name for path in CONFIGS.glob("*/student.yaml"))
    if config.dataset not in known:
        raise UserError(f"Unknown dataset {config.dataset!r}. {suggest(config.dataset, known)}")


if __name__ == "__main__":
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words = ["--table", *words]
    run(main, Config, None, words)
