"""What runs a teacher: one protocol, one file an engine. Engines are imported where they are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from distill.artifacts import UserError
from distill.catalog import PAD, Dataset
from distill.semantic_ids import SemanticIDs

if TYPE_CHECKING:
    from torch import Tensor

    from teacher.tasks import TaskData

Scope = Literal["level", "all"]


class Engine(Protocol):
    """A teacher that can be asked. All log-probabilities are over the full vocabulary, in float32.

    Attributes:
        data: knows the prompts and the codewords' token numbers.
        prompt: how the teacher is asked, "stream" or "seqrec".
    """

    data: TaskData
    prompt: str

    def beams(
        self, histories: np.ndarray, width: int, exclude_bought: bool = True, constrained: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest items after each history.

        Args:
            histories: item numbers, oldest first, padded with -1 [users, length].
            width: beams.
            exclude_bought: leave out the history's items.
            constrained: only valid IDs; otherwise any codewords, and items are -1 where there is none.

        Returns:
            Item numbers, best first, -1 for none, and their log P(v|S); both [users, width].
        """
        ...

    def codeword_logprobs(self, histories: np.ndarray, targets: np.ndarray, scope: Scope = "level") -> Tensor:
        """Teacher-forced log-probabilities of codewords at each of the target's positions.

        Args:
            histories: as for `beams` [rows, length].
            targets: the items that are forced [rows].
            scope: "level": the codewords of the position's level; "all": those of all levels, level after level.

        Returns:
            [rows, levels, codebook_size], or [rows, levels, levels * codebook_size]; what a row lacks to 1 is the mass
            outside it.
        """
        ...

    def stream_logprobs(self, sequences: np.ndarray, scope: Scope = "level") -> Tensor:
        """`codeword_logprobs` of every item of running sequences; only for teachers asked with "stream".

        Args:
            sequences: item numbers, padded with -1 on the right [users, length].
            scope: as for `codeword_logprobs`.

        Returns:
            [users, length, levels, ...]; rows of padding mean nothing.
        """
        ...


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
