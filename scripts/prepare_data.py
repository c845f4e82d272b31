"""Raw interactions to a data set: what is read and what may be left out is told in docs/data.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from distill.data import sources
from distill.data.dataset import as_lists, check_unique, statistics, write_dataset
from distill.data.sources import demo
from distill.data.sources.refine import refine, without_short_users
from distill.data.splits import MIN_LENGTH, MIN_LENGTH_CUT, cut_by_time, date
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import JobSettings, run
from distill.runtime.errors import UserError
from distill.runtime.logs import log


@dataclass(frozen=True)
class Config(JobSettings):
    """Turn raw interactions into the data set that every later stage reads."""

    run: Path = Path("runs/demo")
    """Root of a run: stages put their results below it."""
    output: Path | None = None
    """Folder of the data set; RUN/dataset if not given."""
    format: Literal["demo", "recbole", "lcrec", "table", "amazon", "movielens"] = "demo"
    """What to read (docs/data.md): demo (simulated, reads nothing), recbole (NAME.test.inter with NAME.item2index and
    NAME.text, or NAME.inter with NAME.item), lcrec (NAME.inter.json with NAME.item.json and NAME.item2id), table
    (interactions.csv or .parquet with items.csv or .parquet), amazon (reviews of 2014, 2018 or 2023 with meta_NAME), or
    movielens."""
    input: Path | None = None
    """Folder of the raw files; for formats table and amazon also the file of interactions itself."""
    seed: int = 0
    """Of the demo's shop and of its users."""
    users: int = 2000
    """How many users the demo has."""
    short_users: Literal["error", "drop"] = "error"
    """Users with fewer items than the split needs (leave-one-out 3, global_cut 2): stop, or leave them out."""
    empty_text: Literal["error", "keep", "drop"] = "error"
    """Items without a text in a source that has texts: stop, keep them, or leave them and their interactions out."""
    user_column: str = "user_id"
    """Format table: the column of user ids."""
    item_column: str = "item_id"
    """Format table: the column of item ids, in both tables."""
    time_column: str | None = "timestamp"
    """Format table: the column of times (numbers of seconds, or dates); null if rows are in time order."""
    rating_column: str | None = None
    """Formats table and recbole: the column of ratings (default: rating); read for min_rating only."""
    min_rating: float | None = None
    """Leave out interactions rated lower (default: none)."""
    duplicates: Literal["keep", "exact", "first"] | None = None
    """Repeated interactions: keep them; leave out exact ones (user, item and time agree); or keep only a user's first
    with an item (default: first for amazon, else keep)."""
    k_core: int | None = None
    """Leave out users and items with fewer interactions, until nothing changes; 0: nobody (default: 5 for amazon, else
    0)."""
    item_core: int | None = None
    """Another threshold for items (default: that of k_core)."""
    clean_html: bool | None = None
    """Take tags and entities out of the texts (default: true for amazon, else false)."""
    max_bad_lines: int = field(default=10, metadata={"identity": False})
    """Format amazon: malformed lines that may be left out; they are counted and named."""
    split: Literal["leave_one_out", "global_cut"] = "leave_one_out"
    """What is held out: each user's last two items, or all that happens after two moments, the same for all users."""
    valid_from: float | str | None = None
    """Split global_cut: where the validation part begins: a date, seconds since 1970, or a share below 1 of the
    interactions (default: 0.8)."""
    test_from: float | str | None = None
    """Split global_cut: where the test part begins, likewise (default: 0.9)."""


def main(config: Config) -> None:
    """Read, check, write and count."""
    if config.format == "demo" and config.users < 1:
        raise UserError(f"users: expected at least 1, got {config.users}.")
    if config.format == "demo" and (config.k_core or config.item_core):
        raise UserError(
            "k_core and item_core: the simulator knows all its items by number; leave them out for the demo."
        )
    if config.format != "demo" and config.input is None:
        raise UserError(f"Format {config.format} reads files: name their folder with --input.")
    given = (config.valid_from, config.test_from)
    if config.split == "leave_one_out" and given != (None, None):
        raise UserError("valid_from and test_from cut by time: add --split global_cut.")
    cuts = (_moment("valid_from", config.valid_from, 0.8), _moment("test_from", config.test_from, 0.9))
    reader, options = sources.reader(config.format), _options(config)
    raw = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in reader.files(config.input, options)]
    extra = {"simulator": demo.VERSION} if config.format == "demo" else {"raw files": raw}
    output = config.output or config.run / "dataset"
    stage = ArtifactJob("dataset", config, output, inputs=[], extra=extra, overwrite=config.overwrite)
    if stage.is_finished():
        return
    # Everything is checked before the first byte is written.
    found = refine(reader.read(config.input, options), options)
    check_unique(found.items["item_id"], "item", found.origin)
    check_unique(found.user_ids, "user", found.origin)
    least, split = (MIN_LENGTH, "leave-one-out") if config.split == "leave_one_out" else (MIN_LENGTH_CUT, "global_cut")
    source = without_short_users(found, config.short_users, least, split)
    ends = None
    if config.split == "global_cut":
        if source.times is None:
            raise UserError(f"{source.origin}: there are no times to cut; use the split leave_one_out.")
        ends, moments = cut_by_time(source.times, source.offsets, *cuts)
        log.info(f"global_cut: validation from {date(moments[0])}, test from {date(moments[1])}")
    values = as_lists(source.values, source.offsets, pa.int32())
    times = None if source.times is None else as_lists(source.times, source.offsets, pa.int64())
    stage.facts = statistics(source.items.num_rows, source.offsets)
    with stage.write() as folder:
        write_dataset(folder, source.items, source.user_ids, values, times, ends)
        if source.extra_files:
            source.extra_files(folder)
    _print_statistics(stage.facts, dropped=len(found.user_ids) - len(source.user_ids))


def _options(config: Config) -> sources.Options:
    """What readers are told; where the config says nothing, the format's defaults hold."""
    chosen = {name: getattr(config, name) for name in ("rating_column", "duplicates", "k_core", "clean_html")}
    chosen = sources.DEFAULTS.get(config.format, {}) | {key: one for key, one in chosen.items() if one is not None}
    core = chosen.pop("k_core", 0)
    item_core = core if config.item_core is None else config.item_core
    for name, value in (("k_core", core), ("item_core", item_core), ("max_bad_lines", config.max_bad_lines)):
        if value < 0:
            raise UserError(f"{name}: expected 0 or more, got {value}.")
    names = ("seed", "users", "empty_text", "user_column", "item_column", "time_column", "min_rating", "max_bad_lines")
    rest = {name: getattr(config, name) for name in names}
    return sources.Options(user_core=core, item_core=item_core, **chosen, **rest)


def _moment(name: str, text: float | str | None, default: float) -> float:
    """A share below 1, seconds since 1970, or a date -> a number."""
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        try:
            number = float(np.datetime64(text, "s").astype(np.int64))
        except ValueError:
            number = float("nan")
    if not 0 < number < 2**40:
        raise UserError(
            f"{name}: expected a share of the interactions such as 0.8, a date such as 2018-05-31, or seconds since "
            f"1970, got {text!r}."
        )
    return number


def _print_statistics(numbers: dict[str, float], dropped: int) -> None:
    """The numbers of the paper's Table 3."""
    shapes = {"sparsity": ".2%", "mean_length": ".2f"}
    table = Table(*(name.replace("_", " ") for name in numbers))
    table.add_row(*(format(value, shapes.get(name, ",")) for name, value in numbers.items()))
    console = Console()
    console.print(table)
    if dropped:
        console.print(f"{dropped:,} users with too few items were left out.")


if __name__ == "__main__":
    run(main, Config, "demo/data.yaml")
