"""reproduce.py on evaluations that exist, and the commands it would run."""

import csv
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from cli.by_command import ROOT, command_of

from distill.data.dataset import write_dataset
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


def test_table1_with_further_baselines(tmp_path):
    """In front of the students, beside the figures of the paper's row; lists of one seed have no deviation."""
    for folder, value in (("r", 0.12), ("r-seed1", 0.14)):
        evaluation(tmp_path / folder / "evaluation", TABLE1 | {"sasrec": 0.2})
        evaluation(tmp_path / folder / "evaluation-p5-cid", {"popularity": 0.01, "p5-cid": value})
    evaluation(tmp_path / "r/evaluation-lists", {"popularity": 0.01, "recbole-s3rec": 0.15, "outside": 0.16})
    words = ("table1", "--dataset", "instruments", "--run", tmp_path / "r", "--make", "false", "--seeds", "[0, 1]")
    code, out, error = reproduce(*words)
    assert code == 0, error
    lines = [line for line in out.splitlines() if line.startswith("|")][2:]
    names = ["transitions", "teacher", "p5-cid", "recbole-s3rec", "outside", "tiger", "dwr", "sasrec"]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == names
    assert lines[2].startswith("| p5-cid | 0.1300 ± 0.0141 |") and "| 0.0827 | 0.1016 | 0.0708 | 0.0768 |" in lines[2]
    assert lines[3].startswith("| recbole-s3rec | 0.1500 | 0.2500 |") and "| 0.0863 | 0.1136 |" in lines[3]
    assert lines[7].endswith("| 0.0751 | 0.0947 | 0.0627 | 0.0690 | LOHRec, EMNLP Findings 2025 |")


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
    first, *p5_cid = calls[:4]
    second, *ablation = [*calls[4:5], *calls[8:]]
    assert first[2:] == [str(ROOT / "configs/instruments"), "--run", str(tmp_path / "r"), "--seed", "3",
                         "--input", "DATA", "--index", "INDEX", "--extras"]  # fmt: skip
    assert second[3:7] == ["--run", str(tmp_path / "r-seed4"), "--seed", "4"]
    words = [" ".join(call[1:]) for call in p5_cid]
    ids = tmp_path / "r/ids-p5-cid"
    assert "build_semantic_ids.py" in words[0] and f"--codebook_size 256 --spectral.leaf 20 --output {ids}" in words[0]
    assert "--variant tiger" in words[1] and f"--semantic_ids {ids}" in words[1] and "--seed 3" in words[1]
    assert f"--semantic_ids {ids}" in words[2] and words[2].endswith(str(tmp_path / "r/evaluation-p5-cid"))
    assert len(ablation) == 2 * 4 and "--extras" not in ablation[0] and "dwr-without-distill" in ablation[1]
    assert [call[call.index("--output") + 1] for call in ablation[2:4]] == [
        str(tmp_path / "r" / name) for name in ("evaluation-valid", "evaluation-ablation")
    ]


def test_the_papers_settings_beside(tmp_path):
    """Rows of the students with the paper's settings follow, beside the same published figures; nothing else does."""
    evaluation(tmp_path / "r/evaluation", TABLE1)
    evaluation(tmp_path / "r/evaluation-paper", {"transitions": 0.2, "tiger": 0.12, "dwr": 0.22})
    words = ("--dataset", "instruments", "--run", tmp_path / "r", "--make", "false", "--settings", "paper")
    code, out, error = reproduce("table1", *words)
    assert code == 0, error
    lines = [line for line in out.splitlines() if line.startswith("|")][2:]
    names = [line.split(" | ")[0].strip("| ") for line in lines]
    assert names == [*TABLE1, "tiger, paper's settings", "dwr, paper's settings"]
    assert lines[-1].startswith("| dwr, paper's settings | 0.2200 | 0.3200 |") and "| 0.1013 | 0.1230 |" in lines[-1]
    evaluation(tmp_path / "r/evaluation-valid", TABLE2, split="valid")
    evaluation(tmp_path / "r/evaluation-ablation", {"dwr-without-distill": 0.15}, split="valid")
    evaluation(tmp_path / "r/evaluation-paper-valid", TABLE2 | {"dwr-without-distill": 0.17}, split="valid")
    code, out, error = reproduce("table2", *words)
    assert code == 0, error
    lines = [line for line in out.splitlines() if line.startswith("|")][2:]
    names = ["DWR", "w/o DISTILL", "w/o RANK", "w/o all"]
    expected = names + [f"{name}, paper's settings" for name in names]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == expected
    assert lines[5].startswith("| w/o DISTILL, paper's settings | 0.2700 |") and "0.1092" in lines[5]


def with_widths(folder, diversity, whole=None):
    """An evaluation of students at two beam widths: the given Diversity@10 at the first, half of it at the second."""
    rows = []
    for system, value in diversity.items():
        points = [{"width": 10 * (1 + place), "recall@10": 0.3, "ndcg@10": 0.2, "diversity@10": value / (1 + place),
                   "diversity": 0.9, "invalid": place / 4,
                   "invalid_whole": whole and whole + place / 8} for place in range(2)]  # fmt: skip
        rows.append({"system": system, "users": 40, "widths": points})
    with ArtifactJob("evaluation", Nothing(), folder).write() as output:
        write_json(output / "metrics.json", [{"system": "popularity", "users": 40}, *rows])


def test_figures_over_the_beam_width(tmp_path):
    students = {"tiger": 0.4, "smooth": 0.5, "distill": 0.6, "dtr": 0.7, "dwr": 0.8, "teacher": 0.5}
    with_widths(tmp_path / "r/evaluation-widths", students)
    with_widths(tmp_path / "r-seed1/evaluation-widths", students | {"tiger": 0.6})
    for folder in ("r", "r-seed1"):
        with_widths(tmp_path / folder / "evaluation-widths-scope-all", {"tiger-scope-all": 0.3}, whole=0.5)
    words = ("--dataset", "instruments", "--run", tmp_path / "r", "--make", "false")
    code, out, error = reproduce("figure1", *words, "--seeds", "[0, 1]")
    assert code == 0, error
    lines = [line for line in out.splitlines() if line.startswith("| tiger")]
    assert lines == [
        "| tiger | 10 | 0.3000 | 0.2000 | 0.5000 ± 0.1414 | 0.0000 | – | – |",
        "| tiger | 20 | 0.3000 | 0.2000 | 0.2500 ± 0.0707 | 0.2500 | – | 0.2913 |",
        "| tiger-scope-all | 10 | 0.3000 | 0.2000 | 0.3000 | 0.0000 | 0.5000 | – |",
        "| tiger-scope-all | 20 | 0.3000 | 0.2000 | 0.1500 | 0.2500 | 0.6250 | – |",
    ]
    assert "| teacher | 20 | 0.3000 |" in out and "Table 2 (validation split, beam width 20)" in out
    code, out, error = reproduce("figure3", *words)
    assert code == 0, error
    assert [line.split(" | ")[:3] for line in out.splitlines() if line.startswith("| dwr")] == [
        ["| dwr", "10", "0.8000"], ["| dwr", "20", "0.4000"]]  # fmt: skip
    for name in ("figure1", "figure3"):
        assert (tmp_path / f"r/reproduce/{name}.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "r/reproduce/figure3.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 and rows[9]["paper_diversity@10"] == "0.3711" and "Table 2" in rows[9]["source"]
    with_widths(tmp_path / "s/evaluation-widths", {"tiger": 0.4})
    code, _, error = reproduce("figure3", "--run", tmp_path / "s", "--make", "false")
    assert code == 2 and "has no smooth at several beam widths" in error


def test_table3(tmp_path):
    """Three users, four items, ten interactions."""
    with ArtifactJob("dataset", Nothing(), tmp_path / "r/dataset").write() as folder:
        sequences = [np.array(row) for row in ([0, 1, 2, 3], [1, 2, 3], [3, 0, 1])]
        write_dataset(folder, pa.table({"item_id": list("abcd")}), ["u", "v", "w"], sequences)
    code, out, error = reproduce("table3", "--dataset", "arts", "--run", tmp_path / "r", "--make", "false")
    assert code == 0, error
    assert "| this run | 3 | 4 | 10 | 16.67% | 3.33 |" in out
    assert "| LOHRec, EMNLP Findings 2025, Table 3 | 45,142 | 20,957 | 390,832 | 99.96% | 8.66 |" in out
    assert (tmp_path / "r/reproduce/table3.png").read_bytes().startswith(b"\x89PNG")


def test_commands_of_the_papers_settings_and_figures(tmp_path, monkeypatch):
    module, calls = command_of("reproduce.py"), []
    monkeypatch.setattr(pipeline, "run_command", lambda *words: calls.append([str(word) for word in words]))

    def called(*words):
        calls.clear()
        with pytest.raises(SystemExit):  # nothing was made
            run(module.main, module.Config, None, ["--dataset", "instruments", "--run", str(tmp_path / "r"), *words])
        return [" ".join(call) for call in calls]

    _, _, _, _, *trained, evaluated = called("--table", "table1", "--settings", "paper")
    assert len(trained) == 5
    configs = f"--config {ROOT / 'configs/instruments/student.yaml'} --config {ROOT / 'configs/paper/student.yaml'}"
    assert (
        f"--variant dwr {configs} --preset small --run {tmp_path / 'r'} --seed 0" in trained[4]
    )  # the data set's sizes
    assert trained[4].endswith(f"--output {tmp_path / 'r/students-paper/dwr'}")
    assert evaluated.endswith(f"--output {tmp_path / 'r/evaluation-paper'}")
    assert "--preset lohrec-13m" in called("--table", "table2", "--settings", "paper", "--preset", "lohrec-13m")[-2]
    widths = called("--table", "figure3", "--widths", "5,10", "--width_users", "70")[-1]
    assert (
        "dwr, teacher]" in widths
        and "--widths [5, 10]" in widths
        and "--users 70 --width_users 70" in widths
        and "evaluation-widths" in widths
    )
    assert len(called("--table", "table3", "--input", "DATA")) == 1 and calls[0][-2:] == ["--input", "DATA"]
    *_, evaluated = called("--table", "table1", "--lists", "a.parquet,b.parquet", "--seeds", "0")
    assert evaluated.endswith(f"[popularity] --lists [a.parquet, b.parquet] --output {tmp_path / 'r/evaluation-lists'}")
    *_, trained, whole = called("--table", "figure1")
    assert "--variant tiger --scope all" in trained and trained.endswith("students-scope-all/tiger-scope-all")
    assert whole.endswith("evaluation-widths-scope-all") and "[popularity, tiger-scope-all]" in whole
    _, *students, _, first, second, vectors = called("--table", "figure4")
    assert [word.rpartition("/")[2] for word in students] == ["top", "random", "rank"]
    assert all("--variant tiger --labels " in word for word in students)
    assert "[popularity, top, random, rank]" in first and "[popularity, dwr-without-distill]" in second
    assert vectors.endswith(f"represent_items.py --run {tmp_path / 'r'}")
    assert len(called("--table", "cases")) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("figure1", "--settings", "paper"), "--settings paper is for table1 and table2"),
        (("table1", "--dataset", "paper"), "Unknown dataset 'paper'"),
        (("table1", "--dataset", "instrumets"), "Did you mean 'instruments'?"),
        (("table1", "--seeds", "[1, 1]"), "each once, got [1, 1]"),
        (("table4",), "table4"),
        (("table2", "--lists", "a.parquet"), "--lists adds rows to table1"),
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
    """The pipeline's own commands, by a python and an accelerate-launch that only write down what they are told."""
    (tmp_path / "bin").mkdir()
    for name, status in (("python", 'case "$*" in *--check*) exit 1 ;; esac'), ("accelerate-launch", "")):
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
    assert extras[:place] + extras[place + 5 :] == plain and "scripts/evaluate.py" in plain[place]
    for line, words in zip(extras[place : place + 5], (
        ("student/baseline.py", "configs/demo/baseline.yaml", "--network sasrec", "--seed 3"),
        ("student/baseline.py", "configs/demo/baseline.yaml", "--network gru4rec"),
        ("student/baseline.py", "--network fmlp"),
        ("student/baseline.py", "--network sasrec --loss list"),
        ("scripts/add_memory.py", "configs/demo/memory.yaml", "--run here"),
    ), strict=True):  # fmt: skip
        assert all(one in line for one in words), line
