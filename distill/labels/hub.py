"""Soft labels as a `datasets` data set: pushed to the Hugging Face hub or a folder, and loaded again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from distill.labels.store import LabelStore
from distill.runtime.errors import UserError

CARD = """---
configs:
- config_name: default
  data_files: data/*.parquet
---
Soft labels of a generative recommender: candidates and codeword distributions, one row a training example.
`index.json` tells whose they are and how they are encoded.
"""


def push(folder: Path, name: str) -> None:
    """Copy a finished set to the Hugging Face hub, where `datasets.load_dataset(name)` finds it, or to a folder.

    Args:
        folder: a soft_labels artifact.
        name: USER/NAME on the hub; or a path that begins with `/`, `./`, `../` or `~`.

    Raises:
        UserError: the artifact is unfinished, the folder exists, or the hub does not take it.
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
        raise UserError(f"The hub does not take {name}: {str(error).splitlines()[0]}") from None


def load(name: str, **options: Any):
    """A pushed set as a `datasets.Dataset`, by its name on the hub or its folder; `options` go to `load_dataset`."""
    from datasets import load_dataset

    return load_dataset(str(Path(name).expanduser()) if is_local(name) else name, split="train", **options)


def is_local(name: str) -> bool:
    """Whether a name is a path rather than one of the hub."""
    return name.startswith(("/", "./", "../", "~"))
