"""Engines that run a teacher, one a file; each implements `distill.teachers.engine.Engine`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.data.dataset import PAD, Dataset
from distill.decoding.beam_search import Step
from distill.runtime import models
from distill.semantic_ids.ids import SemanticIDs
from distill.teachers.engine import Scope
from teacher.config import StreamSettings
from teacher.model import check_checkpoint
from teacher.prompt_file import PROMPT_FILE, fill, read_prompt
from teacher.tasks import TaskData
from teacher.tokenizer import check_codewords


def prompt_rows(data: TaskData, prompt: str, histories: np.ndarray) -> list[list[int]]:
    """Token numbers of the prompt for each history, of unequal lengths.

    Args:
        data: knows templates and codewords.
        prompt: "stream", "seqrec", or "file": the text that the user brought (`data.prompt_text`).
        histories: item numbers, oldest first, padded with -1 [users, length].
    """
    if prompt == "seqrec":
        return [data.seqrec_prompt(history) for history in histories]
    if prompt == "file":
        texts = [fill(data.prompt_text, data.history_text(history)) for history in histories]
        return [data.framed(words, data.ids.levels) for words in data.encode(texts)]
    return [data.writer.prompt(history[history != PAD]).tolist() for history in histories]


def open_teacher(folder: Path, dataset: Dataset, ids: SemanticIDs) -> tuple[TaskData, str]:
    """Read all but the weights of a checkpoint: `data` and `prompt` of `Engine`.

    Raises:
        UserError: not a merged checkpoint, or without this codebook's tokens; it reads titles, and no item has a text.
    """
    check_checkpoint(folder)
    facts = json.loads((Path(folder) / "teacher.json").read_text())
    tokenizer = models.load_tokenizer(folder, f"No tokenizer at {folder}")
    rows = json.loads((Path(folder) / "config.json").read_text()).get("vocab_size", len(tokenizer))
    check_codewords(tokenizer, ids, rows, folder)
    stream = StreamSettings(facts.get("stream_titles", 0), facts.get("stream_title_items", 0))
    text = read_prompt(Path(folder) / PROMPT_FILE) if facts["prompt"] == "file" else ""
    limits = facts["max_history"], facts["max_tokens"]
    return TaskData(dataset, ids, tokenizer, *limits, stream=stream, prompt_text=text), facts["prompt"]


def mask_gaps(log_probs: Tensor, gaps: np.ndarray, scope: Scope = "level") -> Tensor:
    """Give codewords that the vocabulary lacks the probability 0.

    Args:
        log_probs: [..., levels, codebook_size], or [..., levels, levels * codebook_size] under scope "all".
        gaps: as `TaskData.gaps` [levels, codebook_size].
        scope: as for `Engine.codeword_logprobs`.

    Returns:
        The same, -inf at gaps.
    """
    if not gaps.any():
        return log_probs
    mask = torch.from_numpy(gaps if scope == "level" else gaps.ravel())
    return log_probs.masked_fill(mask.to(log_probs.device), -torch.inf)


def mask_step(step: Step, gaps: np.ndarray) -> Step:
    """Let a step of an unconstrained beam search never choose codewords that the vocabulary lacks."""
    return lambda level, parents, codes: mask_gaps(step(level, parents, codes), gaps[level])
