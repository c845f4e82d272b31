"""The commands that the soak breaks off, on a very small shop: a few seconds each."""

import csv
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip
TEACHER = {
    "vocab_size": 300, "tasks": {"stream": 1.0}, "epochs": 2, "valid_users": 6, "batch_tokens": 100, "crop": 0.5,
    "token_dropout": 0.1, "checkpoint_every": 3,
}  # fmt: skip
STUDENT = {
    "epochs": 2, "ranker_epochs": 1, "candidates": 4, "batch_size": 16, "valid_users": 6, "checkpoint_every": 3,
    "preset": "demo",
}  # fmt: skip
USERS, ITEMS = 16, 40


@dataclass(frozen=True)
class Stage:
    """A command with its settings.

    Attributes:
        name: for the command line of the soak and its tables.
        script: relative to the repository.
        settings: for its config file.
        output: where its result goes, relative to the working folder; later stages find it in the run by this name.
        reads: artifacts of the run that it reads, relative to the run.
        options: further words; {run} and {work} stand for the folders.
        is_artifact: whether it writes an artifact with a manifest, which it replaces when settings change.
        is_shared: whether several processes may write the output together.
        repairs: whether it makes damaged files of what it reads again; the manifest then names another command.
        refuses_existing: whether the same command after its end is refused, because the output exists.
    """

    name: str
    script: str
    settings: dict = field(default_factory=dict)
    output: str = ""
    reads: Sequence[str] = ()
    options: Sequence[str] = ()
    is_artifact: bool = True
    is_shared: bool = False
    refuses_existing: bool = False
    repairs: bool = False

    def words(self, shop: "Shop", output: Path | None = None) -> list[str]:
        """Write the command."""
        places = {"run": shop.run, "work": shop.work, "raw": shop.raw}
        words = [self.script]
        if self.settings:
            words += ["--config", str(shop.configs / f"{self.name}.yaml")]
        if "{output}" not in " ".join(self.options):
            words += ["--output", "{output}"]
        places["output"] = output or shop.work / self.output
        return [word.format(**places) for word in [*words, *self.options]]


@dataclass(frozen=True)
class Shop:
    """Folders of a soak.

    Attributes:
        root: of all.
    """

    root: Path

    @property
    def run(self) -> Path:
        """Whole artifacts, which the stages read."""
        return self.root / "run"

    @property
    def work(self) -> Path:
        """Where a trial writes; empty at its start."""
        return self.root / "work"

    @property
    def configs(self) -> Path:
        """Config files."""
        return self.root / "configs"

    @property
    def log(self) -> Path:
        """Output of the latest command."""
        return self.root / "command.log"

    @property
    def raw(self) -> Path:
        """Interactions and items as tables."""
        return self.root / "raw"

    def write_raw(self) -> None:
        """Draw interactions and titles, always the same."""
        rng = random.Random(0)
        self.raw.mkdir(parents=True, exist_ok=True)
        words = [rng.sample(["red", "blue", "old", "new", "tent", "lamp", "rope", "kettle"], 3) for _ in range(ITEMS)]
        items = [(f"i{item}", " ".join(title)) for item, title in enumerate(words)]
        histories = [rng.sample(range(ITEMS), rng.randint(5, 8)) for _ in range(USERS)]
        rows = [
            (f"u{user}", f"i{item}", time) for user, items in enumerate(histories) for time, item in enumerate(items)
        ]
        tables = {"items": (("item_id", "title"), items), "interactions": (("user_id", "item_id", "timestamp"), rows)}
        for name, (head, lines) in tables.items():
            with open(self.raw / f"{name}.csv", "w", newline="") as file:
                csv.writer(file).writerows([head, *lines])

    def write_configs(self) -> None:
        """Write the stages' config files."""
        self.configs.mkdir(parents=True, exist_ok=True)
        for stage in STAGES:
            (self.configs / f"{stage.name}.yaml").write_text(json.dumps(stage.settings))  # JSON is YAML


DATA = ("dataset",)
IDS = (*DATA, "semantic_ids")
LABELS = (*IDS, "soft_labels")
RUN = ("--run", "{run}")

STAGES = [
    Stage(
        "data", "scripts/prepare_data.py", {"format": "table", "k_core": 0}, "dataset", (),
        (*RUN, "--input", "{raw}"),
    ),
    Stage(
        "data_by_duckdb", "scripts/prepare_data.py", {"format": "table", "k_core": 2, "engine": "duckdb"},
        "duckdb_dataset", (), (*RUN, "--input", "{raw}"),
    ),
    Stage("embeddings", "scripts/embed_items.py", {"dim": 6}, "embeddings", DATA, RUN),
    Stage(
        "semantic_ids",
        "scripts/build_semantic_ids.py",
        {
            "quantiser": "rqvae", "levels": 3, "codebook_size": 8,
            "rqvae": {"hidden": [8], "latent_dim": 4, "epochs": 10, "warmup_epochs": 4},
        },
        "semantic_ids",
        ("dataset", "embeddings"),
        RUN,
    ),
    Stage("teacher", "teacher/finetune.py", {"sizes": SIZES, **TEACHER}, "teacher", IDS, RUN),
    Stage(
        "embeddings_of_a_model",  # written shard by shard
        "scripts/embed_items.py",
        {"embedder": "hf", "shard_rows": 10, "max_tokens": 16, "batch_size": 64},
        "model_embeddings",
        (*DATA, "teacher"),
        (*RUN, "--model", "{run}/teacher"),
    ),
    Stage(
        "adapter",
        "teacher/finetune.py",
        {"mode": "lora", "lora_embeddings": "codewords", "precision": "no", **TEACHER},
        "adapter_teacher",
        (*IDS, "teacher"),
        (*RUN, "--base", "{run}/teacher"),
    ),
    Stage(
        "merge",
        "teacher/merge.py",
        {},
        "merged",
        ("adapter_teacher", "teacher"),
        ("--adapter", "{run}/adapter_teacher/adapter", "--base", "{run}/teacher"),
        refuses_existing=True,
    ),
    Stage(
        "labels",
        "distill/export_soft_labels.py",
        {"width": 6, "keep": 4, "shard_rows": 20},
        "soft_labels",
        (*IDS, "teacher"),
        RUN,
        is_shared=True,
    ),
    Stage(
        "push",
        "distill/export_soft_labels.py",
        {"width": 6, "keep": 4, "shard_rows": 20},
        "pushed",
        ("soft_labels",),
        (*RUN, "--output", "{run}/soft_labels", "--push", "{output}"),
        is_artifact=False,
        repairs=True,
    ),
    Stage(
        "recbole",
        "scripts/export_dataset.py",
        {},
        "recbole",
        DATA,
        ("--dataset", "{run}/dataset", "--format", "recbole"),
        is_artifact=False,
        refuses_existing=True,
    ),
    Stage(
        "lcrec",
        "scripts/export_dataset.py",
        {},
        "lcrec",
        IDS,
        ("--dataset", "{run}/dataset", "--format", "lcrec", "--semantic_ids", "{run}/semantic_ids"),
        is_artifact=False,
        refuses_existing=True,
    ),
    Stage("tiger", "student/train.py", {"variant": "tiger", **STUDENT}, "students/tiger", IDS, RUN),
    Stage("dtr", "student/train.py", {"variant": "dtr", **STUDENT}, "students/dtr", LABELS, RUN),
    Stage(
        "sasrec",
        "student/baseline.py",
        {"network": "sasrec", "dim": 8, "batch_size": 4, "epochs": 2, "valid_users": 6, "checkpoint_every": 2},
        "baselines/sasrec",
        DATA,
        RUN,
    ),
    Stage(
        "memory",
        "scripts/add_memory.py",
        {"content": True},
        "students/tiger+memory+content",
        (*DATA, "students/tiger", "embeddings"),
        (*RUN, "--student", "{run}/students/tiger"),
    ),
    Stage("audit", "scripts/audit.py", {"users": 20}, "audit", ("dataset", "embeddings"), RUN),
    Stage(
        "evaluation",
        "scripts/evaluate.py",
        {
            "split": "test", "width": 10, "cutoffs": [1, 5, 10], "widths": [10],
            "width_users": 3, "mixture_users": 4, "mixture_top": 10, "exact_users": 2,
        },
        "evaluation",
        (*IDS, "embeddings", "teacher", "students/tiger", "students/dtr", "baselines/sasrec"),
        RUN,
    ),
    Stage("report", "scripts/report.py", {"examples": 3}, "report", ("dataset", "evaluation"), RUN),
]  # fmt: skip


LAUNCHED = ("teacher", "adapter", "tiger", "dtr", "sasrec")  # also tried as launches of two processes


def stages_named(names: Sequence[str]) -> list[Stage]:
    """Look stages up; all where no names are given.

    Raises:
        KeyError: an unknown name.
    """
    known = {stage.name: stage for stage in STAGES}
    return [known[name] for name in names] if names else STAGES
