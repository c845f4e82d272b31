"""Turn a checkpoint that LC-Rec has published into a teacher.

    python scripts/prepare_data.py --format lcrec --input DATA/Instruments --run RUN
    python scripts/build_semantic_ids.py --index DATA/Instruments/Instruments.index.json --run RUN
    python teacher/import_lcrec.py --checkpoint FOLDER --base huggyllama/llama-7b --prompt prompt.txt --run RUN

FOLDER holds LC-Rec's delta or a whole model, in safetensors. The prompt file is the text that LC-Rec asks with, with
`{history}` where the IDs of the user's items go. `docs/teacher.md` has the details.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import PositiveInt

from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import JobSettings, run
from distill.runtime.errors import UserError
from teacher.prompt_file import read_prompt


@dataclass(frozen=True, kw_only=True)
class Config(JobSettings):
    """Import a published LC-Rec checkpoint: python teacher/import_lcrec.py --checkpoint DIR --prompt FILE."""

    checkpoint: Path
    """Folder of the checkpoint: config.json, tokenizer and *.safetensors."""
    prompt: Path
    """Text file with the whole prompt of LC-Rec's sequential task; `{history}` stands for the IDs of the history."""
    base: str | None = None
    """The model that the checkpoint is the difference to (LC-Rec's: huggyllama/llama-7b), a local path or hub name;
    leave it out where the checkpoint is a whole model."""
    max_history: PositiveInt = 20
    """Items of history (LC-Rec: 20)."""
    run: Path = Path("runs/llama-7b")
    """Folder of the run; inputs and output default to their names inside it."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    semantic_ids: Path | None = None
    """Semantic IDs artifact, imported from LC-Rec's index.json (default: RUN/semantic_ids)."""
    output: Path | None = None
    """Where the teacher is written (default: RUN/teacher)."""


def main(config: Config) -> None:
    """Check the checkpoint against the IDs, then write the teacher."""
    dataset = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    ids = artifacts.read(config.semantic_ids or config.run / "semantic_ids", "semantic_ids")
    if not config.checkpoint.is_dir():
        raise UserError(f"No folder {config.checkpoint}; --checkpoint names a published checkpoint on this machine.")
    prompt = read_prompt(config.prompt)
    extra = {
        "prompt": hashlib.sha256(prompt.encode()).hexdigest()[:16],
        "checkpoint": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files(config.checkpoint)],
    }
    output = config.output or config.run / "teacher"
    job = ArtifactJob("teacher", config, output, [dataset, ids], extra, overwrite=config.overwrite)
    if not job.is_finished():
        from teacher.lcrec import write_teacher

        write_teacher(job, config.checkpoint, config.base, prompt, config.max_history, dataset.folder, ids.folder)


def files(folder: Path) -> list[Path]:
    """The files of a checkpoint, in order."""
    return sorted(path for path in folder.iterdir() if path.is_file())


if __name__ == "__main__":
    run(main, Config)
