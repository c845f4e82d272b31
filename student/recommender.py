"""A trained student that recommends: history of item ids in, ranked item ids out."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.data.dataset import PAD, batches_by_length
from distill.decoding.beam_search import Beams, score_all, search, to_items
from distill.decoding.trie import Trie
from distill.losses import sequence_score
from distill.runtime.artifacts import write_json
from distill.runtime.errors import UserError
from distill.runtime.parquet import read_parquet
from student.models import network_of
from student.models.layers import among_all
from student.transition_memory import Candidates, TransitionMemory, candidates, mixed

DEFAULT_WIDTH = 20  # beams (paper: 20)
USERS_AT_ONCE = {"cpu": 64, "cuda": 1024}  # on a CPU about as many as the caches hold

USERS_A_THREAD = 8


@dataclass(frozen=True)
class Recommendation:
    """One recommended item: its id, its score (log-probability of its ID, or the ranker's M), its title or ''."""

    item_id: str
    score: float
    title: str


class Recommender:
    """A student with its semantic IDs, and a second one that ranks where the variant has it.

    Args:
        model: the retriever, a network of `student.models`.
        codes: of all items [n_items, levels].
        item_ids, titles: of all items.
        ranker: re-scores the retriever's beams (`dtr`).
        facts: what is saved beside the weights: backbone, variant, seed and the like. `scope` says over which codewords
            the softmax of beams and ranker goes: the "level"'s or "all".
        trie: of the codes, where it is at hand.

    `memory`, where there is one (`with_memory`), is a counter whose distribution is mixed in.
    """

    def __init__(
        self,
        model: nn.Module,
        codes: np.ndarray,
        item_ids: list[str],
        titles: list[str],
        ranker: nn.Module | None = None,
        facts: dict[str, Any] | None = None,
        trie: Trie | None = None,
    ):
        defaults = {"backbone": "seq2seq", "scope": "level", "max_history": 20, "exclude_bought": True}
        self.model, self.ranker, self.facts = model, ranker, defaults | (facts or {})
        self.device = model.head.device
        self.item_ids, self.titles = item_ids, titles
        self.codes = torch.from_numpy(codes).to(self.device)
        self.trie = (trie or Trie.build(codes, model.config.codebook_size)).to(self.device)
        fit = USERS_AT_ONCE.get(self.device.type, USERS_AT_ONCE["cuda"])
        self.users_at_once = min(fit, getattr(model, "users_at_once", fit))
        self.memory: TransitionMemory | None = None
        self.static = False  # every batch of one shape, for compiled graphs

    @staticmethod
    def from_pretrained(folder: Path | str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Recommender:
        """Load what `save_pretrained` wrote; halves (bfloat16, float16) are for GPUs.

        Raises:
            UserError: the folder is not a student.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
            raise UserError(f"{folder} is not a student: it needs config.json and model.safetensors.")
        facts = json.loads((folder / "config.json").read_text())
        network, config = network_of(facts["backbone"])
        sizes = config(**facts.pop("model"))
        models = []
        for name in ("model", "ranker"):
            if (folder / f"{name}.safetensors").is_file():
                model = network(sizes)
                model.load_state_dict(load_file(folder / f"{name}.safetensors"))
                models.append(model.to(device, dtype).eval())
        table = read_parquet(folder / "items.parquet", ("item_id", "title", "codes"))
        codes = np.array(table["codes"].to_pylist(), dtype=np.int64)
        names = table["item_id"].to_pylist(), table["title"].to_pylist()
        trie = Trie.load(folder / "trie.safetensors")
        student = Recommender(models[0], codes, *names, *models[1:], facts=facts, trie=trie)
        return student.with_memory(TransitionMemory.load(folder, facts["memory"])) if "memory" in facts else student

    def with_memory(self, memory: TransitionMemory | None) -> Recommender:
        """The same student with a counter beside it, or without one; the weights are shared.

        Raises:
            UserError: the memory is of another catalogue.
        """
        if memory is not None and memory.counts.shape[0] != len(self.item_ids):
            raise UserError(f"The memory is of {memory.counts.shape[0]} items, the student of {len(self.item_ids)}.")
        other = copy.copy(self)
        other.memory = memory
        other.facts = {name: value for name, value in self.facts.items() if name != "memory"}
        if memory is not None:
            other.facts["memory"] = memory.facts()
        return other

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json, model.safetensors, items.parquet, the trie, and ranker and memory where there are any."""
        if self.memory is not None:
            self.memory.save(folder)
        model, ranker = (one.merged() if hasattr(one, "merged") else one for one in (self.model, self.ranker))
        save_file(model.state_dict(), folder / "model.safetensors")
        if ranker is not None:
            save_file(ranker.state_dict(), folder / "ranker.safetensors")
        codes = pa.array(self.codes.cpu().tolist(), pa.list_(pa.int16()))
        columns = {"item_id": pa.array(self.item_ids, pa.string()), "title": pa.array(self.titles, pa.string())}
        pq.write_table(pa.table({**columns, "codes": codes}), folder / "items.parquet")
        self.trie.save(folder / "trie.safetensors")
        write_json(folder / "config.json", {**self.facts, "model": asdict(model.config)})

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        width: int = DEFAULT_WIDTH,
        exclude_bought: bool | None = None,
        skip_unknown: bool = False,
    ) -> list[list[Recommendation]]:
        """The k best next items after each history of item ids, oldest first.

        Args:
            histories: the last `max_history` items of each count.
            k: items a list.
            width: beams; at least k are used.
            exclude_bought: leave out the history's items; by default where nobody in the training part bought a thing
                twice.
            skip_unknown: leave unknown item ids out; a history of nothing else gets an empty list.

        Raises:
            UserError: an unknown item id, or a history without items.
        """
        number = {item_id: row for row, item_id in enumerate(self.item_ids)}
        limit = self.facts["max_history"]
        padded = np.full((len(histories), limit), PAD, dtype=np.int64)
        for row, history in enumerate(histories):
            if not history:
                raise UserError(f"History {row} is empty; a recommendation needs at least one item.")
            for item_id in history:
                if item_id not in number and not skip_unknown:
                    raise UserError(
                        f"Unknown item id {item_id!r} in history {row}: it has no semantic ID (skip_unknown omits it)."
                    )
            recent = [number[item_id] for item_id in history if item_id in number][-limit:]
            padded[row, : len(recent)] = recent
        hide = self.facts["exclude_bought"] if exclude_bought is None else exclude_bought
        items, scores = self.rank_items(padded, max(width, k), hide)
        items[padded[:, 0] == PAD] = PAD  # nothing known of them
        return [
            [
                Recommendation(self.item_ids[item], float(score), self.titles[item])
                for item, score in zip(items[row, :k], scores[row, :k], strict=True)
                if item >= 0
            ]
            for row in range(len(histories))
        ]

    @torch.no_grad()
    def rank_items(
        self, histories: np.ndarray, width: int = DEFAULT_WIDTH, exclude_bought: bool = True, constrained: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ranked item numbers.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            width: beams; at least the number of items makes the ranking exact.
            exclude_bought: leave out the history's items.
            constrained: only valid IDs; otherwise places with an invalid one are -1.

        Returns:
            Items, best first, -1 for none, and scores; both [users, width]. With a memory the scores are the mixture's
            log-probabilities, less its discount.
        """
        if self.memory is None or not constrained:
            return self._rank(histories, width, exclude_bought, constrained)
        items = np.full((len(histories), width), PAD)
        scores = np.full((len(histories), width), -np.inf, dtype=np.float32)
        for rows, part in batches_by_length(histories, self.users_at_once):
            found = self.candidates(part, width, exclude_bought).ranked(self.memory.weight, width, self.memory.discount)
            for whole, own in zip((items, scores), found, strict=True):
                whole[rows, : own.shape[1]] = own
        return items, scores

    def candidates(self, histories: np.ndarray, width: int, exclude_bought: bool = True) -> Candidates:
        """What student and memory propose, before they are mixed."""
        items, scores = self._rank(histories, width, exclude_bought)
        if self.ranker is not None:
            scores = scores * self.trie.levels  # M is a mean
        return candidates((items, scores), self.score_candidates, self.memory, histories, exclude_bought)

    @torch.no_grad()
    def _rank(
        self, histories: np.ndarray, width: int, exclude_bought: bool, constrained: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """`rank_items` by the student alone."""
        items = np.full((len(histories), width), PAD)
        scores = np.full((len(histories), width), -np.inf, dtype=np.float32)
        for rows, bought in self._batches(histories, self.users_at_once, self.static):
            with few_threads(len(bought)):
                found = self._search(bought, width, exclude_bought, constrained)
            for whole, part in zip((items, scores), found, strict=True):
                whole[rows, : part.shape[1]] = part[: len(rows)].cpu().numpy()
        return items, scores

    @torch.no_grad()
    def score_candidates(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Exact log-probabilities of a few items, all in one pass; by the ranker where there is one, without memory.

        Args:
            histories: item numbers padded with -1 [users, length].
            items: item numbers, -1 for none [users, k].

        Returns:
            float32 [users, k], -inf for none.
        """
        model, scope = self.ranker or self.model, self.facts["scope"]
        scores = np.empty(items.shape, dtype=np.float32)
        for rows, bought in self._batches(histories, self.users_at_once):
            own = self.codes[torch.from_numpy(np.maximum(items[rows], 0)).to(self.device)]
            log_probs = model.log_probs(model.encode(self.history_codes(bought)), own, scope)
            if scope == "all":
                own = among_all(own, self.trie.codebook_size)
            scores[rows] = sequence_score(log_probs, own, eta=0).float().cpu().numpy()
        return np.where(items == PAD, -np.inf, scores)

    @torch.no_grad()
    def score_items(self, histories: np.ndarray, exclude_bought: bool | None = None) -> np.ndarray:
        """Exact log-probabilities of all items, what beams of unlimited width would give [users, n_items].

        Where there is a ranker, it is the one who scores. Costs a decoder pass over all nodes of the trie a user.
        `exclude_bought` says which items a memory shares its probability among; by default as in training.
        """
        model = self.ranker or self.model
        scores = np.empty((len(histories), len(self.item_ids)), dtype=np.float32)
        at_once = max(1, self.users_at_once * DEFAULT_WIDTH // self.trie.n_leaves)  # as many nodes as beams elsewhere
        for rows, bought in self._batches(histories, at_once):
            step = model.step(model.encode(self.history_codes(bought)), self.facts["scope"])
            scores[rows] = score_all(step, self.trie, len(rows), self.device)[:, self.trie.leaf_of_item].cpu().numpy()
        if self.memory is not None:
            hide = self.facts["exclude_bought"] if exclude_bought is None else exclude_bought
            counter = self.memory.probabilities(histories, hide).toarray()
            scores = mixed(scores, counter, self.memory.weight) - self.memory.discount * self.memory.familiarity
            scores = scores.astype(np.float32)
        return scores

    def compile(self, **options: Any) -> Recommender:
        """From here on run the search as one compiled graph; every batch then has the same shape.

        Args:
            options: of `torch.compile`; by default CUDA graphs on GPUs (`mode="reduce-overhead"`).
        """
        options = options or ({"mode": "reduce-overhead"} if self.device.type == "cuda" else {})
        self._search, self.static = torch.compile(self._search, dynamic=False, fullgraph=True, **options), True
        return self

    def _search(self, bought: Tensor, width: int, exclude_bought: bool, constrained: bool) -> tuple[Tensor, Tensor]:
        """`rank_items` of one batch, without a way back to Python between its first and its last operation."""
        codes = self.history_codes(bought)
        step = self.model.step(self.model.encode(codes), self.facts["scope"])
        beams = search(step, self.trie, bought, width, exclude_bought, constrained)
        if self.ranker is not None:
            log_probs = self.ranker.log_probs(self.ranker.encode(codes), beams.codes, self.facts["scope"])
            own = beams.codes
            if self.facts["scope"] == "all":
                own = among_all(own, self.trie.codebook_size)
            scores = sequence_score(log_probs, own).masked_fill(beams.scores == -torch.inf, -torch.inf)
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            beams = Beams(beams.leaves.gather(1, order), take(beams.codes, order), scores)
        return to_items(beams, self.trie, bought, width, exclude_bought, constrained)

    def _batches(
        self, histories: np.ndarray, at_once: int, static: bool = False
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """`batches_by_length` on the device; `static`: all batches of one shape."""
        for rows, batch in batches_by_length(histories, at_once):
            if static:
                wide = np.full((at_once, max(histories.shape[1], self.facts["max_history"])), PAD)
                wide[: len(rows), : batch.shape[1]] = batch
                wide[len(rows) :, 0] = 0  # some item: their lists are thrown away
                batch = wide
            yield rows, torch.from_numpy(batch).to(self.device)

    def history_codes(self, histories: Tensor) -> Tensor:
        """Codes of padded item numbers [users, length] → [users, length, levels], -1 where padded."""
        return torch.where((histories >= 0)[..., None], self.codes[histories.clamp(min=0)], -1)


@contextlib.contextmanager
def few_threads(users: int) -> Iterator[None]:
    """No more CPU threads than a small batch keeps busy: waking them costs more than they save."""
    threads = torch.get_num_threads()
    fewer = min(threads, 1 + users // USERS_A_THREAD)
    if fewer < threads:
        torch.set_num_threads(fewer)
    try:
        yield
    finally:
        if fewer < threads:
            torch.set_num_threads(threads)


def take(values: Tensor, order: Tensor) -> Tensor:
    """Reorder the second dimension of [batch, width, any] by [batch, width]."""
    return values.gather(1, order[..., None].expand_as(values))
