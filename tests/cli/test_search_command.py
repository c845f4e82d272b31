"""The real command of search.py on a small shop, killed and continued."""

import csv
import shutil
import subprocess
import sys

import pytest
import yaml
from cli.by_command import ROOT
from student_shop import make_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp("shop")
    make_shop(root / "run", [8] * 30)
    settings = {"backbone": "nested", "epochs": 1, "batch_size": 16, "gamma": 0.1, "valid_users": 20, "width": 5}
    (root / "student.yaml").write_text(yaml.safe_dump(settings | {"candidates": 4, "tracker": "none"}))
    return root


def search(shop, *words):
    command = [sys.executable, ROOT / "scripts/search.py", "--config", shop / "search.yaml", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def test_a_search_and_what_it_leaves(shop):
    plan = {"run": str(shop / "run"), "student": str(shop / "student.yaml"), "trials": 2, "variant": "dwr"}
    plan["space"] = {"gamma": {"low": 0.01, "high": 1.0, "log": True}}
    (shop / "search.yaml").write_text(yaml.safe_dump(plan))
    code, out, error = search(shop)
    assert code == 0, error
    folder = shop / "run" / "search" / "dwr"
    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == ["0", "1"] and float(rows[0]["gamma"]) == 0.1
    best = max(rows, key=lambda row: float(row["valid_ndcg@10"]))
    settings = yaml.safe_load((folder / "best.yaml").read_text())
    assert settings["gamma"] == float(best["gamma"]) and settings["epochs"] == 1 and settings["variant"] == "dwr"
    kept = [path.name for path in (folder / "trials").iterdir()]
    assert kept == [f"{int(best['trial']):03d}"]  # and no locks, and nothing half-written
    assert "validation N@10" in out and (folder / "search.md").read_text().count("|\n") == 4

    before = (folder / "trials.csv").read_text()
    assert search(shop)[0] == 0  # finished: trains nothing
    assert (folder / "trials.csv").read_text() == before
    code, _, error = search(shop, "--variant", "distill", "--output", folder)
    assert code == 2 and "another variant: dwr, now distill" in error and "Traceback" not in error


def test_a_student_that_fails_ends_the_search(shop):
    shutil.copytree(shop / "run", shop / "damaged", ignore=shutil.ignore_patterns("search"))
    (shop / "damaged/semantic_ids/report.json").write_text("{}")
    plan = {"run": str(shop / "damaged"), "student": str(shop / "student.yaml")}
    (shop / "search.yaml").write_text(yaml.safe_dump(plan | {"space": {"gamma": {"low": 0.01, "high": 1.0}}}))
    code, _, error = search(shop)
    assert code == 2 and "Traceback" not in error
    assert "report.json is damaged" in error and "This command failed, see its message above" in error
    code, _, error = search(shop, "--run", shop / "nowhere")  # inputs are missing: no student starts
    assert code == 2 and "No dataset at" in error and "This command failed" not in error
