"""Items of a log that was read in blocks: numbers for the ids that it names."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.data.sources.blocks import InteractionBlocks
from distill.data.sources.numbering import unknown_item


def number_items(blocks: InteractionBlocks, appearances: pa.Table) -> tuple[pa.Table, pa.Array, np.ndarray]:
    """Number the items, in the order of the catalogue; without one, in the order of their first rows.

    Args:
        blocks: hold the catalogue, if there is one.
        appearances: item_id, first_row and n (interactions) of each id that the log names.

    Returns:
        The catalogue (row = item number); and the ids that the log names, with the number of each.

    Raises:
        UserError: names the first item that the catalogue does not have.
    """
    ids = appearances["item_id"].combine_chunks()
    first_rows = appearances["first_row"].to_numpy()
    if blocks.items is None:
        ids = ids.take(pa.array(np.argsort(first_rows)))
        return pa.table({"item_id": ids.cast(pa.string())}), ids, np.arange(len(ids))
    known = blocks.items["item_id"].combine_chunks()
    numbers = pc.index_in(ids, value_set=known).fill_null(-1).to_numpy(zero_copy_only=False)
    unknown = np.flatnonzero(numbers < 0)
    if len(unknown):
        first = unknown[np.argmin(first_rows[unknown])]
        place, count = blocks.where(int(first_rows[first])), int(appearances["n"].to_numpy()[unknown].sum())
        raise unknown_item(place, ids[int(first)].as_py(), len(known), str(blocks.catalogue_path), count)
    if blocks.only_items is None:
        return blocks.items, ids, numbers
    kept, numbers = np.unique(numbers, return_inverse=True)
    return blocks.only_items(kept), ids, numbers
