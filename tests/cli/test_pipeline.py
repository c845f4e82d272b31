"""The end-to-end pipeline by its real commands on a tiny shop, what a second run skips, and messages for bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
BASELINES = ("popularity", "transitions", "transitions+valid", "graph", "content", "counter+content")
VARIANTS = ("tiger", "smooth", "distill", "dtr", "dwr")
MIXTURES = ("teacher+transitions", "teacher+counter+content")
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}
CONFIGS = {  # the demo's, made tiny
    "data": {"format": "demo", "users": 60},
    "embeddings": {"dim": 16},
    "semantic_ids": {
        "quantiser": "rqvae",
        "levels": 3,
        "codebook_size": 32,
        "rqvae": {"hidden": [16], "epochs": 20, "warmup_epochs": 10},
    },
    "teacher": {
        "sizes": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        "vocab_size": 300,
        "tasks": {"stream": 1.0, "seqrec": 0.1, "item2index": 0.1, "index2item": 0.1},
        "epochs": 1,
        "valid_users": 20,
    },
    "export": {"width": 6, "keep": 4, "shard_rows": 100},
    "student": {"epochs": 1, "ranker_epochs": 1, "candidates": 4, "batch_size": 128, "valid_users": 20},
    "evaluate": {"kl_users": 4, "widths": [10, 30], "mixture_users": 20},
    "report": {"examples": 3},
}


def command(*words, cwd=ROOT):
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, timeout=400
    )
    return done.returncode, done.stdout, done.stderr


def pipeline(configs, run, *words):
    code, out, error = command("bash", ROOT / "scripts/run_pipeline.sh", configs, "--run", run, *words)
    assert code == 0, error[-3000:]
    return out, error


def refused(*words):
    code, _, error = command(*words)
    assert code == 2, error[-3000:]
    assert "error: " in error and "Traceback" not in error
    return error


def manifests(run):
    return {path.parent.relative_to(run).as_posix(): path.read_text() for path in run.rglob("manifest.json")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(configs, run) of a pipeline that went through once."""
    folder = tmp_path_factory.mktemp("pipeline")
    configs, run = folder / "configs", folder / "run"
    configs.mkdir()
    for name, values in CONFIGS.items():
        (configs / f"{name}.yaml").write_text(json.dumps(values))  # JSON is YAML
    _, error = pipeline(configs, run)
    (folder / "stderr.txt").write_text(error)
    return configs, run


def test_the_log_holds_only_what_the_project_says(finished):
    """No warnings of libraries, and of bars that end within a minute one line each."""
    lines = (finished[1].parent / "stderr.txt").read_text().splitlines()
    for noise in ("were not passed to `accelerate launch`", "gemm_4bit_forward", "Loading weights", "\r"):
        assert not [line for line in lines if noise in line]
    assert all(line for line in lines)
    assert len([line for line in lines if line.startswith("teacher: ") and "step/s" in line]) <= 2


def test_end_to_end(finished):
    _, run = finished
    rows = json.loads((run / "report" / "metrics.json").read_text())
    systems = ["oracle", *BASELINES, "teacher", *MIXTURES, *VARIANTS]
    assert [row["system"] for row in rows] == systems
    for row in rows:
        assert 0 <= row["recall@5"] <= row["recall@10"] <= 1
        assert row["users"] == 60 and row["split"] == "test"
    oracle, *others = rows
    assert oracle["kl_to_truth"] == 0
    for row in others:
        mixture = row["system"] in MIXTURES  # known over its candidates only, all of them valid
        assert (
            row["kl_to_truth"] is None if mixture or row["system"] in ("graph", "content") else row["kl_to_truth"] > 0
        )
        assert (row["invalid@10"] is None) == (mixture or row["parameters"] is None)
    assert (run / "students/dtr/ranker.safetensors").is_file()
    assert not (run / "students/dwr/ranker.safetensors").exists()
    for name in ("report.md", "report.html"):
        assert "transitions" in (run / "report" / name).read_text()


def test_labels_are_a_hugging_face_data_set(finished, tmp_path):
    import datasets

    _, run = finished
    files = [str(path) for path in sorted((run / "soft_labels/data").glob("*.parquet"))]
    labels = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    lengths = pq.read_table(run / "dataset/sequences.parquet")["items"].combine_chunks().value_lengths().to_numpy()
    assert len(labels) == (lengths - 3).sum()
    row = labels[0]
    assert row["candidates"][0] == row["target"] and len(set(row["candidates"])) == 4
    assert len(row["roots_0"]) == 32 and 0 < np.exp(row["mass_0"]) < 1.001


def test_a_second_run_skips_and_a_change_repeats_what_follows(finished, tmp_path):
    configs, run = finished
    before = manifests(run)
    _, error = pipeline(configs, run)
    assert manifests(run) == before and error.count("finished, at") == 12

    changed, copy = tmp_path / "configs", tmp_path / "run"
    shutil.copytree(configs, changed)
    shutil.copytree(run, copy)
    (changed / "evaluate.yaml").write_text(json.dumps(CONFIGS["evaluate"] | {"kl_users": 5}))
    _, error = pipeline(changed, copy)
    assert "kl_users (4 -> 5) changed" in error
    after = manifests(copy)
    assert {name for name in before if after[name] != before[name]} == {"evaluation", "report"}


def test_launched_commands_repeat_nothing_unless_told(finished):
    configs, run = finished
    words = [ROOT / "student/train.py", "--config", configs / "student.yaml", "--run", run, "--variant", "smooth"]
    before = manifests(run)
    code, _, error = command("accelerate", "launch", "--cpu", *words)
    assert code == 0 and "finished, at" in error and manifests(run) == before
    code, _, error = command("accelerate", "launch", "--cpu", *words, "--overwrite")
    assert code == 0 and "wrote" in error
    assert manifests(run)["students/smooth"] != before["students/smooth"]


def test_recommender_stands_alone(finished):
    from student.recommender import Recommender

    _, run = finished
    items = pq.read_table(run / "dataset/items.parquet")["item_id"].to_pylist()
    for variant in ("dtr", "dwr"):
        student = Recommender.from_pretrained(run / "students" / variant)
        first, second = student.recommend([items[:3], items[5:6]], k=5)
        assert len(first) == len(second) == 5
        assert not {row.item_id for row in first} & set(items[:3])
        assert [row.score for row in first] == sorted((row.score for row in first), reverse=True)


def test_a_causal_student_is_trained_and_measured_as_any_other(finished, tmp_path):
    configs, run = finished
    code, _, error = command(
        sys.executable, ROOT / "student/train.py", "--config", configs / "student.yaml", "--run", run,
        "--backbone", "causal", "--variant", "dtr", "--output", tmp_path / "students/dtr",
    )  # fmt: skip
    assert code == 0, error
    code, _, error = command(
        sys.executable, ROOT / "scripts/evaluate.py", "--config", configs / "evaluate.yaml", "--run", run,
        "--students", tmp_path / "students", "--output", tmp_path / "evaluation",
    )  # fmt: skip
    assert code == 0, error
    row = next(row for row in json.loads((tmp_path / "evaluation/metrics.json").read_text()) if row["system"] == "dtr")
    assert json.loads((tmp_path / "students/dtr/config.json").read_text())["backbone"] == "causal"
    assert row["exclude_bought"] is True and 0 <= row["beam_missed@10"] < 1 and 0 < row["kl_to_truth"] < 10


def test_a_lora_teacher_labels_as_any_other(finished, tmp_path):
    configs, run = finished
    code, _, error = command(
        sys.executable, ROOT / "teacher/finetune.py", "--config", configs / "teacher.yaml", "--run", run,
        "--mode", "lora", "--gradient_checkpointing", "true", "--output", tmp_path / "teacher",
    )  # fmt: skip
    assert code == 0, error
    assert (tmp_path / "teacher/adapter/adapter_model.safetensors").is_file()
    code, _, error = command(
        sys.executable, ROOT / "distill/export_soft_labels.py", "--config", configs / "export.yaml", "--run", run,
        "--teacher", tmp_path / "teacher", "--output", tmp_path / "labels",
    )  # fmt: skip
    assert code == 0, error
    report = json.loads((tmp_path / "labels/report.json").read_text())
    assert report["targets"] == pq.read_table(tmp_path / "labels/data").num_rows
    assert 0 <= report["recall@6"] == report["reference_in_beams"] < 1  # six beams


def test_a_killed_export_goes_on(finished, tmp_path):
    configs, run = finished
    words = [sys.executable, ROOT / "distill/export_soft_labels.py", "--config", configs / "export.yaml", "--run", run]
    process = subprocess.Popen(
        [str(word) for word in [*words, "--output", tmp_path / "killed"]], env=ENVIRONMENT, cwd=ROOT, stderr=-1
    )
    first = tmp_path / "killed.partial/parts/00000.json"
    while process.poll() is None and not first.is_file():
        pass
    process.kill()
    process.wait()
    assert not (tmp_path / "killed").exists() and first.is_file()
    shard = tmp_path / "killed.partial/data/00000.parquet"
    written = shard.stat().st_mtime_ns
    code, _, error = command(*words, "--output", tmp_path / "killed")
    assert code == 0, error
    assert (tmp_path / "killed/data/00000.parquet").stat().st_mtime_ns == written
    whole, killed = (
        json.loads((path / "manifest.json").read_text()) for path in (run / "soft_labels", tmp_path / "killed")
    )
    assert whole["fingerprint"] == killed["fingerprint"]


class TestBadInput:
    """One clear message, exit code 2, nothing half-written."""

    def test_unknown_key(self, finished, tmp_path):
        _, run = finished
        config = tmp_path / "student.yaml"
        config.write_text("epohcs: 3\n")
        error = refused(sys.executable, ROOT / "student/train.py", "--config", config, "--run", run)
        assert "Unknown config key 'epohcs'. Did you mean 'epochs'?" in error

    def test_a_mistake_stops_the_pipeline(self, finished, tmp_path):
        configs, run = finished
        shutil.copytree(configs, tmp_path / "configs")
        (tmp_path / "configs/teacher.yaml").write_text(json.dumps(CONFIGS["teacher"] | {"epochs": "many"}))
        error = refused("bash", ROOT / "scripts/run_pipeline.sh", tmp_path / "configs", "--run", run)
        assert "epochs" in error and "many" in error

    def test_launched(self, tmp_path):
        words = ["accelerate", "launch", "--quiet", "--cpu", ROOT / "teacher/finetune.py", "--run", tmp_path / "none"]
        code, _, error = command(*words)
        assert code == 1  # the launcher's own, whatever the launched command ended with
        assert "error: " in error and "Traceback" not in error and "scripts/prepare_data.py" in error

    def test_unknown_variant(self, finished):
        error = refused(sys.executable, ROOT / "student/train.py", "--variant", "dwt")
        assert "Unknown variant 'dwt'. Did you mean 'dwr'?" in error

    @pytest.mark.parametrize(
        ("script", "maker"),
        [
            ("scripts/embed_items.py", "scripts/prepare_data.py"),
            ("scripts/build_semantic_ids.py", "scripts/prepare_data.py"),
            ("teacher/finetune.py", "scripts/prepare_data.py"),
            ("distill/export_soft_labels.py", "scripts/prepare_data.py"),
            ("student/train.py", "scripts/prepare_data.py"),
            ("scripts/evaluate.py", "scripts/prepare_data.py"),
            ("scripts/report.py", "scripts/evaluate.py"),
        ],
    )
    def test_missing_input_names_the_command_that_makes_it(self, tmp_path, script, maker):
        error = refused(sys.executable, ROOT / script, "--run", tmp_path / "nowhere")
        assert maker in error
        assert not (tmp_path / "nowhere").exists()

    def test_labels_of_another_codebook(self, finished, tmp_path):
        configs, run = finished
        code, _, error = command(
            sys.executable, ROOT / "scripts/build_semantic_ids.py", "--config", configs / "semantic_ids.yaml",
            "--run", run, "--seed", 1, "--output", tmp_path / "others",
        )  # fmt: skip
        assert code == 0, error
        error = refused(
            sys.executable, ROOT / "student/train.py", "--config", configs / "student.yaml", "--run", run,
            "--variant", "distill", "--semantic_ids", tmp_path / "others", "--output", tmp_path / "student",
        )  # fmt: skip
        assert "do not belong together" in error and "semantic_ids" in error
        assert not (tmp_path / "student").exists()

    def test_truncated_parquet(self, finished, tmp_path):
        configs, run = finished
        shutil.copytree(run / "soft_labels", tmp_path / "labels")
        shard = tmp_path / "labels/data/00000.parquet"
        shard.write_bytes(shard.read_bytes()[:-100])
        error = refused(
            sys.executable, ROOT / "student/train.py", "--config", configs / "student.yaml", "--run", run,
            "--variant", "dwr", "--soft_labels", tmp_path / "labels", "--output", tmp_path / "student",
        )  # fmt: skip
        assert f"The shard {shard} is damaged" in error
        assert not (tmp_path / "student").exists()

    def test_a_teacher_that_is_no_checkpoint(self, finished, tmp_path):
        configs, run = finished
        shutil.copytree(run / "teacher", tmp_path / "teacher")
        (tmp_path / "teacher/model.safetensors").unlink()
        words = [sys.executable, ROOT / "distill/export_soft_labels.py", "--config", configs / "export.yaml"]
        words += ["--run", run, "--teacher", tmp_path / "teacher", "--output", tmp_path / "labels"]
        assert "teacher/model.safetensors is missing" in refused(*words)
        words += ["--no_verify", "true"]
        assert "it holds no *.safetensors" in refused(*words)
        (tmp_path / "teacher/config.json").unlink()
        (tmp_path / "teacher/adapter_config.json").write_text("{}")
        assert "a LoRA adapter; merge it into its base first" in refused(*words)
        assert not (tmp_path / "labels").exists()

    def test_a_base_model_that_is_none(self, finished, tmp_path):
        configs, run = finished
        error = refused(
            sys.executable, ROOT / "teacher/finetune.py", "--config", configs / "teacher.yaml", "--run", run,
            "--base", tmp_path, "--output", tmp_path / "teacher",
        )  # fmt: skip
        assert "No tokenizer at" in error
        assert not (tmp_path / "teacher").exists()

    def test_more_candidates_than_the_labels_hold(self, finished, tmp_path):
        configs, run = finished
        error = refused(
            sys.executable, ROOT / "student/train.py", "--config", configs / "student.yaml", "--run", run,
            "--variant", "dwr", "--candidates", 9, "--output", tmp_path / "student",
        )  # fmt: skip
        assert "has 4 candidates an example, --candidates asks for 9" in error
        assert not (tmp_path / "student").exists()
