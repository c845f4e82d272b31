"""Compare SETRec, which generates a set of tokens at once, with beam search over codewords on the same trunk."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, T5Config

from benches import interleaved
from benches.decode import LEVELS, SIZE, Generate, made_up, real_data
from distill.runtime.errors import UserError
from distill.runtime.logs import log
from student.item_recommender import ItemRecommender
from student.models import BACKBONES
from student.models.setrec import SETRec, SETRecConfig
from student.models.t5 import SIZES, to_t5
from student.recommender import Recommender

CF_DIM, TEXT_DIM = 64, 384  # of a SASRec's item embeddings and of MiniLM's text embeddings


@dataclass(frozen=True)
class Config:
    """Users per second of SETRec and of beams: python scripts/bench.py sets [--run FOLDER] [--json FILE]."""

    run: Path | None = None
    """A run with dataset and semantic_ids; none: random IDs and histories of Instruments' size."""
    preset: str = "tiger-4m"
    """Preset of the students, whose sizes SETRec's trunks take; all weights are random."""
    semantic: int = 4
    """N, semantic tokens of an item."""
    width: int = 20
    """Beams, and items of a list."""
    batches: list[int] = field(default_factory=lambda: [1, 32, 256])
    """Users at once."""
    catalogues: list[int] = field(default_factory=lambda: [10**4, 10**5, 10**6])
    """Numbers of items for which SETRec's exact scores are measured, 32 users at once."""
    generate: bool = True
    """Also Hugging Face's `generate` with a dictionary of allowed tokens, on the T5."""
    repeats: int = 5
    """Measured rounds; medians are reported."""
    device: str = "cpu"
    """cpu or cuda."""
    json: Path | None = None
    """File for the figures."""
    seed: int = 0
    """Seed of weights, users and random data."""


def main(config: Config) -> dict[str, Any]:
    """Measure and return all figures."""
    presets = BACKBONES["seq2seq"][2]
    if config.preset not in presets:
        raise UserError(f"Unknown preset {config.preset!r}. Available: {', '.join(presets)}.")
    codes, histories = real_data(config.run) if config.run else made_up(config.seed)
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    users = {n: histories[rng.choice(len(histories), n, replace=n > len(histories))] for n in {*config.batches, 32}}
    figures: dict[str, Any] = {
        "threads": torch.get_num_threads(), "device": config.device, "preset": config.preset, "items": len(codes),
    }  # fmt: skip
    for trunk, backbone in (("t5", "seq2seq"), ("causal", "causal")):
        log.info(f"{trunk} against beams of {backbone}")
        figures |= against_beams(trunk, beam_student(backbone, codes, config), users, config)
    for n_items in config.catalogues:
        log.info(f"exact scores of {n_items:,} items")
        sets = set_student("t5", n_items, config)
        known = np.where(users[32] >= 0, users[32] % n_items, users[32])
        seconds = interleaved({"sets": partial(sets.rank_items, known, config.width, False)}, config.repeats)["sets"]
        figures[f"users_per_s_t5_{n_items}_items"] = 32 / seconds
    return figures


def beam_student(backbone: str, codes: np.ndarray, config: Config) -> Recommender:
    """Build a student over codewords."""
    network, sizes, presets = BACKBONES[backbone]
    model = network(sizes(LEVELS, SIZE, **presets[config.preset])).to(config.device).eval()
    if backbone == "seq2seq":
        nn.init.zeros_(model.recency.weight)  # T5 has no recencies
    names = [""] * len(codes)
    return Recommender(model, codes, names, names, facts={"backbone": backbone})


def set_student(trunk: str, n_items: int, config: Config) -> ItemRecommender:
    """Build a SETRec whose trunk has the sizes of the students' preset."""
    backbone = "seq2seq" if trunk == "t5" else "causal"
    sizes = BACKBONES[backbone][1](LEVELS, SIZE, **BACKBONES[backbone][2][config.preset])
    if trunk == "t5":
        network: Any = T5Config(vocab_size=2, **{t5_name: getattr(sizes, name) for name, t5_name in SIZES.items()})
    else:
        # a LLaMA's feed-forward has three matrices for the student's two
        network = LlamaConfig(
            vocab_size=2, hidden_size=sizes.d_model, intermediate_size=2 * sizes.d_ff // 3, head_dim=sizes.d_head,
            num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
    settings = SETRecConfig(
        n_items, 32, sizes.d_model, network.to_dict(), trunk, cf_dim=CF_DIM, text_dim=TEXT_DIM, semantic=config.semantic
    )
    model = SETRec(settings)
    model.tokens.set_inputs(torch.randn(n_items, CF_DIM), torch.randn(n_items, TEXT_DIM))
    return ItemRecommender(model.to(config.device).eval(), {"network": "setrec"})


def against_beams(trunk: str, beams: Recommender, users: dict[int, np.ndarray], config: Config) -> dict[str, float]:
    """Compare lists of SETRec with beams of a student of the same sizes, and a T5 with `generate`."""
    sets, figures = set_student(trunk, len(beams.codes), config), {}
    generate = Generate(to_t5(beams.model), beams, config.width, "float32") if use_generate(trunk, config) else None
    for batch in config.batches:
        rows = users[batch]
        work = {
            "sets": partial(sets.rank_items, rows, config.width, False),
            "beams": partial(beams.rank_items, rows, config.width, exclude_bought=False),
        }
        if generate:
            work["generate"] = partial(generate, rows)
        median = interleaved(work, config.repeats)
        for name, seconds in median.items():
            figures[f"users_per_s_{trunk}_{name}_b{batch}"] = batch / seconds
            if name != "sets":
                figures[f"ratio_{trunk}_sets_vs_{name}_b{batch}"] = seconds / median["sets"]
    return figures


def use_generate(trunk: str, config: Config) -> bool:
    """Tell whether `generate` is measured: only T5 has the weights of the student."""
    return config.generate and trunk == "t5"
