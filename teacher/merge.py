"""Merge a LoRA adapter into its base model: one checkpoint that every engine loads.

    python teacher/merge.py --adapter runs/llama-7b/teacher/adapter --base PATH --output runs/llama-7b/merged

`finetune.py` merges what it saves. This command is for another precision, or for an adapter copied without its teacher.
The adapter's folder, or the one above it, holds the tokenizer and `teacher.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill.runtime import artifacts
from distill.runtime.artifacts import MANIFEST, ArtifactJob
from distill.runtime.config import run
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class Config:
    """Merge an adapter: python teacher/merge.py --adapter DIR --base PATH --output DIR."""

    adapter: Path
    """Folder of the adapter, as finetune.py --mode lora writes it (TEACHER/adapter)."""
    base: str
    """The base model that it was tuned on, a local path or hub name."""
    output: Path
    """Where the merged teacher is written; must not exist."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the merged weights; auto: the base's."""


def main(config: Config) -> None:
    """Check the adapter, merge, write."""
    if not (config.adapter / "adapter_config.json").is_file():
        inside = (config.adapter / "adapter" / "adapter_config.json").is_file()
        hint = f"Give {config.adapter / 'adapter'}." if inside else "Make one with: teacher/finetune.py --mode lora"
        raise UserError(f"{config.adapter} is not an adapter: it holds no adapter_config.json. {hint}")
    job = ArtifactJob("teacher", config, config.output, reads=[config.adapter, config.base])
    if config.output.exists():
        job.remove_leftovers()
        raise UserError(f"{config.output} exists; name another output or remove it yourself.")
    folders = config.adapter, config.adapter.parent
    tokenizer_folder = next((folder for folder in folders if (folder / "teacher.json").is_file()), None)
    if tokenizer_folder is None or not (tokenizer_folder / "tokenizer_config.json").is_file():
        raise UserError(
            f"Neither {config.adapter} nor the folder above holds the tokenizer and teacher.json that finetune.py "
            "saves there; without them nobody knows the codewords' numbers."
        )
    for folder in folders:
        if (folder / MANIFEST).is_file():  # the merged teacher still belongs to its data and codebook
            source = artifacts.read(folder, "teacher")
            artifacts.verify(source)
            job.inputs = source.inputs

    from teacher.lora import merge_adapter
    from teacher.model import save_teacher

    model, tokenizer, facts = merge_adapter(config.adapter, tokenizer_folder, config.base, config.dtype)
    with job.write() as folder:
        save_teacher(model, tokenizer, folder, facts)


if __name__ == "__main__":
    run(main, Config)
