"""Small made-up runs with everything that a report shows."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill.data.dataset import write_dataset
from distill.runtime.artifacts import ArtifactJob, read, write_json

TITLES = ["Bolts & Nuts <M8>", "", *(f"Thing number {i}" for i in range(2, 30))]
NDCG = {"oracle": 0.5, "popularity": 0.05, "transitions": 0.2, "teacher": 0.3, "tiger": 0.1, "dwr": 0.25}


@dataclass(frozen=True)
class Facts:
    """Stands for the settings of any command."""

    seed: int = 0


def metric_rows(ndcg, seed=0):
    rows = []
    for system, value in ndcg.items():
        learned = system not in ("oracle", "popularity", "transitions")
        row = {"system": system, "dataset": "demo", "split": "test", "users": 8, "seed": seed}
        row |= {"recall@5": value, "recall@10": value + 0.1, "ndcg@5": value - 0.01, "ndcg@10": value}
        row |= {"diversity@10": 0.5, "invalid@10": 0.01 if learned else None, "kl_to_truth": 1 - value}
        rows.append(row | {"parameters": 1_234_567 if learned else None, "users_per_s": 100.0})
    rows[2] |= {"note": "counts & more", "recall@10_ties_won": 0.3456}
    return rows


def make_run(root, ndcg=NDCG, seed=0, titles=TITLES, rows=None, ids_report=None):
    """A run with everything the report can show; the target stands third in dwr's lists and nowhere in tiger's."""
    items = pa.table({"item_id": [f"B{i:03}" for i in range(len(titles))], "title": titles})
    with ArtifactJob("dataset", Facts(), root / "dataset").write() as folder:
        write_dataset(folder, items, [f"u{i}" for i in range(8)], [np.arange(12)] * 8)
    dataset = read(root / "dataset", "dataset")
    with ArtifactJob("semantic_ids", Facts(seed), root / "semantic_ids", [dataset]).write() as folder:
        level = {"used": 7, "perplexity": 6.5}
        report = {
            "items": 30,
            "codebook_size": 8,
            "collision_rate": 0.0312,
            "per_level": [level] * 4,
            "source": "rqvae",
        }
        write_json(folder / "report.json", report | {"made_in_seed": seed} | (ids_report or {}))
    ids = read(root / "semantic_ids", "semantic_ids")
    curve = [{"epoch": e, "loss": 3 / e, "valid_ndcg@10": 0.1 + e / 100} for e in range(1, 6)]
    with ArtifactJob("teacher", Facts(seed), root / "teacher", [dataset, ids]).write() as folder:
        write_json(folder / "curve.json", curve)
    teacher = read(root / "teacher", "teacher")
    with ArtifactJob("soft_labels", Facts(), root / "soft_labels", [dataset, ids, teacher]).write() as folder:
        write_json(folder / "report.json", {"targets": 72, "recall@10": 0.4321})
    labels = read(root / "soft_labels", "soft_labels")
    students = []
    for variant in ("tiger", "dwr"):
        parts = {"retriever": curve} | ({"ranker": curve[:3]} if variant == "dwr" else {})
        inputs = [dataset, ids] if variant == "tiger" else [dataset, ids, teacher, labels]
        with ArtifactJob("student", Facts(seed), root / "students" / variant, inputs).write() as folder:
            write_json(folder / "curve.json", parts)
        students.append(read(root / "students" / variant, "student"))
    with ArtifactJob(
        "evaluation", Facts(seed), root / "evaluation", [dataset, ids, teacher, *students]
    ).write() as folder:
        write_json(folder / "metrics.json", rows or metric_rows(ndcg, seed))
        target = 20
        columns = {"user": list(range(8)), "target": [target] * 8, "history": [list(range(9))] * 8}
        columns |= {name: [[10, 11, 12, 13, 14, 15, 16, 17, 18, -1]] * 8 for name in ndcg}
        columns["dwr"] = [[0, 1, target, *range(2, 9)]] * 8
        pq.write_table(pa.table(columns), folder / "lists.parquet")
