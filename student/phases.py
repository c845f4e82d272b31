"""What is trained: a recommender and the phases that train its models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.data.dataset import Dataset, Examples
from distill.labels.store import LabelStore
from distill.runtime.artifacts import Artifact
from distill.runtime.errors import UserError
from distill.runtime.logs import log
from distill.runtime.models import count_parameters
from distill.runtime.sharding import trainable_state, unsharded
from distill.semantic_ids.embeddings import text_vectors
from distill.semantic_ids.ids import SemanticIDs
from distill.teachers.engine import Engine
from distill.teachers.forced import CachedTeacher, EngineTeacher, ForcedTeacher
from distill.teachers.remote import RemoteTeacher
from student.batch import Batch
from student.batches import BatchSampler, check_scope
from student.config import LABELLED_PRIORS, BaselineConfig, Config, ValidationSettings
from student.dreamrec import build_dreamrec
from student.e4srec import build_e4srec
from student.item_batches import ItemBatch, ItemBatchSampler, read_windows
from student.item_recommender import ItemRecommender
from student.lite_llm4rec import build_lite_llm4rec
from student.models import BACKBONES
from student.models.causal import Causal
from student.models.item_models import ITEM_MODELS
from student.models.item_text import TextConfig, text_of_ids, unit_vectors
from student.objective import anneal, batch_loss, denoising_loss, item_loss
from student.on_policy import OnPolicyTeacher, rewarded_beams
from student.precision import resolve_precision
from student.pseudo_ids import PseudoIDs
from student.ranked_lists import open_prior
from student.recommender import Recommender
from student.setrec_model import build_setrec, setrec_loss, tune_beta
from student.variants import Loss, Variant
from student.warm_start import load_weights


@dataclass(frozen=True)
class Phase:
    """The training of one model.

    Attributes:
        name: "retriever", "ranker", or the network of an item model.
        title: names the phase in messages.
        epochs: passes over the examples.
        lr: peak learning rate.
        sampler: the batches.
        loss: (wrapped model, batch, share of the training that is done) → this process's part of the global loss.
    """

    name: str
    title: str
    epochs: int
    lr: float
    sampler: BatchSampler | ItemBatchSampler
    loss: Callable[[nn.Module, Batch | ItemBatch, float], Tensor]

    @property
    def division(self) -> dict[str, int]:
        """Settings outside the student's identity that decide which batches an epoch has."""
        if not isinstance(self.sampler, BatchSampler) or self.sampler.store is None:
            return {}
        # above the number of labels, all values mean the same: one block
        return {"buffer_rows": min(self.sampler.settings.buffer_rows, self.sampler.store.rows)}


@dataclass(frozen=True)
class Student:
    """Everything that the trainer needs.

    Attributes:
        recommender: holds the models.
        phases: in order; the ranker phase starts from the retriever.
        valid: users whose NDCG@10 chooses the epoch.
        width: items per validation list.
        finish: called in the main process when all phases are trained, before the recommender is saved.
    """

    recommender: Recommender | ItemRecommender
    phases: list[Phase]
    valid: Examples
    width: int
    finish: Callable[[], None] | None = None


def build_student(
    config: Config,
    variant: Variant,
    folders: list[Path],
    texts: list[Artifact],
    acc: Accelerator,
    load_teacher: Callable[[Dataset, SemanticIDs, str, str], Engine] | None = None,
) -> Student:
    """Build a student over codewords.

    Args:
        config: of the command.
        variant: which losses in which phases.
        folders: of the data set, the semantic IDs and, where the variant needs them, the soft labels.
        texts: the embeddings that it reads, or none.
        acc: the Accelerator.
        load_teacher: loads the teacher that is queried during the training; None: none is, or one behind a server.
    """
    dataset = Dataset.load(folders[0])
    ids = SemanticIDs.load(folders[1], dataset.n_items)
    store = LabelStore.open(folders[2]) if variant.needs_labels else None
    samplers = {name: build_sampler(dataset, store, loss, acc, config, ids) for name, loss in variant.phases.items()}
    with unsharded(acc):
        learns_states = store is not None and samplers["retriever"].state_mean is not None
        features = (store.features, store.feature_layers) if store and learns_states else (0, 1)
        model = build_model(config, ids, read_unit_vectors(texts, dataset.n_items), *features)
        if config.warm_start:
            load_weights(model, config.warm_start, ids)
        model = model.to(acc.device)
    facts = {name: getattr(config, name) for name in ("variant", "backbone", "scope", "seed", "max_history")}
    facts["backbone"] = "large" if config.init else config.backbone
    facts["exclude_bought"] = dataset.resolve_exclude_bought(config.exclude_bought)
    item_ids, titles = (dataset.items[name].to_pylist() for name in ("item_id", "title"))
    recommender = Recommender(model, ids.codes, item_ids, titles, facts=facts)
    if config.precision == "bf16":
        recommender.precision = resolve_precision("auto", model)  # of the validation's search
    adapters = f" ({sum(p.numel() for p in trainable_state(model).values()):,} train)" if config.lora_rank else ""
    log.info(
        f"{config.variant}: {count_parameters(model):,} parameters{adapters}, {samplers['retriever'].total:,} examples"
    )

    trie = recommender.trie if config.scope == "trie" else None
    in_one_pass = any(
        samplers[name].one_pass and not loss.own_beams for name, loss in variant.phases.items() if loss.rank
    )
    reference = read_reference(config, acc, in_one_pass) if config.reference else None

    on_policy = finish = None
    if config.on_policy and variant.retriever.generative == "distill":
        teacher = CachedTeacher(open_forced_teacher(config, dataset, ids, acc, load_teacher))
        on_policy, finish = OnPolicyTeacher(recommender, teacher, config.on_policy_width), teacher.log_questions

    def make_loss(loss: Loss) -> Callable[[nn.Module, Batch, float], Tensor]:
        def compute(model: nn.Module, batch: Batch, done: float) -> Tensor:
            with_ranking = loss.rank and (loss.generative is None or done >= config.rank_from)
            other = reference or recommender.model  # dtr's ranker is compared with its retriever
            settings = anneal(config, done)
            if batch.on_policy and loss.own_beams:
                batch = rewarded_beams(recommender, batch, config.candidates)
            elif batch.on_policy:
                assert on_policy is not None
                batch, settings = on_policy.relabel(batch), replace(settings, alpha=0.0)  # no item is the right one
            return batch_loss(model, loss, batch, recommender.codes, with_ranking, settings, trie, other)

        return compute

    schedules = {"retriever": (config.epochs, config.lr), "ranker": (config.ranker_epochs, config.ranker_lr)}
    phases = [
        Phase(name, f"{config.variant} {name}", *schedules[name], samplers[name], make_loss(loss))
        for name, loss in variant.phases.items()
    ]
    return Student(recommender, phases, validation_users(dataset, config.max_history, config), config.width, finish)


def open_forced_teacher(
    config: Config,
    dataset: Dataset,
    ids: SemanticIDs,
    acc: Accelerator,
    load_teacher: Callable[[Dataset, SemanticIDs, str, str], Engine] | None,
) -> ForcedTeacher:
    """Find the teacher that is asked during the training; arguments as `build_student`'s."""
    if config.teacher_url:
        return RemoteTeacher(config.teacher_url)
    assert load_teacher is not None
    return EngineTeacher(load_teacher(dataset, ids, str(acc.device), config.teacher_dtype))


def read_reference(config: Config, acc: Accelerator, in_one_pass: bool) -> nn.Module:
    """Load the network whose scores the ranking loss subtracts.

    Args:
        config: of the command.
        acc: the Accelerator.
        in_one_pass: whether the student ranks in one pass, so that the reference must too.

    Raises:
        UserError: it normalises over other codewords than the student, or cannot score in one pass.
    """
    assert config.reference is not None
    student = Recommender.from_pretrained(config.reference)
    network, scope, backbone = student.ranker or student.model, student.facts["scope"], student.facts["backbone"]
    if scope != config.scope:
        raise UserError(
            f"--reference {config.reference} was trained with --scope {scope}, this student has --scope "
            f"{config.scope}: log-probabilities over other codewords cannot be compared. Take --scope {scope}, or a "
            f"reference of --scope {config.scope}."
        )
    if in_one_pass and not hasattr(network, "one_pass"):
        raise UserError(
            f"--reference {config.reference} has --backbone {backbone}, which cannot score in one pass, and this "
            f"student, --backbone {config.backbone}, is trained so. Give a reference of --backbone {config.backbone}, "
            "or --one_pass false."
        )
    return network.to(acc.device)


def build_item_model(
    config: BaselineConfig, folders: list[Path], texts: list[Artifact], source: list[Artifact], acc: Accelerator
) -> Student:
    """Build a network over items.

    Args:
        config: of the command.
        folders: of the data set and, where the loss needs a teacher, of the soft labels.
        texts: the embeddings that it reads, or none.
        source: the network whose item embeddings SETRec, E4SRec or DreamRec reads, or none.
        acc: the Accelerator.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    dataset = Dataset.load(folders[0])
    store = LabelStore.open(folders[1]) if config.loss != "ce" else None
    seen = dataset.without_fold(config.folds, config.fold) if config.folds else dataset
    windows, candidates = read_windows(seen, store, config.max_history)
    sampler = ItemBatchSampler(windows, candidates, config, acc.process_index, acc.num_processes)
    with unsharded(acc):
        model = build_item_network(config, dataset.n_items, texts, source).to(acc.device)
    facts = {name: getattr(config, name) for name in ("network", "loss", "seed")}
    facts["exclude_bought"] = dataset.resolve_exclude_bought(config.exclude_bought)
    log.info(f"{config.network}: {count_parameters(model):,} parameters, {len(windows):,} sequences")

    def compute(model: nn.Module, batch: ItemBatch, done: float) -> Tensor:
        if config.network == "setrec":
            return setrec_loss(model, batch, acc.device, anneal(config, done))
        if config.network == "dreamrec":
            return denoising_loss(model, batch, acc.device)
        return item_loss(model, config.loss, batch, acc.device, anneal(config, done))

    title = config.network if config.loss == "ce" else f"{config.network} {config.loss}"
    phase = Phase(config.network, title, config.epochs, config.lr, sampler, compute)
    valid = validation_users(dataset, config.max_history, config)
    recommender = ItemRecommender(model, facts)
    tunes_beta = config.network == "setrec" and config.setrec.beta is None
    finish = partial(tune_beta, recommender, valid) if tunes_beta else None
    return Student(recommender, [phase], valid, width=10, finish=finish)


def build_item_network(
    config: BaselineConfig, n_items: int, texts: list[Artifact], source: list[Artifact]
) -> nn.Module:
    """Build a new network over items; arguments as `build_item_model`'s."""
    if config.network == "setrec":
        return build_setrec(config, n_items, source[0].folder if source else None, texts[0] if texts else None)
    if config.network == "lite-llm4rec":
        return build_lite_llm4rec(config, n_items, read_unit_vectors(texts, n_items))
    if config.network == "e4srec":
        return build_e4srec(config, n_items, source[0].folder)
    if config.network == "dreamrec":
        return build_dreamrec(config, n_items, source[0].folder if source else None)
    network, sizes = ITEM_MODELS[config.network]
    unit = read_unit_vectors(texts, n_items)
    text = None if unit is None else TextConfig(*unit.shape, only=config.item_text == "only")
    model = network(sizes(n_items, text=text, **config.sizes))
    if unit is not None:
        model.items.text.set_vectors(unit)
    return model


def build_model(
    config: Config, ids: SemanticIDs, unit: np.ndarray | None, features: int = 0, feature_layers: int = 1
) -> nn.Module:
    """Build a new network over codewords, or load the language model that it starts from.

    Args:
        config: of the command.
        ids: semantic IDs of all items.
        unit: text embeddings that the network reads, of length 1 [n_items, dim]; None: none.
        features: numbers of each of the teacher's hidden states that it learns to guess; 0: none.
        feature_layers: of the teacher, whose states it learns.
    """
    if not config.init:
        network, sizes, presets = BACKBONES[config.backbone]
        options: dict[str, Any] = presets[config.preset] | {"dropout": config.dropout, "tied": config.ties_embeddings}
        options |= {"features": features, "feature_layers": feature_layers}
        if unit is None:
            return network(sizes(ids.levels, ids.codebook_size, **options))
        numbers, vectors = text_of_ids(ids.codes, unit, ids.codebook_size)
        text = TextConfig(*vectors.shape, only=config.item_text == "only")
        model = network(sizes(ids.levels, ids.codebook_size, text=text, **options))
        model.text.set_ids(numbers, vectors)
        return model
    from student.models import large

    options = (
        config.lora_rank, config.dropout, config.gradient_checkpointing, config.precision, config.init_layers,
        features, feature_layers,
    )  # fmt: skip
    return large.load(config.init, ids, config.max_history, *options)


def read_unit_vectors(texts: list[Artifact], n_items: int) -> np.ndarray | None:
    """Read the text embeddings, centred and of length 1 [n_items, dim]; None where there are none.

    Raises:
        UserError: the embeddings are of another number of items.
    """
    return unit_vectors(text_vectors(texts[0], n_items)) if texts else None


def build_sampler(
    dataset: Dataset,
    store: LabelStore | None,
    loss: Loss,
    acc: Accelerator,
    config: Config,
    ids: SemanticIDs | None = None,
) -> BatchSampler:
    """Choose the rows (one pass or prefixes) and the labels of a phase; `ids` are needed where it ranks pseudo-IDs.

    Raises:
        UserError: labels that do not fit; see `BatchSampler`.
    """
    one_pass = config.one_pass and issubclass(BACKBONES[config.backbone][0], Causal) and loss.target == "ref"
    if loss.needs_labels and config.shuffle:
        one_pass = False  # labels are of targets in their own order
    labels = store if loss.needs_labels else None
    check_scope(labels, loss, config.scope)
    prior = None
    if loss.pseudo:
        assert ids is not None
        prior = PseudoIDs(ids.codes, ids.codebook_size, config.candidates)
    elif loss.rank and config.prior in LABELLED_PRIORS:
        prior = open_prior(config.prior_folder, config.prior)
    plain = LabelStore.open(config.plain_labels) if config.plain_labels and labels else None
    return BatchSampler(dataset, labels, loss, one_pass, config, acc.process_index, acc.num_processes, prior, plain)


def validation_users(dataset: Dataset, max_history: int, settings: ValidationSettings) -> Examples:
    """Draw the validation users, the same in every run."""
    valid = dataset.examples("valid", max_history)
    return valid.take(np.random.default_rng(0).permutation(len(valid))[: settings.valid_users])
