"""Raw interactions to a data set: the demo's simulator, RecBole's files, LC-Rec's files, or plain tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from distill import sources
from distill.artifacts import Stage, UserError
from distill.catalog import check_unique, write_dataset
from distill.config import run
from distill.sources import Source, demo


@dataclass(frozen=True)
class Config:
    """Turn raw interactions into the data set that every later stage reads."""

    run: Path = Path("runs/demo")
    """Root of a run: stages put their results below it."""
    output: Path | None = None
    """Folder of the data set; RUN/dataset if not given."""
    format: Literal["demo", "recbole", "lcrec", "table"] = "demo"
    """What to read: demo (simulated, reads nothing), recbole (NAME.test.inter with NAME.item2index and NAME.text, or
    NAME.inter with NAME.item), lcrec (NAME.inter.json with NAME.item.json and NAME.item2id), or table
    (interactions.csv or .parquet with items.csv or .parquet)."""
    input: Path | None = None
    """Folder of the raw files; for format table also the file of interactions itself."""
    seed: int = 0
    """Of the demo's shop and of its users."""
    users: int = 2000
    """How many users the demo has."""
    short_users: Literal["error", "drop"] = "error"
    """Users with fewer than 3 items, too few for leave-one-out: stop, or leave them out."""
    empty_text: Literal["error", "keep"] = "error"
    """Items without a text in a source that has texts: stop, or keep them."""
    user_column: str = "user_id"
    """Format table: the column of user ids."""
    item_column: str = "item_id"
    """Format table: the column of item ids, in both tables."""
    time_column: str | None = "timestamp"
    """Format table: the column of times (numbers of seconds, or dates); null if rows are in time order."""
    overwrite: bool = False
    """Repeat the work even if it is finished."""


def main(config: Config) -> None:
    """Read, check, write and count."""
    if config.format == "demo" and config.users < 1:
        raise UserError(f"users: expected at least 1, got {config.users}.")
    if config.format != "demo" and config.input is None:
        raise UserError(f"Format {config.format} reads files: name their folder with --input.")
    reader = sources.reader(config.format)
    options = sources.Options(
        seed=config.seed,
        users=config.users,
        empty_text=config.empty_text,
        user_column=config.user_column,
        item_column=config.item_column,
        time_column=config.time_column,
    )
    raw = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in reader.files(config.input, options)]
    extra = {"simulator": demo.VERSION} if config.format == "demo" else {"raw files": raw}
    output = config.output or config.run / "dataset"
    stage = Stage("dataset", config, output, inputs=[], extra=extra, overwrite=config.overwrite)
    if stage.is_finished():
        return
    # Everything is checked before the first byte is written.
    found = reader.read(config.input, options)
    check_unique(found.items["item_id"].to_pylist(), "item", found.origin)
    check_unique(found.user_ids, "user", found.origin)
    source = sources.without_short_users(found, config.short_users)
    with stage.write() as folder:
        write_dataset(folder, source.items, source.user_ids, source.sequences, source.times)
        if source.extra_files:
            source.extra_files(folder)
    _print_statistics(source, dropped=len(found.user_ids) - len(source.user_ids))


def _print_statistics(source: Source, dropped: int) -> None:
    """The numbers of the paper's Table 3."""
    users, items = len(source.user_ids), source.items.num_rows
    interactions = sum(map(len, source.sequences))
    table = Table("users", "items", "interactions", "mean length", "sparsity")
    table.add_row(
        f"{users:,}",
        f"{items:,}",
        f"{interactions:,}",
        f"{interactions / users:.2f}",
        f"{1 - interactions / (users * items):.2%}",
    )
    console = Console()
    console.print(table)
    if dropped:
        console.print(f"{dropped:,} users with too few items were left out.")


if __name__ == "__main__":
    run(main, Config, "demo/data.yaml")
