"""The commands that make the evaluations of a table; finished artifacts are not made again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml

from distill.evaluation.reproduction.config import Config
from distill.runtime.config import CONFIGS
from distill.runtime.processes import run_command

ROOT = CONFIGS.parent
EVALUATIONS = {"table1": ("evaluation",), "table2": ("evaluation-valid", "evaluation-ablation")}  # folders of a run
WITHOUT_DISTILL = "dwr-without-distill"  # the one student of table2 that the pipeline does not train

P5_CID, P5_CID_EVALUATION = "p5-cid", "evaluation-p5-cid"  # TIGER on IDs by spectral clusters of co-occurrence
LISTS_EVALUATION = "evaluation-lists"  # of systems outside this project
PAPER_EVALUATIONS = {"table1": "evaluation-paper", "table2": "evaluation-paper-valid"}  # of students-paper
PAPER_STUDENTS = {
    "table1": ("tiger", "smooth", "distill", "dtr", "dwr"),
    "table2": ("dwr", WITHOUT_DISTILL, "distill", "tiger"),
}
ALIGNMENT = ("top", "random", "rank")  # students of figure4 that learn other labels; the pipeline trains none of them
ALIGNMENT_EVALUATIONS = ("evaluation-alignment", "evaluation-alignment-ablation")
WIDTHS, WIDTHS_SCOPE_ALL = "evaluation-widths", "evaluation-widths-scope-all"
TIGER_SCOPE_ALL = "tiger-scope-all"
WIDTH_STUDENTS = ("tiger", "smooth", "distill", "dtr", "dwr")


def make_evaluations(config: Config, folder: Path, seed: int) -> None:
    """Run all commands that a table needs.

    Args:
        config: table, data set and raw data.
        folder: of the run.
        seed: of everything that is trained.

    Raises:
        UserError: a command failed.
    """
    configs = CONFIGS / config.dataset
    raw: list[Any] = []
    if config.input:
        raw += ["--input", config.input]
    if config.index:
        raw += ["--index", config.index]
    extras = ["--extras"] if config.table == "table1" else []
    run_command("bash", ROOT / "scripts/run_pipeline.sh", configs, "--run", folder, "--seed", seed, *raw, *extras)
    if config.table == "table1":
        _evaluate_p5_cid(configs, folder, seed)
        if config.lists and folder == config.runs()[0]:
            _evaluate_lists(config, folder)
    if config.table == "table2":
        _evaluate_ablation(configs, folder, seed)
    if config.settings == "paper" and config.table in PAPER_STUDENTS:
        _evaluate_paper_settings(config, folder, seed)
    if config.table in ("figure1", "figure3"):
        _evaluate_widths(config, folder, seed)
    if config.table == "figure4":
        _evaluate_alignment(configs, folder, seed)


def make_dataset(config: Config, folder: Path) -> None:
    """Prepare the data set, all that table3 needs.

    Raises:
        UserError: the command failed.
    """
    raw: list[Any] = ["--input", config.input] if config.input else []
    data = CONFIGS / config.dataset / "data.yaml"
    run_command(sys.executable, ROOT / "scripts/prepare_data.py", "--config", data, "--run", folder, *raw)


def _train(*words: Any) -> None:
    launch = ["--config_file", os.environ.get("ACCELERATE_CONFIG", CONFIGS / "accelerate/cpu.yaml")]
    if "ACCELERATE_CONFIG" not in os.environ:  # said explicitly, or accelerate warns of its own choice
        launch += ["--num_cpu_threads_per_process", os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)]
    run_command("accelerate-launch", "--quiet", *launch, ROOT / "student/train.py", *words)


def _evaluate(configs: Path, *words: Any) -> None:
    run_command(sys.executable, ROOT / "scripts/evaluate.py", "--config", configs / "evaluate.yaml", *words)


def _evaluate_p5_cid(configs: Path, folder: Path, seed: int) -> None:
    """Train and evaluate TIGER on the IDs of P5-CID, with the sizes of the data set's students.

    Clusters of at most 20 items: with the paper's k, as many as codewords, a small catalogue would be divided once.
    """
    common, ids, students = ("--run", folder, "--seed", seed), folder / "ids-p5-cid", folder / "students-p5-cid"
    words = ("--quantiser", "cid", "--levels", 4, "--codebook_size", 256, "--spectral.leaf", 20, "--output", ids)
    run_command(sys.executable, ROOT / "scripts/build_semantic_ids.py", *common, *words)
    student, on_ids = ("--config", configs / "student.yaml"), ("--semantic_ids", ids)
    _train("--variant", "tiger", *student, *common, *on_ids, "--output", students / P5_CID)
    words = ("--students", students, "--systems", f"[popularity, {P5_CID}]", "--output", folder / P5_CID_EVALUATION)
    _evaluate(configs, *common, *on_ids, *words)


def _evaluate_lists(config: Config, folder: Path) -> None:
    """Measure the lists of systems outside this project."""
    lists = f"[{', '.join(map(str, config.lists or []))}]"
    words = ("--systems", "[popularity]", "--lists", lists, "--output", folder / LISTS_EVALUATION)
    _evaluate(CONFIGS / config.dataset, "--run", folder, *words)


def _evaluate_paper_settings(config: Config, folder: Path, seed: int) -> None:
    """Train and evaluate the table's students with the values that the paper gives; the others are the data set's."""
    configs, students = CONFIGS / config.dataset, folder / "students-paper"
    common = ("--run", folder, "--seed", seed)
    preset = config.preset or yaml.safe_load((configs / "student.yaml").read_text()).get("preset", "demo")
    for variant in PAPER_STUDENTS[config.table]:
        both = ("--config", configs / "student.yaml", "--config", CONFIGS / "paper/student.yaml")
        _train("--variant", variant, *both, "--preset", preset, *common, "--output", students / variant)
    split = ("--split", "valid") if config.table == "table2" else ()
    systems = f"[{', '.join(PAPER_STUDENTS[config.table])}]"
    output = folder / PAPER_EVALUATIONS[config.table]
    _evaluate(configs, *common, *split, "--students", students, "--systems", systems, "--output", output)


def _evaluate_widths(config: Config, folder: Path, seed: int) -> None:
    """Measure diversity and invalid IDs of students and teacher at several beam widths.

    figure1 counts invalid IDs over the whole vocabulary too. A student can do that whose softmax is over all codewords,
    so TIGER is trained once more with `--scope all`, unless all students of the data set are.
    """
    configs, common = CONFIGS / config.dataset, ("--run", folder, "--seed", seed)
    users = ("--users", config.width_users, "--width_users", config.width_users)
    off = ("--exact_users", 0, "--mixture_users", 0, "--kl_users", 1)
    words = ("--widths", f"{config.widths}", *users, *off)
    systems = f"[{', '.join((*WIDTH_STUDENTS, 'teacher'))}]"
    _evaluate(configs, *common, *words, "--systems", systems, "--output", folder / WIDTHS)
    if config.table == "figure1" and not has_whole_vocabulary(config):
        student = folder / "students-scope-all" / TIGER_SCOPE_ALL
        _train(
            "--variant", "tiger", "--scope", "all", "--config", configs / "student.yaml", *common, "--output", student
        )
        words = (*words, "--students", student.parent, "--systems", f"[popularity, {TIGER_SCOPE_ALL}]")
        _evaluate(configs, *common, *words, "--output", folder / WIDTHS_SCOPE_ALL)


def has_whole_vocabulary(config: Config) -> bool:
    """Tell whether the data set's students learn a softmax over the codewords of all levels."""
    settings = yaml.safe_load((CONFIGS / config.dataset / "student.yaml").read_text())
    return settings.get("scope", "level") == "all"


def _evaluate_ablation(configs: Path, folder: Path, seed: int) -> None:
    """Train the student without DISTILL, and evaluate the four students of table2 on the validation split."""
    common = ("--run", folder, "--seed", seed)
    _train_without_distill(configs, folder, seed)
    for evaluation, students, systems in (
        ("evaluation-valid", "students", "[tiger, distill, dwr]"),
        ("evaluation-ablation", "ablation", f"[{WITHOUT_DISTILL}]"),
    ):
        words = ("--split", "valid", "--students", folder / students, "--systems", systems)
        _evaluate(configs, *common, *words, "--output", folder / evaluation)


def _train_without_distill(configs: Path, folder: Path, seed: int) -> None:
    """Train the student with equations (8) and (14), Table 2's "w/o DISTILL"."""
    output, common = folder / "ablation" / WITHOUT_DISTILL, ("--run", folder, "--seed", seed)
    _train("--variant", WITHOUT_DISTILL, "--config", configs / "student.yaml", *common, "--output", output)


def _evaluate_alignment(configs: Path, folder: Path, seed: int) -> None:
    """Train and rank the students of figure4, and write the items' vectors of teacher and students."""
    common = ("--run", folder, "--seed", seed)
    for labels in ALIGNMENT:
        words = ("--variant", "tiger", "--labels", labels, "--config", configs / "student.yaml", *common)
        _train(*words, "--output", folder / "alignment" / labels)
    _train_without_distill(configs, folder, seed)
    off = ("--exact_users", 0, "--mixture_users", 0, "--kl_users", 1, "--cold_users", 0, "--widths", "[]")
    for evaluation, students, systems in zip(
        ALIGNMENT_EVALUATIONS, ("alignment", "ablation"), (ALIGNMENT, (WITHOUT_DISTILL,)), strict=True
    ):
        words = ("--students", folder / students, "--systems", f"[popularity, {', '.join(systems)}]")
        _evaluate(configs, *common, *words, *off, "--output", folder / evaluation)
    run_command(sys.executable, ROOT / "scripts/represent_items.py", "--run", folder)


def make_report(config: Config, runs: list[Path], output: Path) -> None:
    """Write the report over the runs of all seeds.

    Raises:
        UserError: the command failed.
    """
    others = f"[{', '.join(map(str, runs[1:]))}]"
    run_command(
        *(sys.executable, ROOT / "scripts/report.py", "--config", CONFIGS / config.dataset / "report.yaml"),
        *("--run", runs[0], "--seeds", others, "--output", output),
    )
