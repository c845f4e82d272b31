"""Settings of the students' training, in groups: a module is annotated with the groups that it reads.

The commands' configs inherit from the groups, so that flags and YAML files stay flat. `Config` is student/train.py's,
`BaselineConfig` student/baseline.py's; both take their defaults from the groups they share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveFloat,
    PositiveInt,
)

from distill.runtime.config import IF_CHANGED, HalfOpenUnitInterval, HistoryLength, JobSettings, LaunchSettings, Seed
from student.dreamrec_config import (
    DreamRecInputs,
    DreamRecSettings,  # noqa: F401 - jsonargparse looks inherited fields' types up in the module of the config
)
from student.e4srec_config import (
    E4SRecInputs,
    E4SRecSettings,  # noqa: F401 - as DreamRecSettings
)
from student.setrec_config import (
    SETRecInputs,
    SETRecSettings,  # noqa: F401 - as DreamRecSettings
)

PRESETS = ("demo", "small", "tiger-4m", "lohrec-13m")
LARGE_PRESETS = ("tiger-4m", "lohrec-13m")  # of 4 M parameters and more: faster in bf16
ListLoss = Literal[
    "margin", "ranknet", "plackett_luce", "softmax_first", "listnet", "item_kl", "dpo", "s_dpo", "grpo"
]  # fmt: skip
NEEDS_TEACHER = ("listnet", "item_kl")  # ranking losses that read the teacher's scores of the candidates
NEEDS_REFERENCE = ("dpo", "s_dpo", "grpo")  # ranking losses that compare with another model
ITEM_BACKBONES = ("sasrec", "gru4rec", "fmlp", "lite-llm4rec", "e4srec", "dreamrec", "setrec")
LABELLED_PRIORS = ("distance", "statistics", "mixture")  # orders that a second set of labels holds
Precision = Literal["auto", "float32", "bfloat16"]  # of a trained student's matrix products
# int8, bf16: matrices and what they multiply, rounded
GraphFormat = Literal["onnx", "onnx-int8", "aoti", "aoti-bf16"]
ItemLoss = Literal["ce", "list", "rank", "list+rank"]
# the loss of an item model for each variant that it can learn
ITEM_LOSSES: dict[str, ItemLoss] = {"tiger": "ce", "distill": "list", "dwr": "list+rank", "dwr-without-distill": "rank"}


@dataclass(frozen=True)
class PathSettings:
    """Where inputs are read and the result is written."""

    run: Path = Path("runs/demo")
    """Folder of the run; inputs and output default to their names inside it."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    soft_labels: Path | None = None
    """Soft labels artifact (default: RUN/soft_labels); read only where the loss needs a teacher."""
    embeddings: Path | None = None
    """Embeddings artifact whose text part item_text and setrec read (default: RUN/embeddings)."""
    output: Path | None = None
    """Where the result goes (default: RUN/students/VARIANT; for networks over items RUN/baselines/NETWORK, with
    -LOSS where the loss is not ce)."""


@dataclass(frozen=True)
class DropoutSettings:
    """Dropout of any network."""

    dropout: ClosedUnitInterval = 0.1
    """Dropout on embeddings and on every layer's output; with init, before the adapters."""


@dataclass(frozen=True)
class ModelSettings(DropoutSettings):
    """A network over codewords."""

    backbone: Literal[
        "seq2seq", "causal", "nested", "sasrec", "gru4rec", "fmlp", "lite-llm4rec", "e4srec", "dreamrec", "setrec"
    ] = "seq2seq"
    """The network: T5's encoder and decoder; a decoder alone that reads the history once; or nested, one decoder over
    items and a small one over the codewords of an item (the fastest). sasrec, gru4rec, fmlp, lite-llm4rec, e4srec,
    dreamrec and setrec score items without semantic IDs; they learn tiger, distill, dwr and dwr-without-distill
    (dreamrec: tiger), and ignore the options of codewords."""
    preset: str = "demo"
    """Sizes of the network: demo, small (1.2M parameters), tiger-4m (4.5M) or lohrec-13m (13M)."""
    tie_embeddings: bool | None = field(default=None, metadata=IF_CHANGED)
    """Score codewords by the embeddings that the history is read by, as SASRec scores items; they start small. Else by
    a table of their own, with T5's start (default: true for nested)."""
    init: Path | None = None
    """causal: start from this Hugging Face causal language model, a teacher's folder or a base model's; no preset."""
    init_layers: NonNegativeInt = field(default=0, metadata=IF_CHANGED)
    """init: keep only so many layers of it, from the first; 0: all."""
    lora_rank: NonNegativeInt = 0
    """init: train adapters of this rank and the codewords' rows; 0: all weights."""
    gradient_checkpointing: bool = field(default=False, metadata={"identity": False})
    """init: recompute activations in the backward pass: slower, with far less memory."""

    @property
    def ties_embeddings(self) -> bool:
        """Whether codewords are scored by their embeddings."""
        return self.backbone == "nested" if self.tie_embeddings is None else self.tie_embeddings


@dataclass(frozen=True)
class ItemModelSettings(DropoutSettings):
    """A network over items."""

    dim: PositiveInt = field(default=64, metadata={"identity": False})
    """Of networks over items: size of an item's embedding or tokens."""
    layers: PositiveInt | None = field(default=None, metadata={"identity": False})
    """Layers of a network over items (default: two, of gru4rec and dreamrec one); of lite-llm4rec and e4srec with
    base: the first so many of it (default: all)."""


@dataclass(frozen=True)
class ItemTextSettings:
    """Texts of the items as input."""

    item_text: Literal["none", "add", "only"] = field(default="none", metadata=IF_CHANGED)
    """Read frozen text embeddings of the history's items through a trained projection: add them to the learned
    embeddings, or read them only, in place of these. sasrec, gru4rec, fmlp and lite-llm4rec then score items by their
    texts too. causal takes add; a student with init reads no texts."""

    @property
    def reads_text(self) -> bool:
        return self.item_text != "none"


@dataclass(frozen=True)
class OptimiserSettings:
    """AdamW, its schedule and its precision."""

    epochs: PositiveInt = 20
    """Passes over the training examples."""
    lr: PositiveFloat = 2e-3
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.05
    """AdamW's weight decay."""
    warmup: ClosedUnitInterval = 0.05
    """Share of the training in which the learning rate rises; then it falls along a cosine."""
    clip: PositiveFloat = 1.0
    """Largest gradient norm."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision. auto: bf16 where the GPU or processor computes in it and the network is large (preset tiger-4m
    or lohrec-13m, init or base); no elsewhere."""


@dataclass(frozen=True)
class BatchSettings:
    """Size and order of the batches."""

    batch_size: PositiveInt = 256
    """Rows per batch, process and accumulation step: examples, or users' sequences where one pass trains them."""
    accumulation: PositiveInt = 1
    """Batches per optimiser step; with N processes a step is over batch_size x accumulation x N rows."""
    max_history: HistoryLength = 20
    """Items of history (paper: 20)."""
    seed: Seed = 0
    """Seed of weights and order."""


@dataclass(frozen=True)
class AugmentationSettings:
    """Random changes of histories."""

    drop_items: ClosedUnitInterval = 0.0
    """Augmentation: drop each item of a history with this probability. In one pass its target goes with it."""
    reverse: ClosedUnitInterval = 0.0
    """Augmentation: reverse a history with this probability. In one pass the whole sequence is reversed; its targets
    have no teacher labels then, so they use the hard loss, equation (8)."""
    shuffle: NonNegativeInt = 0
    """Augmentation: move items by at most so many places; in one pass, of the whole sequence."""


@dataclass(frozen=True)
class LabelSettings:
    """Which labels are trained, and how they are weighted."""

    candidates: PositiveInt = 16
    """k, candidates ranked; at least 2."""
    rank_positions: Literal["one", "all"] = "one"
    """In one pass, rank candidates at one random position of each sequence and step, or at all positions. The loss is
    the same on average."""
    confidence: NonNegativeFloat = 0.5
    """Weight labelled examples by 1 / rank^confidence, where rank is the teacher's rank of the real next item; 0 (the
    paper): equal weights."""
    rank_within: NonNegativeInt = 5
    """No ranking loss where the ranked list (--prior) has the real next item after this place; 0 (the paper): always
    rank."""


@dataclass(frozen=True)
class FeatureSettings:
    """Distillation of the teacher's hidden states."""

    feature_weight: NonNegativeFloat = field(default=0.0, metadata=IF_CHANGED)
    """Weight of 1 − cos between a projection of the student's states and the teacher's, beside DISTILL; the labels must
    have been exported with --features."""


@dataclass(frozen=True)
class OnPolicySettings:
    """Distillation along the student's own IDs; the teacher is asked during the training."""

    on_policy: ClosedUnitInterval = field(default=0.0, metadata=IF_CHANGED)
    """λ, share of the batches in which DISTILL learns the teacher's distributions along IDs that the student proposes,
    at one place of each sequence; the others learn the soft labels. See docs/objectives.md."""
    on_policy_width: PositiveInt = field(default=8, metadata=IF_CHANGED)
    """Beams of the student, of which one is drawn by its probability."""
    teacher: Path | None = None
    """The teacher that is asked, in this process (default: RUN/teacher); read only with on_policy."""
    teacher_url: str | None = field(default=None, metadata={"identity": False})
    """Ask a teacher behind scripts/serve_teacher.py instead, such as http://127.0.0.1:8001."""
    teacher_dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata=IF_CHANGED)
    """Precision of its weights."""


@dataclass(frozen=True)
class SamplerSettings(BatchSettings, AugmentationSettings, LabelSettings, OnPolicySettings, FeatureSettings):
    """All that decides which batches are trained."""

    one_pass: bool = True
    """causal, nested: train all targets of a user's sequence in one pass. Targets other than the next item, and
    histories that are shuffled under labels, are always trained prefix by prefix."""
    long_histories: Literal["windows", "prefixes"] = "windows"
    """In one pass, targets with more than max_history items before them: in windows that overlap by half, so that each
    has the last max_history/2 to max_history items, or prefix by prefix with exactly the last max_history."""
    buffer_rows: PositiveInt = field(default=65536, metadata={"identity": False})
    """Labels in memory at once; batches are drawn from among them. A broken run goes on with the same number, and
    starts afresh with another."""


@dataclass(frozen=True)
class TeacherLossSettings:
    """Losses that any network, over codewords or items, can learn from a teacher."""

    temperature: PositiveFloat = 0.7
    """Temperature of the teacher's distributions (paper: 1)."""
    gamma: float = 1.0
    """γ, weight of the ranking loss beside a generative one, equation (16); of networks over items, weight of the
    losses over the teacher's candidates."""
    margin: float = 0.001
    """λ of the ranking loss, equation (14)."""
    temperature_end: PositiveFloat | None = field(default=None, metadata=IF_CHANGED)
    """Temperature at the end of the training, to which it changes evenly (default: as at the start)."""
    list_loss: ListLoss = field(default="margin", metadata=IF_CHANGED)
    """The ranking loss: equation (14), or another over the same candidates; grpo (of dtr's ranker) rewards the model's
    own beams by the real next item. See docs/objectives.md."""
    list_scale: PositiveFloat = field(default=1.0, metadata=IF_CHANGED)
    """Multiplies M in the ranking losses other than margin, item_kl and grpo."""
    kl_weight: NonNegativeFloat = field(default=0.001, metadata=IF_CHANGED)
    """β of grpo, weight of the divergence from the retriever."""


@dataclass(frozen=True)
class LossSettings(TeacherLossSettings, FeatureSettings):
    """Losses over codewords."""

    scope: Literal["level", "all", "trie"] = "level"
    """Softmax over the level's codewords, over all levels', or over the codewords that continue some item's ID (the
    trie's children), in training as in the search."""
    xi: ClosedUnitInterval = 0.1
    """ξ of label smoothing, equation (10)."""
    alpha: ClosedUnitInterval = 0.0
    """Share of the hard label in DISTILL's weights."""
    alpha_end: ClosedUnitInterval | None = field(default=None, metadata=IF_CHANGED)
    """Share of the hard label at the end of the training, to which it changes evenly (default: as at the start)."""
    divergence: Literal[
        "forward_kl", "reverse_kl", "jensen_shannon", "skewed_kl", "skewed_reverse_kl", "total_variation"
    ] = field(default="forward_kl", metadata=IF_CHANGED)
    """DISTILL's divergence between teacher and student; forward_kl: equation (11). See docs/objectives.md."""
    beta: OpenUnitInterval = field(default=0.5, metadata=IF_CHANGED)
    """β of jensen_shannon, the teacher's share of the mixture."""
    skew: HalfOpenUnitInterval = field(default=0.1, metadata=IF_CHANGED)
    """α of the skewed divergences."""
    eta: float = 1.0
    """η, length exponent of M."""
    prefix_weight: NonNegativeFloat = field(default=0.0, metadata=IF_CHANGED)
    """Weight of the loss of the target's prefixes, which beams must not prune (APAO), beside equations (8), (9) and
    (11)."""
    prefix_focus: NonNegativeFloat = field(default=0.0, metadata=IF_CHANGED)
    """How much it favours the least likely prefixes."""
    rank_from: ClosedUnitInterval = 0.0
    """Share of the training before the ranking loss joins a generative one (paper: 0). Early in the
    training the student cannot tell the candidates apart yet, so the loss costs time and helps little."""


@dataclass(frozen=True)
class ValidationSettings:
    """How the best epoch is chosen."""

    exclude_bought: bool | None = None
    """Never recommend items of the history, in validation and by default later (default: where the training part never
    has an item twice)."""
    valid_users: PositiveInt = 1000
    """Users whose validation NDCG@10 chooses the epoch that is kept."""
    patience: NonNegativeInt = 5
    """Stop after so many epochs without a better one; 0: never."""


@dataclass(frozen=True)
class RunSettings(LaunchSettings, JobSettings):
    """Checkpoints and curves."""

    checkpoint_every: NonNegativeInt = field(default=200, metadata={"identity": False})
    """Steps between checkpoints, from which a broken run goes on; 0: none."""
    keep_checkpoints: PositiveInt = field(default=1, metadata={"identity": False})
    """How many of the last checkpoints are kept while the training runs."""
    tracker: str = field(default="tensorboard", metadata={"identity": False})
    """Where the curves go: tensorboard (RUN/logs/students), none, or another that Accelerate knows."""


@dataclass(frozen=True)
class TrainerSettings(OptimiserSettings, ValidationSettings, RunSettings):
    """All that the training loop reads."""


# dataclasses list the fields of the last base first: paths and network head the --help text
@dataclass(frozen=True)
class Config(
    TrainerSettings,
    SamplerSettings,
    LossSettings,
    ItemModelSettings,
    ItemTextSettings,
    ModelSettings,
    DreamRecInputs,
    E4SRecInputs,
    SETRecInputs,
    PathSettings,
):
    """Train a student: accelerate launch student/train.py --variant NAME [--config FILE] [--field value ...]."""

    semantic_ids: Path | None = None
    """Semantic IDs artifact (default: RUN/semantic_ids)."""
    variant: str = "tiger"
    """tiger, smooth, distill, dtr, dwr, dtr-smooth, dwr-smooth, or dwr-without-distill."""
    labels: Literal["ref", "top", "random", "rank"] = "ref"
    """The target (alignment study, 4.6): the real next item, the teacher's first, any item of its list, or nothing but
    the order of its list."""
    prior: Literal["teacher", "pseudo", "distance", "statistics", "mixture"] = "teacher"
    """The ranking prior (paper, Appendix B): the order of the soft labels' candidates, of a second set's, or of
    pseudo-IDs around the target by distance (18), which need no labels. DISTILL always learns the soft labels'
    distributions."""
    prior_labels: Path | None = None
    """The second set of labels (default: RUN/soft_labels-PRIOR)."""
    plain_labels: Path | None = None
    """Selective distillation: labels of a plain teacher, such as transition counts. Where it gives the real next item
    at least the teacher's probability, the student learns that item (equation 8), no distribution and no order."""
    warm_start: Path | None = None
    """A finished student of the same network, such as that of an earlier day: the training starts from its weights. Its
    items must have the same codes here (`build_semantic_ids.py --extend`), and texts the same embeddings
    (`embed_items.py --like`). A large student starts with its adapters merged, and new ones train."""
    reference: Path | None = field(default=None, metadata=IF_CHANGED)
    """list_loss dpo, s_dpo and grpo: the finished student that is compared with (default, for dtr: its retriever)."""
    ranker_epochs: PositiveInt = 5
    """Passes of dtr's ranker phase."""
    ranker_lr: PositiveFloat = 5e-4
    """Peak learning rate of dtr's ranker phase, which starts from the retriever."""
    width: PositiveInt = 20
    """Beam width in validation."""
    seeds: list[Seed] | None = field(default=None, metadata={"identity": False})
    """Train once for each seed, into OUTPUT-seed0 and so on; log mean and spread of validation NDCG@10."""

    @property
    def prior_folder(self) -> Path:
        return self.prior_labels or self.run / f"soft_labels-{self.prior}"


@dataclass(frozen=True)
class BaselineConfig(
    TrainerSettings,
    BatchSettings,
    TeacherLossSettings,
    ItemModelSettings,
    ItemTextSettings,
    DreamRecInputs,
    E4SRecInputs,
    SETRecInputs,
    PathSettings,
):
    """Train a baseline: python student/baseline.py [--network NAME] [--config FILE] [--field value ...]."""

    network: Literal["sasrec", "gru4rec", "fmlp", "lite-llm4rec", "e4srec", "dreamrec", "setrec"] = "sasrec"
    """Self-attention, a recurrent network, filters in the frequency domain (FMLP-Rec), a language model over item
    vectors (Lite-LLM4Rec) or over the frozen ones of a SASRec (E4SRec), a diffusion that generates the next item's
    embedding (DreamRec), or a language model that generates an item's set of tokens at once (SETRec)."""
    loss: ItemLoss = "ce"
    """Cross-entropy to the next items (setrec and dreamrec: the loss of their papers); plus gamma times the
    cross-entropy to the teacher's candidates (list), the ranking loss over them, equation (14), or both. dreamrec: ce
    alone."""
    folds: NonNegativeInt = field(default=0, metadata=IF_CHANGED)
    """Cross-fitting: leave the users of one of so many folds out of the training, so that this network can label them
    (`export_soft_labels.py --folds`); 0: all users train it."""
    fold: NonNegativeInt = field(default=0, metadata=IF_CHANGED)
    """Which fold is left out, from 0; the output is then RUN/folds/NETWORK-fold<i> by default, and --sasrec
    RUN/folds/sasrec-fold<i>."""
    dim: PositiveInt = 64
    """Size of an item's embedding, or of its tokens."""
    layers: PositiveInt | None = None
    """Layers of the network (default: two, of gru4rec and dreamrec one); of lite-llm4rec and e4srec with
    base: the first so many of it (default: all)."""
    threads: NonNegativeInt = field(default=0, metadata={"identity": False})
    """CPU threads; 0: torch's choice."""

    @property
    def sizes(self) -> dict[str, Any]:
        """Arguments of a network over items: those that are given."""
        sizes = {name: getattr(self, name) for name in ("max_history", "dim", "layers", "dropout")}
        return {name: value for name, value in sizes.items() if value is not None}

    @property
    def reads_text(self) -> bool:
        return super().reads_text or (self.network == "setrec" and self.setrec.semantic > 0)

    @property
    def output_folder(self) -> Path:
        name = self.network if self.loss == "ce" else f"{self.network}-{self.loss}"
        return self.output or self.default_place(name)

    def default_place(self, name: str) -> Path:
        """Return where the network of a name goes by default; one of a fold is no row of the evaluation."""
        return self.run / "folds" / f"{name}-fold{self.fold}" if self.folds else self.run / "baselines" / name
