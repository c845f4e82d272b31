"""Settings of data preparation, in groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from distill.runtime.config import HalfOpenUnitInterval, Seed
from distill.runtime.errors import UserError
from distill.runtime.ray_settings import ClusterSettings, refuse_changed

BLOCK_FORMATS = ("table", "recbole")  # their readers have `read_blocks`
SPLIT_ALREADY = ("global_cut", None, None)  # split, valid_from and test_from of such formats


@dataclass(frozen=True)
class SourceSettings:
    """What to read."""

    format: Literal["demo", "recbole", "lcrec", "table", "amazon", "movielens", "setrec"] = "demo"
    """What to read (docs/data.md): demo (simulated, reads nothing), recbole (NAME.test.inter with NAME.item2index and
    NAME.text, or NAME.inter with NAME.item), lcrec (NAME.inter.json with NAME.item.json and NAME.item2id), table
    (interactions.csv or .parquet with items.csv or .parquet), amazon (reviews of 2014, 2018 or 2023 with meta_NAME),
    movielens, or setrec (training_dict.npy and so on, split already; with --split global_cut)."""
    input: Path | None = None
    """Folder of the raw files; for formats table and amazon also the file of interactions itself."""
    seed: Seed = 0
    """Seed of the demo's shop and users, and of the choice of withheld items."""
    users: PositiveInt = 2000
    """Number of users of the demo."""
    user_column: str = "user_id"
    """Format table: the column of user ids."""
    item_column: str = "item_id"
    """Format table: the column of item ids, in both tables."""
    time_column: str | None = "timestamp"
    """Format table: the column of times (numbers of seconds, or dates); null if rows are in time order."""
    rating_column: str | None = None
    """Formats table and recbole: the column of ratings (default: rating); read for min_rating only."""
    max_bad_lines: NonNegativeInt = field(default=10, metadata={"identity": False})
    """Format amazon: malformed lines that may be left out; they are counted and named."""


@dataclass(frozen=True)
class FilterSettings:
    """What to leave out."""

    min_rating: float | None = None
    """Leave out interactions rated lower (default: none)."""
    duplicates: Literal["keep", "exact", "first"] | None = None
    """Repeated interactions: keep them; leave out exact ones (user, item and time agree); or keep only a user's first
    with an item (default: first for amazon, else keep)."""
    k_core: NonNegativeInt | None = None
    """Leave out users and items with fewer interactions, until nothing changes; 0: keep all (default: 5 for amazon,
    else 0)."""
    item_core: NonNegativeInt | None = None
    """Another threshold for items (default: that of k_core)."""
    clean_html: bool | None = None
    """Remove tags and entities from the texts (default: true for amazon, else false)."""
    empty_text: Literal["error", "keep", "drop"] = "error"
    """Items without a text in a source that has texts: stop, keep them, or leave them and their interactions out."""
    short_users: Literal["error", "drop"] = "error"
    """Users with fewer items than the split needs (leave-one-out 3, global_cut 2): stop, or leave them out."""


@dataclass(frozen=True)
class SplitSettings:
    """What is not trained on."""

    split: Literal["leave_one_out", "global_cut"] = "leave_one_out"
    """What is held out: each user's last two items, or everything after two moments, the same for all users."""
    valid_from: float | str | None = None
    """Split global_cut: where the validation part begins: a date, seconds since 1970, or a share below 1 of the
    interactions (default: 0.8)."""
    test_from: float | str | None = None
    """Split global_cut: where the test part begins, likewise (default: 0.9)."""
    withhold: HalfOpenUnitInterval = field(default=0.0, metadata={"identity": False})
    """Share of the items to remove from all training sequences; they stay in the catalogue and remain targets of
    validation and test. Measures recommendations of items without interactions."""


@dataclass(frozen=True)
class PrepareSettings(SplitSettings, FilterSettings, SourceSettings):
    """All settings that decide the content of a data set."""


@dataclass(frozen=True)
class EngineSettings(ClusterSettings):
    """How to work; all engines write the same files."""

    engine: Literal["memory", "duckdb", "ray"] = field(default="memory", metadata={"identity": False})
    """memory holds all interactions in memory; duckdb keeps them on disk (extra duckdb), ray on the nodes of a Ray
    cluster (extra ray): both for formats table and recbole (NAME.inter) that do not fit."""
    memory_limit: str = field(default="4GB", metadata={"identity": False})
    """Memory that the engine duckdb may use, such as 4GB or 2500MB."""


def check_engine(settings: PrepareSettings, engine: EngineSettings) -> None:
    """Check that the engine reads the format, and that settings of Ray are for Ray.

    Raises:
        UserError: as above.
    """
    if engine.engine != "memory" and settings.format not in BLOCK_FORMATS:
        raise UserError(
            f"--engine {engine.engine} reads the formats {' and '.join(BLOCK_FORMATS)}, not {settings.format}. Use "
            "--engine memory, or write the interactions as a table."
        )
    if engine.engine != "ray":
        refuse_changed(engine, ClusterSettings, "--engine ray")


def check(settings: PrepareSettings) -> None:
    """Check settings against each other.

    Raises:
        UserError: two settings that do not go together.
    """
    is_demo = settings.format == "demo"
    if is_demo and (settings.k_core or settings.item_core):
        raise UserError("k_core and item_core: the simulator needs all items of the demo; leave these settings out.")
    if not is_demo and settings.input is None:
        raise UserError(f"Format {settings.format} reads files: name their folder with --input.")
    if settings.format == "setrec" and (settings.split, settings.valid_from, settings.test_from) != SPLIT_ALREADY:
        raise UserError(
            "Format setrec is split already, by time: add --split global_cut, without valid_from, test_from."
        )
    if settings.split == "leave_one_out" and (settings.valid_from, settings.test_from) != (None, None):
        raise UserError("valid_from and test_from cut by time: add --split global_cut.")
