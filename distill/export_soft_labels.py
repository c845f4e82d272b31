"""Write what the teacher says about every training example (paper 3.1 and 3.2): beams and codeword distributions.

    python distill/export_soft_labels.py --config configs/demo/export.yaml

Shards are written one by one; a killed export goes on from the last finished shard.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from tqdm import tqdm

from distill import artifacts
from distill.artifacts import Stage, say, write_json
from distill.catalog import PAD, Dataset, Examples, by_length
from distill.config import run
from distill.semantic_ids import SemanticIDs
from distill.soft_labels import correct, write_shard

if TYPE_CHECKING:
    from teacher.engines.hf import HFEngine


@dataclass(frozen=True)
class Config:
    """Export soft labels: python distill/export_soft_labels.py [--config FILE] [--field value ...]."""

    run: Path = Path("runs/demo")
    """Folder of the run; inputs and output default to their names inside it."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    semantic_ids: Path | None = None
    """Semantic IDs artifact (default: RUN/semantic_ids)."""
    teacher: Path | None = None
    """Teacher artifact (default: RUN/teacher)."""
    output: Path | None = None
    """Where the labels go (default: RUN/soft_labels)."""
    engine: Literal["hf"] = "hf"
    """What runs the teacher."""
    width: int = 25
    """Beams (paper: 25)."""
    keep: int = 16
    """Candidates kept after correction, the reference first (paper: 16)."""
    exclude_bought: bool | None = None
    """Leave items of the history out of the candidates (default: where the training part never has an item twice)."""
    shard_rows: int = 4096
    """Examples a shard."""
    batch_size: int = field(default=64, metadata={"identity": False})
    """Examples a forward pass."""
    limit: int | None = None
    """Label only the first N examples."""
    device: str = field(default="auto", metadata={"identity": False})
    """auto, cpu or cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Weights of the teacher."""
    overwrite: bool = False
    """Repeat finished work."""


def main(config: Config) -> None:
    """Label every training example, shard by shard."""
    data = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    codes = artifacts.read(config.semantic_ids or config.run / "semantic_ids", "semantic_ids")
    teacher = artifacts.read(config.teacher or config.run / "teacher", "teacher")
    output = config.output or config.run / "soft_labels"
    stage = Stage("soft_labels", config, output, [data, codes, teacher], overwrite=config.overwrite)
    if stage.is_finished():
        return
    import torch  # heavy, and not needed where the work is finished

    from teacher.engines.hf import HFEngine

    dataset = Dataset.load(data.folder)
    ids = SemanticIDs.load(codes.folder, dataset.n_items)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    config = replace(config, exclude_bought=dataset.hides_bought(config.exclude_bought))
    engine = HFEngine.load(teacher.folder, dataset, ids, device, config.dtype)
    examples = dataset.examples("train", engine.data.max_history)
    if config.limit:
        examples = examples.take(slice(0, config.limit))

    quality = []
    with stage.write(resume=True) as folder:
        (folder / "data").mkdir(exist_ok=True)
        (folder / "parts").mkdir(exist_ok=True)
        bar = tqdm(total=len(examples), desc="soft labels", unit="target")
        for number, start in enumerate(range(0, len(examples), config.shard_rows)):
            shard = examples.take(slice(start, start + config.shard_rows))
            part = folder / "parts" / f"{number:05d}.json"
            if not part.is_file():
                labels = label(engine, dataset, shard, config, bar)
                write_shard(folder / "data" / f"{number:05d}.parquet", shard, ids.codes[shard.targets], *labels)
                write_json(part, describe(shard, *labels))  # last: a shard with this file is finished
            else:
                bar.update(len(shard))
            quality.append(json.loads(part.read_text()))
        bar.close()
        summary = summarise(quality)
        write_json(folder / "report.json", summary)
        for part in (folder / "parts").iterdir():
            part.unlink()
        (folder / "parts").rmdir()
    say("soft labels: " + ", ".join(f"{key} {value:.4g}" for key, value in summary.items()))


def label(
    engine: HFEngine, dataset: Dataset, examples: Examples, config: Config, bar: tqdm
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidates [n, keep], their scores [n, keep] and log-probabilities [n, levels, codebook_size] of n examples."""
    candidates = np.empty((len(examples), config.keep), np.int64)
    scores = np.empty((len(examples), config.keep), np.float32)
    log_probs = distributions(engine, dataset, examples, config.batch_size)
    codes = engine.data.ids.codes[examples.targets]
    target_scores = np.take_along_axis(log_probs, codes[..., None], axis=2)[..., 0].sum(1)
    for rows, histories in by_length(examples.histories, config.batch_size):
        beams = engine.beams(histories, config.width, config.exclude_bought)
        candidates[rows], scores[rows] = correct(*beams, examples.targets[rows], target_scores[rows], config.keep)
        bar.update(len(rows))
    return candidates, scores, log_probs


def distributions(engine: HFEngine, dataset: Dataset, examples: Examples, batch_size: int) -> np.ndarray:
    """Teacher-forced log-probabilities [n, levels, codebook_size].

    A teacher asked with `stream` labels all of a user's targets in one forward pass; the numbers are those of one
    prompt a prefix, as long as the prefix fits the history. Longer ones, and other prompts, go prefix by prefix.
    """
    ids, longest = engine.data.ids, engine.data.max_history
    log_probs = np.empty((len(examples), ids.levels, ids.codebook_size), np.float32)
    at_once = (examples.positions <= longest) & (engine.prompt == "stream")
    users, first = np.unique(examples.users[at_once], return_index=True)
    last = np.append(first[1:], at_once.sum())[: len(first)] - 1  # examples of a user stand together, by position
    lengths = examples.positions[at_once][last] + 1
    where = np.flatnonzero(at_once)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        sequences = np.full((len(rows), lengths[rows].max()), PAD, np.int64)
        for place, row in enumerate(rows):
            sequences[place, : lengths[row]] = dataset.sequence(users[row])[: lengths[row]]
        batch = engine.stream_logprobs(sequences).cpu().numpy()
        for place, row in enumerate(rows):
            mine = where[first[row] : last[row] + 1]
            log_probs[mine] = batch[place, examples.positions[mine]]
    rest = np.flatnonzero(~at_once)
    for part, histories in by_length(examples.histories[rest], batch_size):
        rows = rest[part]
        log_probs[rows] = engine.codeword_logprobs(histories, examples.targets[rows]).cpu().numpy()
    return log_probs


def describe(examples: Examples, candidates: np.ndarray, scores: np.ndarray, log_probs: np.ndarray) -> dict[str, float]:
    """Sums over a shard that say how good the labels are."""
    mass = np.exp(log_probs).sum(-1)
    inside = log_probs - np.log(mass)[..., None]
    entropy = -(np.exp(inside) * inside).sum(-1).mean(1)
    cutoff = min(10, scores.shape[1] - 1)  # a longer list was not kept
    better = (scores[:, 1:] > scores[:, :1]).sum(1)
    return {
        "targets": len(examples),
        f"recall@{cutoff}": float((better < cutoff).sum()),
        "entropy_per_level": float(entropy.sum()),
        "mass_off_level": float((1 - mass).mean(1).sum()),
    }


def summarise(parts: list[dict[str, float]]) -> dict[str, float]:
    """Means over all shards."""
    total = sum(part["targets"] for part in parts)
    means = {key: sum(part[key] for part in parts) / total for key in parts[0] if key != "targets"}
    return {"targets": total, **means}


if __name__ == "__main__":
    run(main, Config, "demo/export.yaml")
