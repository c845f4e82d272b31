"""Embeddings to semantic IDs: train an RQ-VAE, resolve collisions, report; or import LC-Rec's `index.json`."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tqdm import tqdm

from distill import artifacts
from distill.artifacts import Stage, UserError, write_json
from distill.catalog import Dataset
from distill.config import run
from distill.semantic_ids import LEVEL_NAMES, write_codes

TOKEN = re.compile(r"<([a-z])_(0|[1-9]\d{0,5})>")


@dataclass(frozen=True)
class Config:
    """Give every item its semantic ID."""

    run: Path = Path("runs/demo")
    """Root of a run: stages put their results below it."""
    dataset: Path | None = None
    """Data set to read; RUN/dataset if not given."""
    embeddings: Path | None = None
    """Embeddings to quantise; RUN/embeddings if not given."""
    output: Path | None = None
    """Folder of the semantic IDs; RUN/semantic_ids if not given."""
    index: Path | None = None
    """Import these IDs instead of training (LC-Rec's index.json: item number to its tokens, "<a_137>" and so on).
    Needs no embeddings; takes the IDs as they are; of the settings below only codebook_size counts."""
    levels: int = 4
    """Codes of an item."""
    codebook_size: int = 256
    """Codewords of a level (paper: 256)."""
    unique: bool = True
    """Guarantee that no two items share an ID."""
    collision_rounds: int = 20
    """Rounds in which colliding items are assigned anew among themselves, as LC-Rec does, before the guarantee."""
    hidden: list[int] = field(default_factory=lambda: [256, 128, 64])
    """Hidden sizes of the encoder; the decoder mirrors them (LC-Rec: 2048, 1024, 512, 256, 128, 64)."""
    latent_dim: int = 32
    """Size of the codewords."""
    beta: float = 0.25
    """Weight of the commitment term."""
    epochs: int = 1000
    """Passes over the items (LC-Rec: 5,000 to 10,000)."""
    warmup_epochs: int = 100
    """Epochs, of those, without quantisation; then k-means starts the codebooks."""
    batch_size: int = 1024
    """Items a step."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    sinkhorn_epsilon: float = 0.003
    """Entropy of the balanced assignment on the last level; 0 switches it off."""
    sinkhorn_iterations: int = 50
    """Sinkhorn-Knopp iterations."""
    revive_every: int = 20
    """Epochs between two revivals of codewords that nothing chose; 0 switches it off."""
    seed: int = 0
    """Of the weights, the order of the batches and k-means."""
    overwrite: bool = False
    """Repeat the work even if it is finished."""


def main(config: Config) -> None:
    """Train or import, then write codes, quantiser and report."""
    dataset = Dataset.load(config.dataset or config.run / "dataset")
    inputs, extra = [dataset.artifact], {}
    if config.index is None:
        inputs.append(artifacts.read(config.embeddings or config.run / "embeddings", "embeddings"))
    elif config.index.is_file():
        extra = {"index": [config.index.stat().st_size, config.index.stat().st_mtime_ns]}
    else:
        raise UserError(f"No file {config.index}; --index names an index.json of LC-Rec's format.")
    output = config.output or config.run / "semantic_ids"
    stage = Stage("semantic_ids", config, output, inputs=inputs, extra=extra, overwrite=config.overwrite)
    if stage.is_finished():
        return
    # Everything is checked before the first byte is written.
    if config.index is not None:
        codes, size = read_index(config.index, dataset.n_items, config.codebook_size)
        model, facts = None, {"source": config.index.name}
    else:
        embeddings = _load_embeddings(inputs[1].folder / "embeddings.safetensors", dataset.n_items)
        model, codes, facts = _quantise(embeddings, config)
        size = config.codebook_size
    report = describe(codes, size) | facts
    with stage.write() as folder:
        write_codes(folder, dataset.items["item_id"].to_pylist(), codes)
        if model is not None:
            from distill import rqvae

            rqvae.save(model, folder)
        write_json(folder / "report.json", report)
    _print(report)


def read_index(path: Path, n_items: int, codebook_size: int) -> tuple[np.ndarray, int]:
    """Read LC-Rec's `index.json`: `{"0": ["<a_137>", "<b_112>", "<c_79>", "<d_200>"], …}`.

    Args:
        path: the file.
        n_items: items of the data set; keys must be "0" to n_items − 1.
        codebook_size: codes must be below.

    Returns:
        Codes [n_items, levels] and the codebook size.

    Raises:
        UserError: not such a file, items missing or too many, malformed tokens, unequal numbers of levels.
    """
    try:
        table = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not readable JSON ({error}).") from None
    if not isinstance(table, dict) or not table:
        raise UserError(f'{path}: expected an object like {{"0": ["<a_137>", "<b_112>"]}}, found another value.')
    expected = {str(item) for item in range(n_items)}
    _refuse(path, "misses {} of the data set's {} items", expected - table.keys(), n_items)
    _refuse(path, "has {} items that the data set of {} has not", table.keys() - expected, n_items)
    levels = len(table["0"])
    codes = np.zeros((n_items, levels), dtype=np.int64)
    for item in range(n_items):
        words = table[str(item)]
        where = f"{path}, item {item}"
        if not isinstance(words, list) or not 1 <= len(words) <= len(LEVEL_NAMES):
            raise UserError(f"{where}: expected a list of 1 to {len(LEVEL_NAMES)} tokens, found {json.dumps(words)}.")
        if len(words) != levels:
            raise UserError(f"{where}: has {len(words)} levels, item 0 has {levels}; all must have as many.")
        for level, word in enumerate(words):
            match = TOKEN.fullmatch(word) if isinstance(word, str) else None
            if match is None or match[1] != LEVEL_NAMES[level]:
                wanted = f"<{LEVEL_NAMES[level]}_NUMBER>"
                raise UserError(f"{where}: malformed token {json.dumps(word)} at level {level + 1}, expected {wanted}.")
            codes[item, level] = int(match[2])
            if codes[item, level] >= codebook_size:
                raise UserError(f"{where}: {word} is outside a codebook of {codebook_size}; raise codebook_size.")
    return codes, codebook_size


def _refuse(path: Path, message: str, keys: set[str], n_items: int) -> None:
    if keys:
        first = min(keys, key=lambda key: (len(key), key))
        raise UserError(f"{path} {message.format(len(keys), n_items)}, the first is item {first!r}.")


def describe(codes: np.ndarray, codebook_size: int) -> dict[str, Any]:
    """Facts that any IDs have: counts, and per level the codes used and their perplexity.

    Args:
        codes: [n_items, levels].
        codebook_size: codewords a level.
    """
    levels = []
    for column in codes.T:
        share = np.bincount(column, minlength=codebook_size) / len(codes)
        share = share[share > 0]
        levels.append({"used": len(share), "perplexity": float(np.exp(-(share * np.log(share)).sum()))})
    distinct = len(np.unique(codes, axis=0))
    rate = 1 - distinct / len(codes)
    return {
        "items": len(codes),
        "distinct_ids": distinct,
        "levels": codes.shape[1],
        "codebook_size": codebook_size,
        "collision_rate_before": rate,
        "collision_rate": rate,
        "per_level": levels,
    }


def verdict(report: dict[str, Any]) -> str:
    """One line: can these IDs be trusted, and if not, why."""
    faults = []
    if report["collision_rate"] > 0:
        faults.append(f"{report['items'] - report['distinct_ids']} items share the ID of another")
    if report["collision_rate_before"] > 0.2 and report.get("source") == "rqvae":
        faults.append(f"{report['collision_rate_before']:.0%} collided before resolution (train for longer)")
    # A level cannot use more codes than there are items.
    enough = 0.5 * min(report["codebook_size"], report["items"])
    for name, level in zip(LEVEL_NAMES, report["per_level"], strict=False):
        if level["used"] < enough:
            faults.append(f"level {name} uses only {level['used']} of {report['codebook_size']} codes")
    if report.get("reconstruction_error", 0) > 0.6:
        faults.append(f"{report['reconstruction_error']:.0%} of the embeddings' variance is lost")
    if not faults:
        return "Good: every item has an ID of its own, and all levels are well used."
    return "Usable, but " + "; ".join(faults) + "."


def _load_embeddings(path: Path, n_items: int) -> np.ndarray:
    try:
        embeddings = load_file(path)["embeddings"]
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error!r}); {artifacts.MADE_BY['embeddings']} --overwrite") from None
    if embeddings.ndim != 2 or len(embeddings) != n_items:
        raise UserError(f"{path} has shape {list(embeddings.shape)}, the data set has {n_items} items.")
    return embeddings


def _quantise(embeddings: np.ndarray, config: Config) -> tuple[Any, np.ndarray, dict[str, Any]]:
    """Train, encode, resolve: the `RQVAE`, codes [n_items, levels], and what only a trained quantiser can report."""
    import torch  # here, because importing IDs does without

    from distill import rqvae

    names = {one.name for one in dataclasses.fields(rqvae.RQVAEConfig)}
    settings = rqvae.RQVAEConfig(**{name: value for name, value in vars(config).items() if name in names})
    with tqdm(total=settings.epochs, desc="RQ-VAE", unit="epoch") as bar:

        def progress(epoch: int, losses: dict[str, float]) -> None:
            bar.update()
            if epoch % 10 == 0 or epoch == settings.epochs:
                bar.set_postfix({name: f"{loss:.3g}" for name, loss in losses.items()})

        model = rqvae.train(embeddings, settings, progress, "cuda" if torch.cuda.is_available() else "cpu").cpu()
    before = model.encode(embeddings)
    codes = rqvae.resolve_collisions(
        before,
        model.last_residuals(embeddings, before),
        model.codebooks[-1].detach().numpy(),
        rounds=config.collision_rounds,
        unique=config.unique,
        epsilon=config.sinkhorn_epsilon,
        iterations=config.sinkhorn_iterations,
    )
    variance = float(np.square(embeddings - embeddings.mean(axis=0)).sum()) or 1.0
    error = float(np.square(embeddings - model.decode(codes)).sum())
    facts = {
        "source": "rqvae",
        "reconstruction_error": error / variance,  # share of the variance, 0 is perfect, 1 is the mean embedding
        "mean_squared_error": error / embeddings.size,
        "collision_rate_before": rqvae.collision_rate(before),
    }
    return model, codes, facts


def _print(report: dict[str, Any]) -> None:
    table = Table("level", "codes used", "perplexity")
    for name, level in zip(LEVEL_NAMES, report["per_level"], strict=False):
        table.add_row(name, f"{level['used']} of {report['codebook_size']}", f"{level['perplexity']:.1f}")
    console = Console()
    console.print(table)
    lines = [f"{report['items']:,} items, {report['distinct_ids']:,} distinct IDs"]
    lines.append(f"collision rate {report['collision_rate_before']:.2%} before, {report['collision_rate']:.2%} after")
    if "reconstruction_error" in report:
        lines.append(f"reconstruction error {report['reconstruction_error']:.1%} of the embeddings' variance")
    console.print("\n".join([*lines, verdict(report)]), highlight=False)


if __name__ == "__main__":
    run(main, Config, "demo/semantic_ids.yaml")
