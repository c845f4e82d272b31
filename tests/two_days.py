"""A small shop on two days: later there are more users, items and interactions, and all of them have other numbers."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from student_shop import Nothing

from distill.data.dataset import write_dataset
from distill.runtime.artifacts import ArtifactJob, read, write_json
from distill.semantic_ids.ids import write_codes

LEVELS, SIZE = 3, 6
NAMES = [f"i{number}" for number in range(30)]  # the last ten are launched on the second day
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip
TEACHER = {
    "sizes": SIZES, "vocab_size": 300, "epochs": 1, "valid_users": 10, "max_history": 4, "tracker": "none",
    "checkpoint_every": 0,
}  # fmt: skip


def make_days(root: Path) -> tuple[Path, Path]:
    """Write the inputs of both days; returns the folders `day1` and `day2`, which hold dataset and semantic_ids."""
    rng = np.random.default_rng(0)
    codes = np.stack(np.unravel_index(rng.choice(SIZE**LEVELS, len(NAMES), replace=False), (SIZE,) * LEVELS), axis=1)
    bought = {f"u{user}": list(rng.permutation(20)[: rng.integers(4, 8)]) for user in range(12)}
    write_day(root / "day1", np.arange(20), bought, codes)
    for user in range(0, 12, 2):  # half of the users go on, also with new items
        bought[f"u{user}"] += [
            int(rng.integers(20, 30)),
            int(rng.choice(sorted(set(range(20)) - {*bought[f"u{user}"]}))),
        ]
    bought |= {f"v{user}": list(rng.permutation(30)[:5]) for user in range(3)}
    old = read(root / "day1/semantic_ids", "semantic_ids")
    later = dict(sorted(bought.items(), reverse=True))
    write_day(root / "day2", rng.permutation(30), later, codes, old.fingerprint)
    return root / "day1", root / "day2"


def write_day(
    folder: Path, order: np.ndarray, bought: dict[str, list[int]], codes: np.ndarray, extends: str = ""
) -> None:
    """Write a day's data set, whose item numbers are the places in `order`, and its semantic IDs."""
    number_of = np.argsort(order) if len(order) == len(NAMES) else np.arange(len(NAMES))
    names = [NAMES[item] for item in order]
    with ArtifactJob("dataset", Nothing(), folder / "dataset").write() as partial:
        items = pa.table({"item_id": names, "title": [f"thing {name}" for name in names]})
        write_dataset(partial, items, list(bought), [number_of[sequence] for sequence in bought.values()])
    data = read(folder / "dataset", "dataset")
    job = ArtifactJob(
        "semantic_ids", Nothing(), folder / "semantic_ids", [data], {"extend": extends} if extends else {}
    )
    if extends:
        job.facts["ancestors"] = [extends]
    with job.write() as partial:
        write_codes(partial, names, codes[order])
        write_json(partial / "report.json", {"codebook_size": SIZE})
