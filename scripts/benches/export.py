"""The export's speed: candidates in vLLM and in plain PyTorch, all positions of a user at once, and the floor."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from benches import interleaved
from benches._pretrained import clock
from benches.decode import SIZE, made_up
from benches.labels import measure_encodings
from distill.data.dataset import PAD, Dataset, write_dataset
from distill.labels.labeller import LabelRequest, Labels, no_progress
from distill.labels.selection import sample_of_users
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.semantic_ids.ids import SemanticIDs, write_codes
from distill.teachers.language_model import EngineLabeller
from teacher.base_model import from_scratch
from teacher.engines import prompt_rows
from teacher.engines.hf import HFEngine
from teacher.tokenizer import add_codewords, train_tokenizer

if TYPE_CHECKING:
    from teacher.engines.vllm import VLLMEngine

SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
MAX_HISTORY, MAX_TOKENS = 20, 96


@dataclass(frozen=True)
class Config:
    """Targets and users per second of the export: python scripts/bench.py export [--vllm false] [--json FILE]."""

    run: Path | None = None
    """A run with dataset, semantic_ids and a teacher; none: made-up IDs of Instruments' size, a random teacher."""
    width: int = 25
    """Beams (paper: 25)."""
    users: int = 32
    """Users of the comparison with `generate`; for distributions 24 times as many: a shard of the export."""
    targets: int = 64
    """Targets that are labelled with and without shared prefixes, in float32 and bfloat16."""
    vllm: bool = True
    """Compare on vLLM too."""
    vllm_users: int = 8
    """Users of the comparison on vLLM."""
    labels: Path | None = None
    """A label set exported with --encoding fp16, whose encodings are compared; none: random distributions."""
    repeats: int = 3
    """Measured rounds; medians are reported."""
    device: str = "cpu"
    """cpu or cuda; vLLM runs on what it finds."""
    json: Path | None = None
    """Where the figures go."""
    seed: int = 0
    """Of users, weights and made-up data."""


def main(config: Config) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        run = config.run or made_up_run(Path(folder), config.seed)
        dataset = Dataset.load(run / "dataset")
        ids = SemanticIDs.load(run / "semantic_ids", dataset.n_items)
        engine = HFEngine.load(run / "teacher", dataset, ids, config.device)
        histories = dataset.examples("test", engine.data.max_history).histories
        histories = histories[np.random.default_rng(config.seed).permutation(len(histories))]
        figures = {"threads": torch.get_num_threads(), "device": config.device, "width": config.width}
        figures |= against_generate(engine, histories[: config.users], config)
        if engine.prompt == "stream":
            figures |= one_pass(engine, dataset, config)
            figures |= shared_prefixes(engine, run, dataset, ids, config)
        if config.vllm:
            figures |= against_vllm(run, dataset, ids, histories[: config.vllm_users], config)
    return figures | measure_encodings(config.seed, repeats=config.repeats, labels=config.labels)


def made_up_run(folder: Path, seed: int) -> Path:
    """A run with 9,922 items, users of at least 5 items and a mean of 8.3, and a random teacher of the demo's size."""
    rng = np.random.default_rng(seed)
    codes, _ = made_up(seed)
    names = [f"i{number}" for number in range(len(codes))]
    sequences = [rng.integers(0, len(codes), 4 + rng.geometric(1 / 4.3)) for _ in range(2000)]
    nothing = Config()
    with ArtifactJob("dataset", nothing, folder / "dataset").write() as part:
        write_dataset(part, pa.table({"item_id": names}), [f"u{u}" for u in range(len(sequences))], sequences)
    with ArtifactJob("semantic_ids", nothing, folder / "semantic_ids").write() as part:
        write_codes(part, names, codes)
        write_json(part / "report.json", {"codebook_size": SIZE})
    ids = SemanticIDs.load(folder / "semantic_ids")
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(["-"], 300)
    add_codewords(tokenizer, ids)
    # weights large enough that scores differ by more than rounding
    teacher = from_scratch(tokenizer, SIZES | {"initializer_range": 0.1}, MAX_TOKENS)
    with ArtifactJob("teacher", nothing, folder / "teacher").write() as part:
        teacher.save_pretrained(part)
        tokenizer.save_pretrained(part)
        facts = {"prompt": "stream", "max_history": MAX_HISTORY, "max_tokens": MAX_TOKENS}
        write_json(part / "teacher.json", facts)
    return folder


def against_generate(engine: HFEngine, histories: np.ndarray, config: Config) -> dict[str, float]:
    """The `hf` engine and `generate(num_beams=…, prefix_allowed_tokens_fn=…)` on the same model."""
    generate = Generate(engine, config.width)
    ours, _ = engine.beams(histories, config.width, exclude_bought=False)
    work = {
        "ours": lambda: engine.beams(histories, config.width, exclude_bought=False),
        "generate": lambda: generate(histories),
    }
    seconds = interleaved(work, config.repeats)
    lengths = np.array([len(row) for row in prompt_rows(engine.data, engine.prompt, histories)])
    floor = floor_tokens(lengths, engine.data.ids.levels, config.width)
    # the floor's tokens in one forward pass without beams, cache or head: what no arrangement of them can beat
    row = int(lengths.mean())
    tokens = torch.ones(int(floor / row), row, dtype=torch.long, device=config.device)
    with torch.inference_mode():
        plain = interleaved({"pass": lambda: engine.model.base_model(input_ids=tokens)}, config.repeats)["pass"]
    return {
        "ratio_vs_hf_generate": seconds["generate"] / seconds["ours"],
        "identical_lists": float((ours == generate(histories)).all(1).mean()),
        "users_per_s_hf": len(histories) / seconds["ours"],
        "users_per_s_hf_generate": len(histories) / seconds["generate"],
        "floor_tokens_per_user": floor / len(histories),
        "times_token_floor_hf": len(histories) * (lengths.max() + (floor - lengths.sum()) / len(histories)) / floor,
        "times_seconds_floor_hf": seconds["ours"] / plain,
    }


def floor_tokens(lengths: np.ndarray, levels: int, width: int) -> float:
    """Tokens that any exact search of this width must read: the prompts once, and each beam's codewords but the last.

    In four passes one after the other, since what the beams are is known only when the level before has been scored.
    """
    return float(lengths.sum() + len(lengths) * (levels - 1) * width)


class Generate:
    """`generate` as other projects use it: a dictionary of allowed tokens by prefix, read for every beam and step."""

    def __init__(self, engine: HFEngine, width: int):
        self.engine, self.width = engine, width
        self.allowed: dict[tuple, list[int]] = {}
        for row in np.unique(engine.data.item_tokens, axis=0).tolist():
            for level in range(len(row)):
                self.allowed.setdefault(tuple(row[:level]), []).append(row[level])
        self.allowed = {prefix: sorted(set(tokens)) for prefix, tokens in self.allowed.items()}

    @torch.inference_mode()
    def __call__(self, histories: np.ndarray) -> np.ndarray:
        """Items, best first [users, width]."""
        engine, levels = self.engine, self.engine.data.ids.levels
        prompts = prompt_rows(engine.data, engine.prompt, histories)
        longest = max(map(len, prompts))
        tokens = torch.tensor([[engine.pad] * (longest - len(row)) + row for row in prompts])
        real = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
        sequences = engine.model.generate(
            tokens.to(engine.device),
            attention_mask=real.to(engine.device),
            num_beams=self.width,
            num_return_sequences=self.width,
            max_new_tokens=levels,
            do_sample=False,
            length_penalty=0.0,
            eos_token_id=None,
            pad_token_id=engine.pad,
            prefix_allowed_tokens_fn=lambda _, sent: self.allowed[tuple(sent[longest:].tolist())],
        )
        leaves = engine.trie.find(sequences[:, longest:] - engine.token_of[:, 0]).view(len(prompts), self.width)
        return engine.trie.items(leaves, self.width)[0].cpu().numpy()


def one_pass(engine: HFEngine, dataset: Dataset, config: Config) -> dict[str, float]:
    """Distributions of all targets of a user in one forward pass, and one prompt a prefix; the training part's lengths.

    Both sorted by length, 64 rows a batch. The ratio of the tokens that are read bounds the ratio of the seconds: both
    have as many rows of the output matrix to multiply, and a small teacher spends a good part of its time there.
    """
    values, offsets = dataset.training_sequences()
    longest = engine.data.max_history
    users = np.random.default_rng(config.seed).permutation(dataset.n_users)[: 24 * config.users]
    sequences = sorted((values[offsets[user] : offsets[user + 1]][:longest] for user in users), key=len)
    prefixes = sorted(
        ((sequence[:place], sequence[place]) for sequence in sequences for place in range(1, len(sequence))),
        key=lambda example: len(example[0]),
    )
    streams = [padded(sequences[i : i + 64]) for i in range(0, len(sequences), 64)]
    batches = [prefixes[i : i + 64] for i in range(0, len(prefixes), 64)]
    inputs = [(padded([first for first, _ in batch]), np.array([last for _, last in batch])) for batch in batches]
    work = {
        "stream": lambda: [engine.stream_logprobs(batch) for batch in streams],
        "prefixes": lambda: [engine.codeword_logprobs(*batch) for batch in inputs],
    }
    seconds = interleaved(work, config.repeats)
    return {
        "ratio_one_pass": seconds["prefixes"] / seconds["stream"],
        "targets_per_s_one_pass": len(prefixes) / seconds["stream"],
        "targets_per_s_per_prefix": len(prefixes) / seconds["prefixes"],
        "ratio_one_pass_tokens": sum(batch.size + len(batch) for batch, _ in inputs) / sum(map(np.size, streams)),
        "targets_per_user": len(prefixes) / len(sequences),
    }


class PromptByPrompt(HFEngine):
    """The `hf` engine with a prompt of its own for each target."""

    shares_prefixes = False


def shared_prefixes(engine: HFEngine, run: Path, dataset: Dataset, ids: SemanticIDs, config: Config) -> dict[str, Any]:
    """Whole labels: a prompt a target in float32, one pass a user in float32, and in bfloat16; and what bits cost.

    The clock counts CPU seconds a thread, so that other work disturbs it less.
    """
    examples = sample_of_users(dataset.targets("train", engine.data.max_history), config.targets)
    low = HFEngine.load(run / "teacher", dataset, ids, config.device, "bfloat16")
    separate = PromptByPrompt(engine.model, engine.data, engine.prompt)
    labels: dict[str, Labels] = {}

    def label(setting: str, teacher: HFEngine) -> None:
        labels[setting] = EngineLabeller(teacher, dataset).label(examples, LabelRequest(config.width), no_progress)

    teachers = {"prompts_float32": separate, "shared_float32": engine, "shared_bfloat16": low}
    work = {setting: partial(label, setting, teacher) for setting, teacher in teachers.items()}
    seconds = interleaved(work, config.repeats, 0, clock if config.device == "cpu" else time.perf_counter)
    figures: dict[str, Any] = {f"targets_per_s_{setting}": len(examples) / seconds[setting] for setting in teachers}
    reference = labels["prompts_float32"]
    for setting in list(teachers)[1:]:
        figures[f"ratio_{setting}"] = seconds["prompts_float32"] / seconds[setting]
        figures |= {f"{name}_{setting}": value for name, value in agreement(reference, labels[setting]).items()}
    return figures


def agreement(reference: Labels, labels: Labels) -> dict[str, float]:
    """Shares of equal top-10 lists (as sets) and likeliest codewords; mean KL of a level, other tokens as one class."""
    tops = zip(reference.candidates[:, 1:11].tolist(), labels.candidates[:, 1:11].tolist(), strict=True)
    log_p, log_q = (part.log_probs.astype(np.float64) for part in (reference, labels))
    p, q = np.exp(log_p), np.exp(log_q)
    rest_p, rest_q = (np.maximum(1 - part.sum(-1), 1e-12) for part in (p, q))
    return {
        "equal_top10": float(np.mean([set(first) == set(second) for first, second in tops])),
        "equal_codewords": float((log_p.argmax(-1) == log_q.argmax(-1)).mean()),
        "kl": float(((p * (log_p - log_q)).sum(-1) + rest_p * np.log(rest_p / rest_q)).mean()),
    }


def padded(rows: list[np.ndarray]) -> np.ndarray:
    """Item numbers padded with -1 on the right [rows, longest]."""
    out = np.full((len(rows), max(map(len, rows))), PAD)
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = row
    return out


def against_vllm(
    run: Path, dataset: Dataset, ids: SemanticIDs, histories: np.ndarray, config: Config
) -> dict[str, float]:
    """Ours on vLLM and vLLM's own `beam_search` at equal width on the same engine.

    `beam_search` by itself knows nothing of the catalogue. With a grammar of all IDs it looks for the same as ours, and
    loses the beams whose next codeword is not among the likeliest of the whole vocabulary; measured once, on a quarter
    of the users, since it is slow.
    """
    from teacher.engines.vllm import VLLMEngine

    engine = VLLMEngine.load(
        run / "teacher", dataset, ids, max_num_seqs=256, structured_outputs_config={"backend": "xgrammar"}
    )
    peer, some_histories = VLLMBeams(engine, config.width), histories[: max(1, len(histories) // 4)]
    work = {
        "ours": lambda: engine.beams(histories, config.width, exclude_bought=False),
        "theirs": lambda: peer(histories),
    }
    seconds = interleaved(work, config.repeats)
    before = dict(engine.counters)
    items, _ = engine.beams(histories, config.width, exclude_bought=False)
    spent = {name: engine.counters[name] - before[name] for name in before}
    work = {
        "ours": lambda: engine.beams(some_histories, config.width, exclude_bought=False),
        "theirs": lambda: peer(some_histories, constrained=True),
    }
    constrained = interleaved(work, 1, warm_ups=0)
    prompts = prompt_rows(engine.data, engine.prompt, histories)
    floor = floor_tokens(np.array([len(prompt) for prompt in prompts]), ids.levels, config.width)
    figures = {
        "ratio_vs_vllm_beam_search": seconds["theirs"] / seconds["ours"],
        "ratio_vs_vllm_beam_search_constrained": constrained["theirs"] / constrained["ours"],
        "users_per_s_vllm": len(histories) / seconds["ours"],
        "users_per_s_vllm_beam_search": len(histories) / seconds["theirs"],
        "users_per_s_vllm_beam_search_constrained": len(some_histories) / constrained["theirs"],
        "valid_beams_vllm": float((items >= 0).sum(1).mean()),
        "valid_beams_vllm_beam_search": peer(histories),
        "valid_beams_vllm_beam_search_constrained": peer(some_histories, constrained=True),
        "requests_per_user_vllm": spent["requests"] / len(histories),
        "prefix_cache_hits_vllm": spent["cached_tokens"] / spent["tokens"],
        "times_token_floor_vllm": (spent["tokens"] - spent["cached_tokens"]) / floor,
    }
    engine.close()
    return figures


class VLLMBeams:
    """vLLM's own beam search."""

    def __init__(self, engine: VLLMEngine, width: int):
        from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams
        from vllm.v1.structured_output.utils import choice_as_grammar

        ids = engine.data.ids
        self.engine, self.levels = engine, ids.levels
        self.valid = {tuple(row) for row in engine.data.item_tokens.tolist()}
        settings = {"beam_width": width, "max_tokens": ids.levels, "ignore_eos": True, "temperature": 0.0}
        grammar = choice_as_grammar([ids.text(item) for item in range(len(ids.codes))])
        self.params = {
            False: BeamSearchParams(**settings),
            True: BeamSearchParams(**settings, structured_outputs=StructuredOutputsParams(grammar=grammar)),
        }

    def __call__(self, histories: np.ndarray, constrained: bool = False) -> float:
        """Valid IDs among the beams, mean over the users."""
        prompts = prompt_rows(self.engine.data, self.engine.prompt, histories)
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        results = self.engine.llm.beam_search(requests, self.params[constrained])
        tails = [{tuple(beam.tokens[-self.levels :]) for beam in user.sequences} for user in results]
        return float(np.mean([len(tail & self.valid) for tail in tails]))
