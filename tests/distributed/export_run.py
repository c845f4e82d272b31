"""A run that is exported in the tests with Ray: a tiny random LLaMA labels a small shop."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from student_shop import write_network

from distill.data.dataset import Dataset, write_dataset
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.semantic_ids.ids import SemanticIDs, write_codes
from student.models.item_models import ITEM_MODELS
from teacher.base_model import from_scratch
from teacher.tokenizer import add_codewords, train_tokenizer

LEVELS, SIZE, ITEMS, USERS = 3, 8, 40, 120
MEMORY = 80 << 20  # of a node, for objects
SETTINGS = {"width": 6, "keep": 4, "shard_rows": 20, "device": "cpu"}
SIZES = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3,
}  # fmt: skip
# what a node and a driver run with
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # by default actors give way to whatever else runs on this machine
}


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def make_run(root, teacher=SIZES):
    """Write data set, semantic IDs and a teacher of these sizes into a run's folder."""
    rng = np.random.default_rng(0)
    names = [f"i{number}" for number in range(ITEMS)]
    sequences = [rng.permutation(ITEMS)[: rng.integers(4, 12)] for _ in range(USERS)]
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        items = pa.table({"item_id": names, "title": [f"lamp number {number}" for number in range(ITEMS)]})
        write_dataset(folder, items, [f"u{user}" for user in range(USERS)], sequences)
    with ArtifactJob("semantic_ids", Nothing(), root / "semantic_ids").write() as folder:
        write_codes(folder, names, rng.integers(0, SIZE, (ITEMS, LEVELS)))
        write_json(folder / "report.json", {"codebook_size": SIZE})
    make_teacher(root, teacher)


def make_teacher(root, sizes=SIZES):
    """Write a teacher of random weights into the folder of a run that has data set and semantic IDs."""
    dataset = Dataset.load(root / "dataset")
    tokenizer = train_tokenizer(dataset.texts(), 300)
    add_codewords(tokenizer, SemanticIDs.load(root / "semantic_ids", dataset.n_items))
    torch.manual_seed(0)
    with ArtifactJob("teacher", Nothing(), root / "teacher").write() as folder:
        from_scratch(tokenizer, sizes, 96).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "teacher.json", {"prompt": "stream", "max_history": 8, "max_tokens": 96})


def make_network(root):
    """Write a network over items of random weights into the folder of a run that has a data set; returns its folder."""
    torch.manual_seed(0)
    network, sizes = ITEM_MODELS["sasrec"]
    folder = root / "baselines" / "sasrec"
    write_network(folder, network(sizes(ITEMS, dim=8)), root / "dataset", exclude_bought=True)
    return folder


def content(folder):
    """All files but the manifest, which holds times."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "manifest.json"}
