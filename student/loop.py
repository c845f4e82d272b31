"""The students' training loop, from labels to a saved recommender; `student/train.py` is its command."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from distill import objectives
from distill.artifacts import Stage, UserError, say, write_json
from distill.catalog import PAD, Dataset, Examples
from distill.launch import accelerator, share
from distill.metrics import hit_ranks, ndcg
from distill.semantic_ids import SemanticIDs
from distill.soft_labels import SoftLabels
from student.models import BACKBONES
from student.models.layers import among_all
from student.recommender import Recommender
from student.variants import Loss, Variant

if TYPE_CHECKING:
    from student.train import Config


@dataclass(frozen=True)
class TrainingData:
    """All examples as tensors: histories [n, length], targets [n], and, for variants that need labels, candidates
    [n, k] and the teacher's log-probabilities [n, levels, codebook_size]."""

    histories: Tensor
    targets: Tensor
    codes: Tensor
    candidates: Tensor | None = None
    log_probs: Tensor | None = None


def train(config: Config, variant: Variant, folders: list[Path], stage: Stage) -> None:
    """Train the variant's stages one after the other and save one recommender.

    Args:
        config: see there.
        variant: what to train.
        folders: of the data set, the semantic IDs and, where the variant needs them, the soft labels.
        stage: takes the result.
    """
    dataset = Dataset.load(folders[0])
    ids = SemanticIDs.load(folders[1], dataset.n_items)
    labels = SoftLabels.load(folders[2]) if variant.needs_labels else None
    acc = accelerator(precision=config.precision, seed=config.seed)
    data = training_data(dataset, ids, labels, config)
    network, sizes, presets = BACKBONES[config.backbone]
    titles = dataset.items["title"].to_pylist()
    item_ids = dataset.items["item_id"].to_pylist()
    facts = {name: getattr(config, name) for name in ("variant", "backbone", "scope", "seed", "max_history")}
    facts["exclude_bought"] = dataset.hides_bought(config.exclude_bought)
    valid = dataset.examples("valid", config.max_history)
    valid = valid.take(np.random.default_rng(0).permutation(len(valid))[: config.valid_users])

    model = network(sizes(ids.levels, ids.codebook_size, dropout=config.dropout, **presets[config.preset]))
    model.to(acc.device)
    say(f"{config.variant}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(data.targets):,} examples")
    recommender = Recommender(model, ids.codes, item_ids, titles, facts=facts)
    curves = {"retriever": fit("retriever", variant.retriever, model, recommender, data, valid, acc, config)}
    if variant.ranker:
        ranker = copy.deepcopy(model)
        recommender.ranker = ranker
        curves["ranker"] = fit("ranker", variant.ranker, ranker, recommender, data, valid, acc, config)
    if acc.is_main_process:
        with stage.write() as folder:
            recommender.save_pretrained(folder)
            write_json(folder / "curve.json", curves)
    acc.end_training()


def training_data(dataset: Dataset, ids: SemanticIDs, labels: SoftLabels | None, config: Config) -> TrainingData:
    """Join examples and labels.

    Raises:
        UserError: examples without labels, or fewer candidates than `config.candidates`.
    """
    examples = dataset.examples("train", config.max_history)
    codes = torch.from_numpy(ids.codes)
    if labels is None:
        return TrainingData(torch.from_numpy(examples.histories), torch.from_numpy(examples.targets), codes)
    rows = labels.rows_of(examples)
    if (rows < 0).any():
        say(f"{(rows >= 0).sum():,} of {len(rows):,} training examples have labels; the others are left out")
        examples, rows = examples.take(rows >= 0), rows[rows >= 0]
        if not len(rows):
            raise UserError(f"{labels.artifact.folder} labels no training example of this data set.")
    if labels.candidates.shape[1] < config.candidates:
        raise UserError(
            f"{labels.artifact.folder} has {labels.candidates.shape[1]} candidates an example, --candidates asks for "
            f"{config.candidates}; export with --keep {config.candidates}."
        )
    return TrainingData(
        torch.from_numpy(examples.histories),
        torch.from_numpy(examples.targets),
        codes,
        torch.from_numpy(labels.candidates[rows, : config.candidates]),
        torch.from_numpy(labels.log_probs[rows]),
    )


def fit(
    name: str,
    loss: Loss,
    model: torch.nn.Module,
    recommender: Recommender,
    data: TrainingData,
    valid: Examples,
    acc: Accelerator,
    config: Config,
) -> list[dict[str, float]]:
    """Train one model in place and leave it at its best epoch; returns the curve."""
    epochs, lr = (config.epochs, config.lr) if name == "retriever" else (config.ranker_epochs, config.ranker_lr)
    lengths = (data.histories != PAD).sum(1).numpy()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )
    steps = epochs * len(share(buckets(lengths, config.batch_size, np.random.default_rng(0)), acc))
    schedule = get_cosine_schedule_with_warmup(optimizer, round(config.warmup * steps), steps)
    wrapped, optimizer = acc.prepare(model, optimizer)

    curve, waited = [], 0
    best, best_state = -1.0, None
    if name == "ranker":  # the retriever's own order is what a ranker has to beat
        best, best_state = validate(recommender, valid, config), copy.deepcopy(model.state_dict())
    bar = tqdm(total=steps, desc=f"{config.variant} {name}", unit="step", disable=not acc.is_main_process)
    for epoch in range(epochs):
        wrapped.train()
        total, started, seen = 0.0, time.time(), 0
        for rows in share(buckets(lengths, config.batch_size, np.random.default_rng([config.seed, epoch])), acc):
            ranks = loss.rank and (loss.generative is None or schedule.last_epoch >= config.rank_from * steps)
            now = Loss(loss.generative, ranks)
            value = batch_loss(wrapped, now, data, torch.from_numpy(rows), int(lengths[rows].max()), acc, config)
            if not torch.isfinite(value):
                raise UserError(f"The loss is {value.item()} in epoch {epoch + 1}; lower --lr.")
            acc.backward(value)
            acc.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total, seen = total + value.item() * len(rows), seen + len(rows)
            rate = seen / (time.time() - started)
            bar.set_postfix(epoch=epoch + 1, loss=f"{total / seen:.3f}", examples_s=f"{rate:.0f}", best=f"{best:.4f}")
            bar.update()
        quality = validate(recommender, valid, config)
        curve.append({"epoch": epoch + 1, "loss": total / seen, "valid_ndcg@10": quality})
        if quality > best:
            best, best_state, waited = quality, copy.deepcopy(acc.unwrap_model(wrapped).state_dict()), 0
        else:
            waited += 1
            if waited >= config.patience:
                break
    bar.close()
    model.load_state_dict(best_state)
    model.eval()
    return curve


def batch_loss(
    model, loss: Loss, data: TrainingData, rows: Tensor, length: int, acc: Accelerator, config: Config
) -> Tensor:
    """The loss of one batch: equation (8), (9), (11), (14), or a generative one plus γ times (14)."""
    histories, device = data.histories[rows, :length], acc.device
    codes = torch.where((histories != PAD)[..., None], data.codes[histories.clamp(min=0)], PAD).to(device)
    # the reference is the first candidate, so one decoder pass serves both losses
    items = data.candidates[rows] if loss.rank else data.targets[rows][:, None]
    item_codes = data.codes[items.clamp(min=0)].to(device)
    log_probs = model(codes, item_codes, config.scope)
    targets = item_codes
    if config.scope == "all":
        size = log_probs.shape[-1] // item_codes.shape[-1]
        targets = among_all(item_codes, size)

    total = log_probs.new_zeros(())
    if loss.generative == "nll":
        total = total + objectives.nll(log_probs[:, 0], targets[:, 0]).mean()
    elif loss.generative == "smooth":
        total = total + objectives.smooth(log_probs[:, 0], targets[:, 0], config.xi).mean()
    elif loss.generative == "distill":
        teacher = data.log_probs[rows].to(device)
        if config.scope == "all":  # the labels hold each level's own codewords: no mass elsewhere
            teacher = spread(teacher)
        total = total + objectives.distill(log_probs[:, 0], teacher, config.temperature).mean()
    if loss.rank:
        scores = objectives.sequence_score(log_probs, targets, config.eta)
        ranked = objectives.rank(scores, config.margin, (items >= 0).to(device)).mean()
        total = total + (config.gamma * ranked if loss.generative else ranked)
    return total


def spread(teacher: Tensor) -> Tensor:
    """Each level's codewords [batch, levels, size] among all levels', −∞ elsewhere [batch, levels, levels · size]."""
    batch, levels, size = teacher.shape
    wide = teacher.new_full((batch, levels, levels, size), -torch.inf)
    diagonal = torch.arange(levels, device=teacher.device)
    wide[:, diagonal, diagonal] = teacher
    return wide.flatten(2)


def buckets(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Row numbers of batches of like history lengths, in random order."""
    order = np.argsort(lengths + 2 * rng.random(len(lengths)), kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def validate(recommender: Recommender, valid: Examples, config: Config) -> float:
    """NDCG@10 of constrained beams."""
    modes = [(model, model.training) for model in (recommender.model, recommender.ranker) if model is not None]
    for model, _ in modes:
        model.eval()
    lists, _ = recommender.rank_items(valid.histories, config.width, recommender.facts["exclude_bought"])
    for model, mode in modes:
        model.train(mode)
    return float(ndcg(hit_ranks(lists, valid.targets), 10).mean())
