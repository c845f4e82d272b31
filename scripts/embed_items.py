"""Item texts to embeddings: TF-IDF, a sentence-transformers model, or a language model's mean-pooled hidden states.

    python scripts/embed_items.py --config configs/demo/embeddings.yaml
    accelerate launch scripts/embed_items.py --embedder hf --model FOLDER          (each process embeds its share)
    python scripts/embed_items.py --like OLD_EMBEDDINGS --dataset NEW              (items added later, the same space)

A model's embeddings are written shard by shard; a killed command goes on from the last finished shard. What is bought
together can join the texts (`--collaborative`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from distill.data.dataset import Dataset
from distill.runtime import artifacts
from distill.runtime.artifacts import Artifact, ArtifactJob, write_json
from distill.runtime.config import JobSettings, run
from distill.runtime.errors import UserError
from distill.runtime.logs import log, progress_bar
from distill.semantic_ids import cooccurrence, embedders, embeddings

OWN_IDS = "bring IDs of your own instead: python scripts/build_semantic_ids.py --index FILE"
SPACE = "space.json"
# what --like takes over, so that new items come to lie among the old ones
KEPT = ("embedder", "model", "dim", "min_df", "max_terms", "max_tokens", "collaborative", "collaborative_weight")


@dataclass(frozen=True)
class Config(JobSettings):
    """Embed the texts of all items."""

    run: Path = Path("runs/demo")
    """Root of a run: stages put their results below it."""
    dataset: Path | None = None
    """Data set to read; RUN/dataset if not given."""
    output: Path | None = None
    """Folder of the embeddings; RUN/embeddings if not given."""
    like: Path | None = None
    """Embeddings of a smaller catalogue: its items keep their rows, new ones are embedded in the same space by the same
    settings; items that are new have no co-occurrence part."""
    embedder: Literal["tfidf", "minilm", "sentence", "hf"] = "tfidf"
    """tfidf (offline, seconds), minilm (a small model, offline: all-MiniLM-L6-v2), sentence (a sentence-transformers
    model) or hf (any model of transformers, hidden states averaged, as in the paper)."""
    model: str | None = None
    """sentence, hf: folder or hub name of the model."""
    dim: int = 128
    """tfidf: size of an embedding, capped at what the texts allow."""
    min_df: int = 2
    """tfidf: leave out words and pairs of words that fewer items have."""
    max_terms: int = 200_000
    """tfidf: at most so many words and pairs, the most frequent."""
    max_tokens: int = 512
    """hf: longer texts are cut."""
    batch_size: int = field(default=16, metadata={"identity": False})
    """Models: items a step."""
    shard_rows: int = 2048
    """Models: items a shard; a killed command repeats at most one shard a process."""
    empty_text: Literal["error", "keep"] = "error"
    """Items without text: stop, or give them the mean embedding."""
    collaborative: Literal["none", "concat", "average"] = "none"
    """Join what is bought together in the training part: not, as further dimensions, or turned towards the text and
    added. docs/semantic-ids.md says when it pays."""
    collaborative_weight: float = 0.5
    """Its share of the variance."""
    collaborative_dim: int = 64
    """Its size before it joins."""
    collaborative_window: int = 20
    """Items at most this far apart in a sequence are bought together."""
    seed: int = 0
    """Of the truncated SVDs."""


@dataclass(frozen=True)
class Work:
    """What is to be embedded.

    Attributes:
        dataset: whose items.
        names: item ids [n_items].
        texts: theirs, empty where there is none [n_items].
        old: the embeddings that `--like` names.
        kept: row of each item in them, -1 for new ones [n_items].
    """

    dataset: Dataset
    names: list[str]
    texts: list[str]
    old: Artifact | None
    kept: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Items to embed: new ones with a text."""
        return np.flatnonzero([bool(text) and row < 0 for text, row in zip(self.texts, self.kept, strict=True)])


def main(config: Config) -> None:
    """Check the texts, embed them, write the artifact."""
    old, extra = None, {}
    if config.like is not None:
        old = artifacts.read(config.like, "embeddings")
        if not (old.folder / SPACE).is_file():
            raise UserError(f"{old.folder} does not say in which space it lies (no {SPACE}); embed all items again.")
        extra = {"like": old.fingerprint}
        config = dataclasses.replace(config, **{name: old.config[name] for name in KEPT})
    _check(config)
    dataset = Dataset.load(config.dataset or config.run / "dataset")
    output = config.output or config.run / "embeddings"
    stage = ArtifactJob(
        "embeddings", config, output, inputs=[dataset.artifact], extra=extra, overwrite=config.overwrite
    )
    if stage.is_finished():
        return
    names = dataset.items["item_id"].to_pylist()
    kept = _old_rows(old, names) if old else np.full(len(names), -1)
    work = Work(dataset, names, [text.strip() for text in dataset.texts()], old, kept)
    _check_texts(work, config)
    (_by_tfidf if config.embedder == "tfidf" else _by_model)(stage, work, config)


def _check(config: Config) -> None:
    if config.embedder in ("sentence", "hf") and not config.model:
        raise UserError(f"Embedder {config.embedder} needs a model: name its folder or hub name with --model.")
    for name in ("dim", "min_df", "max_terms", "max_tokens", "batch_size", "shard_rows", "collaborative_dim"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}; it must be at least 1.")
    if not 0 <= config.collaborative_weight < 1:
        raise UserError(f"collaborative_weight is {config.collaborative_weight}; it must be from 0 to below 1.")


def _check_texts(work: Work, config: Config) -> None:
    empty = [row for row, text in enumerate(work.texts) if not text and work.kept[row] < 0]
    if len(empty) == len(work.texts):
        raise UserError(f"No item of {work.dataset.artifact.folder} has a text to embed; {OWN_IDS}")
    if empty and config.empty_text == "error":
        raise UserError(
            f"{len(empty)} of {len(work.texts)} items have no text, the first is item {empty[0]} "
            f"({work.names[empty[0]]!r}). Add texts, or give such items the mean embedding with --empty_text keep."
        )


def _old_rows(old: Artifact, names: list[str]) -> np.ndarray:
    """Row of each item in the old embeddings, -1 for new ones [n_items]."""
    row_of = {name: row for row, name in enumerate(embeddings.item_ids(old.folder))}
    found = np.array([row_of.get(name, -1) for name in names])
    if (found < 0).all():
        raise UserError(f"{old.folder} embeds none of the data set's items; --like names those of an earlier version.")
    log.info(f"{(found >= 0).sum():,} items keep their embeddings, {(found < 0).sum():,} are new")
    return found


def _by_tfidf(stage: ArtifactJob, work: Work, config: Config) -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # seconds of work: the first process does it
    texts = [work.texts[row] for row in work.rows]
    if work.old:
        space = embedders.TfIdf.load(work.old.folder)
    else:
        space = embedders.TfIdf.fit(texts, config.dim, config.min_df, config.max_terms, config.seed)
    found = space.embed(texts)
    with stage.write() as folder:
        space.save(folder)
        _finish(folder, found, work, config)


def _by_model(stage: ArtifactJob, work: Work, config: Config) -> None:
    """Embed by a model, in shards of like lengths of which each process has its own; the first puts them together."""
    from distill.runtime.accelerator import accelerator

    acc = accelerator()
    encode = _encoder(config)  # before anything is written: it may not load
    texts = [work.texts[row] for row in work.rows]
    order = np.argsort([-len(text) for text in texts], kind="stable")  # like lengths together, little padding
    shards = [order[start : start + config.shard_rows] for start in range(0, len(order), config.shard_rows)]
    mine = range(acc.process_index, len(shards), acc.num_processes)
    bar = progress_bar(
        total=sum(len(shards[i]) for i in mine), desc="embed", unit="item", disable=not acc.is_main_process
    )
    with stage.write(resume=True) if acc.is_main_process else contextlib.nullcontext(stage.partial) as folder:
        done = folder / "shards"
        if acc.is_main_process:
            done.mkdir(exist_ok=True)
        acc.wait_for_everyone()
        for number in mine:
            path = done / f"{number:06d}.npy"
            if not path.is_file():
                _write_shard(path, encode, [texts[row] for row in shards[number]], config)
            bar.update(len(shards[number]))
        bar.close()
        acc.wait_for_everyone()
        if acc.is_main_process:
            parts = [np.load(done / f"{number:06d}.npy") for number in range(len(shards))]
            found = np.concatenate(parts)[np.argsort(order)] if parts else np.zeros((0, 0), np.float32)
            _finish(folder, found, work, config)
            shutil.rmtree(done)
    acc.end_training()


def _write_shard(path: Path, encode: embedders.Encoder, texts: list[str], config: Config) -> None:
    rows = np.concatenate(
        [encode(texts[start : start + config.batch_size]) for start in range(0, len(texts), config.batch_size)]
    )
    if not np.isfinite(rows).all():
        bad = texts[int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])]
        raise UserError(f"The embedding of {bad[:60]!r} holds NaN or infinity; the model may be damaged.")
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.save(file, rows)
    temporary.replace(path)


def _encoder(config: Config) -> embedders.Encoder:
    if config.embedder == "hf":
        return embedders.hidden_state_encoder(str(config.model), config.batch_size, config.max_tokens)
    model = embedders.minilm_folder() if config.embedder == "minilm" else str(config.model)
    return embedders.sentence_encoder(model, config.batch_size)


def _finish(folder: Path, found: np.ndarray, work: Work, config: Config) -> None:
    """The artifact's files, from the vectors `found` of the items `work.rows`; zero vectors say nothing."""
    has = np.abs(found).sum(axis=1) > 0
    rows, found = work.rows[has], found[has]
    missing = (work.kept < 0).sum() - len(rows)
    if missing:
        log.info(f"{missing:,} items have no text, or no word of another item's; they get the mean embedding")
    if work.old:
        space = json.loads((work.old.folder / SPACE).read_text())
        old = embeddings.memory_map(work.old.folder / embeddings.FILE)
        result = np.repeat(np.array(space["mean"], dtype=np.float32)[None], len(work.names), axis=0)
        if len(rows):  # new items: no co-occurrence yet
            result[rows] = np.pad(found * space["text_factor"], ((0, 0), (0, old.shape[1] - found.shape[1])))
        result[work.kept >= 0] = old[work.kept[work.kept >= 0]]
    else:
        if not len(rows):
            raise UserError(f"No text shares a word with another, so there is nothing to embed; {OWN_IDS}")
        mean = found.mean(axis=0)
        if config.embedder == "tfidf":
            mean /= max(float(np.linalg.norm(mean)), 1e-12)
        result = np.repeat(mean[None], len(work.names), axis=0)
        result[rows] = found
        result, factor = _with_company(result, work.dataset, config)
        mean = np.pad(mean * factor, (0, result.shape[1] - len(mean)))
        space = {"text_factor": factor, "mean": [float(value) for value in mean]}
    write_json(folder / SPACE, space)
    embeddings.write(folder, result, work.names)
    log.info(f"{len(result):,} items, {result.shape[1]} dimensions")


def _with_company(text: np.ndarray, dataset: Dataset, config: Config) -> tuple[np.ndarray, float]:
    """Texts joined by what is bought together, and the factor that the text got (`cooccurrence.join`)."""
    if config.collaborative == "none":
        return text, 1.0
    values, offsets = dataset.training_sequences()
    size, window = config.collaborative_dim, config.collaborative_window
    company = cooccurrence.embed(values, offsets, len(text), size, window, config.seed)
    seen = int((np.abs(company).sum(1) > 0).sum())
    log.info(f"{seen:,} of {len(text):,} items were bought together with others in the training part")
    return cooccurrence.join(text, company, config.collaborative, config.collaborative_weight)


if __name__ == "__main__":
    run(main, Config, "demo/embeddings.yaml")
