"""Shared by the tests of the students' training: a small shop with labels of a synthetic teacher."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import torch

from distill.data.dataset import Dataset, write_dataset
from distill.labels.schema import write_index
from distill.labels.writer import write_shard
from distill.runtime.artifacts import ArtifactJob, read, write_json
from distill.semantic_ids.ids import SemanticIDs, write_codes
from student.item_batches import cut_windows
from student.item_recommender import ItemRecommender

LEVELS, SIZE, ITEMS, K = 3, 6, 40, 5
FEATURES = 4


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def make_shop(root, lengths, seed=0, shards=3, feature_layers=(1,)):
    """Write a run's folder with data set, semantic IDs and soft labels; `lengths` are those of the users' sequences."""
    rng = np.random.default_rng(seed)
    names = [f"i{number}" for number in range(ITEMS)]
    rows = [rng.permutation(ITEMS)[:length] for length in lengths]
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        write_dataset(folder, pa.table({"item_id": names}), [f"u{user}" for user in range(len(rows))], rows)
    numbers = rng.choice(SIZE**LEVELS, ITEMS, replace=False)
    codes = np.stack(np.unravel_index(numbers, (SIZE,) * LEVELS), axis=1)
    data = read(root / "dataset", "dataset")
    with ArtifactJob("semantic_ids", Nothing(), root / "semantic_ids", [data]).write() as folder:
        write_codes(folder, names, codes)
        write_json(folder / "report.json", {"codebook_size": SIZE})
    examples = Dataset.load(root / "dataset").examples("train")
    n = len(examples)
    lists = np.stack([rng.permutation(np.delete(np.arange(ITEMS), target))[: K - 1] for target in examples.targets])
    candidates = np.concatenate([examples.targets[:, None], lists], axis=1)
    scores = rng.normal(-5, 1, (n, K)).astype(np.float32)
    scores[:, 1:] = -np.sort(-scores[:, 1:], axis=1)  # beams are sorted; only the reference, in front, is not
    candidates[::7, -1], scores[::7, -1] = -1, -np.inf  # some lists are short
    logits = rng.normal(0, 1, (n, LEVELS, SIZE))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    states = rng.integers(0, 256, (n, LEVELS, len(feature_layers), FEATURES), dtype=np.uint8)
    inputs = [data, read(root / "semantic_ids", "semantic_ids")]
    with ArtifactJob("soft_labels", Nothing(), root / "soft_labels", inputs).write() as folder:
        labels, facts = (candidates, scores, log_probs), {"features": FEATURES}
        if len(feature_layers) > 1:
            facts["feature_layers"] = list(feature_layers)
        write_labels(folder, examples, codes, *labels, shards=shards, states=states, **facts)


def write_network(folder, model, dataset=None, **facts):
    """Write a SASRec, made from a data set's folder or from nothing; `facts` are further ones of its recommender."""
    inputs = [] if dataset is None else [read(dataset, "dataset")]
    with ArtifactJob("baseline", Nothing(), folder, inputs).write() as partial:
        ItemRecommender(model, {"network": "sasrec", **facts}).save_pretrained(partial)


def make_teacher(root):
    """Write a teacher artifact that holds no model: `FakeTeacher` answers for it."""
    inputs = [read(root / kind, kind) for kind in ("dataset", "semantic_ids")]
    with ArtifactJob("teacher", Nothing(), root / "teacher", inputs).write() as partial:
        (partial / "config.json").write_text("{}")


class FakeTeacher:
    """Answers with log-probabilities that depend on history and item alone, as an engine and as a `ForcedTeacher`."""

    data = SimpleNamespace(max_history=3)

    def __init__(self):
        self.calls = []

    def codeword_log_probs(self, histories, items):
        self.calls.append((histories, items))
        pairs = zip(histories, items, strict=True)
        generators = [np.random.default_rng([*(history[history >= 0] + 1), item]) for history, item in pairs]
        return np.stack([np.log(rng.dirichlet(np.ones(SIZE), LEVELS)) for rng in generators]).astype(np.float16)

    def codeword_logprobs(self, histories, items):
        return torch.from_numpy(self.codeword_log_probs(histories, items))


def make_prior(root, name, teacher, keep=K, examples=slice(None), inputs=("dataset", "semantic_ids"), seed=5):
    """Write labels of some training examples into the folder `name`; the lists are full and in another order."""
    rng, dataset = np.random.default_rng(seed), Dataset.load(root / "dataset")
    examples = dataset.examples("train").take(examples)
    codes = SemanticIDs.load(root / "semantic_ids", dataset.n_items).codes
    others = [rng.permutation(np.delete(np.arange(ITEMS), target))[: keep - 1] for target in examples.targets]
    candidates = np.concatenate([examples.targets[:, None], np.stack(others)], axis=1)
    scores = -np.arange(keep) * np.ones((len(examples), 1))
    scores[::3, 0] = -keep  # every third reference is the last of its list
    log_probs = np.full((len(examples), LEVELS, SIZE), -np.log(SIZE))
    artifacts = [read(root / kind, kind) for kind in inputs]
    with ArtifactJob("soft_labels", Nothing(), root / name, artifacts).write() as folder:
        facts = {"keep": keep, "labeller": {"teacher": teacher}}
        write_labels(folder, examples, codes, candidates, scores, log_probs, shards=2, **facts)


def windows_of(sequences, width, label_rows=None):
    """Cut sequences into windows; `label_rows` has a row for each of their items."""
    lengths = np.array([len(row) for row in sequences])
    labels = None if label_rows is None else np.concatenate(label_rows)
    return cut_windows(np.concatenate(sequences), np.cumsum(lengths) - lengths, lengths, width, labels)


def write_labels(folder, examples, codes, *labels, shards=3, states=None, **more):
    """Write shards of whole users and their index."""
    (folder / "data").mkdir()
    summaries = []
    for number, users in enumerate(np.array_split(np.unique(examples.users), shards)):
        rows = np.flatnonzero(np.isin(examples.users, users))
        part, path = examples.take(rows), folder / "data" / f"{number:05d}.parquet"
        columns = *(array[rows] for array in labels), "fp16", None if states is None else states[rows]
        summaries.append(write_shard(path, part, codes[part.targets], *columns))
    facts = {"levels": LEVELS, "codebook_size": SIZE, "scope": "level", "encoding": "fp16", "keep": K}
    write_index(folder, summaries, **(facts | more))
