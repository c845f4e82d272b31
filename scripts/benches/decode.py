"""Compare constrained beam search with Hugging Face's `generate` and with the arithmetic it needs; measure the trie."""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from benches import interleaved
from distill.data.dataset import PAD, Dataset
from distill.decoding.trie import Trie
from distill.runtime.errors import UserError
from distill.runtime.logs import log, progress_bar
from distill.runtime.precision import has_bf16
from distill.semantic_ids.ids import SemanticIDs
from student.config import GraphFormat
from student.graph_cache import with_graphs
from student.models import BACKBONES
from student.models.seq2seq import Seq2SeqConfig
from student.models.t5 import to_t5
from student.recommender import Recommender

LEVELS, SIZE = 4, 256


@dataclass(frozen=True)
class Config:
    """Users per second of constrained beams: python scripts/bench.py decode [--run FOLDER] [--json FILE]."""

    run: Path | None = None
    """A run with dataset, semantic_ids and perhaps teacher; none: random IDs and histories of Instruments' size."""
    preset: str = "tiger-4m"
    """Preset of the students; their weights are random."""
    width: int = 20
    """Beams."""
    batches: list[int] = field(default_factory=lambda: [1, 32, 256])
    """Users at once, against `generate`."""
    widths: list[int] = field(default_factory=lambda: [10, 20, 50, 100, 200])
    """Beam widths of the cost table, 32 users at once."""
    trie_sizes: list[int] = field(default_factory=lambda: [10**4, 10**5, 10**6, 10**7])
    """Numbers of items of the tries that are built."""
    graphs: list[GraphFormat] = field(default_factory=list)
    """Also by exported graphs in these formats, against `generate` too."""
    compiled: bool = False
    """Also search for one user by `Recommender.compile`; on CPUs inductor needs a C++ compiler and about a minute."""
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
    if config.preset not in BACKBONES["seq2seq"][2]:
        raise UserError(f"Unknown preset {config.preset!r}. Available: {', '.join(BACKBONES['seq2seq'][2])}.")
    codes, histories = real_data(config.run) if config.run else made_up(config.seed)
    torch.manual_seed(config.seed)
    students = {}
    for name, (network, sizes, presets) in BACKBONES.items():
        model = network(sizes(LEVELS, SIZE, **presets[config.preset])).to(config.device).eval()
        students[name] = Recommender(model, codes, [""] * len(codes), [""] * len(codes), facts={"backbone": name})
    nn.init.zeros_(students["seq2seq"].model.recency.weight)  # T5 has no recencies
    rng = np.random.default_rng(config.seed)
    users = {n: histories[rng.choice(len(histories), n, replace=False)] for n in {*config.batches, 32}}
    figures = {"threads": torch.get_num_threads(), "device": config.device, "preset": config.preset}
    figures |= against_generate(students["seq2seq"], users, config)
    if config.compiled:
        figures |= one_user_compiled(students["seq2seq"], users[min(users)][:1], config)
    figures |= trie_share(students["seq2seq"], users[max(users)])
    rankers = {name: student.rank_items for name, student in students.items()}
    if config.run and (config.run / "teacher").is_dir():
        from teacher.engines.hf import HFEngine

        ids = SemanticIDs.load(config.run / "semantic_ids")
        dataset = Dataset.load(config.run / "dataset")
        rankers["teacher"] = HFEngine.load(config.run / "teacher", dataset, ids, config.device).beams
    for width in config.widths:
        work = {name: lambda rank=rank, width=width: rank(users[32], width) for name, rank in rankers.items()}
        for name, seconds in interleaved(work, max(2, config.repeats // 2)).items():
            figures[f"users_per_s_{name}_width{width}"] = 32 / seconds
    started = time.perf_counter()
    students["seq2seq"].score_items(users[32][:4])
    figures["users_per_s_exact"] = 4 / (time.perf_counter() - started)
    return figures | trie_figures(config)


def real_data(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read codes and the test users' histories of a run."""
    dataset = Dataset.load(run / "dataset")
    ids = SemanticIDs.load(run / "semantic_ids", dataset.n_items)
    if (ids.levels, ids.codebook_size) != (LEVELS, SIZE):
        raise UserError(f"{run} has {ids.levels} levels of {ids.codebook_size}; the bench is for {LEVELS} of {SIZE}.")
    return ids.codes, dataset.examples("test").histories


def made_up(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw IDs and histories of Instruments' size: 9,922 items, histories of 4 to 20 with a mean of 7."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, top, 9922) for top in (162, 140, SIZE, SIZE)], axis=1)
    lengths = np.minimum(20, 4 + rng.geometric(0.25, 2000) - 1)
    histories = rng.integers(0, len(codes), (2000, 20))
    return codes, np.where(np.arange(20) < lengths[:, None], histories, PAD)


def against_generate(student: Recommender, users: dict[int, np.ndarray], config: Config) -> dict[str, Any]:
    """Compare with `generate(num_beams=…, prefix_allowed_tokens_fn=…)` on the same weights, users and softmax."""
    figures: dict[str, Any] = {}
    precisions = ["float32", "bfloat16"] if has_bf16() else ["float32"]
    generators = {name: Generate(to_t5(student.model), student, config.width, name) for name in precisions}
    identical, near, compared = 0, 0, 0
    student.facts |= {"scope": "all", "exclude_bought": False}  # as Hugging Face's softmax
    with tempfile.TemporaryDirectory() as cache:
        graphs = {name: with_graphs(student, name, Path(cache), config.width) for name in config.graphs}

    def ranked(batch: int, precision: str) -> np.ndarray:
        student.precision = precision
        return student.rank_items(users[batch], config.width, exclude_bought=False)[0]

    def by_graph(batch: int, name: GraphFormat) -> np.ndarray:
        return graphs[name].rank_items(users[batch], config.width, exclude_bought=False)[0]

    for batch in progress_bar(config.batches, desc="against generate", unit="batch"):
        lists = ranked(batch, "float32")
        generated = student.trie.items(generators["float32"](users[batch]), config.width)[0].cpu().numpy()
        identical, compared = identical + (lists == generated).all(1).sum(), compared + batch
        near += sum(len(np.intersect1d(*pair)) for pair in zip(lists, ranked(batch, precisions[-1]), strict=True))
        work = {f"search_{name}": partial(ranked, batch, name) for name in precisions}
        work |= {f"search_{name}": partial(by_graph, batch, name) for name in graphs}
        work |= {f"generate_{name}": partial(generate, users[batch]) for name, generate in generators.items()}
        median = interleaved(work, config.repeats if batch < 100 else max(1, config.repeats // 2), warm_ups=0)
        figures |= {f"users_per_s_{name}_b{batch}": batch / seconds for name, seconds in median.items()}
        figures[f"ratio_vs_hf_generate_b{batch}"] = median["generate_float32"] / median["search_float32"]
        for name in graphs:
            figures[f"ratio_{name}_vs_hf_generate_b{batch}"] = median["generate_float32"] / median[f"search_{name}"]
            figures[f"identical_lists_{name}_b{batch}"] = float((by_graph(batch, name) == lists).all(1).mean())
        # in bfloat16, against the faster of `generate`'s precisions
        best = min(median[f"generate_{name}"] for name in precisions)
        figures[f"ratio_vs_best_generate_b{batch}"] = best / median[f"search_{precisions[-1]}"]
    figures["same_items_in_bf16"] = near / (compared * config.width)
    student.precision = "float32"
    figures["identical_lists"] = identical / compared
    student.facts["scope"] = "level"  # as students are used: only the level's part of the head is computed
    rate = matrix_rate(config.device)
    figures["gflop_per_s_matrix"] = rate / 1e9
    for batch in config.batches:
        work = {"search": lambda batch=batch: student.rank_items(users[batch], config.width, exclude_bought=False)}
        seconds = interleaved(work, config.repeats)["search"]
        figures[f"users_per_s_seq2seq_b{batch}"] = batch / seconds
        flop = flops(student.model.config, (users[batch] != PAD).sum(1) * LEVELS, config.width)
        figures[f"times_flop_floor_b{batch}"] = seconds * rate / flop
    return figures


def one_user_compiled(student: Recommender, user: np.ndarray, config: Config) -> dict[str, float]:
    """Search for one user as one compiled graph; every history then has max_history places."""
    names = student.item_ids, student.titles
    compiled = Recommender(student.model, student.codes.cpu().numpy(), *names, facts=dict(student.facts))
    compiled.users_at_once = 1
    compiled.compile()
    work = {"compiled": lambda: compiled.rank_items(user, config.width, exclude_bought=False)}
    return {"users_per_s_seq2seq_compiled_b1": 1 / interleaved(work, config.repeats, warm_ups=3)["compiled"]}


class Generate:
    """Search by `generate` with a dictionary of allowed tokens by prefix, looked up for every beam at every step."""

    def __init__(self, t5: T5ForConditionalGeneration, student: Recommender, width: int, dtype: str):
        self.t5, self.student, self.width = t5.to(student.device, getattr(torch, dtype)), student, width
        head = nn.Linear(t5.config.d_model, t5.config.vocab_size)  # its bias removes the pad token from the softmax
        head.weight = t5.lm_head.weight
        nn.init.zeros_(head.bias).data[0] = torch.finfo(torch.float32).min
        t5.lm_head = head.to(student.device, getattr(torch, dtype))
        self.start = torch.arange(LEVELS) * SIZE + 1
        self.allowed: dict[tuple, list[int]] = {}
        for row in (student.codes.cpu() + self.start).tolist():
            for level in range(LEVELS):
                self.allowed.setdefault(tuple(row[:level]), []).append(row[level])
        self.allowed = {prefix: sorted(set(tokens)) for prefix, tokens in self.allowed.items()}

    @torch.inference_mode()
    def __call__(self, histories: np.ndarray) -> Tensor:
        """Return leaves, best first [users, width]."""
        histories = histories[:, : (histories != PAD).sum(1).max()]
        codes = self.student.history_codes(torch.from_numpy(histories).to(self.student.device))
        tokens = torch.where(codes >= 0, codes + self.start.to(codes.device), 0).flatten(1)
        tokens = self.t5.generate(
            tokens,
            attention_mask=(tokens > 0).long(),
            num_beams=self.width,
            num_return_sequences=self.width,
            max_new_tokens=LEVELS,
            do_sample=False,
            length_penalty=0.0,
            eos_token_id=None,
            prefix_allowed_tokens_fn=lambda _, prefix: self.allowed[tuple(prefix[1:].tolist())],
        )
        found_codes = tokens[:, 1:].cpu() - self.start
        return self.student.trie.find(found_codes.to(codes.device)).view(len(histories), self.width)


def matrix_rate(device: str) -> float:
    """Measure floating-point operations a second of a large matrix product in float32, the best of ten."""
    a = torch.randn(2048, 2048, device=device)
    best = np.inf
    for _ in range(10):
        started = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best


def flops(c: Seq2SeqConfig, lengths: np.ndarray, width: int) -> float:
    """Count the floating-point operations of encoder and constrained decoder.

    Real tokens only, each beam's token once, only the level's part of the head.

    Args:
        c: sizes of the network.
        lengths: tokens of each user's history.
        width: beams.
    """
    inner, tokens = c.heads * c.d_head, 1 + (c.levels - 1) * width
    projections, ff = 2 * 4 * c.d_model * inner, 2 * 2 * c.d_model * c.d_ff
    encoder = c.encoder_layers * (lengths * (projections + ff) + lengths**2 * 4 * inner)
    cross_keys = c.decoder_layers * lengths * projections / 2
    self_attention = (1 + width * sum(range(2, c.levels + 1))) * 4 * inner
    decoder = c.decoder_layers * (tokens * (1.5 * projections + ff + lengths * 4 * inner) + self_attention)
    head = tokens * 2 * c.d_model * c.codebook_size
    return float((encoder + cross_keys + decoder + head).sum())


def trie_share(student: Recommender, histories: np.ndarray) -> dict[str, float]:
    """Measure the trie's share of the search: candidates before the top-k and children after it."""
    if student.device.type != "cpu":
        return {}
    spent = 0.0

    class TimedTrie:
        def __init__(self, trie: Trie):
            self.trie, self.levels = trie, trie.levels

        def __getattr__(self, name: str):
            method = getattr(self.trie, name)
            if name not in ("candidates", "choose"):
                return method

            def timed(*args):
                nonlocal spent
                started = time.perf_counter()
                result = method(*args)
                spent += time.perf_counter() - started
                return result

            return timed

    trie, shares = student.trie, []
    for _ in range(4):
        spent, student.trie = 0.0, TimedTrie(trie)
        started = time.perf_counter()
        student.rank_items(histories)
        shares.append(spent / (time.perf_counter() - started))
    student.trie = trie
    return {"mask_share": float(np.median(shares[1:]))}


def trie_figures(config: Config) -> dict[str, float]:
    """Measure seconds and memory of tries over random IDs."""
    figures = {}
    rng = np.random.default_rng(config.seed)
    for n in config.trie_sizes:
        log.info(f"a trie of {n:,} items")
        codes = rng.integers(0, SIZE, (n, LEVELS)).astype(np.uint8)
        started = time.perf_counter()
        trie = Trie.build(codes, SIZE)
        seconds = time.perf_counter() - started
        arrays = [*trie.offsets, *trie.codes, *trie.dense, trie.leaf_of_item, trie.leaf_offsets, trie.leaf_items]
        name = f"1e{len(str(n)) - 1}" if n == 10 ** (len(str(n)) - 1) else str(n)
        figures[f"trie_build_s_{name}"] = seconds
        figures[f"trie_mib_{name}"] = sum(array.nbytes for array in arrays) / 2**20
        with tempfile.TemporaryDirectory() as folder:
            trie.save(Path(folder) / "trie.safetensors")
            started = time.perf_counter()
            mapped = Trie.load(Path(folder) / "trie.safetensors")
            figures[f"trie_load_s_{name}"] = time.perf_counter() - started
            del mapped
        del trie, arrays
        tracemalloc.start()
        Trie.build(codes, SIZE)
        figures[f"trie_build_peak_mib_{name}"] = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
    return figures
