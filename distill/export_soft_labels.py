"""Write what the teacher says about every training example (paper 3.1 and 3.2): beams and codeword distributions.

    python distill/export_soft_labels.py --config configs/demo/export.yaml

Shards are written one by one; a killed export goes on from the last finished shard. Several processes share the work,
be they launched (`accelerate launch`, `torchrun`), parts of a job array (`--shard 3/8`) or started by hand: each takes
shards that nobody else has, and whoever sees the last one finished completes the set, the same to the byte.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill.data.dataset import Dataset, Examples
from distill.labels.encodings import ENCODINGS, kl
from distill.labels.hub import push
from distill.labels.labeller import Labeller, LabelRequest, Labels
from distill.labels.schema import recorded, write_index
from distill.labels.shard_queue import ShardQueue
from distill.labels.writer import encode_shard, is_intact, write_shard
from distill.runtime import artifacts
from distill.runtime.artifacts import Artifact, ArtifactJob, write_json
from distill.runtime.config import JobSettings, run, suggest
from distill.runtime.errors import UserError
from distill.runtime.logs import log, progress_bar
from distill.semantic_ids.ids import SemanticIDs
from distill.teachers import build
from distill.teachers.engine import Engine
from distill.teachers.language_model import EngineLabeller

TEACHERS = ("llm", "transitions", "distance", "statistics")
MAX_HISTORY = 20  # items of history where no language model says how many it reads (paper: 20)
SAMPLE = 200  # examples of a dry run
KL_ROWS = 64  # rows a shard whose encodings are compared


@dataclass(frozen=True)
class Config(JobSettings):
    """Export soft labels: python distill/export_soft_labels.py [--config FILE] [--field value ...]."""

    run: Path = Path("runs/demo")
    """Folder of the run; inputs and output default to their names inside it."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    semantic_ids: Path | None = None
    """Semantic IDs artifact (default: RUN/semantic_ids)."""
    teacher: Path | None = None
    """Teacher artifact (default: RUN/teacher); under folds those of teacher-fold0, teacher-fold1, … beside it."""
    mix: dict[str, float] = field(default_factory=lambda: {"llm": 1.0})
    """Who teaches, by weights: llm (the teacher artifact), transitions (counts, leave-one-out), distance and statistics
    (paper, Appendix B); "llm=0.7,transitions=0.3" will do. Without llm no teacher artifact is read."""
    folds: int = 0
    """Cross-fitting: users of fold i are labelled by teacher-fold<i>, or by counts without them; 0: none."""
    output: Path | None = None
    """Where the labels go (default: RUN/soft_labels)."""
    engine: Literal["hf", "vllm"] = "hf"
    """What runs the teacher: plain PyTorch or vLLM."""
    split: Literal["train", "valid", "test"] = "train"
    """Whose examples are labelled."""
    width: int = 25
    """Beams (paper: 25)."""
    keep: int = 16
    """Candidates kept after correction, the reference first (paper: 16)."""
    exclude_bought: bool | None = None
    """Leave items of the history out of the candidates (default: where the training part never has an item twice)."""
    unconstrained: bool = False
    """Beams of any codewords, whose invalid IDs are dropped, as in the paper; otherwise of valid IDs only."""
    scope: Literal["level", "all"] = "level"
    """Log-probabilities of the codewords of each position's level, or of all levels'."""
    encoding: Literal["fp16", "u8", "topk+tail"] = "u8"
    """How log-probabilities are stored: u8 loses less than .001 nats (256 codewords) in about a quarter of the room."""
    shard_rows: int = 4096
    """Examples a shard, about: shards end where users end."""
    batch_size: int = field(default=64, metadata={"identity": False})
    """Examples a forward pass."""
    limit: int | None = None
    """Label only the first N examples."""
    users: str | None = None
    """Label only these users, by number: N for the first N, FROM:TO for a range."""
    shard: str | None = field(default=None, metadata={"identity": False})
    """I/N: only every Nth shard from the Ith (0 to N-1), for job arrays; launched processes need no such option."""
    device: str = field(default="auto", metadata={"identity": False})
    """auto, cpu or cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Weights of the teacher."""
    tensor_parallel_size: int = field(default=1, metadata={"identity": False})
    """vllm: GPUs that share one model."""
    gpu_memory_utilization: float = field(default=0.9, metadata={"identity": False})
    """vllm: share of a GPU's memory for weights and caches."""
    kv_cache_gb: float | None = field(default=None, metadata={"identity": False})
    """vllm: gigabytes of keys and values instead (on CPUs 1 unless named)."""
    max_num_seqs: int = field(default=256, metadata={"identity": False})
    """vllm: requests in one forward pass."""
    dry_run: bool = field(default=False, metadata={"identity": False})
    """Write nothing: label 200 examples and say what all of them would take."""
    push: str | None = field(default=None, metadata={"identity": False})
    """Copy the finished set there: a name on the Hugging Face hub (USER/NAME), or a folder (./NAME)."""


def main(config: Config) -> None:
    """Label every example, shard by shard."""
    check(config)
    data = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    codes = artifacts.read(config.semantic_ids or config.run / "semantic_ids", "semantic_ids")
    teachers = read_teachers(config)
    output = config.output or config.run / "soft_labels"
    stage = ArtifactJob("soft_labels", config, output, [data, codes, *teachers], overwrite=config.overwrite)
    if not (config.dry_run or config.overwrite or config.check):
        stage.refuse_change()
    if not config.dry_run and stage.is_finished():
        broken = [shard["file"] for shard in recorded(output) if not is_intact(output, shard)]
        if not broken:
            publish(config, output)
            return
        if config.check:
            sys.exit(1)
        log.info(f"{output}: cut or altered, so made again: {', '.join(broken)}")

    dataset = Dataset.load(data.folder)
    ids = SemanticIDs.load(codes.folder, dataset.n_items)
    config = replace(config, exclude_bought=dataset.resolve_exclude_bought(config.exclude_bought))
    labeller, max_history = open_labeller(config, dataset, ids, teachers)
    examples = chosen(dataset.examples(config.split, max_history), config)
    ask = LabelRequest(config.width, config.keep, config.exclude_bought, config.scope, not config.unconstrained)
    if config.dry_run:
        estimate(labeller, examples, ids, ask, config)
        return
    bounds = shard_bounds(examples.users, config.shard_rows)
    number_of, processes = whose(config.shard)
    claims = ShardQueue(stage, len(bounds) - 1, recorded, is_intact)
    fresh = config.overwrite and number_of == 0
    if config.overwrite and processes > 1:
        one_after_the_other(lambda: claims.join(fresh=True), lambda: claims.join())
        joined = True
    else:
        joined = claims.join(fresh)
    if joined:
        joined = export(
            claims, labeller, examples, bounds, ids, ask, config, range(number_of, len(bounds) - 1, processes)
        )
    if joined:
        facts = index_facts(config, ids, labeller, data, codes, teachers)
        with room(output, claims):
            done = claims.finish(lambda parts: complete(stage, parts, facts, examples))
        if not done:
            left = sum(claims.said(number) is None for number in range(claims.parts))
            log.info(
                f"{left} of {claims.parts} shards are other processes'; whoever finishes the last completes {output}"
            )
            return
    publish(config, output)


def check(config: Config) -> None:
    """Refuse settings that make no sense.

    Raises:
        UserError: width, keep, shard_rows, batch_size or limit below 1; users or shard that cannot be read; an unknown
            teacher, a weight that is none, one fold.
    """
    for name in ("width", "keep", "shard_rows", "batch_size", "limit"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}.")
    for name, weight in config.mix.items():
        if name not in TEACHERS:
            raise UserError(f"Unknown teacher {name!r} in --mix. {suggest(name, TEACHERS)}")
        if not 0 < weight < np.inf:
            raise UserError(f"mix.{name} is {weight}; expected a weight above 0, or leave {name} out.")
    if not config.mix or config.folds < 0 or config.folds == 1:
        raise UserError(
            f"--mix {config.mix} --folds {config.folds}: expected a teacher or more, and no fold or 2 or more."
        )
    if config.folds and config.engine == "vllm" and "llm" in config.mix:
        raise UserError("--folds needs every fold's model at once, and vLLM holds one; run with --engine hf.")
    if config.shard and config.overwrite:
        raise UserError("--overwrite would throw away the other processes' shards; run one without --shard first.")
    user_range(config.users)
    whose(config.shard)


def user_range(text: str | None) -> tuple[int, float]:
    """First user and the one after the last, from N or FROM:TO."""
    if text is None:
        return 0, np.inf
    first, _, last = text.rpartition(":")
    try:
        bounds = int(first or 0), int(last)
    except ValueError:
        bounds = 0, 0
    if not 0 <= bounds[0] < bounds[1]:
        raise UserError(f"--users {text}: expected N or FROM:TO with FROM below TO, such as 1000 or 500:1000.")
    return bounds


def whose(shard: str | None) -> tuple[int, int]:
    """Which process this is, of how many: as `--shard` says, else as a launcher's RANK and WORLD_SIZE."""
    if shard is None:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    try:
        number, count = map(int, shard.split("/"))
    except ValueError:
        number, count = 0, 0
    if not 0 <= number < count:
        raise UserError(f"--shard {shard}: expected I/N with I from 0 to N-1, such as 0/8.")
    return number, count


def one_after_the_other(first: Callable[[], Any], others: Callable[[], Any]) -> None:
    """In a launch: `first` in the first process, `others` in the others when it is done.

    Over the launcher's store alone: vLLM may have a process group of its own.
    """
    from torch.distributed import rendezvous

    store, rank, _ = next(rendezvous("env://"))
    if rank == 0:
        first()
        store.set("first", "done")
    else:
        store.wait(["first"])
        others()


def read_teachers(config: Config) -> list[Artifact]:
    """The language models: none, one, or one a fold.

    Raises:
        UserError: a fold's teacher is missing, or was tuned on the users that it shall label.
    """
    if "llm" not in config.mix:
        return []
    folder = config.teacher or config.run / "teacher"
    if not config.folds:
        return [artifacts.read(folder, "teacher")]
    found = []
    for fold in range(config.folds):
        path = folder.with_name(f"{folder.name}-fold{fold}")
        make = f"accelerate launch teacher/finetune.py --folds {config.folds} --fold {fold}"
        if not path.exists():
            raise UserError(f"No teacher for fold {fold} at {path}. Make it with: {make}")
        teacher = artifacts.read(path, "teacher")
        tuned = teacher.config.get("folds"), teacher.config.get("fold")
        if tuned != (config.folds, fold):
            raise UserError(f"{path} was tuned with --folds {tuned[0]} --fold {tuned[1]}. Make it with: {make}")
        found.append(teacher)
    return found


def open_labeller(config: Config, dataset: Dataset, ids: SemanticIDs, teachers: list[Artifact]) -> tuple[Labeller, int]:
    """Who is asked, and how many items of history it reads."""
    engines = [open_engine(config, dataset, ids, teacher) for teacher in teachers]
    labellers = [EngineLabeller(engine, dataset, config.batch_size) for engine in engines]
    max_history = min((engine.data.max_history for engine in engines), default=MAX_HISTORY)
    if config.mix.keys() == {"llm"} and not config.folds:
        return labellers[0], max_history

    return build.build_labeller(
        config.mix, config.folds, dataset, ids, config.exclude_bought, lambda fold: labellers[fold or 0]
    ), max_history


def open_engine(config: Config, dataset: Dataset, ids: SemanticIDs, teacher: Artifact) -> Engine:
    """What runs a teacher."""
    if config.engine == "vllm":
        from teacher.engines.vllm import VLLMEngine  # an extra, imported where it is used

        return VLLMEngine.load(
            teacher.folder,
            dataset,
            ids,
            config.dtype,
            tensor_parallel_size=config.tensor_parallel_size,
            gpu_memory_utilization=config.gpu_memory_utilization,
            kv_cache_gb=config.kv_cache_gb,
            max_num_seqs=config.max_num_seqs,
        )
    import torch  # heavy, and not needed where the work is finished

    from teacher.engines.hf import HFEngine

    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return HFEngine.load(teacher.folder, dataset, ids, device, config.dtype)


def chosen(examples: Examples, config: Config) -> Examples:
    """The examples that the config asks for.

    Raises:
        UserError: there are none.
    """
    first, last = user_range(config.users)
    examples = examples.take((examples.users >= first) & (examples.users < last))
    examples = examples.take(slice(0, config.limit))
    if not len(examples):
        raise UserError(f"The {config.split} split has no examples of users {config.users or 'at all'}.")
    if (examples.positions == 0).any():  # the beams would start from nothing
        raise UserError(f"User {examples.users[examples.positions == 0][0]} has a target without any history.")
    return examples


def shard_bounds(users: np.ndarray, shard_rows: int) -> np.ndarray:
    """First rows of the shards, and the end: about `shard_rows` rows each, at least one user [shards + 1]."""
    ends = np.append(np.flatnonzero(np.diff(users)) + 1, len(users))
    bounds = [0]
    while bounds[-1] < len(users):
        last = np.searchsorted(ends, bounds[-1] + shard_rows, side="right") - 1  # the last end that still fits
        bounds.append(int(ends[max(last, np.searchsorted(ends, bounds[-1], side="right"))]))
    return np.array(bounds)


def export(
    claims: ShardQueue,
    labeller: Labeller,
    examples: Examples,
    bounds: np.ndarray,
    ids: SemanticIDs,
    ask: LabelRequest,
    config: Config,
    mine: range,
) -> bool:
    """Make this process's shards; False: another process has completed the set meanwhile."""
    for number in claims.damaged():
        log.info(f"shard {number} was cut or altered: made again")
    rows = np.diff(bounds)
    finished = sum(int(rows[number]) for number in mine if claims.said(number) is not None)
    bar = Bar(int(rows[mine].sum()), finished, labeller)

    def make(number: int) -> dict[str, Any]:
        part = examples.take(slice(bounds[number], bounds[number + 1]))
        labels = labeller.label(part, ask, bar.update)
        path = claims.stage.partial / "data" / f"{number:05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        said = write_shard(path, *rows_of(part, labels, ids), config.encoding)
        return said | {"quality": describe(part, labels, ids, ask)}

    with bar, room(claims.stage.output, claims):
        return claims.work(mine, make)


def rows_of(examples: Examples, labels: Labels, ids: SemanticIDs) -> tuple[Any, ...]:
    """What `write_shard` takes."""
    return examples, ids.codes[examples.targets], labels.candidates, labels.scores, labels.log_probs


class Bar(progress_bar):
    """Targets done, targets a second, what the engine counts a second, and how long it will take."""

    def __init__(self, total: int, finished: int, labeller: Labeller):
        self.count, self.began = getattr(labeller, "counters", dict), time.time()
        super().__init__(total=total, initial=finished, desc="soft labels", unit="target")

    def update(self, n: float | None = 1) -> bool | None:
        counted = self.count()
        said = {}
        if "tokens" in counted:
            said["tokens_s"] = f"{counted['tokens'] / (time.time() - self.began):,.0f}"
        if counted.get("cached_tokens"):
            said["prefix_hits"] = f"{counted['cached_tokens'] / counted['tokens']:.0%}"
        self.set_postfix(said, refresh=False)
        return super().update(n)


class room:  # noqa: N801 - used as a verb
    """In this block a full disk is the user's to mend, and whatever ends it, what is finished is kept."""

    def __init__(self, output: Path, claims: ShardQueue):
        self.output, self.claims = output, claims

    def __enter__(self) -> None: ...

    def __exit__(self, kind, error, trace) -> None:
        if not isinstance(error, Exception) or isinstance(error, UserError):
            return
        claims = self.claims
        done = sum(claims.said(number) is not None for number in range(claims.parts))
        done = done or len(recorded(claims.stage.partial))
        kept = f"{done} of {claims.parts} shards are finished and kept; the same command goes on from there"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(self.output.parent).free
            raise UserError(
                f"The disk of {self.output} is full ({free / 2**20:,.1f} MiB free). {kept} when there is room."
            ) from None
        log.info(f"{type(error).__name__} in the middle of the work. {kept}.")


def describe(examples: Examples, labels: Labels, ids: SemanticIDs, ask: LabelRequest) -> dict[str, float]:
    """Sums over a shard that say how good the labels are, and what encodings would lose of them."""
    levels, size = ids.levels, ids.codebook_size
    own = labels.log_probs.astype(np.float64)
    if ask.scope == "all":
        own = own.reshape(len(examples), levels, levels, size)[:, np.arange(levels), np.arange(levels)]
    mass = np.exp(own).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = own - np.log(mass)[..., None]
        entropy = -np.where(np.isfinite(inside), np.exp(inside) * inside, 0).sum(-1)
    ranks = labels.ranks
    if ranks is None:  # as far as the candidates tell
        better = (labels.scores[:, 1:] > labels.scores[:, :1]).sum(1)
        ranks = np.where(better < labels.scores.shape[1] - 1, better, -1)
    found = ranks >= 0
    said = {
        "targets": len(examples),
        f"recall@{min(10, ask.width)}": float((found & (ranks < 10)).sum()),
        "reference_in_beams": float(found.sum()),
        "reference_rank": float((ranks[found] + 1).sum()),
        "entropy_per_level": float(entropy.mean(1).sum()),
        **{f"entropy_{level + 1}": float(entropy[:, level].sum()) for level in range(levels)},
        "mass_off_level": float((1 - mass).mean(1).sum()),
    }
    if not ask.constrained and labels.invalid is not None:
        said["invalid_beams"] = float(labels.invalid.sum() / ask.width)
    sample = labels.log_probs[:: max(1, len(examples) // KL_ROWS)]
    return said | {f"kl_{encoding}": kl(sample, encoding) * len(examples) for encoding in ENCODINGS}


def summarise(parts: list[dict[str, float]]) -> dict[str, float]:
    """Means over all shards; the reference's rank over the examples whose beams hold it."""
    total = sum(part["targets"] for part in parts)
    sums = {key: sum(part[key] for part in parts) for key in parts[0]}
    means = {key: value / total for key, value in sums.items() if key != "targets"}
    means["reference_rank"] = sums["reference_rank"] / max(sums["reference_in_beams"], 1)
    return {"targets": total, **means}


def index_facts(
    config: Config, ids: SemanticIDs, labeller: Labeller, data: Artifact, codes: Artifact, teachers: list[Artifact]
) -> dict[str, Any]:
    """What the index says beside its shards."""
    return {
        "split": config.split,
        "scope": config.scope,
        "encoding": config.encoding,
        "levels": ids.levels,
        "codebook_size": ids.codebook_size,
        "keep": config.keep,
        "teacher": " ".join(teacher.fingerprint for teacher in teachers),
        "mix": config.mix,
        "semantic_ids": codes.fingerprint,
        "dataset": data.fingerprint,
        "labeller": labeller.facts(),
    }


def complete(stage: ArtifactJob, parts: list[dict[str, Any]], facts: dict[str, Any], examples: Examples) -> None:
    """Report, then index: with it the set is whole."""
    summary = summarise([part["quality"] for part in parts])
    size = sum((stage.partial / "data" / part["file"]).stat().st_size for part in parts)
    summary["bytes_per_target"] = size / len(examples)
    write_json(stage.partial / "report.json", summary)
    write_index(stage.partial, parts, **facts)
    stage.facts = {"targets": len(examples), "encoding": facts["encoding"], "labeller": facts["labeller"]}
    log.info("soft labels: " + ", ".join(f"{key} {value:.4g}" for key, value in summary.items()))


def estimate(labeller: Labeller, examples: Examples, ids: SemanticIDs, ask: LabelRequest, config: Config) -> None:
    """Label some users' examples, and say what all would take."""
    users, first = np.unique(examples.users, return_index=True)
    ends = np.append(first[1:], len(examples))
    order = np.random.default_rng(0).permutation(len(users))
    taken = np.sort(order[: 1 + np.searchsorted(np.cumsum((ends - first)[order]), SAMPLE)])
    rows = np.concatenate([np.arange(first[user], ends[user]) for user in taken])[:SAMPLE]
    sample = examples.take(rows)
    labeller.label(sample.take(slice(0, 8)), ask, lambda n: None)  # what is done once is not counted
    started = time.time()
    with progress_bar(total=len(sample), desc="dry run", unit="target") as bar:
        labels = labeller.label(sample, ask, bar.update)
    seconds = (time.time() - started) / len(sample)
    size = len(encode_shard(*rows_of(sample, labels, ids), config.encoding)) / len(sample)
    quality = summarise([describe(sample, labels, ids, ask)])
    processes = whose(config.shard)[1]
    print(f"targets              {len(examples):,} of {len(np.unique(examples.users)):,} users, split {config.split}")
    print(f"shards               {len(shard_bounds(examples.users, config.shard_rows)) - 1:,}")
    print(f"bytes a target       {size:,.0f}, from {len(sample)} examples, encoding {config.encoding}")
    print(f"size                 {size * len(examples) / 2**20:,.1f} MiB")
    print(f"targets a second     {1 / seconds:,.1f}")
    print(f"time                 {seconds * len(examples) / processes / 3600:,.2f} h by {processes} such process(es)")
    for key in ("reference_in_beams", *(f"kl_{encoding}" for encoding in ENCODINGS)):
        print(f"{key.replace('_', ' '):20} {quality[key]:.4g}")


def publish(config: Config, output: Path) -> None:
    """Copy the finished set where `--push` says."""
    if config.push and whose(None)[0] == 0:
        push(output, config.push)
        log.info(f"soft labels: pushed to {config.push}")


if __name__ == "__main__":
    run(main, Config, "demo/export.yaml")
