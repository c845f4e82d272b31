"""Build a Lite-LLM4Rec from the first layers of a pretrained language model, or with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.runtime import models
from distill.runtime.errors import UserError
from student.config import BaselineConfig
from student.models.item_models.e4srec import E4SRec
from student.models.item_models.lite_llm4rec import LiteLLM4Rec, LiteLLM4RecConfig
from student.models.item_text import TextConfig
from student.models.trunk import check_window


def build_lite_llm4rec(config: BaselineConfig, n_items: int, unit: np.ndarray | None) -> LiteLLM4Rec:
    """Build the network.

    Args:
        config: of the command.
        n_items: of the catalogue.
        unit: text embeddings of the items, of length 1 [n_items, dim]; None: none.

    Raises:
        UserError: no such language model, too few layers, a window that is too short, or states that see later items.
    """
    text = None if unit is None else TextConfig(*unit.shape, only=config.item_text == "only")
    sizes = LiteLLM4RecConfig(n_items, config.max_history, config.dim, config.layers or 2, config.dropout, text=text)
    if config.base is None:
        model = LiteLLM4Rec(sizes)
    else:
        base, row_size = read_base(config.base, config.layers)
        network = base.config.get_text_config()
        check_window(network.to_dict(), config.max_history, config.max_history, config.base)
        sizes = replace(sizes, layers=network.num_hidden_layers, network=base.config.to_dict(), pretrained=True)
        model = LiteLLM4Rec(sizes, base.base_model)
        with torch.no_grad():  # vectors of the size that the layers know from the rows of their vocabulary
            model.reader.weight.mul_(row_size / (0.02 * config.dim**0.5))
        check_causal(model, config.base)
    if unit is not None:
        model.items.text.set_vectors(unit)
    return model


def read_base(folder: Path, layers: int | None) -> tuple[Any, float]:
    """Read a causal language model.

    Args:
        folder: of the checkpoint.
        layers: how many are kept, from the first; None: all.

    Returns:
        The model, and the standard deviation of its vocabulary's rows.

    Raises:
        UserError: the folder holds none, or it has fewer layers.
    """
    from student.models.large.loading import keep_first_layers

    refusal = f"--base {folder} is no causal language model"
    base = models.load_model(folder, refusal, dtype=torch.float32, local_files_only=True)
    if layers:
        keep_first_layers(base, layers, folder, "--layers")
    return base, float(base.get_input_embeddings().weight.detach().std())


@torch.no_grad()
def check_causal(model: LiteLLM4Rec | E4SRec, folder: Path) -> None:
    """Refuse a language model that cannot read vectors, or whose states see later items.

    Raises:
        UserError: as above.
    """
    training, reason = model.training, "a state depends on the items after it"
    history = torch.arange(3)[None] % model.config.n_items
    try:
        before, after = (model.eval().encode(items) for items in (history[:, :2], history))
        is_causal = torch.allclose(before, after[:, :2], rtol=1e-3, atol=1e-4)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        is_causal, reason = False, str(error).splitlines()[0]
    model.train(training)
    if not is_causal:
        raise UserError(f"--base {folder} cannot read a history of item vectors: {reason}. Take a causal transformer.")
