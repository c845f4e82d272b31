"""Recommend with a trained student: histories of item ids in, ranked item ids out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.data.dataset import PAD, batches_by_length
from distill.data.histories import last_items
from distill.decoding.beam_search import Beams, Step, score_all, score_ids, search, to_items
from distill.decoding.children import ChildrenStep, renormalise
from distill.decoding.trie import Trie
from distill.decoding.whole_vocabulary import TokenStep, Vocabulary, search_tokens
from distill.losses import sequence_score
from distill.runtime.artifacts import write_json
from distill.runtime.devices import check_device
from distill.runtime.errors import UserError
from distill.runtime.json_files import read_object
from distill.runtime.parquet import id_column, number_matrix, read_parquet, text_column
from distill.runtime.verification import verify_folder
from student import hub
from student.by_item_id import DEFAULT_WIDTH, ByItemId, Recommendation
from student.config import Precision
from student.graphs import Graphs
from student.loading import check_numbers, check_scores, load_network, report_damage
from student.memory_mixture import MixtureWeights
from student.models import BACKBONE_NAMES, network_of
from student.models.item_text import sizes_to_json
from student.models.layers import among_all, network_scope
from student.precision import autocast, resolve_precision
from student.threads import few_threads

__all__ = ["Recommendation", "Recommender"]

USERS_AT_ONCE = {"cpu": 64, "cuda": 1024}  # on a CPU about as many as the caches hold


class Recommender(ByItemId):
    """A student with its semantic IDs and, for `dtr`, a second network that ranks.

    Networks read the last `max_history` items of a history, as they were trained; longer histories may be given, and
    all of their items can be excluded. A transition memory, if there is one (`with_transition_memory`), reads as many
    items as its settings say, and its distribution is mixed in; beside it there may be a content memory
    (`with_content_memory`).

    Args:
        model: the retriever, a network of `student.models`.
        codes: of all items [n_items, levels].
        item_ids, titles: of all items.
        ranker: re-scores the retriever's beams (`dtr`).
        facts: what is saved beside the weights: backbone, variant, seed, max_history and so on. `scope` is the softmax
            of beams and ranker: over the "level"'s codewords, over "all" levels', or over the "trie"'s children.
        trie: of the codes; None: built here.

    Raises:
        UserError: the networks read texts and lack those of some items.
    """

    unknown_because = "it has no semantic ID"

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
        self.device = next(model.parameters()).device
        self.item_ids, self.titles = item_ids, titles
        self.codes = torch.from_numpy(codes).to(self.device)
        for network in (model, ranker):
            if getattr(network, "text", None) is not None:
                network.text.check_catalogue(self.codes)
        self.trie = (trie or Trie.build(codes, model.config.codebook_size)).to(self.device)
        self.catalogue = self.trie  # of all items, also where a search is restricted to some
        users = USERS_AT_ONCE.get(self.device.type, USERS_AT_ONCE["cuda"])
        self.users_at_once = min(users, getattr(model, "users_at_once", users))
        self.precision: Literal["float32", "bfloat16"] = "float32"  # of the matrix products
        self.static_shapes = False  # all batches have one shape, for compiled graphs
        self.graphs: Graphs | None = None  # exported, they answer instead of the networks where they can

    @staticmethod
    def from_pretrained(
        folder: Path | str,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        precision: Precision = "auto",
        revision: str | None = None,
    ) -> Recommender:
        """Load what `save_pretrained` wrote, or `push_to_hub` uploaded.

        Args:
            folder: the student's; or, where there is none of that name, USER/NAME on the Hugging Face hub.
            device: cpu, cuda, cuda:0 and so on.
            dtype: of the weights; half precision (bfloat16, float16) is for GPUs.
            precision: of the matrix products with float32 weights; see `resolve_precision`.
            revision: branch, tag or commit on the hub.

        Raises:
            UserError: the folder is not a student or is damaged, or there is no such device.
        """
        check_device(device)
        folder = hub.download(str(folder), revision) if hub.is_repo(folder) else Path(folder)
        if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
            raise UserError(f"{folder} is not a student: it needs config.json and model.safetensors.")
        verify_folder(folder)
        facts = read_object(folder / "config.json")
        if not {"backbone", "model"} <= facts.keys():
            is_teacher = (folder / "teacher.json").is_file()
            scores_items = "It is a network over items; student.load_student.load_student loads either."
            what = "It is a teacher." if is_teacher else scores_items if "network" in facts else ""
            raise UserError(f"{folder} is not a student: its config.json names no backbone. {what}".rstrip())
        with report_damage(folder):
            _check_facts(facts, folder / "config.json")
            network, config = network_of(facts["backbone"])
            sizes, models = facts.pop("model"), []
            for name in ("model", "ranker"):
                if (folder / f"{name}.safetensors").is_file():
                    model = load_network(network, config, sizes, folder / f"{name}.safetensors")
                    models.append(model.to(device, dtype).eval())
            path = folder / "items.parquet"
            table = read_parquet(path, ("item_id", "title", "codes"))
            codes = number_matrix(table, "codes", path)
            titles = text_column(table, "title", path, may_be_null=True).fill_null("").to_pylist()
            trie = Trie.load(folder / "trie.safetensors")
            if codes.shape[1] != models[0].config.levels or not trie.is_of(codes, models[0].config.codebook_size):
                raise UserError(f"{path}, trie.safetensors and model.safetensors of {folder} do not belong together.")
            names = id_column(table, "item_id", path).to_pylist(), titles
            student = Recommender(models[0], codes, *names, *models[1:], facts=facts, trie=trie)
            student.precision = resolve_precision(precision, models[0]) if dtype == torch.float32 else "float32"
            return student.load_memories(folder)

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json, model.safetensors, items.parquet, the trie, and ranker and memories if there are any."""
        self.save_memories(folder)
        for name, model in (("model", self.model), ("ranker", self.ranker)):
            if model is not None:
                merged = model.merged() if hasattr(model, "merged") else model
                save_file(merged.state_dict(), folder / f"{name}.safetensors")
                if name == "model":
                    sizes = sizes_to_json(merged.config)
        codes = pa.array(self.codes.cpu().tolist(), pa.list_(pa.int16()))
        columns = {"item_id": pa.array(self.item_ids, pa.string()), "title": pa.array(self.titles, pa.string())}
        pq.write_table(pa.table({**columns, "codes": codes}), folder / "items.parquet")
        self.trie.save(folder / "trie.safetensors")
        write_json(folder / "config.json", {**self.facts, "model": sizes})

    def push_to_hub(
        self, repo_id: str, data_license: str, dataset: str, evaluation: Path | None = None, private: bool = True
    ) -> None:
        """Upload the student to the Hugging Face hub with a model card.

        Args:
            repo_id: USER/NAME.
            data_license: the hub's identifier of the licence of the data that it was trained on: cc-by-4.0, other.
            dataset: name of that data, for the card.
            evaluation: folder of an evaluation of this student under the name of `variant`; the card then has its
                metrics beside the floor's. Other names: `student.hub.push`.
            private: as for a new repository.

        Raises:
            UserError: the hub refuses, or the evaluation lacks the student.
        """
        rows = hub.evaluation_rows(evaluation, self.facts.get("variant", "")) if evaluation else None
        hub.push(self, repo_id, data_license, dataset, rows, private)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def max_history(self) -> int:
        return self.facts["max_history"]

    @torch.no_grad()
    def rank_items(
        self, histories: np.ndarray, width: int = DEFAULT_WIDTH, exclude_bought: bool = True, constrained: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank items after histories by beam search.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            width: beams; at least the number of items makes the ranking exact.
            exclude_bought: exclude all items of the history.
            constrained: search valid IDs only; otherwise places with an invalid ID are -1.

        Returns:
            Items, best first, -1 for none, and scores; both [users, width]. With memories the scores are the mixture's
            log-probabilities, less its discount.
        """
        memory = self.transition_memory
        if memory is None or not constrained:
            return self._rank_by_student(histories, width, exclude_bought, constrained)
        items, scores = _empty_lists(len(histories), width)
        for rows, part in batches_by_length(histories, self.users_at_once):
            content = self.active_content
            shares = (content.weight, content.temperature) if content else ()
            weights = MixtureWeights(memory.weight, memory.discount, *shares)
            lists = self.candidates(part, width, exclude_bought).ranked(weights, width)
            _write_lists((items, scores), rows, lists)
        return items, scores

    def network_lists(
        self, histories: np.ndarray, width: int, exclude_bought: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank by beam search without memories, as `WithMemories.network_lists`."""
        items, scores = self._rank_by_student(histories, width, exclude_bought)
        return items, scores * (self.trie.levels if self.ranker is not None else 1)  # M is a mean

    @torch.no_grad()
    def search_whole_vocabulary(self, histories: np.ndarray, width: int = DEFAULT_WIDTH) -> np.ndarray | None:
        """Search over the codewords of all levels at each step, to measure the share of invalid IDs.

        Nothing is excluded and no ranker or memory takes part.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            width: beams.

        Returns:
            Items, best first, -1 where the codewords are no item's ID [users, width]; None for a student whose softmax
            is over the level's codewords: its logits of different levels were never compared in training.
        """
        if self.facts["scope"] != "all":
            return None
        trie, levels, size = self.trie, self.trie.levels, self.trie.codebook_size
        vocabulary = Vocabulary(torch.arange(levels * size, device=self.device).view(levels, size), levels * size)
        items = np.full((len(histories), width), PAD)
        for rows, recent in self._batches(histories, self.users_at_once):
            with autocast(self.device, self.precision):
                step = self.model.step(self.model.encode(self.history_codes(recent)), "whole")
                sequences, _ = search_tokens(_any_codeword(step, size, width), levels, len(rows), width, self.device)
            items[rows, : sequences.shape[1]] = vocabulary.find_items(sequences, trie).cpu().numpy()
        return items

    @torch.no_grad()
    def score_candidates(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Score a few items, by the ranker if there is one, as `WithMemories.score_candidates`."""
        scores = np.empty(items.shape, dtype=np.float32)
        for rows, recent in self._batches(histories, self.users_at_once):
            part_items = torch.from_numpy(items[rows]).to(self.device)
            if self.graphs is not None:
                scores[rows] = self.graphs.score(recent, part_items)
                continue
            with few_threads(len(recent)), autocast(self.device, self.precision):
                scores[rows] = self._scores(recent, part_items).cpu().numpy()
        return np.where(items == PAD, -np.inf, scores)

    @torch.no_grad()
    def score_items(self, histories: np.ndarray, exclude_bought: bool | None = None) -> np.ndarray:
        """Score all items exactly, as beams of unlimited width would, by the ranker if there is one.

        Costs a decoder pass over all nodes of the trie for each user.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            exclude_bought: whether a transition memory shares its probability among new items only; by default as in
                training.

        Returns:
            Log-probabilities [users, n_items], with a transition memory less its discount.
        """
        model = self.ranker or self.model
        scores = np.empty((len(histories), len(self.item_ids)), dtype=np.float32)
        users = max(1, self.users_at_once * DEFAULT_WIDTH // self.trie.n_leaves)  # as many nodes as beams elsewhere
        for rows, recent in self._batches(histories, users):
            with autocast(self.device, self.precision):
                step = self.make_step(model, self.history_codes(recent))
                part = score_all(step, self.trie, len(rows), self.device)
            scores[rows] = part[:, self.trie.leaf_of_item].cpu().numpy()
        exclude_bought = self.facts["exclude_bought"] if exclude_bought is None else exclude_bought
        return self.mixed_scores(scores, histories, None, exclude_bought).astype(np.float32, copy=False)

    def compile(self, **options: Any) -> Recommender:
        """Run the search as one compiled graph from now on; all batches then have the same shape.

        Args:
            options: of `torch.compile`; by default CUDA graphs on GPUs (`mode="reduce-overhead"`).
        """
        options = options or ({"mode": "reduce-overhead"} if self.device.type == "cuda" else {})
        self._search, self.static_shapes = torch.compile(self._search, dynamic=False, fullgraph=True, **options), True
        return self

    def history_codes(self, histories: Tensor) -> Tensor:
        """Codes of padded item numbers [users, length] → [users, length, levels], -1 where padded."""
        return torch.where((histories >= 0)[..., None], self.codes[histories.clamp(min=0)], -1)

    @torch.no_grad()
    def _rank_by_student(
        self, histories: np.ndarray, width: int, exclude_bought: bool, constrained: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """`rank_items` without the transition memory."""
        items, scores = _empty_lists(len(histories), width)
        exclude_older = exclude_bought and histories.shape[1] > self.facts["max_history"]
        for rows, recent in self._batches(histories, self.users_at_once, self.static_shapes):
            bought = self._bought(histories[rows], len(recent)) if exclude_older else None
            if constrained and self.graphs is not None and self.graphs.can_search(width, exclude_bought):
                _write_lists((items, scores), rows, self.graphs.search(recent, bought))
                continue
            with few_threads(len(recent)), autocast(self.device, self.precision):
                lists = self._search(recent, bought, width, exclude_bought, constrained)
            _write_lists((items, scores), rows, [part[: len(rows)].cpu().numpy() for part in lists])
        check_scores(scores)
        return items, scores

    def _search(
        self, recent: Tensor, bought: Tensor | None, width: int, exclude_bought: bool, constrained: bool
    ) -> tuple[Tensor, Tensor]:
        """Rank items for one batch, from its first to its last operation without returning to Python.

        Args:
            recent: the items that the networks read [users, length].
            bought: all items of the histories; None: the same.
            width, exclude_bought, constrained: as for `rank_items`.
        """
        history = self.history_codes(recent)
        bought = recent if bought is None else bought
        step = self.make_step(self.model, history, constrained)
        beams = search(step, self.trie, bought, width, exclude_bought, constrained)
        if self.ranker is not None:
            scores = self._ranker_scores(history, beams.codes)
            scores = scores.masked_fill(beams.scores == -torch.inf, -torch.inf)
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            codes = beams.codes.gather(1, order[..., None].expand_as(beams.codes))
            beams = Beams(beams.leaves.gather(1, order), codes, scores)
        return to_items(beams, self.trie, bought, width, exclude_bought, constrained)

    def _scores(self, recent: Tensor, items: Tensor) -> Tensor:
        """Compute the log-probabilities of items [users, k], -1 for any, after the items that the networks read."""
        step = self.make_step(self.ranker or self.model, self.history_codes(recent))
        return score_ids(step, self.codes[items.clamp(min=0)])

    def make_step(self, model: nn.Module, history: Tensor, constrained: bool = True) -> Step:
        """Make a step of the student's softmax after histories [users, length, levels].

        An unconstrained search leaves the trie, so a softmax over its children has no meaning there; the level's is
        taken.
        """
        scope = self.facts["scope"]
        step = model.step(model.encode(history), network_scope(scope))
        return ChildrenStep(step, self.catalogue) if scope == "trie" and constrained else step

    def _ranker_scores(self, history: Tensor, codes: Tensor) -> Tensor:
        """M of items [users, k] by the ranker, teacher-forced (paper 3.2).

        Args:
            history: codes [users, length, levels].
            codes: of the items [users, k, levels].
        """
        assert self.ranker is not None
        scope = self.facts["scope"]
        log_probs = self.ranker.log_probs(self.ranker.encode(history), codes, network_scope(scope))
        if scope == "trie":
            log_probs = renormalise(log_probs, self.catalogue.allowed(codes))
        numbers = among_all(codes, self.trie.codebook_size) if scope == "all" else codes
        return sequence_score(log_probs, numbers)

    def _batches(
        self, histories: np.ndarray, users: int, static_shapes: bool = False
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Batches of row numbers and the last `max_history` items of these rows' histories, on the device.

        With `static_shapes` all batches are [users, max_history]; the last one is filled up with some item.
        """
        limit = self.facts["max_history"]
        for rows, recent in batches_by_length(last_items(histories, limit), users):
            if static_shapes:
                filled = np.full((users, limit), PAD)
                filled[len(rows) :, 0] = 0
                filled[: len(rows), : recent.shape[1]] = recent
                recent = filled
            yield rows, torch.from_numpy(recent).to(self.device)

    def _bought(self, histories: np.ndarray, users: int) -> Tensor:
        """Whole histories on the device [users, length], padded to few lengths where graphs are compiled."""
        longest = max(1, (histories != PAD).sum(1).max())
        length = longest
        if self.static_shapes:
            length = self.facts["max_history"]
            while length < longest:
                length *= 2
        filled = np.full((users, length), PAD)
        filled[: len(histories), :longest] = histories[:, :longest]
        return torch.from_numpy(filled).to(self.device)


def _any_codeword(step: Step, codebook_size: int, width: int) -> TokenStep:
    """Make a step over tokens, level · codebook_size + code, of a student's step with scope "whole"."""

    def likeliest(level: int, parents: Tensor | None, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        # the step counts codes from the start of the level before
        codes = None if tokens is None else tokens - (level - 1) * codebook_size
        log_probs = step(level, parents, codes)
        return log_probs.topk(min(width, log_probs.shape[-1]), dim=-1)

    return likeliest


def _check_facts(facts: dict[str, Any], path: Path) -> None:
    """Refuse a student's config.json that no training has written.

    Raises:
        UserError: names the first fact that cannot be.
    """
    check_numbers(facts, {"max_history": (int, 1, 100_000)}, path)
    for name, known in (
        ("scope", ("level", "all", "trie")),
        ("exclude_bought", (True, False)),
        ("backbone", BACKBONE_NAMES),
    ):
        if name in facts and facts[name] not in known:
            expected = " or ".join(str(value) for value in known)
            raise UserError(f"{path} is damaged: {name} is {str(facts[name])[:60]}, expected {expected}.")


def _empty_lists(users: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((users, width), PAD), np.full((users, width), -np.inf, dtype=np.float32)


def _write_lists(lists: tuple[np.ndarray, np.ndarray], rows: np.ndarray, batch_lists: Sequence[np.ndarray]) -> None:
    """Write items and scores of a batch, which may be narrower, into those of all users."""
    for whole, part in zip(lists, batch_lists, strict=True):
        whole[rows, : part.shape[1]] = part
