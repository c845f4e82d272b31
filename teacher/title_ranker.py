"""BIGRec (Bao et al., 2023): write the title of the next item freely, and rank items by nearness to what is written.

The published code (github.com/SAI990323/BIGRec) searches a title with four beams and takes the best; compares last
hidden states by L2 distance; scales the distances of a user to [0, 1]; and divides them by (1 + C)^γ, where C is the
item's popularity, likewise scaled. Its hidden states are those of the base model, here those of the tuned one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from distill.data.histories import last_items
from distill.decoding.text_search import search_texts
from distill.ranking import mask_history, scores_of, top_items
from teacher.config import TitleSettings
from teacher.engines.hf import HFEngine
from teacher.engines.tree_step import TreeStep, encode, token_log_probs

POPULARITY_WEIGHTS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
EMBEDDED_AT_ONCE = 64  # titles
WRITTEN_AT_ONCE = 32  # users


@dataclass(frozen=True)
class Grounding:
    """How a written title becomes a ranking of items.

    Attributes:
        pooling: which of its states embed a title.
        popularity_weight: exponent of the popularity, BIGRec's γ; 0: distances alone.
    """

    pooling: Literal["last", "mean"] = "last"
    popularity_weight: float = 0.0

    @staticmethod
    def candidates(settings: TitleSettings) -> list[Grounding]:
        """Those among which validation chooses, BIGRec's own first."""
        poolings = ["last", "mean"] if settings.title_pooling == "auto" else [settings.title_pooling]
        weights = POPULARITY_WEIGHTS if settings.popularity_weight is None else [settings.popularity_weight]
        return [Grounding(*pair) for pair in product(poolings, weights)]


class TitleRanker:
    """Ranks items for a teacher that writes titles.

    Args:
        engine: the teacher, asked with the prompt "titles".
        candidates: groundings; `rank` and `score_all` use the first.
        stop_early: as for `search_texts`.

    Attributes:
        popularity: of each item in the training part, scaled to [0, 1] [n_items].
    """

    def __init__(self, engine: HFEngine, candidates: list[Grounding], stop_early: bool = True):
        self.engine, self.candidates, self.stop_early = engine, candidates, stop_early
        titles, data = engine.data.questions.item_titles.texts, engine.data
        self.has_title = np.array([bool(title) for title in titles])
        self.distinct, place = np.unique([title for title in titles if title], return_inverse=True)
        self.place = np.zeros(len(titles), dtype=np.int64)  # of each item's title among the distinct ones
        self.place[self.has_title] = place
        counts = data.dataset.count_purchases().astype(float)
        self.popularity = (counts - counts.min()) / max(counts.max() - counts.min(), 1)
        self.embeddings = self.embed(self.distinct.tolist())

    @torch.inference_mode()
    def write(self, histories: np.ndarray) -> list[str]:
        """Write the best title after each history (`search_texts`)."""
        engine, settings = self.engine, self.engine.data.title_settings
        tokenizer, width = engine.data.tokenizer, settings.title_beams
        titles = []
        for start in range(0, len(histories), WRITTEN_AT_ONCE):
            part = histories[start : start + WRITTEN_AT_ONCE]
            step = prompt_step(engine, part)
            tokens, _ = search_texts(
                lambda _, parents, tokens, step=step: step.likeliest_tokens(parents, tokens, 2 * width),
                *(tokenizer.eos_token_id, settings.title_tokens + 1, len(part), width, engine.device),
                *(settings.title_length_penalty, self.stop_early),
            )
            titles += tokenizer.batch_decode(tokens[:, 0], skip_special_tokens=True)
        return [title.strip() for title in titles]

    @torch.inference_mode()
    def embed(self, titles: list[str]) -> dict[str, Tensor]:
        """Embed titles by the network's last states at their tokens, behind BOS.

        Returns:
            By pooling: the state at the last token, or the mean over the tokens; float32 [titles, dim].
        """
        engine, size = self.engine, self.engine.model.config.hidden_size
        encoded = engine.data.encode(titles) if titles else []
        rows = [[engine.data.tokenizer.bos_token_id, *tokens] for tokens in encoded]
        last, mean = (torch.empty(len(titles), size, device=engine.device) for _ in range(2))
        order = np.argsort([len(row) for row in rows], kind="stable")
        for start in range(0, len(order), EMBEDDED_AT_ONCE):
            part = order[start : start + EMBEDDED_AT_ONCE]
            tokens, lengths = engine.padded([rows[row] for row in part], reserve=0)
            states = engine.model.base_model(input_ids=tokens).last_hidden_state.float()
            place = torch.arange(tokens.shape[1], device=engine.device)
            first = (lengths > 1).long()  # BOS counts where there is nothing else
            counted = (place >= first[:, None]) & (place < lengths[:, None])
            last[part] = states[torch.arange(len(part), device=engine.device), lengths - 1]
            mean[part] = (states * counted[..., None]).sum(1) / counted.sum(1, keepdim=True)
        return {"last": last, "mean": mean}

    def score(self, written: list[str], candidates: list[Grounding]) -> list[np.ndarray]:
        """Score all items by written titles, under each grounding.

        Returns:
            For each grounding [titles, n_items]; −inf for items without text.
        """
        embedded, distances = self.embed(written), {}
        for pooling in {grounding.pooling for grounding in candidates}:
            # by differences, not by a product of matrices, which would round small distances away
            exact = {"p": 2.0, "compute_mode": "donot_use_mm_for_euclid_dist"}
            distinct = torch.cdist(embedded[pooling], self.embeddings[pooling], **exact)
            distances[pooling] = distinct.cpu().numpy()[:, self.place]
        return [
            ground(distances[grounding.pooling], self.has_title, self.popularity, grounding.popularity_weight)
            for grounding in candidates
        ]

    def score_all(self, histories: np.ndarray) -> np.ndarray:
        """Score all items, after full histories padded with -1 [users, n_items]."""
        return self.score(self.write(histories), self.candidates[:1])[0]

    def rank(self, histories: np.ndarray, width: int, exclude_bought: bool) -> tuple[np.ndarray, np.ndarray]:
        """Rank the items; equal scores, of one title and popularity, by item number.

        Returns:
            Item numbers, best first, -1 for none, and their scores; both [users, up to width].
        """
        scores = self.score_all(histories)
        if exclude_bought:
            mask_history(scores, histories, -np.inf)
        items = top_items(scores, width, above=-np.inf)
        return items, scores_of(scores, items)

    def score_candidates(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Score some items, -1 for none [users, k] → [users, k]."""
        return scores_of(self.score_all(histories), items)

    def candidate_lists(self, histories: np.ndarray, width: int, exclude_bought: bool) -> list[np.ndarray]:
        """Rank the items under each grounding among which validation chooses; each as `rank`."""
        lists = []
        for scores in self.score(self.write(histories), self.candidates):
            if exclude_bought:
                mask_history(scores, histories, -np.inf)
            lists.append(top_items(scores, width, above=-np.inf))
        return lists


def ground(distances: np.ndarray, has_title: np.ndarray, popularity: np.ndarray, weight: float) -> np.ndarray:
    """Turn distances into scores −D · (1 + C)^−γ, with the distances D of each user scaled to [0, 1].

    Args:
        distances: of written titles to those of all items [users, n_items].
        has_title: which items have one [n_items]; others score −inf.
        popularity: C, scaled to [0, 1] [n_items].
        weight: γ.
    """
    known = distances[:, has_title]
    nearest, farthest = known.min(1, keepdims=True), known.max(1, keepdims=True)
    scaled = (distances - nearest) / np.maximum(farthest - nearest, 1e-12)
    return np.where(has_title, -scaled * (1 + popularity) ** -weight, -np.inf)


def prompt_step(engine: HFEngine, histories: np.ndarray) -> TreeStep:
    """Encode the prompts of full histories, and begin a search of tokens behind them."""
    histories = last_items(histories, engine.data.max_history)
    prompts = engine.prompts(histories, reserve=engine.data.title_settings.title_tokens)
    return TreeStep(engine.model, engine.token_of, encode(engine.model, *prompts))


@torch.inference_mode()
def title_log_probs(engine: HFEngine, histories: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Compute the mean log-probability of a token of the targets' texts and the end token behind them [rows].

    Args:
        histories: item numbers, oldest first, padded with -1 [rows, length].
        targets: item numbers [rows].
    """
    data = engine.data
    histories = last_items(histories, data.max_history)
    prompts = [data.titles_prompt(history) for history in histories]
    texts = [data.questions.item_titles.texts[target] for target in targets]
    responses = [[*tokens, data.tokenizer.eos_token_id] for tokens in data.encode(texts)]
    pairs = zip(prompts, responses, strict=True)
    tokens, _ = engine.padded([[*prompt, *response] for prompt, response in pairs], reserve=0)
    states = engine.model.base_model(input_ids=tokens).last_hidden_state
    values = np.empty(len(targets))
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        before = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        log_probs = token_log_probs(engine.model, states[row, before])
        wanted = torch.tensor(response, device=engine.device)[:, None]
        values[row] = log_probs.gather(1, wanted).mean().item()
    return values
