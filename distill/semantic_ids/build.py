"""Build semantic IDs: train a quantiser and resolve collisions, number items, import an index, or add items."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.dataset import Dataset
from distill.runtime.artifacts import Artifact, write_json
from distill.runtime.devices import choose_device
from distill.runtime.errors import UserError
from distill.runtime.logs import progress_bar
from distill.semantic_ids import cooccurrence, embeddings, numbering, quantisers
from distill.semantic_ids.category_paths import category_codes
from distill.semantic_ids.collaborative import collaborative_codes
from distill.semantic_ids.config import CollisionSettings, IDSettings, QuantiserSettings
from distill.semantic_ids.ids import SemanticIDs, write_codes
from distill.semantic_ids.index_file import read_index
from distill.semantic_ids.quantisers import Quantiser
from distill.semantic_ids.quantisers.settings import check

# Share of the old items that must get their old first code again; else the new embeddings lie in another space.
SAME_SPACE = 0.5
WINDOW = 20  # items at most this far apart in a sequence are bought together, for LETTER's collaborative loss


@dataclass(frozen=True)
class BuiltIDs:
    """Semantic IDs, ready to be written.

    Attributes:
        item_ids: of all items [n_items].
        codes: final codes [n_items, levels].
        before: codes before collisions were resolved [n_items, levels].
        codebook_size: codewords per level.
        facts: for the report: where the IDs come from and, of an extension, how many items are new.
        vectors: the embeddings [n_items, dim]; None for imported and numbered IDs.
        quantiser: None for imported and numbered IDs.
    """

    item_ids: list[str]
    codes: np.ndarray
    before: np.ndarray
    codebook_size: int
    facts: dict[str, Any] = field(default_factory=dict)
    vectors: np.ndarray | None = None
    quantiser: Quantiser | None = None

    def write(self, folder: Path, report: dict[str, Any], page: str) -> None:
        """Write codes, quantiser and report into an existing folder."""
        write_codes(folder, self.item_ids, self.codes)
        if self.quantiser is not None:
            quantisers.save(self.quantiser, folder)
        write_json(folder / "report.json", report)
        (folder / "report.html").write_text(page, encoding="utf-8")


def import_ids(path: Path, dataset: Dataset, codebook_size: int) -> BuiltIDs:
    """Import the IDs of LC-Rec's `index.json` as they are.

    Raises:
        UserError: as `read_index`.
    """
    codes = read_index(path, dataset.n_items, codebook_size)
    return BuiltIDs(dataset.items["item_id"].to_pylist(), codes, codes, codebook_size, {"source": path.name})


def number_ids(dataset: Dataset, settings: QuantiserSettings) -> BuiltIDs:
    """Number the items by `sid`, `rid`, `iid`, `cid` or `semid`; no two share an ID.

    Reads the training sequences alone, semid the items' categories instead.

    Raises:
        UserError: more items than codes, or settings that cannot work.
    """
    n_items, levels, size, seed = dataset.n_items, settings.levels, settings.codebook_size, settings.seed
    values, offsets = dataset.training_sequences()
    if settings.quantiser == "iid":  # first: its own message names both settings
        codes = numbering.independent_codes(n_items, levels, size)
    check(n_items, levels, size)
    if settings.quantiser == "sid":
        codes = numbering.sequential_codes(values, n_items, levels, size, seed)
    elif settings.quantiser == "rid":
        codes = numbering.random_codes(n_items, levels, size, seed)
    elif settings.quantiser == "cid":
        codes = collaborative_codes(values, offsets, n_items, levels, size, settings.spectral, seed)
    elif settings.quantiser == "semid":
        codes = category_codes(dataset.items["categories"].to_pylist(), levels, size, seed)
    return BuiltIDs(dataset.items["item_id"].to_pylist(), codes, codes, size, {"source": settings.quantiser})


def train_ids(embedded: Artifact, dataset: Dataset, settings: IDSettings) -> BuiltIDs:
    """Train a quantiser on embeddings, encode all items and resolve collisions.

    Raises:
        UserError: embeddings or settings that cannot work, or collisions that cannot be resolved.
    """
    item_ids = dataset.items["item_id"].to_pylist()
    vectors = embeddings.load(embedded.folder, item_ids)
    quantiser = _train(vectors, settings, _collaborative(dataset, settings))
    before = quantiser.encode(vectors)
    codes = resolve(quantiser, vectors, before, settings)
    return BuiltIDs(item_ids, codes, before, quantiser.codebook_size, {"source": quantiser.name}, vectors, quantiser)


def extend_ids(old: Artifact, embedded: Artifact, dataset: Dataset, settings: CollisionSettings) -> BuiltIDs:
    """Add items to earlier IDs: old items keep their codes, new items are encoded by the old quantiser.

    Raises:
        UserError: old IDs without quantiser, old items that are missing, embeddings of another space.
    """
    item_ids = dataset.items["item_id"].to_pylist()
    vectors = embeddings.load(embedded.folder, item_ids)
    old_ids = SemanticIDs.load(old.folder)
    if not (old.folder / quantisers.SETTINGS).is_file():
        raise UserError(f"{old.folder} was imported or numbered: it has no quantiser that could encode new items.")
    quantiser = quantisers.load(old.folder)
    rows = _rows_of(old_ids.item_ids, item_ids, old.folder)
    if vectors.shape[1] != quantiser.input_dim:
        raise UserError(
            f"The embeddings have {vectors.shape[1]} dimensions, {old.folder} was made from {quantiser.input_dim}. "
            "Embed with: python scripts/embed_items.py --like OLD_EMBEDDINGS"
        )
    before = quantiser.encode(vectors)
    same = float((before[rows, 0] == old_ids.codes[:, 0]).mean())
    if same < SAME_SPACE:
        raise UserError(
            f"Only {same:.0%} of the old items would get their old first code again: these embeddings are not in the "
            "space of the old ones. Embed with: python scripts/embed_items.py --like OLD_EMBEDDINGS"
        )
    before[rows] = old_ids.codes
    fixed = np.zeros(len(item_ids), dtype=bool)
    fixed[rows] = True
    codes = resolve(quantiser, vectors, before, settings, fixed)
    facts = {
        "source": quantiser.name,
        "extends": old.fingerprint,
        "kept": len(rows),
        "added": len(item_ids) - len(rows),
    }
    return BuiltIDs(item_ids, codes, before, quantiser.codebook_size, facts, vectors, quantiser)


def _rows_of(old_items: list[str], items: list[str], folder: Path) -> np.ndarray:
    """Find the rows of the old items among all items."""
    row_of = {item: row for row, item in enumerate(items)}
    missing = [item for item in old_items if item not in row_of]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(old_items)} items of {folder} are not in the data set, the first is "
            f"{missing[0]!r}. Keep them in the catalogue (their codes stay taken), or build all IDs anew without "
            "--extend."
        )
    return np.array([row_of[item] for item in old_items])


def _collaborative(dataset: Dataset, settings: QuantiserSettings) -> np.ndarray | None:
    """Embed the items by co-occurrence in the training part, for LETTER's collaborative loss [n_items, latent_dim].

    None where the loss has no weight.

    Raises:
        UserError: LETTER's losses beside another quantiser than rqvae.
    """
    letter = settings.letter
    if settings.quantiser != "rqvae" and (letter.collaborative or letter.diversity):
        raise UserError(f"--letter is for --quantiser rqvae, not {settings.quantiser}.")
    if not letter.collaborative:
        return None
    values, offsets = dataset.training_sequences()
    return cooccurrence.embed(values, offsets, dataset.n_items, settings.rqvae.latent_dim, WINDOW, settings.seed)


def _train(vectors: np.ndarray, settings: QuantiserSettings, collaborative: np.ndarray | None) -> Quantiser:
    with progress_bar(desc=settings.quantiser, unit="step") as bar:

        def progress(done: int, total: int, note: str) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if note and (done % 10 == 0 or done == total):
                bar.set_postfix_str(note)

        return quantisers.fit(
            settings.quantiser,
            vectors,
            settings.levels,
            settings.codebook_size,
            settings.seed,
            settings.rqvae,
            settings.kmeans,
            settings.sample,
            progress,
            choose_device("auto"),
            settings.letter,
            collaborative,
        )


def resolve(
    quantiser: Quantiser,
    vectors: np.ndarray,
    codes: np.ndarray,
    settings: CollisionSettings,
    fixed: np.ndarray | None = None,
) -> np.ndarray:
    """Resolve collisions of codes [n_items, levels]; `fixed` items [n_items] keep their codes."""
    from distill.semantic_ids.collisions import move_surplus, resolve_collisions

    last = quantiser.levels - 1
    if settings.unique and settings.full_prefix == "move":
        codes = move_surplus(
            codes,
            lambda rows, chosen, level: quantiser.target(vectors[rows], chosen, level),
            quantiser.words,
            fixed,
        )
    return resolve_collisions(
        codes,
        lambda rows: quantiser.target(vectors[rows], codes[rows], last),
        quantiser.words(last),
        settings.collision_rounds,
        settings.unique,
        fixed=fixed,
    )
