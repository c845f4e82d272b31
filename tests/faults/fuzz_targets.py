"""The readers under test: how each is called, and what must hold of all that it accepts."""

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from distill.data.config import PrepareSettings
from distill.data.dataset import Dataset
from distill.data.out_of_core.prepare import prepare_out_of_core
from distill.data.prepare import prepare
from distill.data.splits import MIN_LENGTH
from distill.evaluation.compare import compare_systems
from distill.evaluation.outside_lists import read_outside_lists
from distill.labels import hub
from distill.labels.store import LabelStore
from distill.runtime import artifacts
from distill.runtime.config import parse
from distill.runtime.json_files import read_object
from distill.semantic_ids import embeddings
from distill.semantic_ids.ids import SemanticIDs
from distill.semantic_ids.index_file import read_index
from student.histories import read_histories
from student.item_recommender import ItemRecommender
from student.recommender import Recommender
from teacher import import_base
from teacher.prompt_file import fill, read_prompt

from . import fuzz_artifacts, fuzz_references, fuzz_seeds
from .fuzz_commands import COMMANDS
from .fuzz_contract import Files, Target
from .fuzz_references import Reading


def interactions(form: str, reference: Callable[[Path], Reading], folder: Path, engine: str = "memory") -> None:
    """Prepare a data set by an engine, and compare what is written with a plain reading of the same files."""
    settings = PrepareSettings(
        format=form, input=folder, short_users="drop", k_core=0, duplicates="keep", clean_html=False, max_bad_lines=0
    )
    output = folder.parent / "output"
    output.mkdir()
    if engine == "memory":
        prepare(settings).write(output)
    else:
        with prepare_out_of_core(settings, "1GB", output) as prepared:
            prepared.write(output)
    expected = reference(folder)
    items = pq.read_table(output / "items.parquet").to_pydict()
    ids = items["item_id"]
    assert len(set(ids)) == len(ids) and all(name.strip() for name in ids)
    for column in items.values():
        assert all(isinstance(text, str) for text in column)
    actual = {}
    for row in pq.read_table(output / "sequences.parquet").to_pylist():
        assert all(0 <= item < len(ids) for item in row["items"])
        times = row["timestamps"] or [None] * len(row["items"])
        assert times == sorted(times, key=lambda time: time or 0)
        actual[row["user_id"]] = list(zip([ids[item] for item in row["items"]], times, strict=True))
    assert actual == fuzz_references.by_user(expected, MIN_LENGTH)
    for name, title in zip(ids, items["title"], strict=True):
        wanted = (expected.titles or {}).get(name)
        assert wanted is None or title.strip() == wanted.strip(), f"{name}: {title!r} is not {wanted!r}"


def index(folder: Path) -> None:
    """Read LC-Rec's index."""
    codes = read_index(folder / "N.index.json", len(fuzz_seeds.ITEMS), 256)
    tokens = json.loads((folder / "N.index.json").read_text())
    for item, row in enumerate(codes):
        assert [f"<{'abcdefgh'[level]}_{code}>" for level, code in enumerate(row)] == tokens[str(item)]


def config(config_class: type, folder: Path) -> None:
    """Parse a command's YAML file; every value must be of its field's type."""
    values = parse(config_class, None, ["--config", str(folder / "config.yaml")])
    for name, hint in typing.get_type_hints(config_class).items():
        assert conforms(getattr(values, name), hint), f"{name} = {getattr(values, name)!r} is no {hint}"


def conforms(value: Any, hint: Any) -> bool:
    """Tell whether a value is of a type; numbers must be finite and in their range."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(conforms(value, part) for part in inner)
    if origin is typing.Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list) and all(conforms(part, inner[0]) for part in value)
    if origin is dict:
        return isinstance(value, dict) and all(conforms(part, inner[1]) for part in value.values())
    if dataclasses.is_dataclass(hint):
        kinds = typing.get_type_hints(hint)
        return isinstance(value, hint) and all(conforms(getattr(value, name), kind) for name, kind in kinds.items())
    if isinstance(hint, type) and issubclass(hint, int | float) and hint is not bool:
        base = int if issubclass(hint, int) else float
        if not isinstance(value, base) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return hint is base or hint(value) == value  # a restricted number refuses what is out of its range
    return type(value) is hint or (hint is Path and isinstance(value, Path))


def labels(folder: Path) -> None:
    """Open and decode a set of labels."""
    decode = hub.decoder(hub.read_index(f"{folder}"))
    store = LabelStore.open(folder)
    assert callable(decode) and store.split in ("train", "valid", "test")
    store.read("user", "position", "target")
    rows = 0
    for block in store.blocks(buffer_rows=8):
        n, keep = len(block), store.candidates
        rows += n
        assert block.users.shape == block.positions.shape == block.targets.shape == (n,)
        for array in (block.users, block.positions, block.targets):
            assert array.dtype.kind == "i" and (array >= 0).all()
        assert block.candidates().shape == block.scores().shape == (n, keep) and (block.candidates() >= -1).all()
        log_probs = block.log_probs()
        assert log_probs.shape == (n, store.levels, block.size) and not np.isnan(log_probs).any()
        assert not np.isnan(block.scores()).any()
    assert rows == store.rows


def forged_labels(folder: Path) -> None:
    """Open and decode labels whose index has the checksums of altered shards."""
    fuzz_artifacts.sign_labels_again(folder)
    labels(folder)


def data_set(folder: Path) -> None:
    """Load a data set without checksums."""
    data = Dataset.load(folder)
    ids, users = data.items["item_id"].to_pylist(), data.user_ids.to_pylist()
    assert all(isinstance(name, str) for name in ids + users) and len(set(ids)) == len(ids)
    assert len(set(users)) == len(users) == data.n_users and data.n_items == len(ids)
    assert data.offsets[0] == 0 and data.offsets[-1] == len(data.values) and (np.diff(data.offsets) >= 0).all()
    assert ((data.values >= 0) & (data.values < data.n_items)).all()
    assert len(data.texts()) == data.n_items and all(isinstance(text, str) for text in data.texts())
    for split in ("train", "valid", "test"):
        examples = data.examples(split, 5)
        assert (examples.histories[:, 0] >= 0).all() and (examples.positions >= 1).all()
    data.statistics(), data.repeats(), data.cold_items()


def manifest(folder: Path) -> None:
    """Read a signed data set: its checksums betray all but changes of the manifest."""
    artifact = artifacts.read(folder, "dataset")
    artifacts.verify(artifact)
    artifacts.check_agreement(artifact)
    assert isinstance(artifact.fingerprint, str) and isinstance(artifact.inputs, dict)
    assert isinstance(artifact.config, dict) and isinstance(artifact.name, str)
    data_set(folder)


def semantic_ids(folder: Path) -> None:
    """Load semantic IDs without checksums."""
    ids = SemanticIDs.load(folder, fuzz_artifacts.ITEMS)
    assert len(ids.item_ids) == len(ids.codes) and all(isinstance(name, str) for name in ids.item_ids)
    assert type(ids.codebook_size) is int and 1 <= ids.levels <= 8
    assert ((ids.codes >= 0) & (ids.codes < ids.codebook_size)).all()
    assert ids.text(0) and len(ids.tokens()) == ids.levels * ids.codebook_size


def item_embeddings(folder: Path) -> None:
    """Map embeddings."""
    names = embeddings.item_ids(folder)
    rows = embeddings.load(folder, names)
    assert rows.shape[0] == len(names) and rows.shape[1] > 0 and np.isfinite(rows).all()
    assert all(isinstance(name, str) for name in names)


def ranked_lists(folder: Path) -> None:
    """Compare two systems of an evaluation."""
    comparison = compare_systems(folder, "dwr", folder, "tiger")
    for name, values in comparison.metrics.items():
        assert re.fullmatch(r"(recall|ndcg)@\d+", name) and 0 <= values["a"] <= 1 and 0 <= values["b"] <= 1
    assert comparison.users > 0 and comparison.metrics


def outside_lists(folder: Path) -> None:
    """Read the ranked lists of a system outside the project, and compare them with the file."""
    data = fuzz_artifacts.dataset()
    path = folder / "mine.parquet"
    lists = read_outside_lists(path, data, data.examples("test"), "test")
    ids = data.items["item_id"].to_pylist()
    file = pq.ParquetFile(path).read()
    expected = {str(row["user_id"]): row["items"] for row in file.select(["user_id", "items"]).to_pylist()}
    for user, row in zip(data.user_ids.to_pylist(), lists.items, strict=True):
        assert [ids[item] for item in row if item >= 0] == [str(item) for item in expected[user]]
        assert len(set(row[row >= 0])) == (row >= 0).sum()
    for scores in file["scores"].to_pylist() if "scores" in file.column_names else []:
        assert all(better >= worse for better, worse in pairwise(scores))


def prompt(folder: Path) -> None:
    """Read a prompt and fill it."""
    text = read_prompt(folder / "prompt.txt")
    assert text.count("{history}") == 1 and "{history}" not in fill(text, "<a_1>")


def histories(folder: Path) -> None:
    """Read histories, and recommend after them."""
    rows = read_histories(None, folder / "histories.txt")
    assert rows and all(row and all(isinstance(item, str) and item for item in row) for row in rows)
    check_lists(fuzz_artifacts.student(False), rows, 3, True)


def student(folder: Path) -> None:
    """Load a student and recommend."""
    recommender = Recommender.from_pretrained(folder)
    check_lists(recommender, [recommender.item_ids[:2]], 3, True)


def baseline(folder: Path) -> None:
    """Load an item model and rank."""
    recommender = ItemRecommender.from_pretrained(folder)
    items, _ = recommender.rank_items(np.array([[0, 1]]), 5, True)
    assert items.shape == (1, 5) and len(set(items[0])) == 5


def recommend(memories: bool, folder: Path) -> None:
    """Call `Recommender.recommend` with whatever values the file holds."""
    call = read_object(folder / "call.json")
    values = json.loads(fuzz_artifacts.call_of_recommend()["call.json"])
    check_lists(fuzz_artifacts.student(memories), **{name: call.get(name, value) for name, value in values.items()})


def check_lists(recommender: Recommender, histories: Any, k: Any, exclude_bought: Any = None, **more: Any) -> None:
    """Recommend; the lists must be distinct known items, best first, and new if bought ones are excluded."""
    lists = recommender.recommend(histories, k, exclude_bought=exclude_bought, **more)
    assert len(lists) == len(histories)
    for history, row in zip(histories, lists, strict=True):
        items, scores = [entry.item_id for entry in row], [entry.score for entry in row]
        assert len(set(items)) == len(items) <= k and set(items) <= set(recommender.item_ids)
        assert all(math.isfinite(score) for score in scores)
        assert all(better >= worse - 1e-5 for better, worse in pairwise(scores))
        assert not exclude_bought or not set(items) & set(history)


def gguf(folder: Path) -> None:
    """Turn a GGUF file into a Hugging Face folder."""
    output = folder.parent / "output"
    import_base.main(import_base.Config(gguf=folder / "tiny.gguf", output=output))
    assert (output / "config.json").is_file() and (output / "model.safetensors").is_file()


def _readings() -> dict[str, tuple[str, Callable[[], Files], Callable[[Path], Reading]]]:
    seeds, plain = fuzz_seeds, fuzz_references
    return {
        "recbole-plain": ("recbole", seeds.recbole_plain, plain.recbole_plain),
        "recbole-split": ("recbole", seeds.recbole_split, plain.recbole_split),
        "lcrec": ("lcrec", seeds.lcrec, plain.lcrec),
        "table-csv": ("table", seeds.table_csv, plain.table),
        "table-parquet": ("table", seeds.table_parquet, plain.table),
        "amazon-2014": ("amazon", seeds.amazon_2014, plain.amazon),
        "amazon-2023": ("amazon", seeds.amazon_2023, plain.amazon),
        "amazon-csv": ("amazon", seeds.amazon_csv, plain.amazon),
        "amazon-gzip": ("amazon", seeds.amazon_gzip, plain.amazon),
        "movielens-100k": ("movielens", seeds.movielens_100k, plain.movielens),
        "movielens-1m": ("movielens", seeds.movielens_1m, plain.movielens),
        "movielens-csv": ("movielens", seeds.movielens_csv, plain.movielens),
    }


def _targets() -> list[Target]:
    targets = [
        Target(name, seed, partial(interactions, form, reference), 2.0)
        for name, (form, seed, reference) in _readings().items()
    ]
    targets += [
        Target(f"{name}-duckdb", seed, partial(interactions, form, reference, engine="duckdb"), 0.3)
        for name, (form, seed, reference) in _readings().items()
        if name in ("recbole-plain", "table-csv", "table-parquet")
    ]
    targets += [
        Target("index", fuzz_seeds.lcrec_index, index),
        Target("prompt", fuzz_seeds.prompt, prompt, 0.5),
        Target("histories", fuzz_seeds.histories, histories),
        Target("labels", partial(fuzz_artifacts.artifact, "soft_labels"), labels),
        Target("labels-forged", partial(fuzz_artifacts.artifact, "soft_labels"), forged_labels, 2.0),
        Target("dataset", partial(fuzz_artifacts.artifact, "dataset"), data_set, 2.0),
        Target("dataset-parquet", fuzz_artifacts.unmapped_dataset, data_set),
        Target("manifest", partial(fuzz_artifacts.artifact, "dataset", True), manifest),
        Target("semantic-ids", partial(fuzz_artifacts.artifact, "semantic_ids"), semantic_ids),
        Target("embeddings", partial(fuzz_artifacts.artifact, "embeddings"), item_embeddings),
        Target("evaluation", partial(fuzz_artifacts.artifact, "evaluation"), ranked_lists),
        Target("lists", fuzz_artifacts.outside_lists, outside_lists),
        Target("student", partial(fuzz_artifacts.student_files, False), student),
        Target("student-memories", partial(fuzz_artifacts.student_files, True), student),
        Target("baseline", fuzz_artifacts.baseline_files, baseline),
        Target("recommend", fuzz_artifacts.call_of_recommend, partial(recommend, False)),
        Target("recommend-memories", fuzz_artifacts.call_of_recommend, partial(recommend, True)),
        Target("gguf", fuzz_artifacts.gguf_files, gguf, 0.3),
    ]
    for name, (config_class, seed) in COMMANDS.items():
        targets.append(Target(f"config-{name}", seed, partial(config, config_class), 0.1))
    return targets


TARGETS = {target.name: target for target in _targets()}
