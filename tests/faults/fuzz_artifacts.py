"""Valid artifacts as inputs: small ones, built once, most without the checksums that would betray every change.

Manifests of earlier versions have no checksums, and `--no_verify` leaves them out: readers must stand alone.
"""

import functools
import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from cli.test_import_base import build_model, write_gguf
from student_shop import ITEMS, Nothing, make_shop
from unit.test_recommender import shop

from distill.baselines.content import Content, ContentSettings
from distill.baselines.counting import TransitionSettings
from distill.data.dataset import Dataset
from distill.data.mapped_sequences import ITEMS as SEQUENCE_ITEMS
from distill.data.mapped_sequences import STARTS
from distill.evaluation.ranked_lists import write_ranked_lists
from distill.runtime.artifacts import ArtifactJob, read
from distill.runtime.checksums import SEAL
from distill.semantic_ids import embeddings
from student.content_memory import ContentMemory
from student.item_recommender import ItemRecommender
from student.models.item_models import ITEM_MODELS
from student.recommender import Recommender
from student.transition_memory import TransitionMemory

from .fuzz_contract import Files
from .fuzz_seeds import parquet


@functools.cache
def run_folder() -> tempfile.TemporaryDirectory:
    """Build a run: data set of 40 items and 6 users, semantic IDs, labels, embeddings, lists of an evaluation."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz-run-")
    root = Path(folder.name)
    make_shop(root, [4, 5, 6, 4, 5, 8], shards=2)
    rng = np.random.default_rng(0)
    data = read(root / "dataset", "dataset")
    with ArtifactJob("embeddings", Nothing(), root / "embeddings", [data]).write() as output:
        embeddings.write(output, rng.normal(size=(ITEMS, 4)), [f"i{item}" for item in range(ITEMS)])
    examples = Dataset.load(root / "dataset").examples("test")
    lists = {name: np.stack([rng.permutation(ITEMS)[:20] for _ in range(len(examples))]) for name in ("tiger", "dwr")}
    with ArtifactJob("evaluation", Nothing(), root / "evaluation", [data]).write() as output:
        write_ranked_lists(output / "lists.parquet", examples, lists)
    return folder


@functools.cache
def dataset() -> Dataset:
    """Load the data set of the run."""
    return Dataset.load(Path(run_folder().name) / "dataset")


def artifact(kind: str, signed: bool = False) -> Files:
    """Read the files of an artifact of the run, with or without checksums in its manifest."""
    return _files(Path(run_folder().name) / kind, signed)


def unmapped_dataset() -> Files:
    """Read the files of the run's data set as earlier versions wrote them: sequences in parquet alone."""
    return {name: content for name, content in artifact("dataset").items() if name not in (SEQUENCE_ITEMS, STARTS)}


def outside_lists() -> Files:
    """Ranked lists of a system outside the project, with scores."""
    users = dataset().user_ids.to_pylist()
    lists = [[f"i{(user + place) % ITEMS}" for place in range(5)] for user in range(len(users))]
    scores = [[0.5 - place for place in range(5)] for _ in users]
    return {"mine.parquet": parquet({"user_id": users, "items": lists, "scores": scores})}


@functools.cache
def student(memories: bool) -> Recommender:
    """Build a student of random weights with a ranker; with transition and content memory, or without."""
    recommender = shop(ranker=True)
    if not memories:
        return recommender
    n_items = len(recommender.item_ids)
    rows = [np.array([0, 1, 2, 3, 4]), np.array([2, 1, 7, 8])]
    empty = TransitionMemory.of(_without_sequences(n_items), TransitionSettings())
    recommender = recommender.with_transition_memory(empty.grow(rows, [len(row) for row in rows]))
    content = Content(np.random.default_rng(0).normal(size=(n_items, 4)).astype(np.float32), ContentSettings())
    return recommender.with_content_memory(ContentMemory.of(content))


@functools.cache
def student_files(memories: bool) -> Files:
    """The folder of a student, without a manifest."""
    with tempfile.TemporaryDirectory() as folder:
        student(memories).save_pretrained(Path(folder))
        return _files(Path(folder))


@functools.cache
def baseline_files() -> Files:
    """The folder of a SASRec, without a manifest."""
    torch.manual_seed(0)
    network, sizes = ITEM_MODELS["sasrec"]
    model = network(sizes(n_items=ITEMS, max_history=5, dim=8))
    with tempfile.TemporaryDirectory() as folder:
        facts = {"network": "sasrec", "loss": "ce", "exclude_bought": True}
        ItemRecommender(model, facts).save_pretrained(Path(folder))
        return _files(Path(folder))


@functools.cache
def gguf_files() -> Files:
    """A tiny LLaMA as a GGUF file."""
    with tempfile.TemporaryDirectory() as folder:
        write_gguf(Path(folder) / "tiny.gguf", build_model())
        return _files(Path(folder))


def call_of_recommend() -> Files:
    """The arguments of `Recommender.recommend`."""
    call = {"histories": [["i1", "i2"], ["i3"]], "k": 5, "width": 8, "exclude_bought": True, "skip_unknown": False}
    return {"call.json": json.dumps(call).encode()}


def sign_labels_again(folder: Path) -> None:
    """Write the checksums of altered shards into the index, as whoever forges labels would."""
    try:
        index = json.loads((folder / "index.json").read_text())
        for shard in index["shards"]:
            shard["sha256"] = hashlib.sha256((folder / "data" / shard["file"]).read_bytes()).hexdigest()
        (folder / "index.json").write_text(json.dumps(index))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the index itself is damaged


def _without_sequences(n_items: int) -> Dataset:
    """A data set of a catalogue without users, for a counter that has counted nothing."""
    nothing = np.zeros(0, np.int64)
    items = pa.table({"item_id": [f"i{item}" for item in range(n_items)]})
    return Dataset(None, items, pa.array([], pa.string()), nothing, np.zeros(1, np.int64), np.zeros((0, 2), np.int64))


def _files(folder: Path, signed: bool = False) -> Files:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if "manifest.json" in files and not signed:
        manifest = json.loads(files["manifest.json"])
        del manifest["files"], manifest[SEAL]
        files["manifest.json"] = json.dumps(manifest, indent=1).encode()
    return files
