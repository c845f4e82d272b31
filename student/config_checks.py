"""Refuse settings of the students' training that contradict each other, and translate them for networks over items."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from distill.data.splits import check_folds
from distill.runtime.config import suggest
from distill.runtime.errors import UserError
from student import variants
from student.config import (
    ITEM_BACKBONES,
    ITEM_LOSSES,
    LABELLED_PRIORS,
    LARGE_PRESETS,
    NEEDS_REFERENCE,
    NEEDS_TEACHER,
    PRESETS,
    BaselineConfig,
    Config,
)
from student.dreamrec_config import check_dreamrec
from student.e4srec_config import check_e4srec
from student.setrec_config import check_setrec

ITEM_NETWORK_SETTINGS = ("setrec", "e4srec", "dreamrec")  # each the name of a network, and of its group of settings
READERS = {"base": ("setrec", "lite-llm4rec", "e4srec"), "sasrec": ("setrec", "e4srec", "dreamrec")}  # of a file

AnyConfig = TypeVar("AnyConfig", Config, BaselineConfig)


def check(config: Config) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UserError: names the setting and what it may be.
    """
    if config.init and config.backbone != "causal":
        raise UserError(f"--init starts from a causal language model; --backbone {config.backbone} is none.")
    if not config.init and (config.lora_rank or config.gradient_checkpointing or config.init_layers):
        raise UserError("--lora_rank, --gradient_checkpointing and --init_layers are for a large student; give --init.")
    if config.backbone != "setrec":
        check_item_text(config.item_text, config.embeddings)
    check_item_network(config, config.backbone, "ce")
    if config.tie_embeddings and config.init:
        raise UserError("--tie_embeddings is for students without --init: a large student keeps its model's tables.")
    if config.reads_text and config.init:
        raise UserError("--item_text is for students without --init: a large student reads codewords alone.")
    if config.item_text == "only" and config.backbone == "causal":
        raise UserError(
            "--item_text only: causal reads the codewords of its targets as history; take --item_text add, or "
            "--backbone nested or seq2seq."
        )
    if config.warm_start and config.backbone in ITEM_BACKBONES:
        raise UserError(
            "--warm_start is for students over codewords; a network over items has a row for each, and another day "
            "numbers them anew. Take --backbone seq2seq, causal or nested."
        )
    if config.preset not in PRESETS:
        raise UserError(f"Unknown preset {config.preset!r}. {suggest(config.preset, PRESETS)}")
    if config.candidates < 2:
        raise UserError(f"--candidates is {config.candidates}; it must be at least 2.")
    check_list_loss(config)
    if config.on_policy and config.scope == "all":
        raise UserError(
            "--on_policy asks the teacher for each level's codewords; it needs semantic IDs and --scope level or trie."
        )
    if config.prior not in LABELLED_PRIORS and config.prior_labels:
        raise UserError("--prior_labels needs its --prior: distance, statistics or mixture.")
    if config.seeds is not None and len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"--seeds {config.seeds} names a seed twice.")


def check_list_loss(config: Config) -> None:
    """Refuse ranking losses that lack what they compare with, and pseudo-IDs outside the trie.

    Raises:
        UserError: names the setting and what it needs.
    """
    needs_reference = config.list_loss in NEEDS_REFERENCE
    if config.reference and not needs_reference:
        raise UserError(f"--reference is for --list_loss {', '.join(NEEDS_REFERENCE)}, not {config.list_loss}.")
    variant = variants.find(config.variant, config.labels)
    if config.list_loss == "grpo" and variant.ranker is None:
        raise UserError(f"--list_loss grpo starts from a trained retriever: --variant dtr, not {config.variant}.")
    if needs_reference and variant.retriever.rank and not config.reference:
        raise UserError(
            f"--list_loss {config.list_loss} compares with a finished student: give --reference STUDENT, or take "
            "--variant dtr, whose ranker is compared with its retriever."
        )
    if config.prior != "teacher" and config.list_loss == "grpo":
        raise UserError(f"--list_loss grpo ranks the model's own beams; --prior {config.prior} would not be read.")
    if config.prior == "pseudo" and (config.list_loss in NEEDS_TEACHER or config.scope == "trie"):
        setting, other = f"--list_loss {config.list_loss}", "--list_loss margin"
        if config.scope == "trie":
            setting, other = "--scope trie", "--scope level"
        raise UserError(f"{setting} needs candidates of the catalogue, --prior pseudo has none; take {other}.")


def check_item_text(item_text: str, embeddings: Path | None) -> None:
    """Refuse embeddings that nothing reads.

    Raises:
        UserError: says which setting reads them.
    """
    if embeddings is not None and item_text == "none":
        raise UserError(f"--embeddings {embeddings} is read by --item_text add or only, and --item_text is none.")


def check_item_network(config: Config | BaselineConfig, network: str, loss: str) -> None:
    """Refuse settings of single networks over items that contradict each other, or are given for another network.

    Args:
        config: of either command.
        network: that is trained, over items or over codewords.
        loss: of a network over items.

    Raises:
        UserError: names the setting and what it may be.
    """
    for name in ITEM_NETWORK_SETTINGS:
        settings = getattr(config, name)
        if network != name and settings != type(settings)():
            raise UserError(f"--{name} is for {name}; the network is {network}.")
    for name, readers in READERS.items():
        if getattr(config, name) is not None and network not in readers:
            raise UserError(f"--{name} is for {', '.join(readers)}; the network is {network}.")
    if network == "setrec":
        check_setrec(config, config.dim, config.item_text)
    if network == "e4srec":
        check_e4srec(config.e4srec, config.base, config.item_text)
    if network == "dreamrec":
        check_dreamrec(loss, config.item_text)


def is_large(config: Config | BaselineConfig) -> bool:
    """Tell whether the network is large enough to be faster in bf16."""
    if isinstance(config, BaselineConfig):
        return config.base is not None
    return config.init is not None or config.preset in LARGE_PRESETS


def settle_precision(config: AnyConfig) -> AnyConfig:
    """Replace `precision` "auto" by "no" for small networks: so on every machine, and the identity says it."""
    if config.precision == "auto" and not is_large(config):
        return replace(config, precision="no")
    return config


def settle_tables(config: Config) -> Config:
    """Replace an open `tie_embeddings` by true for nested, so that the identity says it: it once was false."""
    if config.tie_embeddings is None and config.ties_embeddings:
        return replace(config, tie_embeddings=True)
    return config


def check_baseline(config: BaselineConfig) -> None:
    """Refuse sizes that a network over items cannot have.

    Raises:
        UserError: names the setting and what it may be.
    """
    if config.network != "setrec":
        check_item_text(config.item_text, config.embeddings)
    check_item_network(config, config.network, config.loss)
    if config.list_loss in NEEDS_REFERENCE:
        raise UserError(f"--list_loss {config.list_loss} compares students of semantic IDs; {config.network} has none.")
    if config.network in ("lite-llm4rec", "e4srec") and not config.base and config.dim % 8:
        raise UserError(f"--dim is {config.dim}; expected a multiple of 8, for a LLaMA of four heads of even size.")
    check_folds(config.folds, config.fold)
    if config.folds and config.loss != "ce":
        raise UserError("--folds are for networks that label; one that is taught labels nobody. Take --loss ce.")
    if config.dim % 2:
        raise UserError(f"--dim is {config.dim}; expected an even number, for two attention heads.")


def baseline_config(config: Config) -> BaselineConfig:
    """Translate student/train.py's config for a backbone without semantic IDs.

    Raises:
        UserError: a variant or labels that such a network cannot learn.
    """
    if config.on_policy:
        raise UserError(
            f"--on_policy is for backbones with semantic IDs (seq2seq, causal, nested), not {config.backbone}."
        )
    if config.variant not in ITEM_LOSSES or config.labels != "ref":
        refused = f"--variant {config.variant}" if config.labels == "ref" else f"--labels {config.labels}"
        raise UserError(
            f"{refused} is for backbones with semantic IDs (seq2seq, causal, nested); {config.backbone} "
            f"learns --variant {', '.join(ITEM_LOSSES)}."
        )
    shared = {field.name for field in fields(BaselineConfig)} & {field.name for field in fields(config)}
    values: dict[str, Any] = {name: getattr(config, name) for name in shared}
    return BaselineConfig(**values | {"network": config.backbone, "loss": ITEM_LOSSES[config.variant]})
