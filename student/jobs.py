"""From a config to a finished artifact: find the inputs, skip finished work, train."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.data.dataset import Dataset
from distill.runtime import artifacts, checksums, machines
from distill.runtime.artifacts import Artifact, ArtifactJob
from distill.runtime.commands import COMMANDS, command_for
from distill.runtime.errors import UserError
from distill.runtime.launch import is_main_process
from distill.runtime.logs import log
from distill.semantic_ids.ids import SemanticIDs
from distill.semantic_ids.lineage import adopt_teacher, knows
from distill.teachers.remote import RemoteTeacher
from student import variants
from student.config import ITEM_BACKBONES, LABELLED_PRIORS, BaselineConfig, Config
from student.config_checks import (
    AnyConfig,
    baseline_config,
    check_baseline,
    is_large,
    settle_precision,
    settle_tables,
)
from student.variants import VARIANTS, Variant

if TYPE_CHECKING:
    from distill.teachers.engine import Engine

OpenTeacher = Callable[[Artifact, Dataset, SemanticIDs, str, str], "Engine"]


def make_student(config: Config, open_teacher: OpenTeacher | None = None) -> None:
    """Train a student over codewords, once or once per seed, unless it is finished.

    Args:
        config: of the command.
        open_teacher: loads the teacher that is asked during the training; for on_policy.

    Raises:
        UserError: an unknown variant; inputs that are missing or do not fit.
    """
    config = settle_tables(settle_precision(config))
    variant = find_variant(config)
    inputs, texts = read_inputs(config, variant), read_item_texts(config)
    queried = read_queried_models(config, variant, inputs[1])
    extra = identify_other_models(config, inputs[1])
    folders = [artifact.folder for artifact in inputs]
    output = config.output or config.run / "students" / config.variant

    def train_seed(seed: int, output: Path) -> None:
        seed_config = replace(config, seed=seed, seeds=None)
        reads = [config.init, config.warm_start]
        every_input = [*inputs, *texts, *queried]
        job = ArtifactJob("student", seed_config, output, every_input, extra, config.overwrite, reads)
        if not machines.is_finished(job, config.machine_silence):
            from student.phases import build_student
            from student.trainer import train

            seed_config = choose_precision(seed_config, job)
            in_process = open_teacher and config.on_policy and not config.teacher_url
            load_teacher = partial(open_teacher, queried[0]) if in_process else None
            build = partial(build_student, seed_config, variant, folders, texts, load_teacher=load_teacher)
            train(seed_config, job, build)

    each_seed(config.variant, config.seeds, config.seed, output, train_seed)


def make_item_model(config: BaselineConfig, seeds: list[int] | None = None) -> None:
    """Train a network over items, once or once per seed, unless it is finished.

    Raises:
        UserError: sizes that no network can have; inputs that are missing or do not fit.
    """
    check_baseline(config)
    config = settle_precision(config)
    inputs, texts = read_item_model_inputs(config), read_item_texts(config)
    folders, source = [artifact.folder for artifact in inputs], read_cf_source(config)
    extra = identify_base(config.base) if config.base else {}

    def train_seed(seed: int, output: Path) -> None:
        seed_config = replace(config, seed=seed, output=output)
        every_input = [*inputs, *texts, *source]
        job = ArtifactJob("baseline", seed_config, output, every_input, extra, config.overwrite, [config.base])
        if not machines.is_finished(job, config.machine_silence):
            from student.phases import build_item_model
            from student.trainer import train

            seed_config = choose_precision(seed_config, job)
            train(seed_config, job, partial(build_item_model, seed_config, folders, texts, source))

    each_seed(config.output_folder.name, seeds, config.seed, config.output_folder, train_seed)


def identify_inputs(config: Config) -> dict[str, Any]:
    """Identify what the training of a student would read: artifacts by name and fingerprint, and other models.

    Raises:
        UserError: as `make_student` and `make_item_model`, of inputs that are missing or do not fit.
    """
    if config.backbone in ITEM_BACKBONES:
        item_config = baseline_config(config)
        inputs = [*read_item_model_inputs(item_config), *read_cf_source(item_config)]
        extra = identify_base(item_config.base) if item_config.base else {}
    else:
        variant = find_variant(config)
        inputs = read_inputs(config, variant)
        extra = identify_other_models(config, inputs[1])
        inputs += read_queried_models(config, variant, inputs[1])
    inputs += read_item_texts(config)
    return {artifact.name: artifact.fingerprint for artifact in inputs} | extra


def find_variant(config: Config) -> Variant:
    """Find the variant that a config trains.

    Raises:
        UserError: an unknown variant.
    """
    variant = variants.find(config.variant, config.labels)
    if config.prior == "pseudo":
        variant = variant.on_pseudo_ids()
    if config.list_loss == "grpo":
        variant = variant.on_own_beams()
    return variant


def choose_precision(config: AnyConfig, job: ArtifactJob) -> AnyConfig:
    """Replace `precision` "auto" by what this machine takes, and note it in the job's facts."""
    from distill.runtime.precision import choose_mixed_precision, log_mixed_precision

    chosen = choose_mixed_precision(config.precision, is_large(config))
    log_mixed_precision(config.precision, chosen, is_large(config))
    job.facts["precision"] = chosen
    return replace(config, precision=chosen)


def each_seed(
    title: str, seeds: list[int] | None, seed: int, output: Path, train_seed: Callable[[int, Path], None]
) -> None:
    """Train once into OUTPUT; or once per seed into OUTPUT-seed0 and so on, then log mean and spread of NDCG@10.

    Args:
        title: of the log message.
        seeds: None: train once.
        seed: for that.
        output: folder of the artifact.
        train_seed: trains a seed into a folder, which is finished when it returns, on every process of its machine.
    """
    if not seeds:
        train_seed(seed, output)
        return
    best = {}
    for number in seeds:
        folder = output.with_name(f"{output.name}-seed{number}")
        train_seed(number, folder)
        if is_main_process():  # the others may not have the disk
            best[number] = best_validation(folder)
    if not best:
        return
    spread = statistics.stdev(best.values()) if len(best) > 1 else 0.0
    parts = ", ".join(f"{value:.4f} (seed {number})" for number, value in best.items())
    log.info(f"{title}: validation NDCG@10 {statistics.mean(best.values()):.4f} ± {spread:.4f}: {parts}")


def best_validation(folder: Path) -> float:
    """Return the best validation NDCG@10 of the last phase of a trained student."""
    return max(row["valid_ndcg@10"] for row in last_curve(folder))


def last_curve(folder: Path) -> list[dict[str, float]]:
    """Read the curve of the last phase: the ranker's, where there is one."""
    curve = json.loads((folder / "curve.json").read_text())
    return curve if isinstance(curve, list) else curve.get("ranker") or curve["retriever"]


def read_inputs(config: Config, variant: Variant) -> list[Artifact]:
    """Open the data set, the semantic IDs, and the labels that the variant needs."""
    inputs = [
        artifacts.read(config.dataset or config.run / "dataset", "dataset"),
        artifacts.read(config.semantic_ids or config.run / "semantic_ids", "semantic_ids"),
    ]
    if variant.needs_labels:
        inputs.append(read_labels(config))
    if config.prior != "teacher":
        check_prior(config, variant)
    if config.prior in LABELLED_PRIORS:
        inputs.append(read_prior(config))
    if config.plain_labels and variant.needs_labels:
        inputs.append(replace(artifacts.read(config.plain_labels, "soft_labels"), role="plain"))
    return inputs


def check_prior(config: Config, variant: Variant) -> None:
    """Refuse an order for the ranking loss where there is no ranking loss.

    Raises:
        UserError: names variants that have one.
    """
    if not variant.ranks:
        raise UserError(
            f"--prior {config.prior} is an order for the ranking loss, and {config.variant} has none; take --variant "
            f"{', '.join(name for name, each in VARIANTS.items() if each.ranks)}, or --labels rank."
        )


def read_queried_models(config: Config, variant: Variant, ids: Artifact) -> list[Artifact]:
    """Open the models queried during the training: the teacher with on_policy, the reference of a ranking loss.

    Raises:
        UserError: on_policy and a variant that learns no distributions.
    """
    reference = [replace(artifacts.read(config.reference, "student"), role="reference")] if config.reference else []
    return [adopt_teacher(teacher, ids) for teacher in read_teacher(config, variant)] + reference


def read_teacher(config: Config, variant: Variant) -> list[Artifact]:
    """Open the teacher that is queried in this process; none without on_policy."""
    if not config.on_policy:
        return []
    if variant.retriever.generative != "distill":
        raise UserError(f"--on_policy is for --variant distill, dtr and dwr; {config.variant} learns no distributions.")
    if config.teacher_url:
        return []
    return [artifacts.read(config.teacher or config.run / "teacher", "teacher")]


def identify_remote_teacher(config: Config, ids: Artifact) -> dict[str, Any]:
    """Ask the teacher's server which teacher it is.

    Args:
        config: of the command.
        ids: the semantic IDs.

    Returns:
        Facts for the job's identity; none without such a server.

    Raises:
        UserError: no teacher there, or one of other semantic IDs.
    """
    if not (config.on_policy and config.teacher_url):
        return {}
    facts = RemoteTeacher(config.teacher_url).facts()
    if facts["semantic_ids"] != ids.fingerprint:
        raise UserError(
            f"The teacher at {config.teacher_url} was tuned on semantic_ids {facts['semantic_ids']}, the student's are "
            f"{ids.fingerprint}, at {ids.folder}: other codewords. Serve a teacher of these."
        )
    return {"remote_teacher": facts["teacher"]}


def read_item_texts(config: Config | BaselineConfig) -> list[Artifact]:
    """Open the embeddings that the student reads; none without --item_text.

    The role holds their fingerprint: they may be others than those of the semantic IDs, and students of different
    embeddings may stand in one table.
    """
    if not config.reads_text:
        return []
    artifact = artifacts.read(config.embeddings or config.run / "embeddings", "embeddings")
    return [replace(artifact, role=f"item_text-{artifact.fingerprint[:8]}")]


def read_cf_source(config: BaselineConfig) -> list[Artifact]:
    """Open the network whose item embeddings SETRec's CF tokens, E4SRec or DreamRec read; none for others.

    The role holds its fingerprint, as that of texts does.

    Raises:
        UserError: no such network, or one that was trained on users whom this one must not know.
    """
    reads_it = config.network == "e4srec" or (config.network == "setrec" and config.setrec.cf)
    if not reads_it and (config.network != "dreamrec" or config.sasrec is None):
        return []
    artifact = artifacts.read(config.sasrec or config.default_place("sasrec"), "baseline")
    if config.folds and (artifact.config.get("folds"), artifact.config.get("fold")) != (config.folds, config.fold):
        raise UserError(
            f"{artifact.folder} has seen the users of fold {config.fold}. Make one that has not: "
            + command_for("baseline", config.default_place("sasrec"), f"--folds {config.folds} --fold {config.fold}")
        )
    return [replace(artifact, role=f"cf_source-{artifact.fingerprint[:8]}")]


def read_item_model_inputs(config: BaselineConfig) -> list[Artifact]:
    """Open the data set, and the labels that the loss needs."""
    inputs = [artifacts.read(config.dataset or config.run / "dataset", "dataset")]
    if config.loss != "ce":
        inputs.append(read_labels(config))
    return inputs


def identify_base(folder: Path) -> dict[str, Any]:
    """Identify the pretrained model that a SETRec, Lite-LLM4Rec or E4SRec starts from.

    Raises:
        UserError: no checkpoint there.
    """
    check_checkpoint(folder, "--base")
    return {"base": checksums.model_identity(folder)}


def read_labels(config: Config | BaselineConfig) -> Artifact:
    """Open the soft labels."""
    return artifacts.read(config.soft_labels or config.run / "soft_labels", "soft_labels")


def read_prior(config: Config) -> Artifact:
    """Open the labels whose candidates are ranked in place of the soft labels'.

    Raises:
        UserError: the labels are missing, with the command that makes them.
    """
    folder = config.prior_folder
    mix = "llm=0.5,transitions=0.5" if config.prior == "mixture" else f"{config.prior}=1"
    options = {"run": config.run, "dataset": config.dataset, "semantic_ids": config.semantic_ids}
    options |= {"keep": config.candidates, "mix": mix, "output": folder}
    words = " ".join(f"--{name} {value}" for name, value in options.items() if value is not None)
    artifact = artifacts.read(folder, "soft_labels", f"{COMMANDS['soft_labels']} {words}")
    return replace(artifact, role=config.prior)


def identify_other_models(config: Config, ids: Artifact) -> dict[str, Any]:
    """Identify the models that are no inputs: those that the training starts from, and a teacher that is a server.

    Raises:
        UserError: one is missing or does not fit.
    """
    facts = check_init(config.init, ids) if config.init else {}
    facts |= identify_remote_teacher(config, ids)
    return facts | (identify_warm_start(config.warm_start) if config.warm_start else {})


def check_init(folder: Path, ids: Artifact) -> dict[str, Any]:
    """Identify the language model that a student starts from.

    Args:
        folder: a Hugging Face checkpoint, a teacher's or any other.
        ids: the semantic IDs.

    Returns:
        Facts for the job's identity.

    Raises:
        UserError: no checkpoint there, or a teacher of other semantic IDs.
    """
    check_checkpoint(folder, "--init")
    if not (folder / artifacts.MANIFEST).is_file():
        return {"init": checksums.model_identity(folder)}
    teacher = artifacts.read(folder, "teacher")
    if not knows(teacher, ids):
        raise UserError(
            f"The teacher at {folder} was tuned on semantic_ids {teacher.inputs['semantic_ids']}, the student's are "
            f"{ids.fingerprint}, at {ids.folder}: another codebook. Tune a teacher on these."
        )
    return {"init": teacher.fingerprint}


def identify_warm_start(folder: Path) -> dict[str, Any]:
    """Identify the student whose weights a training starts from; it may be of another data set.

    Raises:
        UserError: no finished student there.
    """
    return {"warm_start": artifacts.read(folder, "student").fingerprint}


def check_checkpoint(folder: Path, flag: str) -> None:
    """Refuse a folder that is no Hugging Face checkpoint.

    Raises:
        UserError: names the flag, and what the folder holds.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        adapter = (folder / "adapter_config.json").is_file()
        kind = "a LoRA adapter; merge it first (teacher/merge.py)" if adapter else "no config.json with *.safetensors"
        raise UserError(f"{flag} {folder} is no Hugging Face checkpoint: it holds {kind}.")
