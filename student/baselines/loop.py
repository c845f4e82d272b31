"""The baselines' training loop: one pass trains every position of a sequence; its settings are in `stage.py`."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import get_cosine_schedule_with_warmup

from distill import losses
from distill.data.dataset import PAD, Dataset, Examples
from distill.labels.store import LabelBlock, LabelStore
from distill.metrics import hit_ranks, ndcg
from distill.runtime.accelerator import accelerator, share
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.errors import UserError
from distill.runtime.logs import log, progress_bar
from student.baselines.scorer import NETWORKS, Scorer

if TYPE_CHECKING:
    from student.baselines.stage import Config


class Windows(NamedTuple):
    """Training sequences cut to the length of a history: what was read, and what came next.

    Attributes:
        inputs: item numbers padded with -1 on the right [n, max_history].
        targets: the item after each of them, -1 where nothing is trained [n, max_history].
        rows: row of the teacher's label for each target, -1 for none [n, max_history].
    """

    inputs: Tensor
    targets: Tensor
    rows: Tensor


class Candidates(NamedTuple):
    """What the teacher says about each labelled example: items, -1 for none, and their log P(v|S); both [labels, k]."""

    items: Tensor
    scores: Tensor


def train(config: Config, folders: list[Path], stage: ArtifactJob) -> None:
    """Train one network, keep its best epoch, save.

    Args:
        config: see there.
        folders: of the data set and, where the loss needs a teacher, of the soft labels.
        stage: takes the result.

    Raises:
        UserError: a loss that is no number.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    dataset = Dataset.load(folders[0])
    labels = LabelStore.open(folders[1]).load() if config.loss != "ce" else None
    acc = accelerator(seed=config.seed)
    hide = dataset.resolve_exclude_bought(config.exclude_bought)
    network, sizes = NETWORKS[config.network]
    asked = {name: getattr(config, name) for name in ("max_history", "dim", "layers", "dropout")}
    asked = {name: value for name, value in asked.items() if value is not None}  # otherwise the network's own
    model = network(sizes(dataset.n_items, **asked)).to(acc.device)
    facts = {"network": config.network, "loss": config.loss, "seed": config.seed, "exclude_bought": hide}
    scorer = Scorer(model, facts)
    data, taught = windows(dataset, config.max_history, labels), candidates(labels)
    valid = dataset.examples("valid", config.max_history)
    valid = valid.take(np.random.default_rng(0).permutation(len(valid))[: config.valid_users])
    log.info(
        f"{config.network}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(data.inputs):,} sequences"
    )

    optimizer = torch.optim.AdamW(
        model.parameters(), config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )
    a_pass = len(share(shuffled(len(data.inputs), config, 0), acc))
    schedule = get_cosine_schedule_with_warmup(
        optimizer, round(config.warmup * config.epochs * a_pass), config.epochs * a_pass
    )
    wrapped, optimizer = acc.prepare(model, optimizer)
    curve, waited = [], 0
    best, best_state = -1.0, None
    bar = progress_bar(total=config.epochs * a_pass, desc=config.network, unit="step", disable=not acc.is_main_process)
    for epoch in range(config.epochs):
        wrapped.train()
        total = 0.0
        for rows in share(shuffled(len(data.inputs), config, epoch), acc):
            part = Windows(*(one[torch.from_numpy(rows)] for one in data))
            loss = batch_loss(wrapped, part, taught, config, acc.device)
            if not torch.isfinite(loss):
                raise UserError(f"The loss is {loss.item()} in epoch {epoch + 1}; lower --lr.")
            acc.backward(loss)
            acc.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += loss.item() / a_pass
            bar.update()
        quality = validate(scorer, valid, hide)
        curve.append({"epoch": epoch + 1, "loss": total, "valid_ndcg@10": quality})
        if quality > best:
            best, best_state, waited = quality, copy.deepcopy(model.state_dict()), 0
        else:
            waited += 1
        bar.set_postfix(epoch=epoch + 1, loss=f"{total:.3f}", valid=f"{quality:.4f}", best=f"{best:.4f}")
        if waited >= config.patience:
            break
    bar.close()
    model.load_state_dict(best_state)
    if acc.is_main_process:
        with stage.write() as folder:
            scorer.save_pretrained(folder)
            write_json(folder / "curve.json", curve)
        log.info(f"{config.network}: validation NDCG@10 {best:.4f}")
    acc.end_training()


def windows(dataset: Dataset, length: int, labels: LabelBlock | None = None) -> Windows:
    """All training sequences, longer ones in windows that share one item."""
    examples = dataset.examples("train", 1)
    row_of = np.full(int(dataset.offsets[-1]), PAD)  # of the interactions
    if labels is not None:
        row_of[dataset.offsets[examples.users] + examples.positions] = labels.rows_of(examples)
    values, offsets = dataset.training_sequences()
    columns: tuple[list, list, list] = ([], [], [])
    for user, (start, end) in enumerate(pairwise(offsets)):
        for first in range(start, end - 1, length):
            last = min(first + length, end - 1)
            own = dataset.offsets[user] - start  # where the same interactions stand in the whole data set
            parts = (values[first:last], values[first + 1 : last + 1], row_of[own + first + 1 : own + last + 1])
            for column, part in zip(columns, parts, strict=True):
                column.append(np.pad(part, (0, length - len(part)), constant_values=PAD))
    return Windows(*(torch.from_numpy(np.stack(column)) for column in columns))


def candidates(labels: LabelBlock | None) -> Candidates | None:
    """The teacher's candidates and their scores, if there is a teacher."""
    if labels is None:
        return None
    return Candidates(torch.from_numpy(labels.candidates()), torch.from_numpy(labels.scores()).float())


def batch_loss(model: nn.Module, part: Windows, taught: Candidates | None, config: Config, device) -> Tensor:
    """Cross-entropy to the next items over all positions, and γ times what the teacher's candidates say."""
    length = max(int((part.inputs != PAD).sum(1).max()), 1)
    inputs, targets, rows = (one[:, :length] for one in part)
    hidden = model(inputs.to(device))
    known = targets != PAD
    weights = (model.module if hasattr(model, "module") else model).items.weight
    log_probs = (hidden[known.to(device)] @ weights.T).log_softmax(-1)  # [positions, n_items]
    loss = functional.nll_loss(log_probs, targets[known].to(device))
    if taught is None:
        return loss
    rows = rows[known]
    items = taught.items[rows.clamp(min=0)].to(device)
    present = (items != PAD) & (rows >= 0).to(device)[:, None]
    own = log_probs.gather(1, items.clamp(min=0))
    lessons = torch.zeros(len(own), device=own.device)
    if "rank" in config.loss:
        lessons = lessons + losses.rank(own, config.margin, present)
    if "list" in config.loss:
        scores = taught.scores[rows.clamp(min=0)].to(device) / config.temperature
        weight = torch.softmax(scores.masked_fill(~present, -1e9), dim=-1) * present
        lessons = lessons - (weight * own).sum(-1)
    labelled = present.any(1)
    return loss + config.gamma * (lessons * labelled).sum() / labelled.sum().clamp(min=1)


def shuffled(n: int, config: Config, epoch: int) -> list[np.ndarray]:
    """Row numbers of an epoch's batches."""
    order = np.random.default_rng([config.seed, epoch]).permutation(n)
    return [order[start : start + config.batch_size] for start in range(0, n, config.batch_size)]


def validate(scorer: Scorer, valid: Examples, hide: bool) -> float:
    """NDCG@10 of the full ranking."""
    scorer.model.eval()
    lists, _ = scorer.rank_items(valid.histories, 10, hide)
    scorer.model.train()
    return float(ndcg(hit_ranks(lists, valid.targets), 10).mean())
