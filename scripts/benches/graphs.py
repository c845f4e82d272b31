"""Compare the exported search, in ONNX Runtime (float32, int8) and compiled by AOTInductor, with the Recommender."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benches import interleaved
from benches.decode import LEVELS, SIZE, made_up
from distill.data.dataset import PAD
from distill.runtime.errors import UserError
from student.config import GraphFormat
from student.graph_export import check_tools, write_graph
from student.graphs import FILES, load_graph, precision_of
from student.models import BACKBONES
from student.recommender import Recommender
from student.search_graph import EXPORTED, SearchGraph


@dataclass(frozen=True)
class Config:
    """Users per second of exported searches: python scripts/bench.py graphs [--student FOLDER] [--json FILE]."""

    student: Path | None = None
    """A student; none: random weights, IDs and histories of Instruments' size."""
    backbone: str = "nested"
    """Backbone of random weights."""
    preset: str = "demo"
    """Preset of random weights."""
    width: int = 20
    """Beams."""
    batches: list[int] = field(default_factory=lambda: [1, 32, 256])
    """Users at once."""
    formats: list[GraphFormat] = field(default_factory=lambda: ["onnx", "onnx-int8"])
    """Of the graphs; aoti and aoti-bf16 compile for about a minute and need a C++ compiler."""
    repeats: int = 5
    """Measured rounds; medians are reported."""
    json: Path | None = None
    """File for the figures."""
    seed: int = 0
    """Seed of weights, users and random data."""


def main(config: Config) -> dict[str, Any]:
    """Measure and return all figures."""
    if config.backbone not in EXPORTED or config.preset not in BACKBONES[config.backbone][2]:
        raise UserError(f"There is no {config.backbone} of preset {config.preset}.")
    for graph_format in config.formats:
        check_tools(graph_format)
    student, histories = load(config)
    rng = np.random.default_rng(config.seed)
    threads = torch.get_num_threads()
    figures: dict[str, Any] = {"threads": threads, "backbone": student.facts["backbone"]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contenders = {}
        for graph_format in config.formats:
            graph = SearchGraph(student, config.width, config.width, True, precision_of(graph_format))
            (folder / graph_format).mkdir()
            write_graph(graph, folder / graph_format, graph_format)
            figures[f"{graph_format}_mib"] = (folder / graph_format / FILES[graph_format]).stat().st_size / 2**20
            run = load_graph(folder / graph_format, graph_format)
            contenders[graph_format] = lambda users, run=run: run(*[torch.from_numpy(users)] * 2)
        contenders["recommender"] = lambda users: student.rank_items(users, config.width)
        for batch in config.batches:
            users = histories[rng.choice(len(histories), batch, replace=False)].astype(np.int64)
            users = np.ascontiguousarray(users[:, : (users != PAD).sum(1).max()])
            expected, _ = contenders["recommender"](users)
            for contender, rank in contenders.items():
                items = rank(users)[0]
                figures[f"equal_lists_{contender}_b{batch}"] = float((items == expected).all(1).mean())
                same = [len(np.intersect1d(*lists)) for lists in zip(items, expected, strict=True)]
                figures[f"same_items_{contender}_b{batch}"] = float(np.mean(same)) / config.width
            work = {contender: partial(rank, users) for contender, rank in contenders.items()}
            median = interleaved(work, config.repeats)
            figures |= {f"users_per_s_{contender}_b{batch}": batch / s for contender, s in median.items()}
            for contender in contenders.keys() - {"recommender"}:
                figures[f"{contender}_vs_recommender_b{batch}"] = median["recommender"] / median[contender]
    return figures


def load(config: Config) -> tuple[Recommender, np.ndarray]:
    """Load the student, or draw one, and histories of Instruments' lengths."""
    codes, histories = made_up(config.seed)
    if config.student is not None:
        student = Recommender.from_pretrained(config.student, precision="float32")
        return student, np.where(histories >= 0, histories % student.n_items, PAD)
    torch.manual_seed(config.seed)
    network, sizes, presets = BACKBONES[config.backbone]
    model = network(sizes(LEVELS, SIZE, **presets[config.preset])).eval()
    names = [""] * len(codes)
    return Recommender(model, codes, names, names, facts={"backbone": config.backbone}), histories
