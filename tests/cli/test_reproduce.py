"""reproduce.py on evaluations that exist, and the commands it would run."""

import csv
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from cli.by_command import ROOT, command_of

from distill.evaluation.reproduction import pipeline
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.config import run

TABLE1 = {"transitions": 0.2, "teacher": 0.3, "tiger": 0.1, "dwr": 0.25}
TABLE2 = {"dwr": 0.3, "distill": 0.2, "tiger": 0.1}


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def evaluation(folder, values, users=50, split="test"):
    rows = []
    for system, value in values.items():
        row = {"system": system, "dataset": "x", "split": split, "users": users, "seed": 0, "diversity@10": 0.5}
        rows.append(row | {"recall@5": value, "recall@10": value + 0.1, "ndcg@5": value / 2, "ndcg@10": value / 2})
    with ArtifactJob("evaluation", Nothing(), folder).write() as output:
        write_json(output / "metrics.json", rows)


def reproduce(*words):
    done = subprocess.run([sys.executable, ROOT / "scripts/reproduce.py", *map(str, words)], capture_output=True,
                          text=True, cwd=ROOT, env=os.environ)  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_table1_beside_published_figures(tmp_path):
    evaluation(tmp_path / "r/evaluation", TABLE1)
    evaluation(tmp_path / "r-seed1/evaluation", TABLE1 | {"dwr": 0.27})
    words = ("table1", "--dataset", "instruments", "--run", tmp_path / "r", "--make", "false", "--seeds", "[0, 1]")
    code, out, error = reproduce(*words)
    assert code == 0, error
    text = (tmp_path / "r/reproduce/table1.md").read_text()
    assert text in out + "\n"
    assert "| dwr | 0.2600 ± 0.0141 | 0.3600 ± 0.0141 |" in text and "| 0.1013 | 0.1230 | 0.0868 | 0.0912 |" in text
    assert "LLaMA-7B" in text
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert lines["dwr"].endswith("| 0.0912 | LOHRec, EMNLP Findings 2025 |")
    assert lines["teacher"].endswith("| 0.0926 | LC-Rec, arXiv 2311.09049 |")  # LOHRec's Table 1 has no such row
    assert lines["transitions"].endswith("| – |  |")
    with open(tmp_path / "r/reproduce/table1.csv", newline="") as file:
        rows = {row["system"]: row for row in csv.DictReader(file)}
    assert [rows[name]["source"] for name in ("dwr", "teacher", "transitions")] == [
        "LOHRec, EMNLP Findings 2025",
        "LC-Rec, arXiv 2311.09049",
        "",
    ]
    assert float(rows["dwr"]["recall@5"]) == pytest.approx(0.26) and rows["dwr"]["seeds"] == "2"
    assert rows["teacher"]["paper_ndcg@10"] == "0.0926" and rows["transitions"]["paper_ndcg@10"] == ""
    assert (tmp_path / "r/reproduce/table1.png").read_bytes().startswith(b"\x89PNG")


def test_table2_of_a_data_set_without_published_figures(tmp_path):
    evaluation(tmp_path / "r/evaluation-valid", TABLE2, split="valid")
    evaluation(tmp_path / "r/evaluation-ablation", {"dwr-without-distill": 0.15}, split="valid")
    code, out, error = reproduce("table2", "--dataset", "demo", "--run", tmp_path / "r", "--make", "false")
    assert code == 0, error
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["DWR", "w/o DISTILL", "w/o RANK", "w/o all"]
    assert "paper" not in out and "published" not in out and "valid" in out


def test_commands(tmp_path, monkeypatch):
    """The pipeline for each seed, and for the ablation one student and two evaluations more."""
    module, calls = command_of("reproduce.py"), []
    monkeypatch.setattr(pipeline, "run_command", lambda *words: calls.append([str(word) for word in words]))
    for table in ("table1", "table2"):
        with pytest.raises(SystemExit):  # nothing was made
            words = ["--table", table, "--dataset", "instruments", "--run", str(tmp_path / "r"), "--seeds", "[3, 4]"]
            run(module.main, module.Config, None, [*words, "--input", "DATA", "--index", "INDEX"])
    first, second, *ablation = calls
    assert first[2:] == [str(ROOT / "configs/instruments"), "--run", str(tmp_path / "r"), "--seed", "3",
                         "--input", "DATA", "--index", "INDEX", "--extras"]  # fmt: skip
    assert second[3:7] == ["--run", str(tmp_path / "r-seed4"), "--seed", "4"]
    assert len(ablation) == 2 * 4 and "--extras" not in ablation[0] and "dwr-without-distill" in ablation[1]
    assert [call[call.index("--output") + 1] for call in ablation[2:4]] == [
        str(tmp_path / "r" / name) for name in ("evaluation-valid", "evaluation-ablation")
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("table1", "--dataset", "instrumets"), "Did you mean 'instruments'?"),
        (("table1", "--seeds", "[1, 1]"), "each once, got [1, 1]"),
        (("table3",), "table3"),
        (("table1", "--make", "false", "--run", "/nowhere/at/all"), "No evaluation at"),
    ],
)
def test_bad_input(words, said):
    code, _, error = reproduce(*words)
    assert code == 2 and said in error and "Traceback" not in error


def test_different_users(tmp_path):
    evaluation(tmp_path / "r/evaluation", TABLE1)
    evaluation(tmp_path / "r-seed1/evaluation", TABLE1, users=49)
    code, _, error = reproduce("--run", tmp_path / "r", "--make", "false", "--seeds", "[0, 1]")
    assert code == 2 and "evaluated on different users" in error


def test_extras_come_before_the_evaluation(tmp_path):
    """The pipeline's own commands, by a python and an accelerate that only write down what they are told."""
    (tmp_path / "bin").mkdir()
    for name, status in (("python", 'case "$*" in *--check*) exit 1 ;; esac'), ("accelerate", "")):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\n{status}\necho "$@" >> {tmp_path}/log\n')
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    orders = []
    for more in ([], ["--extras"]):
        words = ["bash", ROOT / "scripts/run_pipeline.sh", ROOT / "configs/demo", "--run", "here", "--seed", "3", *more]
        subprocess.run(words, check=True, env=environment)
        orders.append((tmp_path / "log").read_text().splitlines())
        (tmp_path / "log").unlink()
    plain, extras = orders
    place = len(plain) - 2
    assert extras[:place] + extras[place + 4 :] == plain and "scripts/evaluate.py" in plain[place]
    for line, words in zip(extras[place : place + 4], (
        ("student/baseline.py", "configs/demo/baseline.yaml", "--network sasrec", "--seed 3"),
        ("student/baseline.py", "configs/demo/baseline.yaml", "--network gru4rec"),
        ("student/baseline.py", "--network sasrec --loss list"),
        ("scripts/add_memory.py", "configs/demo/memory.yaml", "--run here"),
    ), strict=True):  # fmt: skip
        assert all(one in line for one in words), line
