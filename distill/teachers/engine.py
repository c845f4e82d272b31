"""What the export asks of a language model: the protocol that each engine of `teacher/engines/` implements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from distill.semantic_ids.ids import SemanticIDs

if TYPE_CHECKING:
    from torch import Tensor

Scope = Literal["level", "all"]


class PromptData(Protocol):
    """What an engine knows of its prompts.

    Attributes:
        ids: the semantic IDs whose codewords are asked for.
        max_history: items of history that fit into a prompt.
    """

    ids: SemanticIDs
    max_history: int


class Engine(Protocol):
    """A teacher that can be asked. All log-probabilities are over the full vocabulary, in float32.

    Attributes:
        data: the semantic IDs and the length of a history.
        prompt: how the teacher is asked, "stream" or "seqrec".
        counters: what has been computed so far: `tokens`, perhaps `cached_tokens` of them.
    """

    data: PromptData
    prompt: str
    counters: dict[str, int]

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
