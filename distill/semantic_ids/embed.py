"""Embed the items of a data set: texts, optionally joined by co-occurrence or by a network's item embeddings.

Items added later can be embedded in the space of earlier embeddings; earlier items then keep their rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from distill.data.dataset import TEXT_FIELDS, Dataset
from distill.runtime import artifacts, checksums, ray_cluster
from distill.runtime.artifacts import Artifact, ArtifactJob, write_json
from distill.runtime.errors import UserError
from distill.runtime.launch import is_main_process
from distill.runtime.logs import log, progress_bar
from distill.runtime.ray_settings import RaySettings
from distill.semantic_ids import cooccurrence, embedders, embeddings, ray_embed
from distill.semantic_ids.config import CollaborativeSettings, EmbedSettings, TextSettings
from distill.semantic_ids.embedding_shards import discard_damaged, shard_path, write_shard

IMPORT_HINT = "bring IDs of your own instead: python scripts/build_semantic_ids.py --index FILE"
SPACE = "space.json"
# settings that later items take over from earlier embeddings, so that both lie in one space
SPACE_SETTINGS = (
    *("embedder", "model", "dim", "min_df", "max_terms", "max_tokens", "fields"),
    *("collaborative", "collaborative_weight"),
)
Settings = TypeVar("Settings", bound=EmbedSettings)


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The items to embed.

    Attributes:
        dataset: the data set of the items.
        item_ids: of all items [n_items].
        texts: of all items, empty if there is none [n_items].
        old: earlier embeddings whose rows are kept, or None.
        old_rows: row of each item in the earlier embeddings, -1 for new items [n_items].
        item_model: item embeddings of a trained network, which join the texts in place of co-occurrence
            [n_items, any]; None: co-occurrence does.
    """

    dataset: Dataset
    item_ids: list[str]
    texts: list[str]
    old: Artifact | None
    old_rows: np.ndarray
    item_model: np.ndarray | None = None

    @staticmethod
    def load(dataset: Dataset, old: Artifact | None = None, fields: Sequence[str] = TEXT_FIELDS) -> Catalogue:
        """Collect the items of a data set, with these fields of their texts.

        Raises:
            UserError: none of the items is in the earlier embeddings.
        """
        item_ids = dataset.items["item_id"].to_pylist()
        old_rows = _find_rows(old, item_ids) if old else np.full(len(item_ids), -1)
        return Catalogue(dataset, item_ids, [text.strip() for text in dataset.texts(fields)], old, old_rows)

    @property
    def new_rows(self) -> np.ndarray:
        """Numbers of the items to embed: new ones with a text."""
        return np.flatnonzero([bool(text) and row < 0 for text, row in zip(self.texts, self.old_rows, strict=True)])

    def check_texts(self, empty_text: str) -> None:
        """Refuse new items without text, unless `empty_text` is "keep".

        Raises:
            UserError: there are such items, or no item has a text.
        """
        empty = [row for row, text in enumerate(self.texts) if not text and self.old_rows[row] < 0]
        if len(empty) == len(self.texts):
            raise UserError(f"No item of {self.dataset.artifact.folder} has a text to embed; {IMPORT_HINT}")
        if empty and empty_text == "error":
            raise UserError(
                f"{len(empty)} of {len(self.texts)} items have no text, the first is item {empty[0]} "
                f"({self.item_ids[empty[0]]!r}). Add texts, or give such items the mean embedding with "
                "--empty_text keep."
            )


def _find_rows(old: Artifact, item_ids: list[str]) -> np.ndarray:
    row_of = {item: row for row, item in enumerate(embeddings.item_ids(old.folder))}
    rows = np.array([row_of.get(item, -1) for item in item_ids])
    if (rows < 0).all():
        raise UserError(f"{old.folder} embeds none of the data set's items; --like names those of an earlier version.")
    log.info(f"{(rows >= 0).sum():,} items keep their embeddings, {(rows < 0).sum():,} are new")
    return rows


def read_space(folder: Path) -> Artifact:
    """Read earlier embeddings in whose space new items can be embedded.

    Raises:
        UserError: missing or damaged, or the space is not recorded.
    """
    artifact = artifacts.read(folder, "embeddings")
    if not (artifact.folder / SPACE).is_file():
        raise UserError(f"{artifact.folder} does not record its space (no {SPACE}); embed all items again.")
    return artifact


def with_settings_of(settings: Settings, old: Artifact) -> Settings:
    """Take over the settings of earlier embeddings that decide their space."""
    return dataclasses.replace(settings, **{name: old.config[name] for name in SPACE_SETTINGS if name in old.config})


def embed(job: ArtifactJob, catalogue: Catalogue, settings: EmbedSettings, cluster: RaySettings | None = None) -> None:
    """Embed the new items of a catalogue and write the artifact.

    Args:
        job: of the artifact.
        catalogue: the items.
        settings: how they are embedded.
        cluster: whose actors run the model; None: this process, and those launched beside it.

    Raises:
        UserError: texts that cannot be embedded, or a model that cannot be loaded.
    """
    if settings.embedder == "tfidf":
        _embed_by_tfidf(job, catalogue, settings)
    elif cluster:
        _embed_on_ray(job, catalogue, settings, cluster)
    else:
        _embed_by_model(job, catalogue, settings)


def _embed_by_tfidf(job: ArtifactJob, catalogue: Catalogue, settings: EmbedSettings) -> None:
    if not is_main_process():
        return  # seconds of work: the first process does it
    texts = [catalogue.texts[row] for row in catalogue.new_rows]
    if catalogue.old:
        space = embedders.TfIdf.load(catalogue.old.folder)
    else:
        space = embedders.TfIdf.fit(texts, settings.dim, settings.min_df, settings.max_terms, settings.seed)
    vectors = space.embed(texts)
    with job.write() as folder:
        space.save(folder)
        _write(folder, vectors, catalogue, settings)


def _embed_by_model(job: ArtifactJob, catalogue: Catalogue, settings: EmbedSettings) -> None:
    """Embed in shards of texts of similar length; each process computes its share, the first one joins them."""
    from distill.runtime.accelerator import accelerator

    acc = accelerator()
    encode = _load_encoder(settings)  # before anything is written: loading may fail
    order, shards = _divide(catalogue, settings.shard_rows)
    assigned = range(acc.process_index, len(shards), acc.num_processes)
    bar = progress_bar(
        total=sum(len(shards[i]) for i in assigned), desc="embed", unit="item", disable=not acc.is_main_process
    )
    with job.write(resume=True) if acc.is_main_process else contextlib.nullcontext(job.partial) as folder:
        shard_folder = folder / "shards"
        if acc.is_main_process:
            shard_folder.mkdir(exist_ok=True)
        acc.wait_for_everyone()
        discard_damaged(shard_folder, assigned)
        for number in assigned:
            if not shard_path(shard_folder, number).is_file():
                write_shard(shard_folder, number, encode(shards[number]))
            bar.update(len(shards[number]))
        bar.close()
        acc.wait_for_everyone()
        if acc.is_main_process:
            _join_shards(folder, order, len(shards), catalogue, settings)
    acc.end_training()


def _embed_on_ray(job: ArtifactJob, catalogue: Catalogue, settings: EmbedSettings, cluster: RaySettings) -> None:
    """Embed the shards of `_embed_by_model` by actors of a cluster, which is joined before anything is written."""
    order, shards = _divide(catalogue, settings.shard_rows)
    text_settings = TextSettings(
        **{item.name: getattr(settings, item.name) for item in dataclasses.fields(TextSettings)}
    )
    fingerprint = None
    if settings.embedder != "minilm" and Path(str(settings.model)).is_dir():
        model = Path(str(settings.model)).absolute()
        text_settings, fingerprint = dataclasses.replace(text_settings, model=str(model)), checksums.fingerprint(model)
    with ray_cluster.connect(cluster.ray_address), job.write(resume=True) as folder:
        (folder / "shards").mkdir(exist_ok=True)
        discard_damaged(folder / "shards", range(len(shards)))
        with progress_bar(total=sum(map(len, shards)), desc="embed", unit="item") as bar:
            open_encoder = functools.partial(_load_encoder, text_settings, fingerprint)
            ray_embed.embed_shards(folder / "shards", shards, open_encoder, cluster, bar.update)
        _join_shards(folder, order, len(shards), catalogue, settings)


def _divide(catalogue: Catalogue, shard_rows: int) -> tuple[np.ndarray, list[list[str]]]:
    """Divide the texts of new items into shards of similar length, which need little padding.

    Returns:
        Numbers of the texts by falling length [texts], and the texts of each shard in this order.
    """
    texts = [catalogue.texts[row] for row in catalogue.new_rows]
    order = np.argsort([-len(text) for text in texts], kind="stable")
    starts = range(0, len(order), shard_rows)
    return order, [[texts[row] for row in order[start : start + shard_rows]] for start in starts]


def _join_shards(folder: Path, order: np.ndarray, count: int, catalogue: Catalogue, settings: EmbedSettings) -> None:
    """Write the artifact's files from those of the shards, which are deleted."""
    parts = [np.load(shard_path(folder / "shards", number)) for number in range(count)]
    vectors = np.concatenate(parts)[np.argsort(order)] if parts else np.zeros((0, 0), np.float32)
    _write(folder, vectors, catalogue, settings)
    shutil.rmtree(folder / "shards")


def _load_encoder(settings: TextSettings, fingerprint: str | None = None) -> embedders.Encoder:
    """Load what embeds the texts of a shard; with a fingerprint, from a model that has it.

    Raises:
        UserError: no such model; while embedding: NaN or infinity.
    """
    if fingerprint is not None:
        ray_embed.check_model(Path(str(settings.model)), fingerprint)
    if settings.embedder == "hf":
        encode = embedders.hidden_state_encoder(str(settings.model), settings.batch_size, settings.max_tokens)
    else:
        model = embedders.minilm_folder() if settings.embedder == "minilm" else str(settings.model)
        encode = embedders.sentence_encoder(model, settings.batch_size)

    def encode_shard(texts: list[str]) -> np.ndarray:
        size = settings.batch_size
        rows = np.concatenate([encode(texts[start : start + size]) for start in range(0, len(texts), size)])
        if not np.isfinite(rows).all():
            bad = texts[int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])]
            raise UserError(f"The embedding of {bad[:60]!r} holds NaN or infinity; the model may be damaged.")
        return rows

    return encode_shard


def _write(folder: Path, vectors: np.ndarray, catalogue: Catalogue, settings: EmbedSettings) -> None:
    """Write embeddings and space.

    Args:
        folder: an existing folder.
        vectors: text embeddings of the items `catalogue.new_rows`; zero vectors count as missing [new items, dim].
        catalogue: all items.
        settings: how co-occurrence joins.
    """
    present = np.abs(vectors).sum(axis=1) > 0
    rows, vectors = catalogue.new_rows[present], vectors[present]
    missing = (catalogue.old_rows < 0).sum() - len(rows)
    if missing:
        log.info(f"{missing:,} items have no text, or no word of another item's; they get the mean embedding")
    if catalogue.old:
        matrix, space = _add_to_old(vectors, rows, catalogue, catalogue.old)
    elif len(rows):
        matrix, space = _join_all(vectors, rows, catalogue, settings)
    else:
        raise UserError(f"No text shares a word with another, so there is nothing to embed; {IMPORT_HINT}")
    write_json(folder / SPACE, space)
    embeddings.write(folder, matrix, catalogue.item_ids)
    log.info(f"{len(matrix):,} items, {matrix.shape[1]} dimensions")


def _add_to_old(
    vectors: np.ndarray, rows: np.ndarray, catalogue: Catalogue, old: Artifact
) -> tuple[np.ndarray, dict[str, object]]:
    """Add new items to earlier embeddings; they have no co-occurrence part. Returns embeddings and space."""
    space = json.loads((old.folder / SPACE).read_text())
    old_matrix = embeddings.memory_map(old.folder / embeddings.FILE)
    matrix = np.repeat(np.array(space["mean"], dtype=np.float32)[None], len(catalogue.item_ids), axis=0)
    if len(rows):
        padding = old_matrix.shape[1] - vectors.shape[1]
        matrix[rows] = np.pad(vectors * space["text_factor"], ((0, 0), (0, padding)))
    kept = catalogue.old_rows >= 0
    matrix[kept] = old_matrix[catalogue.old_rows[kept]]
    return matrix, space


def _join_all(
    vectors: np.ndarray, rows: np.ndarray, catalogue: Catalogue, settings: EmbedSettings
) -> tuple[np.ndarray, dict[str, object]]:
    """Fill missing texts by the mean and join co-occurrence. Returns embeddings and space."""
    mean = vectors.mean(axis=0)
    if settings.embedder == "tfidf":
        mean /= max(float(np.linalg.norm(mean)), 1e-12)
    matrix = np.repeat(mean[None], len(catalogue.item_ids), axis=0)
    matrix[rows] = vectors
    matrix, factor = _with_collaborative(matrix, catalogue, settings, settings.seed)
    mean = np.pad(mean * factor, (0, matrix.shape[1] - len(mean)))
    return matrix, {"text_factor": factor, "mean": [float(value) for value in mean]}


def _with_collaborative(
    text: np.ndarray, catalogue: Catalogue, settings: CollaborativeSettings, seed: int
) -> tuple[np.ndarray, float]:
    """Join text embeddings [n_items, dim] and collaborative ones; returns them and the factor of the text part."""
    if settings.collaborative == "none":
        return text, 1.0
    if catalogue.item_model is None:
        values, offsets = catalogue.dataset.training_sequences()
        vectors = cooccurrence.embed(
            values, offsets, len(text), settings.collaborative_dim, settings.collaborative_window, seed
        )
        meaning = "were bought together with others"
    else:  # rows of items that the network never read stay as they started, or were only pushed away
        vectors = cooccurrence.unit_rows(catalogue.item_model, catalogue.dataset.count_purchases() > 0)
        meaning = "were bought"
    count = int((np.abs(vectors).sum(1) > 0).sum())
    log.info(f"{count:,} of {len(text):,} items {meaning} in the training part")
    return cooccurrence.join(text, vectors, settings.collaborative, settings.collaborative_weight)
