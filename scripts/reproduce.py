"""Reproduce tables and figures of the paper from runs of this project, published values beside: csv, Markdown and PNG.

    python scripts/reproduce.py table1 --dataset instruments --input DIR --index DIR/Instruments.index.json
    python scripts/reproduce.py table2 --dataset demo --seeds "[0, 1, 2]"
    python scripts/reproduce.py table1 --dataset demo --settings paper
    python scripts/reproduce.py figure4 --dataset demo

table1 is accuracy on the test split: baselines, SASRec, GRU4Rec, FMLP-Rec, P5-CID, the teacher, all students, one of
them with a memory; --lists adds what scripts/run_peers.sh has written; with several seeds it also writes the report
over all of them. table2 is the ablation of DWR on the validation split. --settings paper adds the students with the
paper's values (configs/paper/student.yaml) to both. table3 is the statistics of the data set. figure1 shows accuracy,
diversity and invalid IDs of TIGER over the beam width, figure3 the diversity of all students. figure4 shows a map of
the items' representations, and how well students learn the teacher's lists from four kinds of labels. cases are Tables
4 and 5, recommendations with titles. Finished artifacts are not made again.
"""

from __future__ import annotations

import sys

from distill.evaluation.reproduction.cases import make_cases
from distill.evaluation.reproduction.config import Config
from distill.evaluation.reproduction.figure4 import make_figure4
from distill.evaluation.reproduction.maps import check_umap
from distill.evaluation.reproduction.pipeline import make_dataset, make_evaluations, make_report
from distill.evaluation.reproduction.statistics import make_statistics
from distill.evaluation.reproduction.tables import make_table
from distill.evaluation.reproduction.widths import make_widths
from distill.runtime.config import CONFIGS, run, suggest
from distill.runtime.errors import UserError
from distill.runtime.logs import log

MAKERS = {
    "table1": make_table,
    "table2": make_table,
    "table3": make_statistics,
    "figure1": make_widths,
    "figure3": make_widths,
    "figure4": make_figure4,
    "cases": make_cases,
}


def main(config: Config) -> None:
    """Run the commands, gather their results, write csv, Markdown and PNG."""
    check(config)
    runs = config.runs()
    if config.make and config.table == "table3":
        make_dataset(config, runs[0])
    elif config.make:
        for folder, seed in zip(runs, config.seeds, strict=True):
            make_evaluations(config, folder, seed)
    result = MAKERS[config.table](runs, config)
    output = config.output or runs[0] / "reproduce"
    output.mkdir(parents=True, exist_ok=True)
    if config.table == "table1" and config.make and len(runs) > 1:
        make_report(config, runs, output / "report")
    paths = result.write(output, config.table)
    print(result.markdown)
    log.info(f"wrote {', '.join(path.name for path in paths)} into {output}")


def check(config: Config) -> None:
    """Refuse unknown data sets, repeated seeds, options of other tables, and maps without UMAP.

    Raises:
        UserError: see above.
    """
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"seeds: expected at least one, each once, got {config.seeds}.")
    if config.lists and config.table != "table1":
        raise UserError(f"--lists adds rows to table1; {config.table} is made of this project's students alone.")
    if config.table == "figure4":
        check_umap()
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
