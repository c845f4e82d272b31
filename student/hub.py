"""Students on the Hugging Face hub: a model card beside the files of `save_pretrained`, and the way back."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from distill.decoding.trie import Trie
from distill.runtime.errors import UserError
from distill.runtime.models import count_parameters

FILES = ["*.json", "*.safetensors", "items.parquet"]  # of a student; nothing that could run
METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
TAGS = ["recommendation", "generative-retrieval", "semantic-ids", "knowledge-distillation"]

CARD = """---
{front_matter}
---

# {title}

A student of an LLM recommender: it ranks next items as semantic IDs of {levels} codewords. Backbone {backbone}, variant
{variant}, {parameters:,} parameters, {n_items:,} items; it reads the last {max_history} items of a history.

```python
from student.recommender import Recommender

student = Recommender.from_pretrained("{repo_id}")
student.recommend([["{item_id}"]], k=10)
```
{results}"""


class Student(Protocol):
    """What a card tells of a `Recommender`, and what is uploaded."""

    model: nn.Module
    ranker: nn.Module | None
    facts: dict[str, Any]
    trie: Trie
    item_ids: list[str]
    n_items: int
    max_history: int

    def save_pretrained(self, folder: Path) -> None: ...


def model_card(
    student: Student, repo_id: str, data_license: str, dataset: str, rows: list[dict[str, Any]] | None = None
) -> str:
    """Write a model card: YAML front matter as the hub reads it, what the student is, its metrics beside the floor's.

    Args:
        student: the student.
        repo_id: USER/NAME.
        data_license: the hub's identifier of the licence of the data, such as cc-by-4.0 or other.
        dataset: name of the data.
        rows: the student's row of an evaluation's metrics.json and, if it is there, the floor's (`evaluation_rows`).

    Returns:
        The text of README.md.
    """
    from huggingface_hub import EvalResult, ModelCardData

    title = repo_id.rpartition("/")[2]
    results = [
        EvalResult(
            task_type="recommendation",
            task_name="next-item recommendation",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=row["split"],
            metric_type=metric,
            metric_value=row[metric],
        )
        for row in (rows or [])[:1]
        for metric in METRICS
    ]
    named = {"model_name": title, "eval_results": results} if results else {}
    card = ModelCardData(license=data_license, library_name="lohrec-distill", tags=TAGS, **named)
    return CARD.format(
        front_matter=card.to_yaml().strip(),
        title=title,
        repo_id=repo_id,
        levels=student.trie.levels,
        backbone=student.facts["backbone"],
        variant=student.facts.get("variant", "unknown"),
        parameters=count_parameters(student.model, student.ranker),
        n_items=student.n_items,
        max_history=student.max_history,
        item_id=student.item_ids[0],
        results=_results(rows, dataset) + f"\nLicence of the data: {data_license}.\n",
    )


def _results(rows: list[dict[str, Any]] | None, dataset: str) -> str:
    """Write the table of metrics; empty without rows."""
    if not rows:
        return ""
    lines = [f"| | {' | '.join(METRICS)} |", f"|---|{'---|' * len(METRICS)}"]
    for row, name in zip(rows, ("this student", f"floor, learns nothing: {rows[-1]['system']}"), strict=False):
        lines.append(f"| {name} | {' | '.join(f'{row[metric]:.4f}' for metric in METRICS)} |")
    facts = f"{rows[0]['users']:,} users of the {rows[0]['split']} part of {dataset}, seed {rows[0]['seed']}"
    return f"\n## Metrics\n\n{facts}.\n\n" + "\n".join(lines) + "\n"


def evaluation_rows(evaluation: Path, system: str) -> list[dict[str, Any]]:
    """Read a system's row of an evaluation and, after it, the floor's unless the system is the floor.

    Raises:
        UserError: there is no such evaluation, or no such system in it.
    """
    path = evaluation / "metrics.json"
    try:
        rows = {row["system"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
        if system in rows:
            floor = rows.get(rows[system].get("floor"))
            chosen = [rows[system]] + ([floor] if floor and floor["system"] != system else [])
            return [{name: row[name] for name in ("system", "split", "seed", "users", *METRICS)} for row in chosen]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no evaluation's metrics ({type(error).__name__}: {error}).") from None
    raise UserError(f"{path} has no system {system!r}; it has {', '.join(rows)}.")


def push(
    student: Student,
    repo_id: str,
    data_license: str,
    dataset: str,
    rows: list[dict[str, Any]] | None = None,
    private: bool = True,
) -> None:
    """Upload a student with its model card; arguments as for `model_card`. No manifest goes with it: it names paths.

    Raises:
        UserError: the hub refuses.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        student.save_pretrained(folder)
        (folder / "README.md").write_text(model_card(student, repo_id, data_license, dataset, rows), encoding="utf-8")
        hub = HfApi()
        try:
            hub.create_repo(repo_id, private=private, exist_ok=True)
            hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a student")
        except _refusals() as error:
            raise UserError(f"The hub does not accept {repo_id}: {_reason(error)}") from None


def is_repo(name: Path | str) -> bool:
    """Tell whether a name may be USER/NAME on the hub: no path, nor a mistyped one in a folder that exists."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)) is not None and not Path(name).parent.exists()


def download(repo_id: str, revision: str | None = None) -> Path:
    """Download a student's files, or find them in the hub's cache; no code comes with them.

    Raises:
        UserError: the hub has no such student, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=FILES))
    except _refusals() as error:
        raise UserError(f"There is no folder {repo_id}, nor such a student on the hub: {_reason(error)}") from None


def _refusals() -> tuple[type[Exception], ...]:
    """Return what the hub's client raises where a name, the network or the permission is missing."""
    from huggingface_hub import errors

    return (
        errors.HfHubHTTPError,
        errors.HFValidationError,
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
        OSError,
    )


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
