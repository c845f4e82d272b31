"""What the training of a baseline is told, and its checks; torch is imported when there is work to do.

Two commands end here: `student/baseline.py`, and `student/train.py --backbone sasrec`, which speaks of variants.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import JobSettings
from distill.runtime.errors import UserError

NETWORKS = ("sasrec", "gru4rec")
LOSSES = {"tiger": "ce", "distill": "list", "dwr": "list+rank", "dwr-without-distill": "rank"}  # of a student's variant


@dataclass(frozen=True)
class Config(JobSettings):
    """Train a baseline: python student/baseline.py [--network NAME] [--config FILE] [--field value ...]."""

    run: Path = Path("runs/demo")
    """Folder of the run; inputs and output default to their names inside it."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    soft_labels: Path | None = None
    """Soft labels artifact (default: RUN/soft_labels); read where the loss needs a teacher."""
    output: Path | None = None
    """Where the baseline goes (default: RUN/baselines/NETWORK, with -LOSS where it is not ce)."""
    network: Literal["sasrec", "gru4rec"] = "sasrec"
    """Self-attention, or a recurrent network."""
    loss: Literal["ce", "list", "rank", "list+rank"] = "ce"
    """Cross-entropy to the next items; with gamma times the cross-entropy to the teacher's candidates (list), the
    ranking loss over them, equation (14), or both."""
    gamma: float = 1.0
    """Weight of what the teacher says."""
    temperature: float = 0.7
    """Of the teacher's candidates' probabilities (list); as for the other students."""
    margin: float = 0.05
    """λ of the ranking loss."""
    dim: int = 64
    """Size of an item's embedding."""
    layers: int | None = None
    """Layers of the network (default: two of sasrec, one of gru4rec)."""
    dropout: float = 0.3
    """On embeddings and layers' outputs."""
    epochs: int = 100
    """Passes over the users' training sequences."""
    batch_size: int = 128
    """Sequences a batch and process."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    clip: float = 1.0
    """Largest gradient norm."""
    max_history: int = 20
    """Items of history (paper: 20)."""
    exclude_bought: bool | None = None
    """Never recommend items of the history, in validation (default: where the training part never has one twice)."""
    valid_users: int = 5000
    """Users whose validation NDCG@10 chooses the epoch that is kept."""
    patience: int = 10
    """Stop after so many epochs without a better one."""
    threads: int = field(default=0, metadata={"identity": False})
    """CPU threads; 0: torch's choice."""
    seed: int = 0
    """Of weights and order."""


def make(config: Config) -> Path:
    """Check the config and the inputs, then train unless it is finished; the artifact's folder.

    Raises:
        UserError: numbers that no network can have, inputs that are not there.
    """
    for name in ("epochs", "batch_size", "layers", "max_history"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise UserError(f"--{name} is {getattr(config, name)}; expected 1 or more.")
    if config.dim < 2 or config.dim % 2:
        raise UserError(f"--dim is {config.dim}; expected an even number, for two attention heads.")
    inputs = [artifacts.read(config.dataset or config.run / "dataset", "dataset")]
    if config.loss != "ce":
        inputs.append(artifacts.read(config.soft_labels or config.run / "soft_labels", "soft_labels"))
    output = place(config)
    stage = ArtifactJob("baseline", config, output, inputs, overwrite=config.overwrite)
    if not stage.is_finished():
        from student.baselines.loop import train

        train(config, [artifact.folder for artifact in inputs], stage)
    return output


def place(config: Config) -> Path:
    """Where the artifact goes."""
    name = config.network if config.loss == "ce" else f"{config.network}-{config.loss}"
    return config.output or config.run / "baselines" / name
