"""Engines that run a teacher, one a file; each implements `distill.teachers.engine.Engine`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distill.data.dataset import PAD, Dataset
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs

if TYPE_CHECKING:
    from teacher.tasks import TaskData


def prompt_rows(data: TaskData, prompt: str, histories: np.ndarray) -> list[list[int]]:
    """Token numbers of the prompt for each history, padded with -1 [users, length]; of unequal lengths."""
    if prompt == "seqrec":
        return [data.seqrec_prompt(history) for history in histories]
    start = data.tokenizer.bos_token_id
    return [[start, *data.item_tokens[history[history != PAD]].ravel().tolist()] for history in histories]


def open_teacher(folder: Path, dataset: Dataset, ids: SemanticIDs) -> tuple[TaskData, str]:
    """What every engine needs of a checkpoint beside its weights: `data` and `prompt` of `Engine`.

    Raises:
        UserError: not a merged checkpoint, or without this codebook's tokens.
    """
    from transformers import AutoTokenizer

    from teacher.model import check_checkpoint
    from teacher.tasks import TaskData

    check_checkpoint(folder)
    facts = json.loads((Path(folder) / "teacher.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = tokenizer.get_vocab()
    missing = [token for token in ids.tokens() if token not in known]
    if missing:
        raise UserError(f"The teacher at {folder} does not know {len(missing)} codewords (first {missing[0]!r}).")
    rows = json.loads((Path(folder) / "config.json").read_text()).get("vocab_size", len(known))
    last = max(known[token] for token in ids.tokens())
    if last >= rows:
        raise UserError(
            f"The teacher at {folder} has {rows} rows of embeddings, its tokenizer has codewords up to token {last}: "
            "it was saved before its vocabulary was extended."
        )
    return TaskData(dataset, ids, tokenizer, facts["max_history"], facts["max_tokens"]), facts["prompt"]
