"""Commands as text: the one that makes an artifact, for hints, and the one that runs, for manifests."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

# in the order of the pipeline
COMMANDS = {
    "dataset": "python scripts/prepare_data.py",
    "embeddings": "python scripts/embed_items.py",
    "semantic_ids": "python scripts/build_semantic_ids.py",
    "teacher": "accelerate launch teacher/finetune.py",
    "soft_labels": "python distill/export_soft_labels.py",
    "student": "accelerate launch student/train.py --variant tiger",
    "baseline": "python student/baseline.py --network sasrec",
    "audit": "python scripts/audit.py",
    "item_vectors": "python scripts/represent_items.py",
    "evaluation": "python scripts/evaluate.py",
    "report": "python scripts/report.py",
}
CONFIG_FILES = {"dataset": "data.yaml", "soft_labels": "export.yaml", "evaluation": "evaluate.yaml"}  # else KIND.yaml


def command_for(kind: str, folder: Path, *options: str) -> str:
    """Name the command that makes an artifact, as one can type it.

    The run follows from the folder where it is the default place of its kind (RUN/dataset, RUN/students/dtr);
    elsewhere `--output` names the folder, and `--run` is the running command's or, without one, the folder above.
    `--config` is given where the running command was started with one and the kind's YAML lies beside it.

    Args:
        kind: a key of `COMMANDS`.
        folder: where the artifact is, or should be.
        options: further words.
    """
    folder = Path(folder)
    run, program = _default_place(kind, folder)
    base = folder.name.removesuffix("+content")
    if kind in ("student", "baseline") and base.endswith("+memory"):
        student = folder.with_name(base.removesuffix("+memory"))
        program, config_file, output = f"python scripts/add_memory.py --student {_quoted(student)}", "memory.yaml", None
        program += " --content true" if base != folder.name else ""
    else:
        config_file = CONFIG_FILES.get(kind, f"{kind}.yaml")
        output = folder if run is None else None
    words = [program]
    config = option("--config")
    if config and (Path(config).parent / config_file).is_file():
        words.append(f"--config {_quoted(Path(config).parent / config_file)}")
    words.append(f"--run {_quoted(run or option('--run') or folder.parent)}")
    words += options
    if output:
        words.append(f"--output {_quoted(output)}")
    return " ".join(words)


def _default_place(kind: str, folder: Path) -> tuple[Path | None, str]:
    """Return the run if the artifact lies at its kind's default place, else None; and the program with its subject."""
    program, name = COMMANDS[kind], folder.name
    if kind not in ("student", "baseline"):
        return (folder.parent if name == kind else None), program
    if folder.parent.name != f"{kind}s":
        return None, program
    program = program.rpartition(" ")[0]
    options = {"student": (r"-seed(\d+)$", r" --seeds \1"), "baseline": (r"-(\w+)$", r" --loss \1")}[kind]
    return folder.parent.parent, f"{program} {re.sub(*options, name)}"


def option(name: str) -> str | None:
    """Return the value of an option of the running command; None where it is not given."""
    value = None
    for word, following in zip(sys.argv[1:], [*sys.argv[2:], None], strict=False):
        if word == name:
            value = following
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


def command() -> str:
    """Return the running command as one types it in the current folder."""
    launcher = "accelerate launch" if "ACCELERATE_MIXED_PRECISION" in os.environ else "python"
    return shlex.join([*launcher.split(), os.path.relpath(sys.argv[0]), *sys.argv[1:]])


def commit() -> str | None:
    """Return the commit of the code, with -dirty after it where files differ from it; None where that is not known."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _quoted(path: Path | str) -> str:
    return shlex.quote(str(path))
