"""Engines that run a teacher, one a file; each implements `distill.teachers.engine.Engine`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from distill.data.dataset import PAD, Dataset
from distill.runtime import models
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs
from teacher.config import StreamSettings
from teacher.model import check_checkpoint
from teacher.tasks import TaskData


def prompt_rows(data: TaskData, prompt: str, histories: np.ndarray) -> list[list[int]]:
    """Token numbers of the prompt for each history, of unequal lengths.

    Args:
        data: knows templates and codewords.
        prompt: "stream" or "seqrec".
        histories: item numbers, oldest first, padded with -1 [users, length].
    """
    if prompt == "seqrec":
        return [data.seqrec_prompt(history) for history in histories]
    return [data.writer.prompt(history[history != PAD]).tolist() for history in histories]


def open_teacher(folder: Path, dataset: Dataset, ids: SemanticIDs) -> tuple[TaskData, str]:
    """Read all but the weights of a checkpoint: `data` and `prompt` of `Engine`.

    Raises:
        UserError: not a merged checkpoint, or without this codebook's tokens; it reads titles, and no item has a text.
    """
    check_checkpoint(folder)
    facts = json.loads((Path(folder) / "teacher.json").read_text())
    tokenizer = models.load_tokenizer(folder, f"No tokenizer at {folder}")
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in ids.tokens() if token not in vocabulary]
    if missing:
        raise UserError(f"The teacher at {folder} does not know {len(missing)} codewords (first {missing[0]!r}).")
    rows = json.loads((Path(folder) / "config.json").read_text()).get("vocab_size", len(vocabulary))
    last = max(vocabulary[token] for token in ids.tokens())
    if last >= rows:
        raise UserError(
            f"The teacher at {folder} has {rows} rows of embeddings, its tokenizer has codewords up to token {last}: "
            "it was saved before its vocabulary was extended."
        )
    stream = StreamSettings(facts.get("stream_titles", 0), facts.get("stream_title_items", 0))
    data = TaskData(dataset, ids, tokenizer, facts["max_history"], facts["max_tokens"], stream=stream)
    return data, facts["prompt"]
