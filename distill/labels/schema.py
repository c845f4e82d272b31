"""The format of soft labels on disk (docs/labels.md).

`soft_labels/` holds `data/*.parquet`, which `datasets.load_dataset("parquet", data_files="…/data/*.parquet")` reads,
`index.json` (rows and checksum of each shard, encoding, scope, teacher, dataset and semantic IDs) and `report.json`
(quality of the labels). A row is an example; all examples of a user are in one shard:

| column | holds |
|---|---|
| user, position | the example: the item at `position` of the user's sequence is the target |
| target, target_codes | item number and codewords of the target [levels] |
| candidates, candidate_scores | item numbers, the reference first, then the teacher's best [keep]; their log P(v\\|S) |

For each level L the columns of one encoding hold the log-probabilities of V codewords, normalised over the teacher's
whole vocabulary:

| encoding | columns |
|---|---|
| fp16 | log_probs_L [V] |
| u8 | mass_L: log Σp; roots_L: V bytes, round(208·√(p/Σp)); tail_L: log of the total share of the zero bytes |
| topk+tail | top_L: the likeliest codewords [48]; top_log_probs_L; tail_L: log of the others' mass, shared equally |

An export with `--features F` adds states_L: F bytes, the teacher's hidden state before the codeword, projected and
scaled so that its largest number is 127 away from 128. With `--feature_layers` it has F bytes for each of them.

A temperature is not applied: the student chooses it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from distill.runtime import artifacts

INDEX, INDEX_SCHEMA = "index.json", 1

Columns = dict[str, np.ndarray]  # by name, without or with the level
Rows = np.ndarray | slice


def recorded_shards(folder: Path) -> list[dict[str, Any]]:
    """Read the index's records of the shards; [] where there is no index."""
    try:
        return json.loads((Path(folder) / INDEX).read_text())["shards"]
    except (OSError, ValueError, KeyError):
        return []


def write_index(folder: Path, shards: list[dict[str, Any]], **facts: Any) -> None:
    """Write `index.json`.

    Args:
        folder: of the artifact.
        shards: the records that `write_shard` returned, in order.
        facts: levels, codebook_size, scope, encoding, keep, and where the labels come from.
    """
    rows = sum(shard["rows"] for shard in shards)
    artifacts.write_json(folder / INDEX, {"schema": INDEX_SCHEMA, **facts, "rows": rows, "shards": shards})
