"""The validation of a teacher that is asked for semantic IDs, and how validation users are dealt to processes."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator

from distill.data.dataset import PAD, Dataset, Examples, batches_by_length
from distill.metrics import hit_ranks, ndcg, recall
from teacher.config import ValidationSettings
from teacher.engines.hf import HFEngine


@torch.no_grad()
def validate(acc: Accelerator, engine: HFEngine, dataset: Dataset, settings: ValidationSettings) -> dict[str, float]:
    """Measure the model on a fixed sample of validation users, dealt to the processes.

    Returns:
        valid_loss: mean −log p of the targets' codewords; valid_ndcg@10 and valid_recall@10 of constrained beams.
    """
    examples, n_users = validation_share(acc, dataset.examples("valid", engine.data.max_history), settings.valid_users)
    values, exclude_bought = np.empty((len(examples), 3)), dataset.resolve_exclude_bought(settings.exclude_bought)
    for batch, histories in batches_by_length(examples.histories, 64):
        targets = examples.targets[batch]
        target_logs, lists = score_and_rank(engine, histories, targets, exclude_bought)
        ranks = hit_ranks(lists, targets)
        values[batch] = np.stack([-target_logs, ndcg(ranks, 10), recall(ranks, 10)], axis=1)
    means = gather_values(acc, values, n_users).mean(0).tolist()
    return dict(zip(("valid_loss", "valid_ndcg@10", "valid_recall@10"), means, strict=True))


def validation_share(acc: Accelerator, examples: Examples, users: int) -> tuple[Examples, int]:
    """Draw the fixed sample of validation examples, and take this process' share of it.

    Every process takes as many, some perhaps the first again: sharded parameters need calls in step.

    Returns:
        This process' examples, and the size of the whole sample.
    """
    rows = np.random.default_rng(0).permutation(len(examples))[:users]
    per_process = -(-len(rows) // acc.num_processes)
    process_rows = np.resize(rows, per_process * acc.num_processes)[acc.process_index * per_process :][:per_process]
    return examples.take(process_rows), len(rows)


def gather_values(acc: Accelerator, values: np.ndarray, n_users: int) -> np.ndarray:
    """Gather figures of the processes' shares [users of a share, figures] → [n_users, figures]."""
    if acc.num_processes == 1:
        return values
    return acc.gather(torch.from_numpy(values).to(acc.device)).cpu().numpy()[:n_users]


def score_and_rank(
    engine: HFEngine, histories: np.ndarray, targets: np.ndarray, exclude_bought: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the targets' mean log p of a codeword [users], and the ten best items [users, up to 10].

    Both come from one pass over each history, where the engine can.
    """
    if engine.shares_prefixes:
        rows, lengths = np.arange(len(histories)), (histories != PAD).sum(1)
        sequences = np.pad(histories, ((0, 0), (0, 1)), constant_values=PAD)
        sequences[rows, lengths] = targets
        lists, _, log_probs = engine.label_streams(sequences, rows, lengths, 10, exclude_bought)
    else:
        log_probs = engine.codeword_logprobs(histories, targets)
        lists, _ = engine.beams(histories, 10, exclude_bought)
    codes = torch.from_numpy(engine.data.ids.codes[targets]).to(engine.device)
    return log_probs.gather(2, codes[..., None]).mean((1, 2)).cpu().numpy(), lists
