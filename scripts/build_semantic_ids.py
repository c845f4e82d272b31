"""Build semantic IDs: quantise embeddings, number items, import LC-Rec's `index.json`, or add new items.

python scripts/build_semantic_ids.py --config configs/demo/semantic_ids.yaml
python scripts/build_semantic_ids.py --quantiser cid --dataset DATASET --output IDS
python scripts/build_semantic_ids.py --index Instruments.index.json --dataset DATASET
python scripts/build_semantic_ids.py --extend OLD_IDS --dataset NEW --embeddings NEW_EMBEDDINGS --output NEW_IDS
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.data.dataset import Dataset
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import JobSettings, run
from distill.runtime.errors import UserError
from distill.semantic_ids.build import extend_ids, import_ids, number_ids, train_ids
from distill.semantic_ids.config import NUMBERINGS, IDSettings
from distill.semantic_ids.lineage import ancestors
from distill.semantic_ids.report import describe, print_summary, render


@dataclass(frozen=True)
class Config(IDSettings, JobSettings):
    """Give every item its semantic ID."""

    run: Path = Path("runs/demo")
    """Root of a run: commands write their results below it."""
    dataset: Path | None = None
    """Data set to read; RUN/dataset if not given."""
    embeddings: Path | None = None
    """Embeddings to quantise; RUN/embeddings if not given. sid, rid, iid, cid and semid need none."""
    output: Path | None = None
    """Folder of the semantic IDs; RUN/semantic_ids if not given."""
    index: Path | None = None
    """Import these IDs instead of training (LC-Rec's index.json: item number to its tokens, "<a_137>" and so on).
    Needs no embeddings; takes the IDs as they are; of the other settings only codebook_size counts."""
    extend: Path | None = None
    """Semantic IDs of an earlier version of the data set: its items keep their codes, new items are encoded by its
    quantiser. Embed them with embed_items.py --like. Of the other settings only unique and full_prefix count."""


def main(config: Config) -> None:
    """Train, number, import or extend; check everything, then write codes, quantiser and report."""
    if config.index and config.extend:
        raise UserError("--index imports IDs and --extend adds to old ones; choose one of them.")
    dataset = Dataset.load(config.dataset or config.run / "dataset")
    output = config.output or config.run / "semantic_ids"
    inputs, extra, old = [dataset.artifact], {}, None
    is_numbered = config.index is None and config.extend is None and config.quantiser in NUMBERINGS
    if config.index is None and not is_numbered:
        inputs.append(artifacts.read(config.embeddings or config.run / "embeddings", "embeddings"))
    elif config.index is not None and config.index.is_file():
        extra = {"index": [config.index.stat().st_size, config.index.stat().st_mtime_ns]}
    elif config.index is not None:
        raise UserError(f"No file {config.index}; --index names an index.json of LC-Rec's format.")
    if config.extend is not None:  # made from the earlier data set, so not among the inputs, which must agree
        old = artifacts.read(config.extend, "semantic_ids")
        extra = {"extend": old.fingerprint}
    reads = [config.extend, config.index]
    job = ArtifactJob("semantic_ids", config, output, inputs, extra, config.overwrite, reads)
    if job.is_finished():
        return
    if config.index is not None:
        ids = import_ids(config.index, dataset, config.codebook_size)
    elif old is not None:
        ids = extend_ids(old, inputs[1], dataset, config)
    elif is_numbered:
        ids = number_ids(dataset, config)
    else:
        ids = train_ids(inputs[1], dataset, config)
    if old is not None:
        job.facts["ancestors"] = [old.fingerprint, *ancestors(old)]
    report = describe(ids, dataset)
    page = render(report, dataset.artifact.folder.resolve().parent.name)
    with job.write() as folder:
        ids.write(folder, report, page)
    print_summary(report)


if __name__ == "__main__":
    run(main, Config, "demo/semantic_ids.yaml")
