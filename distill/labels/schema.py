"""Soft labels as a data set: what a teacher says about each training example.

`soft_labels/` holds `data/*.parquet`, which `datasets.load_dataset("parquet", data_files="…/data/*.parquet")` reads,
`index.json` (rows and checksum of each shard, encoding, scope, whose labels they are) and `report.json` (how good they
are). One row an example, users whole inside a shard:

| column | holds |
|---|---|
| user, position | which example: the item at `position` of the user's sequence is the target |
| target, target_codes | its item number and codes [levels] |
| candidates, candidate_scores | item numbers, the reference first, then the teacher's best [keep]; their log P(v\\|S) |

and per level L the log-probabilities of its V codewords over the teacher's whole vocabulary, by encoding:

| encoding | columns |
|---|---|
| fp16 | log_probs_L [V] |
| u8 | mass_L: log Σp; roots_L: V bytes, round(208·√(p/Σp)); tail_L: log of the share that zero bytes have together |
| topk+tail | top_L: the likeliest codewords [48]; top_log_probs_L; tail_L: log of what the others share equally |

The student does not know who taught. Temperature is the student's business and is not baked in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from distill.runtime import artifacts

INDEX, INDEX_SCHEMA = "index.json", 1


Columns = dict[str, np.ndarray]


Rows = np.ndarray | slice


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The index's shards; [] where there is none."""
    try:
        return json.loads((Path(folder) / INDEX).read_text())["shards"]
    except (OSError, ValueError, KeyError):
        return []


def write_index(folder: Path, shards: list[dict[str, Any]], **facts: Any) -> None:
    """Write `index.json`.

    Args:
        folder: of the artifact.
        shards: what `write_shard` said, in order.
        facts: levels, codebook_size, scope, encoding, keep, and whatever tells whose labels these are.
    """
    rows = sum(shard["rows"] for shard in shards)
    artifacts.write_json(folder / INDEX, {"schema": INDEX_SCHEMA, **facts, "rows": rows, "shards": shards})
