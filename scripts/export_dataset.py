"""Write a data set as files of other projects, so that they can be run on the same data.

python scripts/export_dataset.py --dataset runs/demo/dataset --format recbole --output exported/demo
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill.data.dataset import Dataset
from distill.data.export import write_lcrec, write_recbole
from distill.runtime.artifacts import check_agreement
from distill.runtime.config import run
from distill.runtime.errors import UserError
from distill.runtime.logs import log
from distill.runtime.new_folder import check_free, new_folder


@dataclass(frozen=True)
class Config:
    """Write a data set as LC-Rec's or RecBole's files: python scripts/export_dataset.py [--field value ...]."""

    dataset: Path
    """Data set to write."""
    output: Path
    """New folder; its name is the data set's name in the files, as both projects expect."""
    format: Literal["lcrec", "recbole"]
    """lcrec (NAME.inter.json, NAME.item.json, NAME.item2id) or recbole (NAME.inter, NAME.item)."""
    semantic_ids: Path | None = None
    """Semantic IDs: with lcrec also write NAME.index.json."""


def main(config: Config) -> None:
    """Check, then write all files or none."""
    check_free(config.output)
    if config.semantic_ids is not None and config.format != "lcrec":
        raise UserError(f"Format {config.format} has no file for semantic IDs: leave out --semantic_ids.")
    dataset = Dataset.load(config.dataset)
    tokens = None if config.semantic_ids is None else load_tokens(config.semantic_ids, dataset)
    name = config.output.resolve().name
    with new_folder(config.output) as folder:
        if config.format == "lcrec":
            write_lcrec(folder, name, dataset, tokens)
        else:
            write_recbole(folder, name, dataset)
    log.info(f"wrote {', '.join(sorted(path.name for path in config.output.iterdir()))} to {config.output}")
    if dataset.ends is not None:
        log.info("These files do not say where time was cut: their readers split by leave-one-out.")


def load_tokens(folder: Path, dataset: Dataset) -> list[list[str]]:
    """Load the tokens of every item's semantic ID [n_items, levels].

    Raises:
        UserError: missing, or made for another data set.
    """
    from distill.semantic_ids.ids import SemanticIDs, token

    ids = SemanticIDs.load(folder, dataset.n_items)
    check_agreement(dataset.artifact, ids.artifact)
    return [[token(level, int(code)) for level, code in enumerate(row)] for row in ids.codes]


if __name__ == "__main__":
    run(main, Config)
