"""Fine-tune a causal LLM to recommend items as semantic IDs (LC-Rec; paper 3.1).

    accelerate launch teacher/finetune.py --config configs/demo/teacher.yaml

Without `base`, a small LLaMA with a tokenizer trained on the catalogue starts from random weights, offline. Settings
are in `teacher/config.py`, the training loop in `teacher/trainer.py`. The loop is imported only when there is work to
do, so that `--help` and finished work answer at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from distill.runtime import artifacts, machines
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import run
from distill.runtime.errors import UserError
from teacher.config import Config, check


def main(config: Config) -> None:
    """Check the config and the inputs, then train, or estimate the training (`--dry_run`)."""
    check(config)
    dataset = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    ids = artifacts.read(config.semantic_ids or config.run / "semantic_ids", "semantic_ids")
    if config.dry_run:
        from teacher.estimate import plan, show

        show(plan(config, dataset.folder, ids.folder))
        return
    if config.precision == "auto" and config.base is None:
        config = replace(config, precision="no")  # on every machine, so the identity says it
    extra = {"intentions": file_hash(config.intentions)} if config.intentions else {}
    output = config.output or config.run / default_output(config)
    job = ArtifactJob("teacher", config, output, [dataset, ids], extra, config.overwrite, [config.base])
    if not machines.is_finished(job, config.machine_silence):
        from teacher.trainer import tune

        tune(config, dataset.folder, ids.folder, job)


def default_output(config: Config) -> str:
    """Name the output within the run: a teacher that writes titles is a baseline, it labels no students."""
    if config.prompt == "titles":
        return "baselines/idgenrec" if config.textual_ids else "baselines/bigrec"
    return f"teacher-fold{config.fold}" if config.folds else "teacher"


def file_hash(path: Path) -> str:
    """Content hash of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None


if __name__ == "__main__":
    run(main, Config, "demo/teacher.yaml")
