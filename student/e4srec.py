"""Build an E4SRec from a trained network's item embeddings and a language model, pretrained or with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from student.config import BaselineConfig
from student.item_embeddings import read_item_embeddings
from student.lite_llm4rec import check_causal, read_base
from student.models.item_models.e4srec import E4SRec, E4SRecConfig
from student.models.trunk import check_window

LORA_RANK = 16  # paper
INPUT_SIZE = 0.16  # standard deviation of the inputs of a language model with random weights


def build_e4srec(config: BaselineConfig, n_items: int, source: Path) -> E4SRec:
    """Build the network.

    Args:
        config: of the command.
        n_items: of the catalogue.
        source: folder of the trained network whose item embeddings are read.

    Raises:
        UserError: item embeddings of another catalogue, no such language model, too few layers, a window that is too
            short, or states that see later items.
    """
    vectors = read_item_embeddings(source, n_items)
    sizes = E4SRecConfig(n_items, config.max_history, vectors.shape[1], config.dim, config.layers or 2, config.dropout)
    if config.base is None:
        model = E4SRec(sizes)
        model.set_item_vectors(vectors, INPUT_SIZE)
        return model
    base, row_size = read_base(config.base, config.layers)
    network = base.config.get_text_config()
    check_window(network.to_dict(), config.max_history, config.max_history, config.base)
    rank = LORA_RANK if config.e4srec.lora_rank is None else config.e4srec.lora_rank
    sizes = replace(
        sizes, layers=network.num_hidden_layers, network=base.config.to_dict(), pretrained=True, lora_rank=rank
    )
    model = E4SRec(sizes, base.base_model)
    model.set_item_vectors(vectors, row_size)
    check_causal(model, config.base)
    return model
