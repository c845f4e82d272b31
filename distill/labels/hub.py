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
from distill.labels.store import LabelStore
from distill.runtime.errors import UserError

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

    Args:
        folder: a soft_labels artifact.
        name: USER/NAME on the hub; or a path that begins with `/`, `./`, `../` or `~`.

    Raises:
        UserError: the artifact is unfinished, the folder is not empty, or the hub refuses the upload.
    """
    LabelStore.open(folder)
    if is_local(name):
        target = Path(name).expanduser()
        if target.exists() and any(target.iterdir()):
            raise UserError(f"{target} is not empty; name another folder to push to.")
        shutil.copytree(folder, target, dirs_exist_ok=True)
        (target / "README.md").write_text(CARD)
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
