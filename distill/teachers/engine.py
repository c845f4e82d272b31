"""The interface of an engine, which runs a language model; `teacher/engines/` has the implementations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from distill.labels.labeller import LAST_LAYER, Scope
from distill.semantic_ids.ids import SemanticIDs

if TYPE_CHECKING:
    from torch import Tensor


class PromptData(Protocol):
    """Facts about an engine's prompts.

    Attributes:
        ids: the semantic IDs whose codewords are scored.
        max_history: items of history that fit into a prompt.
    """

    ids: SemanticIDs
    max_history: int


class PrefixEngine(Protocol):
    """An engine that can search after every item of a sequence from one pass over it.

    Attributes:
        shares_prefixes: whether it can with this teacher.
    """

    shares_prefixes: bool

    def label_streams(
        self,
        sequences: np.ndarray,
        users: np.ndarray,
        places: np.ndarray,
        width: int,
        exclude_bought: bool = True,
        constrained: bool = True,
        scope: Scope = "level",
    ) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """Compute `beams` and `codeword_logprobs` of items of sequences, each after the items before it.

        Args:
            sequences: item numbers, padded with -1 on the right [users, length].
            users: row of `sequences` of each target [targets].
            places: place of each target in its sequence, from 1 [targets].
            width: beam width.
            exclude_bought: as for `beams`.
            constrained: as for `beams`.
            scope: as for `codeword_logprobs`.

        Returns:
            Items and scores as `beams`, log-probabilities as `codeword_logprobs`.
        """
        ...


class StateEngine(Protocol):
    """An engine that can return hidden states."""

    def codeword_states(
        self, histories: np.ndarray, targets: np.ndarray, layers: tuple[int, ...] = LAST_LAYER
    ) -> Tensor:
        """Compute the hidden states after some layers that predict each codeword of targets.

        Args:
            histories, targets: as for `Engine.codeword_logprobs`.
            layers: from 1; the last is read after the model's last norm, as the head reads it.

        Returns:
            [rows, levels, layers, hidden].
        """
        ...

    def stream_states(self, sequences: np.ndarray, layers: tuple[int, ...] = LAST_LAYER) -> Tensor:
        """Compute those of every item of sequences, as `Engine.stream_logprobs`.

        Returns:
            [users, length, levels, layers, hidden].
        """
        ...


class Engine(Protocol):
    """Runs a teacher. All log-probabilities are normalised over the full vocabulary, in float32.

    Attributes:
        data: the semantic IDs and the length of a history.
        prompt: form of the prompt, "stream", "seqrec" or "file".
        counters: what has been computed so far: `tokens`, perhaps `cached_tokens` of them.
    """

    data: PromptData
    prompt: str
    counters: dict[str, int]

    def beams(
        self, histories: np.ndarray, width: int, exclude_bought: bool = True, constrained: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search the likeliest items after each history.

        Args:
            histories: item numbers, oldest first, padded with -1 [users, length].
            width: beam width.
            exclude_bought: leave out the history's items.
            constrained: search valid IDs only; otherwise any codewords, and an item is -1 where the ID is invalid.

        Returns:
            Item numbers, best first, -1 for none, and their log P(v|S); both [users, width].
        """
        ...

    def codeword_logprobs(self, histories: np.ndarray, targets: np.ndarray, scope: Scope = "level") -> Tensor:
        """Compute the log-probabilities of codewords at each position of the target, under teacher forcing.

        Args:
            histories: as for `beams` [rows, length].
            targets: item numbers [rows].
            scope: "level": the codewords of the position's level; "all": those of all levels, level after level.

        Returns:
            [rows, levels, codebook_size], or [rows, levels, levels * codebook_size]; what a row lacks to 1 is the mass
            of other tokens. A codeword that the vocabulary lacks, and no item has, scores -inf.
        """
        ...

    def stream_logprobs(self, sequences: np.ndarray, scope: Scope = "level") -> Tensor:
        """Compute `codeword_logprobs` of every item of sequences; only for the prompt "stream".

        Args:
            sequences: item numbers, padded with -1 on the right [users, length].
            scope: as for `codeword_logprobs`.

        Returns:
            [users, length, levels, ...]; undefined at padding.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Describe the engine for the index: its name, version, dtype and the like, as JSON values."""
        ...
