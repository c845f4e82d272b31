"""The validation of a teacher that writes titles: which epoch is kept, and how its titles become items."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from distill.data.dataset import Dataset, batches_by_length
from distill.metrics import hit_ranks, ndcg, recall
from teacher.config import ValidationSettings
from teacher.engines.hf import HFEngine
from teacher.textual_id_ranker import TextualIDRanker
from teacher.title_ranker import Grounding, TitleRanker, title_log_probs
from teacher.validation import gather_values, validation_share


def title_ranker(engine: HFEngine, stop_early: bool = True) -> TitleRanker | TextualIDRanker:
    """Build what ranks items for a teacher that writes titles or textual IDs; `stop_early` as for `search_texts`."""
    settings = engine.data.title_settings
    if settings.textual_ids:
        return TextualIDRanker(engine)
    return TitleRanker(engine, Grounding.candidates(settings), stop_early)


@torch.no_grad()
def validate_titles(
    acc: Accelerator, engine: HFEngine, dataset: Dataset, settings: ValidationSettings
) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure the model on a fixed sample of validation users, dealt to the processes, and choose the grounding.

    Returns:
        valid_loss: mean −log p of a token of the targets' texts; valid_ndcg@10 and valid_recall@10 of the lists of the
            best grounding.
        That grounding, by NDCG@10, the first of equals; empty for textual IDs.
    """
    ranker = title_ranker(engine, stop_early=acc.num_processes == 1)
    examples, n_users = validation_share(acc, dataset.examples("valid", engine.data.max_history), settings.valid_users)
    exclude_bought = dataset.resolve_exclude_bought(settings.exclude_bought)
    values = np.empty((len(examples), 1 + 2 * len(ranker.candidates)))
    for batch, histories in batches_by_length(examples.histories, 64):
        targets = examples.targets[batch]
        ranks = [hit_ranks(items, targets) for items in ranker.candidate_lists(histories, 10, exclude_bought)]
        values[batch, 0] = -title_log_probs(engine, histories, targets)
        values[batch, 1::2] = np.stack([ndcg(rank, 10) for rank in ranks], axis=1)
        values[batch, 2::2] = np.stack([recall(rank, 10) for rank in ranks], axis=1)
    loss, *means = gather_values(acc, values, n_users).mean(0).tolist()
    best = int(np.argmax(means[::2]))
    figures = {"valid_loss": loss, "valid_ndcg@10": means[2 * best], "valid_recall@10": means[2 * best + 1]}
    chosen = ranker.candidates[best]
    return figures, {"title_pooling": chosen.pooling, "popularity_weight": chosen.popularity_weight} if chosen else {}
