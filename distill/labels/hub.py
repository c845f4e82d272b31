"""Soft labels as a `datasets.Dataset`: push a set to the Hugging Face hub or to a folder, and load it (docs/labels.md).

labels = hub.load("./pushed")               # or "USER/NAME" on the hub
labels[0]["probabilities"]                  # float32 [levels, V], whatever the encoding
labels[:32]["probabilities"].shape          # (32, levels, V)
raw = hub.load("./pushed", decode=False)    # the columns as they are stored
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distill.labels import index_file
from distill.labels.encodings import column_names, decode_level
from distill.labels.schema import INDEX, Columns
from distill.labels.store import LabelStore, export_command
from distill.labels.writer import is_intact
from distill.runtime.artifacts import verify
from distill.runtime.checksums import MANIFEST, find_damage
from distill.runtime.errors import UserError
from distill.runtime.folders import check_apart
from distill.runtime.new_folder import new_folder, remove_leftovers

CARD = """---
configs:
- config_name: default
  data_files: data/*.parquet
---
Soft labels of a generative recommender: candidates and codeword distributions, one row a training example.
`index.json` names the data set, the semantic IDs, the teacher and the encoding.
`distill.labels.hub.load` returns the distributions decoded; `datasets.load_dataset` returns the stored columns.
"""


def push(folder: Path, name: str) -> None:
    """Copy a finished set to the Hugging Face hub, where `datasets.load_dataset(name)` reads it, or to a folder.

    A folder is written whole or not at all; one that holds this very set is left as it is.

    Args:
        folder: a soft_labels artifact.
        name: USER/NAME on the hub; or a path that begins with `/`, `./`, `../` or `~`.

    Raises:
        UserError: the artifact is unfinished or damaged, the folder holds something else or cannot be written, or the
            hub refuses the upload.
    """
    store = LabelStore.open(folder)
    verify(store.artifact)
    for shard in store.index["shards"]:
        if not is_intact(folder, shard):
            raise UserError(
                f"{folder}/data/{shard['file']} is damaged; make it again with: {export_command(store.artifact)}"
            )
    if is_local(name):
        target = Path(name).expanduser()
        check_apart(target, [folder])
        if is_pushed(store, target):
            remove_leftovers(target)
            return
        with new_folder(target) as partial:
            shutil.copytree(folder, partial, dirs_exist_ok=True)
            (partial / "README.md").write_text(CARD)
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    hub = HfApi()
    try:
        hub.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        hub.upload_folder(repo_id=name, repo_type="dataset", folder_path=folder)
        hub.upload_file(path_or_fileobj=CARD.encode(), path_in_repo="README.md", repo_id=name, repo_type="dataset")
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(f"The hub does not accept {name}: {str(error).splitlines()[0]}") from None


def is_pushed(store: LabelStore, target: Path) -> bool:
    """Tell whether a folder holds a whole copy of this set, as a run leaves that is killed after it has pushed."""
    try:
        is_same = (target / MANIFEST).read_bytes() == (store.artifact.folder / MANIFEST).read_bytes()
    except OSError:
        return False
    files, shards = store.artifact.manifest.get("files", {}), store.index["shards"]
    return is_same and find_damage(target, files) is None and all(is_intact(target, shard) for shard in shards)


def load(name: str, decode: bool = True, **options: Any) -> Any:
    """Load a set of labels as a `datasets.Dataset`.

    Args:
        name: USER/NAME on the hub; or the folder of a set, pushed or just exported, as a path (see `push`).
        decode: decode rows when they are read (`decoder`); False: the columns as stored (distill/labels/schema.py).
        options: for `datasets.load_dataset`.
    """
    from datasets import load_dataset

    if is_local(name):  # named file by file: without a card, `datasets` takes the format that most files have
        shards = sorted(str(path) for path in (Path(name).expanduser() / "data").glob("*.parquet"))
        if not shards:
            raise UserError(f"{name} holds no soft labels: no data/*.parquet in it.")
        dataset = load_dataset("parquet", data_files=shards, split="train", **options)
    else:
        dataset = load_dataset(name, split="train", **options)
    return dataset.with_transform(decoder(read_index(name, options.get("revision")))) if decode else dataset


def decoder(index: dict[str, Any]) -> Callable[[dict[str, list]], Columns]:
    """Build the function that decodes a batch of rows, for `datasets.Dataset.with_transform`.

    Args:
        index: the content of the set's `index.json`.

    Returns:
        A function from a batch as `datasets` reads it to arrays: `probabilities`, float32 [rows, levels, V], in place
        of the encoded columns; the other columns unchanged. The probabilities of a level sum to the mass that the
        teacher gave to these codewords, at most 1. A batch that lacks an encoded column has no `probabilities`.
    """
    encoding, levels = index["encoding"], index["levels"]
    size = index["codebook_size"] * (levels if index["scope"] == "all" else 1)
    encoded = [f"{name}_{level}" for level in range(levels) for name in column_names(encoding)]

    def decode(batch: dict[str, list]) -> Columns:
        arrays = {name: _as_array(values) for name, values in batch.items()}
        decoded = {name: values for name, values in arrays.items() if name not in encoded}
        if arrays.keys() >= set(encoded):
            log_probs = [decode_level(arrays, encoding, level, size) for level in range(levels)]
            decoded["probabilities"] = np.exp(np.stack(log_probs, axis=1)).astype(np.float32)
        return decoded

    return decode


def read_index(name: str, revision: str | None = None) -> dict[str, Any]:
    """Read the `index.json` of a pushed set, from its folder or the hub.

    Raises:
        UserError: it is missing or damaged.
    """
    if is_local(name):
        return index_file.read_index(Path(name).expanduser())
    from huggingface_hub import hf_hub_download

    return index_file.read_index(Path(hf_hub_download(name, INDEX, repo_type="dataset", revision=revision)).parent)


def is_local(name: str) -> bool:
    """Tell whether a name is a path rather than a name on the hub."""
    return name.startswith(("/", "./", "../", "~"))


def _as_array(values: list) -> np.ndarray:
    """Convert a column of numbers, lists or bytes to an array [rows] or [rows, length]."""
    if values and isinstance(values[0], bytes):
        return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)
    return np.array(values)
