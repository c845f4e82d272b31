"""Read a checkpoint in LC-Rec's published form: LLaMA with the codewords in use in its vocabulary, perhaps as a delta.

LC-Rec publishes the difference to LLaMA's weights (a delta). Embeddings and output head have more rows than LLaMA's and
are published whole. Its tokenizer was saved by transformers before version 4.34: `tokenizer.model` and
`added_tokens.json`.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from distill.data.dataset import Dataset
from distill.runtime import models
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from distill.runtime.logs import log
from distill.semantic_ids.ids import LEVEL_NAMES, SemanticIDs, token
from teacher.base_model import load_base
from teacher.engines import prompt_rows
from teacher.model import save_teacher
from teacher.prompt_file import PROMPT_FILE
from teacher.tasks import TaskData
from teacher.tokenizer import check_codewords, codeword_tokens, load_tokenizer

CODEWORD = re.compile(rf"<[{LEVEL_NAMES}]_\d+>")
SMALL_NORM = 0.05  # mean weight of the last norm: near 1 in a model, near 0 in a delta


def write_teacher(
    job: ArtifactJob, checkpoint: Path, base: str | None, prompt: str, max_history: int, dataset: Path, ids: Path
) -> None:
    """Check everything, then write the teacher artifact.

    Args:
        job: its output is the teacher.
        checkpoint: the published folder.
        base: the model that a delta belongs to; None: the checkpoint is whole.
        prompt: from `read_prompt`.
        max_history: items of history in a prompt.
        dataset: folder of the data set.
        ids: folder of the semantic IDs.

    Raises:
        UserError: a checkpoint that cannot be read or knows other codewords, or prompts longer than its window.
    """
    check_files(checkpoint)
    items = Dataset.load(dataset)
    semantic_ids = SemanticIDs.load(ids, items.n_items)
    tokenizer = read_tokenizer(checkpoint)
    check_vocabulary(tokenizer, semantic_ids, checkpoint)
    window = json.loads((checkpoint / "config.json").read_text()).get("max_position_embeddings", math.inf)
    data = TaskData(items, semantic_ids, tokenizer, max_history, sys.maxsize, prompt_text=prompt)
    longest = np.zeros((1, max_history), dtype=np.int64)  # all IDs have the same number of tokens
    max_tokens = len(prompt_rows(data, "file", longest)[0]) + semantic_ids.levels
    if max_tokens > window:
        raise UserError(
            f"A prompt of {max_history} items with an ID takes {max_tokens} tokens, the window of {checkpoint} is "
            f"{window}; lower --max_history."
        )
    model = load_weights(checkpoint, base)
    with job.write() as folder:
        save_teacher(model, tokenizer, folder, {"prompt": "file", "max_history": max_history, "max_tokens": max_tokens})
        (folder / PROMPT_FILE).write_text(prompt + "\n", encoding="utf-8")


def check_files(folder: Path) -> None:
    """Refuse what is not a checkpoint with weights in safetensors.

    Raises:
        UserError: no such folder, no config, or pickled weights; the message says how to convert them.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a Hugging Face checkpoint: it holds no config.json.")
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if any(folder.glob("*.safetensors")):
        return
    if not pickled:
        raise UserError(f"{folder} holds no weights; expected *.safetensors.")
    raise UserError(
        f"The weights of {folder} are pickled ({pickled[0]}). Pickle can run code while it is read, so only "
        "safetensors are read here. Convert them in a place without network and secrets, such as a container: "
        "python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('OLD', dtype='auto')"
        ".save_pretrained('NEW')\", and copy tokenizer.model and the *.json files of the tokenizer to NEW."
    )


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer as one file of rules, so that saving and loading cannot change it.

    One of before transformers 4.34 gets back what later versions dropped: blanks around added tokens are cut off, and
    the text behind an added token starts like a new text, with a blank before it.

    Raises:
        UserError: there is no tokenizer, or the package that reads it is missing.
    """
    settings_file = folder / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text()) if settings_file.is_file() else {}
    is_old = (
        (folder / "tokenizer.model").is_file()
        and not (folder / "tokenizer.json").is_file()
        and "added_tokens_decoder" not in settings
    )
    if is_old and importlib.util.find_spec("sentencepiece") is None:
        raise UserError(f"Reading {folder}/tokenizer.model needs the package sentencepiece: pip install sentencepiece")
    tokenizer = load_tokenizer(str(folder), **({"legacy": settings.get("legacy", True)} if is_old else {}))
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    if is_old:
        for added in rules["added_tokens"]:
            if not added["special"]:
                added |= {"lstrip": True, "rstrip": True, "normalized": False}
    names = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(rules)), **names)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, ids: SemanticIDs, folder: Path) -> None:
    """Check that the checkpoint knows the items' codewords, and log how many of each level it knows.

    Raises:
        UserError: it knows no codewords at all, or not all that the items have.
    """
    known = {word for word in tokenizer.get_vocab() if CODEWORD.fullmatch(word)}
    if not known:
        raise UserError(
            f"The tokenizer of {folder} has no codewords like {token(0, 0)}. Are files missing (added_tokens.json), or "
            "is it not tuned by LC-Rec?"
        )
    rows = json.loads((folder / "config.json").read_text()).get("vocab_size", len(tokenizer))
    check_codewords(tokenizer, ids, rows, folder)
    _, gaps = codeword_tokens(tokenizer, ids)
    counts = ", ".join(f"{name} {count}" for name, count in zip(LEVEL_NAMES, (~gaps).sum(1), strict=False))
    log.info(f"codewords in the vocabulary, of {ids.codebook_size} a level: {counts}")
    used = {token(level, code) for codes in ids.codes for level, code in enumerate(codes)}
    if known - used:
        log.info(f"{len(known - used)} codewords of the vocabulary are in no item's ID; is it this checkpoint's index?")


def load_weights(folder: Path, base: str | None) -> PreTrainedModel:
    """Load the model in its stored precision; a delta is added to its base.

    Args:
        folder: the checkpoint.
        base: the model that a delta belongs to, path or hub name; None: the checkpoint is no delta.

    Raises:
        UserError: it cannot be loaded, it is a delta without a base or a whole model with one, or the base does not
            fit.
    """
    model = _load(folder)
    size = float(model.base_model.norm.weight.detach().float().abs().mean())
    is_delta = model.config.model_type == "llama" and size < SMALL_NORM
    if is_delta and base is None:
        raise UserError(
            f"{folder} holds the difference to a base model (the last norm's weights are {size:.2g} in the mean), as "
            "LC-Rec publishes it. Give the base with --base (LC-Rec's: huggyllama/llama-7b)."
        )
    if base is not None and not is_delta:
        raise UserError(f"{folder} holds a whole model, not the difference to one; leave --base out.")
    if base is not None:
        add_base(model, load_base(base, model.dtype), base)
    model.generation_config = GenerationConfig.from_model_config(model.config)  # the stored one may ask to sample
    return model


def _load(folder: Path) -> Any:
    refusal = f"{folder} cannot be loaded (is a file missing or cut off?)"
    model, report = models.load_model(folder, refusal, dtype="auto", output_loading_info=True)
    if report["missing_keys"]:
        first = min(report["missing_keys"])
        raise UserError(f"{folder} lacks {len(report['missing_keys'])} tensors (first {first}). Is a file missing?")
    return model


@torch.no_grad()
def add_base(delta: PreTrainedModel, base: PreTrainedModel, name: str) -> None:
    """Add the base's weights to a delta, in place. Tables with more rows than the base's are whole already.

    Raises:
        UserError: the two are of different architectures.
    """
    base_weights, grown = base.state_dict(), {id(table.weight) for table in _tables(delta)}
    for key, weight in delta.named_parameters():
        other = base_weights.get(key)
        if other is not None and other.shape == weight.shape:
            weight += other
        elif other is None or id(weight) not in grown or other.shape[1] != weight.shape[1]:
            raise UserError(
                f"--base {name} does not fit the delta: they differ in {key}. Take the base it was made of."
            )


def _tables(model: PreTrainedModel) -> tuple[Any, Any]:
    """The embeddings and the output head."""
    return model.get_input_embeddings(), model.get_output_embeddings()
