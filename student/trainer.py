"""The students' training loop, from labels to a saved recommender; `student/train.py` is its command."""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill import losses
from distill.data.dataset import PAD, Dataset, Examples
from distill.labels.store import LabelStore
from distill.metrics import hit_ranks, ndcg
from distill.runtime.accelerator import accelerator, start_tracker
from distill.runtime.artifacts import IDENTITY, ArtifactJob, write_json
from distill.runtime.checkpoints import Checkpoints, check_finite, working_folder
from distill.runtime.logs import log, progress_bar
from distill.runtime.memory import memory_gib, out_of_memory
from distill.runtime.sharding import SHARDED, gathered, trainable_state, unsharded
from distill.semantic_ids.ids import SemanticIDs
from student.batches import Batch, Feed, Prefetched, open_prior
from student.models import BACKBONES
from student.models.causal import Causal, Positions
from student.models.layers import among_all
from student.recommender import Recommender
from student.variants import Loss, Variant

if TYPE_CHECKING:
    from student.train import Config


def train(config: Config, variant: Variant, folders: list[Path], stage: ArtifactJob) -> None:
    """Train the variant's stages one after the other and save one recommender.

    Args:
        config: see there.
        variant: what to train.
        folders: of the data set, the semantic IDs and, where the variant needs them, the soft labels.
        stage: takes the result.
    """
    dataset = Dataset.load(folders[0])
    ids = SemanticIDs.load(folders[1], dataset.n_items)
    store = LabelStore.open(folders[2]) if variant.needs_labels else None
    logs = config.run / "logs" / "students"
    acc = accelerator(config.accumulation, config.precision, config.seed, config.clip, config.tracker, logs)
    titles = dataset.items["title"].to_pylist()
    item_ids = dataset.items["item_id"].to_pylist()
    facts = {name: getattr(config, name) for name in ("variant", "backbone", "scope", "seed", "max_history")}
    facts["backbone"] = "large" if config.init else config.backbone
    facts["exclude_bought"] = dataset.resolve_exclude_bought(config.exclude_bought)
    valid = dataset.examples("valid", config.max_history)
    valid = valid.take(np.random.default_rng(0).permutation(len(valid))[: config.valid_users])
    stages = {"retriever": variant.retriever} | ({"ranker": variant.ranker} if variant.ranker else {})
    feeds = {name: feed(dataset, store, loss, acc, config) for name, loss in stages.items()}

    with unsharded(acc):
        model = made(config, ids).to(acc.device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    some = "" if not config.lora_rank else f" ({sum(p.numel() for p in trainable_state(model).values()):,} train)"
    log.info(f"{config.variant}: {parameters:,} parameters{some}, {feeds['retriever'].total:,} examples")
    recommender = Recommender(model, ids.codes, item_ids, titles, facts=facts)
    curves = {}
    with working_folder(stage, acc) as folder:
        start_tracker(acc, stage.output.name, stage.config)
        for name, loss in stages.items():
            if name == "ranker":
                recommender.ranker = twin(recommender.model, acc)
            done = folder / f"{name}-done.safetensors"
            curve = folder / f"{name}-curve.json"
            if done.is_file():  # by a run that was broken off in a later stage
                trained(name, recommender).load_state_dict(load_file(done), strict=False)
                trained(name, recommender).eval()
                curves[name] = json.loads(curve.read_text())
                continue
            with out_of_memory(
                "lower --batch_size and raise --accumulation, or shard by configs/accelerate/zero3.yaml; a large "
                "student also takes --gradient_checkpointing true, --lora_rank and --precision bf16"
            ):
                curves[name] = fit(name, loss, recommender, feeds[name], valid, folder, acc, config)
            if len(stages) > 1 and acc.is_main_process:
                write_json(curve, curves[name])
                save_file(weights(trained(name, recommender)), done.with_suffix(".partial"))
                done.with_suffix(".partial").replace(done)
        acc.wait_for_everyone()
        if acc.is_main_process:
            for path in folder.iterdir():
                if path.name != IDENTITY:
                    path.unlink()
            with unsharded(acc):  # adapters are merged into a model made anew
                recommender.save_pretrained(folder)
            write_json(folder / "curve.json", curves)
    acc.end_training()


def made(config: Config, ids: SemanticIDs) -> torch.nn.Module:
    """The network that is trained."""
    if not config.init:
        network, sizes, presets = BACKBONES[config.backbone]
        return network(sizes(ids.levels, ids.codebook_size, dropout=config.dropout, **presets[config.preset]))
    from student.models import large

    options = config.lora_rank, config.dropout, config.gradient_checkpointing, config.precision
    return large.load(config.init, ids, config.max_history, *options)


def feed(dataset: Dataset, store: LabelStore | None, loss: Loss, acc: Accelerator, config: Config) -> Feed:
    """The examples of one stage as its network reads them."""
    whole = config.one_pass and issubclass(BACKBONES[config.backbone][0], Causal) and loss.target == "ref"
    if loss.needs_labels and config.shuffle:
        whole = False  # the labels are of targets in their own order
    labels = store if loss.needs_labels or config.confidence else None
    prior = open_prior(config.prior_folder, config.prior) if loss.rank and config.prior != "teacher" else None
    return Feed(dataset, labels, loss, whole, config, acc.process_index, acc.num_processes, prior)


def trained(name: str, recommender: Recommender) -> torch.nn.Module:
    """The recommender's model that this stage trains."""
    return recommender.ranker if name == "ranker" else recommender.model


def fit(
    name: str,
    loss: Loss,
    recommender: Recommender,
    examples: Feed,
    valid: Examples,
    folder: Path,
    acc: Accelerator,
    config: Config,
) -> list[dict[str, float]]:
    """Train one of the recommender's models and leave it at its best epoch.

    Args:
        name: retriever or ranker.
        loss: what is trained.
        recommender: has the model, and validates.
        examples: what there is to train.
        valid: users to validate.
        folder: for checkpoints.
        acc: the Accelerator.
        config: of the command.

    Returns:
        The curve.

    Raises:
        UserError: a loss or gradient that is no number; the checkpoints stay.
    """
    epochs, lr = (config.epochs, config.lr) if name == "retriever" else (config.ranker_epochs, config.ranker_lr)
    model = trained(name, recommender)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)
    wrapped, optimizer = acc.prepare(model, optimizer)
    checkpoints = Checkpoints(
        folder / "checkpoints", config.checkpoint_every, config.keep_checkpoints, acc, wrapped, optimizer,
        name=f"{config.variant} {name}", best_everywhere=True,
    )  # fmt: skip
    acc.wait_for_everyone()
    progress = checkpoints.restore()
    if name == "ranker" and progress.best_state is None:  # the retriever's own order is what a ranker has to beat
        progress.best, progress.best_state = validate(recommender, model, valid, acc, config), weights(model)
    bar = progress_bar(
        total=epochs * examples.total,
        initial=progress.epoch * examples.total + progress.counted,
        desc=f"{config.variant} {name}",
        unit="target",
        unit_scale=True,
        disable=not acc.is_main_process,
    )
    for epoch in range(progress.epoch, epochs):
        if config.patience and progress.waited >= config.patience:
            break
        wrapped.train()
        started = time.perf_counter()
        with Prefetched(examples.batches(epoch, progress.batch)) as batches:
            for batch in batches:
                done = epoch + (progress.counted + batch.count / 2) / examples.total
                for group in optimizer.param_groups:
                    group["lr"] = lr * rate(done / epochs, config.warmup)
                ranks = loss.rank and (loss.generative is None or done >= config.rank_from * epochs)
                with acc.accumulate(wrapped):
                    value = batch_loss(wrapped, loss, batch, recommender.codes, ranks, config)
                    check_finite("loss", value, epoch, checkpoints)
                    # gradients are averaged over processes and accumulation steps, losses over the global batch
                    acc.backward(value * (acc.num_processes * config.accumulation))
                    if acc.sync_gradients:
                        norm = acc.clip_grad_norm_(parameters, config.clip)
                        if norm is not None and acc.scaler is None:  # fp16's scaler skips such steps itself
                            check_finite("gradient norm", torch.as_tensor(norm), epoch, checkpoints)
                    optimizer.step()
                    optimizer.zero_grad()
                progress.loss += value.item() * batch.count
                if batch.last:
                    progress.counted += batch.count
                    progress.batch += 1
                    progress.step += 1
                    if checkpoints.due(progress):
                        checkpoints.save(progress)
                    now = {"loss": value.item(), "lr": optimizer.param_groups[0]["lr"], "GiB": memory_gib()}
                    acc.log({f"{name}/{what}": number for what, number in now.items()}, progress.step)
                    bar.update(batch.count)
                    waits = batches.waited / (time.perf_counter() - started)
                    mean = progress.loss * acc.num_processes / progress.counted
                    facts = {"loss": f"{mean:.3f}", "wait": f"{waits:.0%}", "best": f"{progress.best:.4f}"}
                    bar.set_postfix(epoch=epoch + 1, **facts, refresh=False)
        quality = validate(recommender, model, valid, acc, config)
        loss_sum = acc.reduce(torch.tensor(progress.loss, dtype=torch.float64, device=acc.device), "sum").item()
        row = {"epoch": epoch + 1, "loss": loss_sum / progress.counted, "valid_ndcg@10": quality}
        acc.log({f"{name}/{what}": number for what, number in row.items()}, progress.step)
        progress.curve.append(row)
        progress.epoch, progress.batch, progress.loss, progress.counted = epoch + 1, 0, 0.0, 0
        if quality > progress.best:
            progress.best, progress.best_state, progress.waited = quality, weights(model), 0
        else:
            progress.waited += 1
    bar.close()
    if stays(model) and not checkpoints.sharded:
        best = acc.unwrap_model(wrapped, keep_fp32_wrapper=False)
    else:
        best = copied(model, acc)
    best.load_state_dict(progress.best_state, strict=False)
    setattr(recommender, "ranker" if name == "ranker" else "model", best.to(acc.device).eval())
    acc.free_memory()
    acc.wait_for_everyone()
    if acc.is_main_process:
        checkpoints.remove()
    return progress.curve


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of the weights that train, on every process; called by all."""
    with gathered(model):
        return {name: value.detach().cpu().clone() for name, value in trainable_state(model).items()}


def copied(model: torch.nn.Module, acc: Accelerator) -> torch.nn.Module:
    """A whole copy on this process, as an engine may have cut the model to pieces; called by all."""
    with unsharded(acc):
        copy_of = type(model)(model.config)
    with gathered(model):
        copy_of.load_state_dict(model.state_dict())
    return copy_of.to(acc.device).eval()


def twin(model: torch.nn.Module, acc: Accelerator) -> torch.nn.Module:
    """A second model to train from there; weights that do not train are there once, unless an engine will cut them."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    cut = acc.distributed_type.value in SHARDED
    return copy.deepcopy(model, {} if cut else {id(parameter): parameter for parameter in frozen})


def stays(model: torch.nn.Module) -> bool:
    """Whether the model lies whole on this process and is too large to be copied needlessly."""
    cut = any(hasattr(parameter, "ds_id") or hasattr(parameter, "full_tensor") for parameter in model.parameters())
    return getattr(model, "in_place", False) and not cut


def rate(done: float, warmup: float) -> float:
    """Learning rate, a share of its peak, where `done` of the training lies behind: linear warm-up, then a cosine."""
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) if warmup < 1 else 1.0


def batch_loss(model, loss: Loss, batch: Batch, codes: Tensor, ranks: bool, config: Config) -> Tensor:
    """This process's part of the global batch's loss: equation (8), (9), (11), (14), or one of these plus γ times (14).

    Args:
        model: the network, wrapped or not.
        loss: what is trained.
        batch: of the feed, one-pass or not.
        codes: of all items [items, levels].
        ranks: whether (14) has joined.
        config: of the command.

    Returns:
        Weighted sum of the examples' losses over the sum of the weights in the whole global batch; the parts of all
        processes and accumulation steps add up to the mean.
    """
    batch, ranks = batch.to(codes.device), ranks and batch.rank_total > 0
    history = torch.where((batch.sequences != PAD)[..., None], codes[batch.sequences.clamp(min=0)], PAD)
    if batch.one_pass:
        own, targets, scores, present, rank_weights = one_pass(model, history, batch, codes, ranks, config)
    else:
        items = batch.candidates if ranks else batch.targets[:, None]
        numbers = codes[items.clamp(min=0)]
        log_probs = model(history, numbers, config.scope)
        numbers = among(numbers, log_probs, config.scope)
        own, targets = log_probs[:, 0], numbers[:, 0]
        scores = losses.sequence_score(log_probs, numbers, config.eta) if ranks else None
        present, rank_weights = items >= 0, batch.rank_weights

    value = 0 * own.sum()  # so that every process has a graph, whatever it has to train
    if loss.generative is not None:
        if loss.generative == "nll":
            example_losses = losses.nll(own, targets)
        elif loss.generative == "smooth":
            example_losses = losses.smooth(own, targets, config.xi)
        else:
            teacher = batch.log_probs
            if teacher.shape[-1] != own.shape[-1]:  # the labels hold each level's own codewords: no mass elsewhere
                teacher = spread(teacher)
            example_losses = losses.distill(own, teacher, config.temperature, targets, config.alpha)
            example_losses = torch.where(batch.hard, losses.nll(own, targets), example_losses)
        value = value + (example_losses * batch.weights).sum() / max(batch.total, 1e-9)
    if scores is not None:
        ranked = (losses.rank(scores, config.margin, present) * rank_weights).sum() / max(batch.rank_total, 1e-9)
        value = value + (config.gamma if loss.generative else 1.0) * ranked
    return value


def one_pass(
    model, history: Tensor, batch: Batch, codes: Tensor, ranks: bool, config: Config
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The model's say on windows of sequences and, of the candidates that are ranked, on all but the references, which
    stand in the sequences.

    Returns:
        Log-probabilities [n, levels, V] and targets among them [n, levels]; M of the candidates [rows, groups, k],
        which exist, and the groups' weights [rows, groups], or three times None.
    """
    examples = batch.groups if ranks else None
    if examples is None:
        own, _ = model(history, None, config.scope, Positions(batch.rows, batch.places))
        return own, among(codes[batch.targets], own, config.scope), None, None, None
    here, examples = examples >= 0, examples.clamp(min=0)
    items = batch.candidates[examples]  # [rows, groups, k]
    at = Positions(batch.rows, batch.places, torch.where(here, batch.places[examples], PAD))
    own, others = model(history, codes[items[..., 1:].clamp(min=0)], config.scope, at)
    targets = among(codes[batch.targets], own, config.scope)
    reference = own.gather(-1, targets[..., None]).squeeze(-1)[examples]
    scores = losses.mean_score(torch.cat([reference[:, :, None], others], dim=2), config.eta)
    return own, targets, scores, items >= 0, batch.rank_weights[examples] * here


def among(codes: Tensor, log_probs: Tensor, scope: str) -> Tensor:
    """Codewords [..., levels] as numbers among those that the log-probabilities [..., V] are over."""
    return among_all(codes, log_probs.shape[-1] // codes.shape[-1]) if scope == "all" else codes


def spread(teacher: Tensor) -> Tensor:
    """Each level's codewords [batch, levels, size] among all levels', −∞ elsewhere [batch, levels, levels · size]."""
    batch, levels, size = teacher.shape
    wide = teacher.new_full((batch, levels, levels, size), -torch.inf)
    diagonal = torch.arange(levels, device=teacher.device)
    wide[:, diagonal, diagonal] = teacher
    return wide.flatten(2)


def validate(
    recommender: Recommender, model: torch.nn.Module, valid: Examples, acc: Accelerator, config: Config
) -> float:
    """NDCG@10 of constrained beams, each process searching for its share of the users.

    The search is by a copy of the model, unless it is large and whole: an engine that cuts the weights would bring them
    together anew at every call.
    """
    whole = model.eval() if stays(model) else copied(model, acc)
    others = recommender.model, recommender.ranker
    recommender.model, recommender.ranker = (whole if one is model else one for one in others)
    own = valid.take(slice(acc.process_index, None, acc.num_processes))
    lists, _ = recommender.rank_items(own.histories, config.width, recommender.facts["exclude_bought"])
    recommender.model, recommender.ranker = others
    total = torch.tensor(ndcg(hit_ranks(lists, own.targets), 10).sum(), dtype=torch.float64, device=acc.device)
    return acc.reduce(total, "sum").item() / len(valid)
