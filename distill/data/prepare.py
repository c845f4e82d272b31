"""Prepare a data set: read raw interactions, filter them, split them, check and write them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distill.data import sources
from distill.data.config import PrepareSettings, SplitSettings
from distill.data.dataset import as_lists, check_unique, statistics, write_dataset
from distill.data.sources import Options, Source, demo
from distill.data.sources.refine import refine, without_short_users
from distill.data.splits import MIN_LENGTH, MIN_LENGTH_CUT, cut_by_time, format_time, leave_one_out, published_cut
from distill.data.withholding import draw_items, remove_from_training
from distill.runtime.errors import UserError
from distill.runtime.logs import log


@dataclass(frozen=True)
class PreparedData:
    """A checked data set, ready to be written.

    Attributes:
        source: items and sequences.
        ends: of a split by time, where training and validation end in each sequence [users, 2]; None: leave-one-out.
        withheld: items withheld from training [n_items] (bool), or None.
        short_users: users that were left out because they have too few items for the split.
    """

    source: Source
    ends: np.ndarray | None
    withheld: np.ndarray | None
    short_users: int

    def facts(self) -> dict[str, float]:
        """Compute the columns of the paper's Table 3, and the number of withheld items if there are some."""
        numbers = statistics(self.source.items.num_rows, self.source.offsets)
        return numbers if self.withheld is None else numbers | {"withheld_items": int(self.withheld.sum())}

    def write(self, folder: Path) -> None:
        """Write all files of the data set into an existing folder."""
        source = self.source
        values = as_lists(source.values, source.offsets, pa.int32())
        times = None if source.times is None else as_lists(source.times, source.offsets, pa.int64())
        write_dataset(folder, source.items, source.user_ids, values, times, self.ends, self.withheld)
        if source.extra_files:
            source.extra_files(folder)


def reader_options(settings: PrepareSettings) -> Options:
    """Turn the settings into a reader's options, with the format's defaults where a setting is not given."""
    names = ("rating_column", "duplicates", "k_core", "clean_html")
    given = {name: value for name in names if (value := getattr(settings, name)) is not None}
    filled = sources.DEFAULTS.get(settings.format, {}) | given
    core = filled.pop("k_core", 0)
    item_core = core if settings.item_core is None else settings.item_core
    without_default = {field.name for field in fields(Options)} - {*names, "user_core", "item_core"}
    copied = {name: getattr(settings, name) for name in without_default}
    return Options(user_core=core, item_core=item_core, **filled, **copied)


def raw_identity(settings: PrepareSettings) -> dict[str, Any]:
    """Describe what decides the data set beyond the settings: raw files by size and time, the simulator by version.

    Raises:
        UserError: the raw files are missing or ambiguous.
    """
    if settings.format == "demo":
        identity: dict[str, Any] = {"simulator": demo.VERSION, "clock": demo.CLOCK}
    else:
        paths = sources.reader(settings.format).files(settings.input, reader_options(settings))
        identity = {"raw files": [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]}
    # only where used, so that data sets without it stay finished
    return identity | ({"withhold": settings.withhold} if settings.withhold else {})


def prepare(settings: PrepareSettings) -> PreparedData:
    """Read, filter, check and split; nothing is written.

    Raises:
        UserError: bad input or settings; the message says where, what was expected, and what to do.
    """
    moments = check_moments(settings)
    options = reader_options(settings)
    source = refine(sources.reader(settings.format).read(settings.input, options), options)
    check_unique(source.items["item_id"], "item", source.origin)
    check_unique(source.user_ids, "user", source.origin)
    by_time = settings.split == "global_cut"
    min_length, split = (MIN_LENGTH_CUT, "global_cut") if by_time else (MIN_LENGTH, "leave-one-out")
    n_users = len(source.user_ids)
    source = without_short_users(source, settings.short_users, min_length, split)
    short_users = n_users - len(source.user_ids)
    ends = _cut(source, *moments) if by_time else leave_one_out(source.offsets)
    withheld = None
    if settings.withhold:
        withheld = draw_items(source.items.num_rows, settings.withhold, settings.seed)
        source, ends = _withhold(source, ends, withheld, min_train=0 if by_time else 1)
    return PreparedData(source, ends if by_time else None, withheld, short_users)


def check_moments(settings: SplitSettings) -> tuple[float, float]:
    """Read valid_from and test_from, as shares below 1 or seconds since 1970.

    Raises:
        UserError: neither a share, nor seconds, nor a date.
    """
    return _moment("valid_from", settings.valid_from, 0.8), _moment("test_from", settings.test_from, 0.9)


def _moment(name: str, text: float | str | None, default: float) -> float:
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


def _cut(source: Source, valid_from: float, test_from: float) -> np.ndarray:
    if source.parts is not None:
        return published_cut(source.parts, source.offsets, source.origin)
    if source.times is None:
        raise UserError(f"{source.origin}: there are no times to cut; use the split leave_one_out.")
    ends, moments = cut_by_time(source.times, source.offsets, valid_from, test_from)
    log.info(f"global_cut: validation from {format_time(moments[0])}, test from {format_time(moments[1])}")
    return ends


def _withhold(source: Source, ends: np.ndarray, withheld: np.ndarray, min_train: int) -> tuple[Source, np.ndarray]:
    keep, ends = remove_from_training(source.values, source.offsets, ends, withheld, min_train)
    kept = source.take(np.flatnonzero(keep))
    log.info(
        f"withheld {withheld.sum():,} of {len(withheld):,} items: left out {(~keep).sum():,} of {len(keep):,} "
        f"interactions and {len(source.user_ids) - len(kept.user_ids):,} users with nothing else to train on"
    )
    return kept, ends
