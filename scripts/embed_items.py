"""Item texts to embeddings: TF-IDF with truncated SVD (offline), or a language model's mean-pooled hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

from distill.artifacts import Stage, UserError, say
from distill.catalog import Dataset
from distill.config import run

FILE = "embeddings.safetensors"
OWN_IDS = "bring IDs of your own instead: python scripts/build_semantic_ids.py --index FILE"


@dataclass(frozen=True)
class Config:
    """Embed the texts of all items."""

    run: Path = Path("runs/demo")
    """Root of a run: stages put their results below it."""
    dataset: Path | None = None
    """Data set to read; RUN/dataset if not given."""
    output: Path | None = None
    """Folder of the embeddings; RUN/embeddings if not given."""
    embedder: Literal["tfidf", "hf"] = "tfidf"
    """tfidf (offline, seconds) or hf (a Hugging Face model, as in the paper)."""
    dim: int = 128
    """tfidf: size of an embedding, capped at what the texts allow."""
    min_df: int = 2
    """tfidf: leave out words and pairs of words that fewer items have."""
    model: str | None = None
    """hf: folder or hub name of a causal language model or any other with hidden states."""
    max_tokens: int = 512
    """hf: longer texts are cut."""
    batch_size: int = 16
    """hf: items a step."""
    empty_text: Literal["error", "keep"] = "error"
    """Items without text: stop, or give them the mean embedding."""
    seed: int = 0
    """tfidf: of the truncated SVD."""
    overwrite: bool = False
    """Repeat the work even if it is finished."""


def main(config: Config) -> None:
    """Check the texts, embed them, write `embeddings.safetensors`: float32 [n_items, dim], row = item number."""
    if config.embedder == "hf" and not config.model:
        raise UserError("Embedder hf needs a model: name its folder or hub name with --model.")
    for name in ("dim", "min_df", "max_tokens", "batch_size"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}; it must be at least 1.")
    dataset = Dataset.load(config.dataset or config.run / "dataset")
    output = config.output or config.run / "embeddings"
    stage = Stage("embeddings", config, output, inputs=[dataset.artifact], overwrite=config.overwrite)
    if stage.is_finished():
        return
    texts = [text.strip() for text in dataset.texts()]
    _check_texts(texts, dataset, config)
    rows = np.flatnonzero([bool(text) for text in texts])
    with_text = [texts[row] for row in rows]
    found = _tfidf(with_text, config) if config.embedder == "tfidf" else _hidden_states(with_text, config)
    if not np.isfinite(found).all():
        bad = int(rows[np.flatnonzero(~np.isfinite(found).all(axis=1))[0]])
        raise UserError(f"The embedding of item {bad} holds NaN or infinity; the model {config.model} may be damaged.")
    present = np.zeros(len(texts), dtype=bool)
    present[rows] = np.abs(found).sum(axis=1) > 0
    embeddings = np.zeros((len(texts), found.shape[1]), dtype=np.float32)
    embeddings[rows] = found
    if not present.all():
        say(f"{(~present).sum()} items have no text, or no word of another item's; they get the mean embedding")
        embeddings[~present] = embeddings[present].mean(axis=0)
    if config.embedder == "tfidf":
        embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    with stage.write() as folder:
        save_file({"embeddings": np.ascontiguousarray(embeddings)}, folder / FILE)
    say(f"{len(texts):,} items, {embeddings.shape[1]} dimensions")


def _check_texts(texts: list[str], dataset: Dataset, config: Config) -> None:
    empty = [row for row, text in enumerate(texts) if not text]
    if len(empty) == len(texts):
        raise UserError(f"No item of {dataset.artifact.folder} has a text to embed; {OWN_IDS}")
    if empty and config.empty_text == "error":
        first = dataset.items["item_id"][empty[0]].as_py()
        raise UserError(
            f"{len(empty)} of {len(texts)} items have no text, the first is item {empty[0]} ({first!r}). Add texts, or "
            "give such items the mean embedding with --empty_text keep."
        )


def _tfidf(texts: list[str], config: Config) -> np.ndarray:
    """TF-IDF of words and pairs of words, brought to `dim` by truncated SVD (latent semantic analysis) [n, dim]."""
    from sklearn.decomposition import TruncatedSVD  # here, because errors and hf do without
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Pairs of words keep "water bottle" apart from "bottle opener"; logs keep long descriptions from shouting.
    vectorizer = TfidfVectorizer(
        sublinear_tf=True,
        ngram_range=(1, 2),
        min_df=min(config.min_df, len(texts)),
        token_pattern=r"(?u)\b\w+\b",
        dtype=np.float32,
    )
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:
        counts = None  # no term is left
    if counts is None or min(counts.shape) < 2:
        raise UserError(f"The {len(texts)} texts share too few words to be embedded; lower min_df, or {OWN_IDS}")
    dim = min(config.dim, min(counts.shape) - 1)
    if dim < config.dim:
        say(f"dim: {dim} instead of {config.dim}, all that {counts.shape[0]} items and {counts.shape[1]} terms allow")
    found = TruncatedSVD(dim, n_iter=7, random_state=config.seed).fit_transform(counts)
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    return np.where(norms > 1e-6, found / np.maximum(norms, 1e-12), 0).astype(np.float32)


def _hidden_states(texts: list[str], config: Config) -> np.ndarray:
    """Last hidden states, averaged over the text's tokens [n, hidden size] (paper 2.2)."""
    import torch

    tokenizer, model = _load_model(str(config.model))
    order = np.argsort([-len(text) for text in texts], kind="stable")  # like lengths together, little padding
    result = np.zeros((len(texts), model.config.get_text_config().hidden_size), dtype=np.float32)
    with torch.inference_mode(), tqdm(total=len(texts), desc="embed", unit="item") as bar:
        for start in range(0, len(texts), config.batch_size):
            rows = order[start : start + config.batch_size]
            batch = tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=config.max_tokens,
                return_tensors="pt",
                return_token_type_ids=False,
            ).to(model.device)
            states = model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None].float()
            result[rows] = ((states * mask).sum(1) / mask.sum(1).clamp_min(1)).cpu().numpy()
            bar.update(len(rows))
    return result


def _load_model(name: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    gpu = torch.cuda.is_available()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModel.from_pretrained(name, dtype=torch.bfloat16 if gpu else torch.float32)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name} is not a model that transformers can load ({reason}).") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer, model.to("cuda" if gpu else "cpu").eval()


if __name__ == "__main__":
    run(main, Config, "demo/embeddings.yaml")
