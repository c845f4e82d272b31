"""Recommend items by textual IDs: the teacher writes words of its own vocabulary, and a trie lets it write IDs only."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distill.data.dataset import PAD
from distill.decoding.beam_search import score_ids, search, to_items
from distill.decoding.trie import Trie
from teacher.engines.hf import HFEngine
from teacher.engines.tree_step import TreeStep
from teacher.title_ranker import prompt_step

SEARCHED_AT_ONCE = 16  # users; each step has their beams' log-probabilities of the whole vocabulary
SCORED_AT_ONCE = 128  # IDs of a user


class TextualIDStep:
    """`beam_search.Step` over all tokens of the vocabulary, for IDs of unequal lengths.

    IDs are filled up with the end token. Behind the first one nothing is left to choose, so the others have
    log-probability 0.

    Args:
        step: the model behind the prompts.
        end: number of the end token.
    """

    def __init__(self, step: TreeStep, end: int):
        self.step, self.end = step, end

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        """As `Step`."""
        log_probs = self.step.token_log_probs(parents, codes)
        if codes is not None:
            log_probs[..., self.end].masked_fill_(codes == self.end, 0)
        return log_probs


class TextualIDRanker:
    """Ranks items for a teacher that writes textual IDs.

    Args:
        engine: the teacher, asked with the prompt "titles".

    Attributes:
        tokens: of each item's ID, filled up with the end token [n_items, tokens].
        trie: of the items that have an ID.
        candidates: as of `TitleRanker`: there is nothing to choose.
    """

    candidates = (None,)

    def __init__(self, engine: HFEngine):
        self.engine, self.end = engine, engine.data.tokenizer.eos_token_id
        texts = engine.data.questions.item_titles.texts
        rows = engine.data.encode(texts)
        codes = np.full((len(rows), max(map(len, rows)) + 1), self.end, dtype=np.int64)
        for item, row in enumerate(rows):
            codes[item, : len(row)] = row
        size = engine.model.get_output_embeddings().weight.shape[0]
        with_id = np.flatnonzero([bool(text) for text in texts])
        self.trie = Trie.build(codes, size).restricted(codes, with_id).to(engine.device)
        self.tokens = torch.from_numpy(codes).to(engine.device)

    @torch.inference_mode()
    def rank(self, histories: np.ndarray, width: int, exclude_bought: bool) -> tuple[np.ndarray, np.ndarray]:
        """Search the likeliest IDs after full histories, padded with -1 [users, length].

        Most IDs end before the last level of the trie, where bought items are masked. So that these cost no beam width,
        there is a beam more for each.

        Returns:
            Item numbers, best first, -1 for none, and their log P; both [users, up to width].
        """
        parts = []
        for start in range(0, len(histories), SEARCHED_AT_ONCE):
            part = histories[start : start + SEARCHED_AT_ONCE]
            bought = torch.from_numpy(part).to(self.engine.device)
            beam_width = width + exclude_bought * int((part != PAD).sum(1).max())
            beams = search(self._step(part), self.trie, bought, beam_width, exclude_bought)
            ranked = to_items(beams, self.trie, bought, width, exclude_bought)
            parts.append([array.cpu().numpy() for array in ranked])
        items, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return items, scores

    def candidate_lists(self, histories: np.ndarray, width: int, exclude_bought: bool) -> list[np.ndarray]:
        """As `TitleRanker.candidate_lists`: a list alone."""
        return [self.rank(histories, width, exclude_bought)[0]]

    @torch.inference_mode()
    def score_candidates(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Compute the exact log P of some items, -1 for none [users, k] → [users, k]; −inf for none and without ID."""
        scores = np.empty(items.shape)
        for row in range(len(items)):
            for start in range(0, items.shape[1], SCORED_AT_ONCE):
                part = slice(start, start + SCORED_AT_ONCE)
                tokens = self.tokens[torch.from_numpy(np.maximum(items[row, part], 0)).to(self.engine.device)]
                scores[row, part] = score_ids(self._step(histories[[row]]), tokens[None])[0].cpu().numpy()
        has_id = (self.tokens[:, 0] != self.end).cpu().numpy()
        return np.where((items == PAD) | ~has_id[np.maximum(items, 0)], -np.inf, scores)

    def score_all(self, histories: np.ndarray) -> np.ndarray:
        """Compute the exact log P of all items [users, n_items]."""
        return self.score_candidates(histories, np.tile(np.arange(len(self.tokens)), (len(histories), 1)))

    def _step(self, histories: np.ndarray) -> TextualIDStep:
        """Begin a search behind the prompts of histories."""
        return TextualIDStep(prompt_step(self.engine, histories), self.end)
