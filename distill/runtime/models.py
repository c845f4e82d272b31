"""Load models, tokenizers and configs of Transformers: the only place that does.

A model folder may come from anybody. None of its Python code is run (`auto_map`), and weights are read from safetensors
alone: pickle files such as `pytorch_model.bin` can run code when they are read. Nothing is asked at a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from distill.runtime.errors import UserError
from distill.runtime.verification import verify_folder

NO_REMOTE_CODE = {"trust_remote_code": False}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
CONVERT = (
    'only safetensors is read, because a pickle file can run code. If you trust it, convert it: python -c "from '
    "transformers import AutoModelForCausalLM as Model, AutoTokenizer as Tokenizer; [kind.from_pretrained('{source}')"
    ".save_pretrained('{source}-safetensors') for kind in (Model, Tokenizer)]\""
)


def load_model(source: Path | str, refusal: str, kind: Literal["causal", "any"] = "causal", **options: Any) -> Any:
    """Load a pretrained network from safetensors, without code of its own.

    Args:
        source: local folder or hub name.
        refusal: how the message begins if there is no such model, say "No base model at 'x'".
        kind: "causal": with a language model's head (`AutoModelForCausalLM`); "any": without (`AutoModel`).
        options: of `from_pretrained`, such as dtype or gguf_file.

    Raises:
        UserError: no such model, one that needs code of its own, or one whose weights are pickle files.
    """
    import transformers  # late: imports torch

    if "gguf_file" not in options:
        check_weights(source, refusal)
    auto_class = transformers.AutoModelForCausalLM if kind == "causal" else transformers.AutoModel
    return _load(auto_class.from_pretrained, source, refusal, use_safetensors=True, **options)


def load_tokenizer(source: Path | str, refusal: str, **options: Any) -> Any:
    """Load a tokenizer, without code of its own.

    Args and Raises: as `load_model`.
    """
    from transformers import AutoTokenizer

    return _load(AutoTokenizer.from_pretrained, source, refusal, **options)


def load_config(source: Path | str, refusal: str, **options: Any) -> Any:
    """Load a network's config, without code of its own.

    Args and Raises: as `load_model`; `source` may also be the file.
    """
    from transformers import AutoConfig

    return _load(AutoConfig.from_pretrained, source, refusal, **options)


def build_causal_model(config: Any, **options: Any) -> Any:
    """Build a causal language model with random weights from a Transformers config, without code of its own."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, **NO_REMOTE_CODE, **options)


def check_weights(folder: Path | str, refusal: str) -> None:
    """Refuse a local folder whose weights are pickle files; hub names pass.

    Raises:
        UserError: it holds no safetensors but pickle files, or an index of shards that names such files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles and not any(folder.glob("*.safetensors")):
        raise UserError(f"{refusal}: its weights are in {pickles[0]}; {CONVERT.format(source=folder)}")
    for index in folder.glob("*.safetensors.index.json"):
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{refusal}: {index} cannot be read ({error!r}). Copy it again.") from None
        others = sorted(str(shard) for shard in shards if not str(shard).endswith(".safetensors"))
        if others:
            raise UserError(f"{refusal}: {index.name} names {others[0]}; {CONVERT.format(source=folder)}")


def count_parameters(*models: Any) -> int:
    """Count the parameters of networks; None has none."""
    return sum(parameter.numel() for model in models if model is not None for parameter in model.parameters())


def _load(load: Callable[..., Any], source: Path | str, refusal: str, **options: Any) -> Any:
    verify_folder(Path(source))  # a teacher of ours; others have no checksums
    try:
        return load(source, **NO_REMOTE_CODE, **options)
    except Exception as error:  # whatever a damaged file makes one of several parsers raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "trust_remote_code" in str(error):
            reason = "it needs Python code of its own (auto_map), and none is run. Take a model that Transformers knows"
        raise UserError(f"{refusal}: {reason}") from None
