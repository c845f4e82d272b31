"""Embed item texts: TF-IDF, a sentence-transformers model, or the mean hidden states of a language model.

    python scripts/embed_items.py --config configs/demo/embeddings.yaml
    accelerate launch scripts/embed_items.py --embedder hf --model FOLDER          (each process embeds its share)
    python scripts/embed_items.py --embedder hf --model FOLDER --launcher ray      (actors of a Ray cluster do)
    python scripts/embed_items.py --like OLD_EMBEDDINGS --dataset NEW              (items added later, the same space)
    python scripts/embed_items.py --collaborative concat --item_model RUN/baselines/sasrec      (joined by a SASRec)

A model's embeddings are written shard by shard; a killed command continues after the last finished shard. With
`--collaborative`, co-occurrence in the training part joins the texts, or the item embeddings of a trained network.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill.data.dataset import Dataset
from distill.runtime import artifacts, checksums
from distill.runtime.artifacts import Artifact, ArtifactJob
from distill.runtime.config import JobSettings, run
from distill.runtime.errors import UserError
from distill.runtime.ray_settings import RaySettings, check_ray
from distill.semantic_ids.config import EmbedSettings, check_embedder
from distill.semantic_ids.embed import Catalogue, embed, read_space, with_settings_of

MODEL_IDENTITY = "model files"  # its key among the facts that decide the result


@dataclass(frozen=True)
class Config(EmbedSettings, RaySettings, JobSettings):
    """Embed the texts of all items."""

    run: Path = Path("runs/demo")
    """Root of a run: commands write their results below it."""
    dataset: Path | None = None
    """Data set to read; RUN/dataset if not given."""
    output: Path | None = None
    """Folder of the embeddings; RUN/embeddings if not given."""
    like: Path | None = None
    """Embeddings of a smaller catalogue: its items keep their rows, new ones are embedded in the same space by the same
    settings; new items have no co-occurrence part."""
    item_model: Path | None = field(default=None, metadata={"identity": False})
    """Trained network over items (SASRec, GRU4Rec or FMLP-Rec of student/baseline.py) whose item embeddings join the
    texts in place of co-occurrence, as --collaborative says."""


def main(config: Config) -> None:
    """Check the texts, embed them, write the artifact."""
    old = None if config.like is None else read_space(config.like)
    if old:
        config = with_settings_of(config, old)
    check_embedder(config)
    check_ray(config)
    if config.launcher == "ray" and config.embedder == "tfidf":
        raise UserError("--launcher ray is for models; --embedder tfidf takes seconds in one process.")
    dataset = Dataset.load(config.dataset or config.run / "dataset")
    networks = read_item_model(config)
    extra: dict[str, Any] = {"like": old.fingerprint} if old else {}
    extra |= identify_model(config)
    job = ArtifactJob(
        "embeddings",
        config,
        config.output or config.run / "embeddings",
        inputs=[dataset.artifact, *networks],
        extra=extra,
        overwrite=config.overwrite,
        reads=[config.like, config.model, config.item_model],
    )
    if old:
        check_same_model(config, job, old)
    if job.is_finished():
        return
    catalogue = Catalogue.load(dataset, old, config.fields)
    catalogue.check_texts(config.empty_text)
    for network in networks:
        from student.item_embeddings import read_item_embeddings  # with torch: slow to import

        rows = read_item_embeddings(network.folder, dataset.n_items, "--item_model")
        catalogue = replace(catalogue, item_model=rows.numpy())
    embed(job, catalogue, config, config if config.launcher == "ray" else None)


def identify_model(config: Config) -> dict[str, Any]:
    """Identify a model in a local folder by its files, for it may be trained again in place; no facts on others."""
    if config.embedder not in ("sentence", "hf") or not Path(str(config.model)).is_dir():
        return {}
    return {MODEL_IDENTITY: checksums.model_identity(Path(str(config.model)))}


def check_same_model(config: Config, job: ArtifactJob, old: Artifact) -> None:
    """Refuse a model that was trained again since it embedded the earlier items: new ones would lie in another space.

    Raises:
        UserError: its files are others than then.
    """
    earlier = (old.manifest["identity"].get("extra") or {}).get(MODEL_IDENTITY)  # earlier versions recorded none
    if earlier is not None and earlier != job.identity["extra"].get(MODEL_IDENTITY):
        raise UserError(
            f"--like: the model {config.model} is not what it was when it embedded {old.folder}. Restore it, or embed "
            "all items again."
        )


def read_item_model(config: Config) -> list[Artifact]:
    """Open the network whose item embeddings join the texts; an empty list without --item_model.

    Raises:
        UserError: no such network, or nothing that it could join.
    """
    if config.item_model is None:
        return []
    if config.like:
        raise UserError(
            "--item_model: with --like old items keep their embeddings, and no network has any of new ones."
        )
    if config.collaborative == "none":
        raise UserError("--item_model joins the texts as --collaborative says: concat or average, found none.")
    artifact = artifacts.read(config.item_model, "baseline")
    return [replace(artifact, role=f"item_model-{artifact.fingerprint[:8]}")]


if __name__ == "__main__":
    run(main, Config, "demo/embeddings.yaml")
