"""The HTTP application of a teacher that students ask during their training; needs the extra `serve`."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import safetensors.numpy
from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel, ConfigDict, Field

from distill.data.dataset import PAD
from distill.teachers.forced import ForcedTeacher
from distill.teachers.remote import ANSWER, FACTS

MOST_ITEMS, LONGEST = 4096, 1000  # of a question


class Question(BaseModel):
    """Items whose codewords are to be scored."""

    model_config = ConfigDict(extra="forbid")
    histories: list[list[int]] = Field(min_length=1, max_length=MOST_ITEMS)
    items: list[int] = Field(min_length=1, max_length=MOST_ITEMS)


def create_app(teacher: ForcedTeacher, facts: dict[str, Any], n_items: int) -> FastAPI:
    """Build the ASGI application.

    Args:
        teacher: answers one question after the other.
        facts: its identity: teacher and semantic_ids (fingerprints), levels, codebook_size.
        n_items: items of the catalogue.
    """
    app = FastAPI(title="lohrec-distill teacher", version="1", redoc_url=None, docs_url=None)
    busy = threading.Lock()

    @app.get(FACTS)
    def describe() -> dict[str, Any]:
        """Tell which teacher this is, and of which codewords."""
        return facts

    @app.post(ANSWER)
    def answer(question: Question) -> Response:
        """Compute log-probabilities: a safetensors file with log_probs, float16 [items, levels, codebook_size]."""
        check(question, n_items)
        histories = np.full((len(question.items), max(map(len, question.histories))), PAD)
        for row, history in enumerate(question.histories):
            histories[row, : len(history)] = history
        with busy:
            log_probs = teacher.codeword_log_probs(histories, np.array(question.items))
        return Response(safetensors.numpy.save({"log_probs": log_probs}), media_type="application/octet-stream")

    return app


def check(question: Question, n_items: int) -> None:
    """Refuse questions that have no answer.

    Raises:
        HTTPException: 422, with what was expected.
    """
    problem = None
    if len(question.histories) != len(question.items):
        problem = f"{len(question.histories)} histories and {len(question.items)} items; expected one item a history"
    elif not all(0 < len(history) <= LONGEST for history in question.histories):
        problem = f"expected histories of 1 to {LONGEST} items"
    elif any(not 0 <= item < n_items for numbers in (*question.histories, question.items) for item in numbers):
        problem = f"expected item numbers from 0 to {n_items - 1}"
    if problem:
        raise HTTPException(422, problem)
