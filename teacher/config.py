"""Settings of the teacher's fine-tuning, in groups. `Config` inherits them all, so flags and YAML files are flat.

Each function of `teacher/` takes the group it needs. The text below a field is its `--help`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from distill.data.splits import check_folds
from distill.runtime.config import IF_CHANGED, HistoryLength, JobSettings, LaunchSettings, Seed, suggest
from distill.runtime.errors import UserError

# The position of a task seeds its random generator: append only. `teacher/tasks.py` implements them.
TASKS = ("stream", "seqrec", "item2index", "index2item", "fusionseqrec", "itemsearch", "preferenceobtain", "titles")
NOT_IN_IDENTITY = {"identity": False}  # a change of such a field does not make a finished teacher stale


@dataclass(frozen=True)
class RunSettings:
    """Folders of the run."""

    run: Path = Path("runs/demo")
    """Folder of the run; inputs and output default to their names inside it."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    semantic_ids: Path | None = None
    """Semantic IDs artifact (default: RUN/semantic_ids)."""
    output: Path | None = None
    """Where the teacher is written (default: RUN/teacher; RUN/baselines/bigrec or idgenrec under --prompt titles)."""
    warm_start: Path | None = None
    """Start from the weights of an earlier teacher, in place of `base` and `sizes`. Its semantic IDs are the run's, or
    extended by these (build_semantic_ids.py --extend). Adapters of its training are merged; lora adds new ones."""


@dataclass(frozen=True)
class ModelSettings:
    """The network: its base or its sizes, what trains, and the precision."""

    base: str | None = None
    """Base model, a local path or hub name (LLaMA-7B); without one, a small LLaMA with random weights."""
    sizes: dict[str, float] = field(default_factory=dict)
    """Without a base: fields of LlamaConfig (hidden_size, intermediate_size, num_hidden_layers, ...)."""
    vocab_size: PositiveInt = 1024
    """Without a base: text tokens of the tokenizer trained on the catalogue."""
    mode: Literal["full", "lora", "qlora"] = "full"
    """full: train all weights. lora: train LoRA adapters and the embeddings that `lora_embeddings` names. qlora: the
    same, with the base's projections in 4 bits (needs `base`)."""
    lora_rank: PositiveInt = 8
    """Rank r of the LoRA adapters."""
    lora_alpha: PositiveInt = 32
    """LoRA's alpha; adapters are scaled by alpha / r."""
    lora_dropout: ClosedUnitInterval = 0.05
    """Dropout on the adapters' input."""
    lora_embeddings: Literal["codewords", "all"] = field(default="codewords", metadata=IF_CHANGED)
    """Under LoRA and QLoRA, what trains of the embeddings and an untied head: the codewords' rows, or all rows
    (LC-Rec)."""
    init_codewords: Literal["mean", "codebook", "text"] = "mean"
    """Initial embedding rows of the codewords. mean: the mean of the base's rows plus noise (without a base: random,
    like all rows). codebook: the quantiser's code vectors, projected. text: from the base's embeddings of the texts of
    the items that have the codeword (needs `base`)."""
    attention_dropout: ClosedUnitInterval = 0.0
    """Dropout on attention weights."""
    chat: bool = False
    """Put prompts into the base model's chat template (needs `base`)."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision. auto: bf16 where there is a `base` and the GPU or processor computes in bf16; no elsewhere, and
    after a warm start from a teacher that was tuned without."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, far less memory."""


@dataclass(frozen=True)
class AugmentationSettings:
    """Random changes of the training sequences."""

    token_dropout: ClosedUnitInterval = 0.0
    """Share of the input codewords that are masked in training, so that a small teacher learns to use the others."""
    crop: ClosedUnitInterval = 0.0
    """Share of the `stream` sequences that begin at a random item: the same purchases after other histories."""
    reverse: ClosedUnitInterval = 0.0
    """Share of the `stream` sequences that are reversed, for data whose order says little (same-day purchases)."""
    drop_items: ClosedUnitInterval = 0.0
    """Share of the `stream` sequences' items that are left out."""


@dataclass(frozen=True)
class StreamSettings:
    """Text in the `stream` task, and in the prompt of this name."""

    stream_titles: NonNegativeInt = field(default=0, metadata=IF_CHANGED)
    """Tokens of an item's title that follow its codewords, before a newline; 0: streams of codewords alone."""
    stream_title_items: NonNegativeInt = field(default=0, metadata=IF_CHANGED)
    """Only the last so many items of a history carry their titles; 0: all of them."""
    title_loss: NonNegativeFloat = field(default=0.0, metadata=IF_CHANGED)
    """Weight of a title's tokens in the loss, where a codeword's is 1."""


@dataclass(frozen=True)
class InstructionSettings:
    """LC-Rec's forms of the instruction tasks, where the defaults are others."""

    item_fields: Literal["all", "lcrec"] = field(default="all", metadata=IF_CHANGED)
    """Text of an item in item2index and index2item. all: title, brand, categories and description to the ID, the ID to
    the title. lcrec: title, description, or both, one of the three drawn for each sample."""
    search_preferences: bool = field(default=False, metadata=IF_CHANGED)
    """Let some prompts of itemsearch hold the user's preferences, with the query or without."""
    id_eos: bool = field(default=False, metadata=IF_CHANGED)
    """End responses that are IDs with EOS; the loss counts it. Recommendations are asked for as without it."""


@dataclass(frozen=True)
class TitleSettings:
    """The task `titles` (BIGRec; with textual IDs, IDGenRec), and how titles that it writes become items."""

    title_tokens: PositiveInt = field(default=32, metadata=IF_CHANGED)
    """Most tokens of a title in the task titles; longer ones are cut."""
    textual_ids: NonNegativeInt = field(default=0, metadata=IF_CHANGED)
    """Words of a unique textual ID that stands for an item in place of its title (IDGenRec); 0: titles (BIGRec)."""
    title_beams: PositiveInt = field(default=4, metadata=IF_CHANGED)
    """Beams that search a title (BIGRec: 4)."""
    title_length_penalty: NonNegativeFloat = field(default=1.0, metadata=IF_CHANGED)
    """A title's log-probability is divided by this power of its length, and the best title is taken (BIGRec: 1); 0: the
    likeliest title, because 1 prefers long titles whose last words follow from the first."""
    title_pooling: Literal["auto", "last", "mean"] = field(default="auto", metadata=IF_CHANGED)
    """Embedding of a title that is written: the network's last state at its last token (BIGRec), or their mean; auto:
    the better one on validation."""
    popularity_weight: NonNegativeFloat | None = field(default=None, metadata=IF_CHANGED)
    """Exponent by which popularity divides the distances between titles (BIGRec's gamma), 0: not at all (default: the
    best on validation)."""


@dataclass(frozen=True)
class TaskSettings:
    """The training tasks, and the users and histories of their samples."""

    tasks: dict[str, NonNegativeFloat] = field(default_factory=lambda: {"stream": 1.0})
    """Passes over each task in an epoch: stream, LC-Rec's seqrec, item2index, index2item, fusionseqrec, itemsearch and
    preferenceobtain, and BIGRec's titles."""
    task_samples: dict[str, PositiveInt] = field(default_factory=dict, metadata=IF_CHANGED)
    """Samples of a task in an epoch, in place of its passes; drawn anew each epoch (LC-Rec, Instruments: fusionseqrec
    20000)."""
    intentions: Path | None = None
    """Users' intentions and preferences (LC-Rec's user.json), for itemsearch and preferenceobtain (default: derived
    from item texts)."""
    prompt: Literal["stream", "seqrec", "titles"] = "stream"
    """Prompt that asks for recommendations after training; the task of this name must be among the tasks. titles: a
    title is asked for, not an ID."""
    max_history: HistoryLength = 20
    """Items of history (paper: 20)."""
    max_tokens: PositiveInt = 256
    """Longest sequence in tokens."""
    folds: NonNegativeInt = 0
    """Cross-fitting: leave the users of one of so many folds out of the training, so that this teacher can label them;
    0: train on all users."""
    fold: NonNegativeInt = 0
    """Which fold is left out, from 0; the output is then RUN/teacher-fold<i> by default."""


@dataclass(frozen=True)
class SampleSettings(TaskSettings, InstructionSettings, StreamSettings, TitleSettings, AugmentationSettings):
    """Everything that decides the training samples, but for the seed."""


@dataclass(frozen=True)
class BatchSettings:
    """Batches and optimiser steps."""

    batch_tokens: PositiveInt = 4096
    """Tokens a batch and process, padding included."""
    batch_samples: NonNegativeInt = field(default=0, metadata=IF_CHANGED)
    """Most samples of a batch and process, where `batch_tokens` admits more; 0: no such limit (LC-Rec: 8)."""
    packing: bool = False
    """Put several samples into a row, without attention between them: less padding where lengths differ."""
    accumulation: PositiveInt = 1
    """Batches an optimiser step."""


@dataclass(frozen=True)
class OptimiserSettings:
    """AdamW and its learning rate schedule."""

    epochs: PositiveInt = 10
    """Passes over the tasks."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate (LC-Rec, 7B, all weights, 128 sequences a step: 5e-5)."""
    codeword_lr: PositiveFloat | None = field(default=None, metadata=IF_CHANGED)
    """Peak learning rate of the codewords' rows, which start far from where they end; not under DeepSpeed or FSDP
    (default: `lr`)."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's weight decay."""
    warmup: ClosedUnitInterval = 0.05
    """Share of the steps in which the learning rate rises."""
    clip: PositiveFloat = 1.0
    """Largest gradient norm."""


@dataclass(frozen=True)
class ValidationSettings:
    """Validation, which chooses the epoch that is kept."""

    valid_users: PositiveInt = 1000
    """Users whose validation NDCG@10 chooses the epoch that is kept."""
    patience: NonNegativeInt = 3
    """Stop after so many epochs without a better one; 0: never."""
    exclude_bought: bool | None = None
    """Leave the history's items out of the validation's lists; set it as evaluate.py's (default: where the training
    part never has an item twice)."""


@dataclass(frozen=True)
class CheckpointSettings(LaunchSettings):
    """Checkpoints that an interrupted run resumes from."""

    checkpoint_every: NonNegativeInt = field(default=1000, metadata=NOT_IN_IDENTITY)
    """Optimiser steps between two checkpoints, from which a killed run resumes; 0: none."""
    keep_checkpoints: PositiveInt = field(default=2, metadata=NOT_IN_IDENTITY)
    """How many of the last checkpoints are kept until the run is finished."""


@dataclass(frozen=True)
class GeneralSettings:
    """Curves and seed."""

    tracker: str = field(default="tensorboard", metadata=NOT_IN_IDENTITY)
    """Where the curves go: tensorboard (logs/teacher beside the output), none, or another that Accelerate knows."""
    seed: Seed = 0
    """Seed of weights, order and templates."""


@dataclass(frozen=True)
class TrainingSettings(
    ModelSettings,
    SampleSettings,
    BatchSettings,
    OptimiserSettings,
    ValidationSettings,
    CheckpointSettings,
    GeneralSettings,
):
    """All that the training loop needs."""


@dataclass(frozen=True)
class DryRunSettings:
    """The dry run, and the GPUs that it assumes."""

    dry_run: bool = field(default=False, metadata=NOT_IN_IDENTITY)
    """Train nothing, write nothing: check the config against the data, and estimate what the training would take."""
    base_config: Path | None = None
    """Dry run: the base model's config.json, where the base itself is not on this machine."""
    gpu: Literal["a100", "b200", "h100", "h200", "l40s", "rtx4090"] = field(default="h100", metadata=NOT_IN_IDENTITY)
    """Dry run: the GPU whose time and memory are estimated."""
    gpus: PositiveInt = field(default=1, metadata=NOT_IN_IDENTITY)
    """Dry run: number of GPUs."""
    utilisation: PositiveFloat = field(default=0.4, metadata=NOT_IN_IDENTITY)
    """Dry run: share of the GPU's peak that the training reaches."""


@dataclass(frozen=True)
class EstimateSettings(TrainingSettings, DryRunSettings):
    """All that the dry run needs."""


@dataclass(frozen=True)
class Config(RunSettings, EstimateSettings, JobSettings):
    """Fine-tune the teacher: accelerate launch teacher/finetune.py [--config FILE] [--field value ...]."""


def check(config: Config) -> None:
    """Refuse combinations of settings that are wrong whatever the data.

    Raises:
        UserError: unknown tasks, options of tasks that are not trained, a prompt without its task, a fold that does not
            exist, settings that need a base, adapters or titles.
    """
    check_tasks(config)
    has_base = config.base is not None or config.warm_start is not None
    check_folds(config.folds, config.fold)
    if config.folds and config.warm_start:
        raise UserError("--warm_start starts from a teacher that has seen the users of every fold; leave --folds out.")
    if config.utilisation > 1:
        raise UserError(f"--utilisation is {config.utilisation}; expected a share above 0 and up to 1.")
    if config.mode == "qlora" and not has_base:
        raise UserError("--mode qlora trains beside a base model in 4 bits; give --base.")
    if config.lora_embeddings == "all" and config.mode == "full":
        raise UserError("--lora_embeddings all trains whole embeddings beside adapters; give --mode lora or qlora.")
    if config.batch_samples and config.packing:
        raise UserError("--batch_samples limits batches of a sample a row; leave it out or set --packing false.")
    if config.init_codewords == "text" and config.base is None:
        raise UserError("--init_codewords text starts from a base model's embeddings; give --base.")
    if config.chat and not has_base:
        raise UserError("--chat needs a base model with a chat template; give --base.")


def check_tasks(settings: SampleSettings) -> None:
    """Refuse unknown tasks, and options of tasks that are not trained.

    Raises:
        UserError: as above, or settings of titles that do not fit.
    """
    for task in (*settings.tasks, *settings.task_samples):
        if task not in TASKS:
            raise UserError(f"Unknown task {task!r}. {suggest(task, TASKS)}")
    for task, number in settings.task_samples.items():
        if settings.tasks.get(task) == 0:
            raise UserError(f"tasks.{task} is 0 but task_samples.{task} is {number}; leave one of the two out.")
    trained = {task for task, weight in settings.tasks.items() if weight} | set(settings.task_samples)
    if settings.prompt not in trained:
        raise UserError(
            f"The teacher is asked with {settings.prompt!r} but not tuned on it; give tasks.{settings.prompt}."
        )
    if (settings.stream_title_items or settings.title_loss) and not settings.stream_titles:
        raise UserError("--stream_title_items and --title_loss need titles in the stream; give --stream_titles.")
    if settings.stream_titles and "stream" not in trained:
        raise UserError("--stream_titles puts titles into the task 'stream'; give tasks.stream.")
    if settings.item_fields == "lcrec" and not trained & {"item2index", "index2item"}:
        raise UserError("--item_fields lcrec is for item2index and index2item; give tasks.item2index.")
    if settings.search_preferences and "itemsearch" not in trained:
        raise UserError("--search_preferences is for itemsearch; give tasks.itemsearch.")
    if settings.textual_ids and "titles" not in trained:
        raise UserError("--textual_ids stand for items in the task 'titles'; give tasks.titles.")
    if settings.prompt == "titles" and settings.folds:
        raise UserError("--folds are for teachers that label; one that writes titles labels nobody. Leave them out.")
    if "titles" in trained and settings.title_tokens >= settings.max_tokens // 2:
        raise UserError(
            f"--max_tokens is {settings.max_tokens}: no room for a history beside a title of {settings.title_tokens} "
            "tokens. Raise it, or lower --title_tokens."
        )
    if settings.id_eos and trained <= {"stream", "preferenceobtain", "index2item", "titles"}:
        raise UserError("--id_eos is for responses that are IDs; give a task that has them, such as tasks.seqrec.")
