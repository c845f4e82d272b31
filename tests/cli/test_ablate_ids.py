"""The ablation by its real command on a tiny shop: one combination, the floor, and nothing twice."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from by_command import TITLES, Nothing, real_command

from distill.data.dataset import write_dataset
from distill.evaluation.id_ablation import table_lines
from distill.runtime.artifacts import ArtifactJob

CONFIGS = {
    "embeddings": {"dim": 8},
    "semantic_ids": {"levels": 2, "codebook_size": 8},
    "student": {"batch_size": 32, "valid_users": 20, "width": 10},
}


def test_one_combination_and_the_floor(tmp_path):
    rng = np.random.default_rng(0)
    users = [f"u{i}" for i in range(30)]
    items = pa.table({"item_id": [f"item{i}" for i in range(20)], "title": TITLES})
    with ArtifactJob("dataset", Nothing(), tmp_path / "dataset").write() as folder:
        write_dataset(folder, items, users, [rng.permutation(20)[: rng.integers(4, 9)] for _ in users])
    (tmp_path / "configs").mkdir()
    for name, values in CONFIGS.items():
        (tmp_path / f"configs/{name}.yaml").write_text(json.dumps(values))
    words = ["--dataset", str(tmp_path / "dataset"), "--configs", str(tmp_path / "configs"), "--epochs", "1"]
    words += ["--quantisers", "[rkmeans]", "--embedders", "[tfidf]", "--collaborative", "[concat]", "--seeds", "[3]"]
    code, _, error = real_command("ablate_ids.py", tmp_path, *words)
    assert code == 0, error[-2000:]
    cell, floor = pq.read_table(tmp_path / "ablation.parquet").to_pylist()
    assert (cell["quantiser"], cell["embedding"], cell["co-occurrence"], cell["seed"]) == (
        "rkmeans",
        "tfidf",
        "concat",
        3,
    )
    assert 0 <= cell["ndcg@10"] <= cell["recall@10"] <= 1 and 1 < cell["perplexity"] <= 8
    assert floor["quantiser"] == "floor: transitions" and floor["recall@10"] > 0
    text = (tmp_path / "ablation.md").read_text()
    assert "--seeds '[3]'" in text and text.count("\n|") == 4  # head, rule and two rows

    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")}
    assert len(made) == 4
    code, _, error = real_command("ablate_ids.py", tmp_path, *words)
    assert code == 0 and error.count("finished, at") == 3
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")} == made


def test_the_table_by_hand():
    about = {"collided": 0.1, "perplexity": 200.0, "error": 0.25}
    where = {"embedding": "tfidf", "co-occurrence": "none"}
    rows = [
        {"quantiser": "pq", **where, "seed": seed, "recall@10": 0.1 * seed, "ndcg@10": 0.05 * seed, **about}
        for seed in (1, 2, 3)
    ]
    rows.append({"quantiser": "rqvae", **where, "seed": 1, "recall@10": 0.4, "ndcg@10": 0.3, **about})
    rows.append({"quantiser": "floor: transitions", **where, "seed": 0, "recall@10": 0.5, "ndcg@10": 0.4})
    rows.append({"quantiser": "cid", **where, "seed": 1, "recall@10": 0.1, "ndcg@10": 0.05, **about, "error": None})
    best, second, third, floor = table_lines(rows)
    assert third[3:] == ["0.1000", "0.0500", "10.0%", "200", "–", "1"]  # IDs without embeddings have no error
    assert best == ["rqvae", "tfidf", "none", "0.4000", "0.3000", "10.0%", "200", "25.0%", "1"]
    assert second[:5] == ["pq", "tfidf", "none", "0.2000 ± 0.1000", "0.1000 ± 0.0500"] and second[-1] == "3"
    assert floor[0] == "floor: transitions" and floor[5:] == ["–"] * 4
