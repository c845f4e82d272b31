"""Engines that run a teacher, one a file; each implements `distill.teachers.engine.Engine`."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.data.dataset import PAD, Dataset
from distill.decoding.beam_search import Step
from distill.runtime import models
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs
from distill.teachers.engine import Scope
from teacher.config import StreamSettings, TitleSettings
from teacher.model import check_checkpoint
from teacher.prompt_file import PROMPT_FILE, fill, read_prompt
from teacher.tasks import TaskData
from teacher.tokenizer import check_codewords

TITLE_FACTS = tuple(field.name for field in fields(TitleSettings))  # in teacher.json of a teacher that writes titles


def prompt_rows(data: TaskData, prompt: str, histories: np.ndarray) -> list[list[int]]:
    """Token numbers of the prompt for each history, of unequal lengths.

    Args:
        data: knows templates and codewords.
        prompt: "stream", "seqrec", "titles", or "file": the text that the user brought (`data.prompt_text`).
        histories: item numbers, oldest first, padded with -1 [users, length].
    """
    if prompt == "seqrec":
        return [data.seqrec_prompt(history) for history in histories]
    if prompt == "titles":
        return [data.titles_prompt(history) for history in histories]
    if prompt == "file":
        texts = [fill(data.prompt_text, data.questions.history_text(history)) for history in histories]
        return [data.framed(words, data.ids.levels) for words in data.encode(texts)]
    return [data.writer.prompt(history[history != PAD]).tolist() for history in histories]


def open_teacher(folder: Path, dataset: Dataset, ids: SemanticIDs, writes_titles: bool = False) -> tuple[TaskData, str]:
    """Read all but the weights of a checkpoint: `data` and `prompt` of `Engine`.

    Args:
        folder: of the teacher.
        dataset: the items.
        ids: their semantic IDs.
        writes_titles: expect a teacher that is asked for titles (`--prompt titles`); others are asked for IDs.

    Raises:
        UserError: not a merged checkpoint, or without this codebook's tokens; it reads titles, and no item has a text;
            it is asked for titles in place of IDs, or the other way round.
    """
    check_checkpoint(folder)
    facts = json.loads((Path(folder) / "teacher.json").read_text())
    if (facts["prompt"] == "titles") != writes_titles:
        does, needed = ("IDs", "titles") if writes_titles else ("titles", "IDs")
        raise UserError(
            f"The teacher at {folder} is asked for {does}, but {needed} are needed here; tune one with finetune.py "
            f"--prompt {'titles' if writes_titles else 'stream'}."
        )
    tokenizer = models.load_tokenizer(folder, f"No tokenizer at {folder}")
    rows = json.loads((Path(folder) / "config.json").read_text()).get("vocab_size", len(tokenizer))
    check_codewords(tokenizer, ids, rows, folder)
    stream = StreamSettings(facts.get("stream_titles", 0), facts.get("stream_title_items", 0))
    titles = TitleSettings(**{name: facts[name] for name in TITLE_FACTS if name in facts})
    text = read_prompt(Path(folder) / PROMPT_FILE) if facts["prompt"] == "file" else ""
    limits = facts["max_history"], facts["max_tokens"]
    data = TaskData(dataset, ids, tokenizer, *limits, stream=stream, prompt_text=text, title_settings=titles)
    return data, facts["prompt"]


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
