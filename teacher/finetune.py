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
from distill.runtime.artifacts import Artifact, ArtifactJob
from distill.runtime.config import run
from distill.runtime.errors import UserError
from distill.runtime.launch import is_first_of_machine
from distill.semantic_ids.lineage import knows
from teacher.config import Config, check


def main(config: Config) -> None:
    """Check the config and the inputs, then train, or estimate the training (`--dry_run`)."""
    check(config)
    dataset = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    ids = artifacts.read(config.semantic_ids or config.run / "semantic_ids", "semantic_ids")
    earlier = read_earlier(config.warm_start, ids) if config.warm_start else None
    start = replace(config, base=str(config.warm_start)) if earlier else config
    if config.dry_run:
        from teacher.estimate import plan, show

        show(plan(start, dataset.folder, ids.folder))
        return
    if config.precision == "auto" and (tuned_in_float32(earlier) if earlier else config.base is None):
        # on every machine, so the identity says it
        config, start = replace(config, precision="no"), replace(start, precision="no")
    extra = {"intentions": file_hash(config.intentions)} if config.intentions else {}
    extra |= {"warm_start": earlier.fingerprint} if earlier else {}
    output = config.output or config.run / default_output(config)
    reads = [config.base, config.warm_start]
    job = ArtifactJob("teacher", config, output, [dataset, ids], extra, config.overwrite, reads)
    if not machines.is_finished(job, config.machine_silence):
        if earlier and is_first_of_machine():
            artifacts.verify(earlier)
        from teacher.trainer import tune

        tune(start, dataset.folder, ids.folder, job)


def read_earlier(folder: Path, ids: Artifact) -> Artifact:
    """Open the teacher that a training starts from.

    Raises:
        UserError: no teacher there, or one that does not know the codes of these IDs.
    """
    teacher = artifacts.read(folder, "teacher")
    if not knows(teacher, ids):
        raise UserError(
            f"{folder} was tuned on semantic_ids {teacher.inputs['semantic_ids']}, and {ids.folder} "
            f"({ids.fingerprint}) does not extend them, so its weights mean nothing here. Extend its IDs: python "
            "scripts/build_semantic_ids.py --extend OLD_IDS; or leave --warm_start out."
        )
    return teacher


def tuned_in_float32(teacher: Artifact) -> bool:
    """Tell whether a teacher was tuned without mixed precision, as its manifest records."""
    return teacher.manifest.get("facts", {}).get("precision") == "no"


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
