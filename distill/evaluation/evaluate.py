"""Evaluate all systems of a run on the same users: rank, measure, compare with the floor."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from distill.baselines import counting, names
from distill.baselines.item_scorer import longest_history
from distill.data.dataset import Dataset, Examples
from distill.evaluation.baseline_systems import Baselines, choose_floor, flattering_figures
from distill.evaluation.cold import ColdTargets, ScoreCandidates
from distill.evaluation.config import EvaluationSettings
from distill.evaluation.measures import Searched, beam_missed, measure_widths, search_width
from distill.evaluation.outside_lists import OutsideLists
from distill.evaluation.rank_shards import COLD, EVALUATED, VALIDATION, Part, RankedShards, part_of_width
from distill.evaluation.result_table import ResultTable
from distill.evaluation.shard_work import Work
from distill.evaluation.systems import (
    SEARCHING,
    MakeMixture,
    Mixture,
    MixtureRecipe,
    Ranked,
    System,
    exact_scores,
    is_searched_freely,
    rank_examples,
    searches_ids,
)
from distill.evaluation.truth import Truth
from distill.ranking import top_items
from distill.runtime.errors import UserError

WIDEST = 1000  # beams and lists may be longer than this only where there are more items
SMALL_CATALOGUE = 2000  # items up to which the teacher's exact scores fit into memory


class Evaluation:
    """One evaluation: the users, the protocol, and the table that is filled.

    Histories are full: bought items are excluded wherever they stand, and each system reads as many of the last items
    as it was trained with.

    Args:
        settings: protocol, baselines and measures.
        dataset: the data set.
        vectors: embeddings for diversity and for the graph walk [n_items, dim].
        texts: text embeddings [n_items, dim]; None: no baseline reads texts.
        facts: what all rows begin with.

    Raises:
        UserError: lists far longer than the catalogue.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        dataset: Dataset,
        vectors: np.ndarray,
        texts: np.ndarray | None,
        facts: dict[str, Any],
    ):
        longest, limit = max(settings.cutoffs), max(WIDEST, dataset.n_items)
        if longest > limit:
            raise UserError(f"cutoffs asks for lists of {longest}; expected at most {limit}.")
        widths = sorted({min(width, limit) for width in settings.widths})  # more beams would find nothing more
        settings = replace(settings, width=min(settings.width, limit), widths=widths)
        self.settings, self.dataset = settings, dataset
        self.ranked_shards: RankedShards | None = None
        self.examples = dataset.examples(settings.split, longest_history(dataset))
        if settings.users:
            self.examples = self.examples.take(slice(0, settings.users))
        self.exclude_bought = dataset.resolve_exclude_bought(settings.exclude_bought)
        self.truth = Truth.load(dataset, self.examples, settings.kl_users)
        self.baselines = Baselines(dataset, vectors, texts, self.exclude_bought, settings.transitions)
        self.table = ResultTable(
            facts | {"users": len(self.examples), "exclude_bought": self.exclude_bought},
            settings.cutoffs,
            self.examples,
            vectors,
            self.baselines.popularity.counts,
            counting.reachable(self.baselines.transitions, self.examples),
            ColdTargets.find(dataset, self.examples, settings.cold_users),
        )

    def run(
        self,
        not_learned: list[str],
        systems: Iterable[System],
        make_mixture: MakeMixture,
        ranked_shards: RankedShards | None = None,
    ) -> ResultTable:
        """Evaluate all systems.

        Args:
            not_learned: names of the systems that learn nothing (`distill.baselines.names`).
            systems: trained systems in the order of their rows; each may be loaded when its turn comes.
            make_mixture: makes the mixture of the rows `teacher+transitions` and `teacher+counter+content`.
            ranked_shards: lists of the trained systems that others have ranked; None: they are ranked here.
        """
        self.ranked_shards = ranked_shards
        self.add_not_learned(not_learned)
        for system in systems:
            ranked = self.rank(system)
            self.table.add(system.name, ranked, parameters=system.parameters, **self.measure_model(system, ranked))
            if system.kind == "teacher" and self.settings.mixture_users:
                mixture = self.mixture_recipe(make_mixture).open(self.dataset, self.baselines.content)
                self.add_mixtures(system, ranked, mixture)
        return self.table

    def add_not_learned(self, wanted: list[str]) -> None:
        """Add the rows of the systems that learn nothing, after choosing the floor among them."""
        table, baselines = self.table, self.baselines.build(wanted)
        ranked = {baseline.name: baseline.rank(self.examples, table.longest, self.exclude_bought)
                  for baseline in baselines}  # fmt: skip
        table.floor, valid_ndcg = choose_floor(baselines, self.dataset, self.exclude_bought)
        table.floor_lists = ranked[table.floor].items if table.floor else None
        if self.truth and names.ORACLE in wanted:
            started = time.time()
            items = top_items(self.truth.probabilities, table.longest)
            best = Ranked(items, np.zeros((len(items), 0)), time.time() - started)
            cold = self.measure_cold(self.truth.score_candidates, above=0)
            table.add(names.ORACLE, best, kl_to_truth=0.0, note="the simulator's own distribution", **cold)
        for baseline in baselines:
            further: dict[str, Any] = {"note": baseline.note} if baseline.note else {}
            if baseline.name in valid_ndcg:
                further[names.VALID_NDCG_KEY] = valid_ndcg[baseline.name]
            if self.truth and baseline.distribution:
                counts = self.baselines.popularity.counts
                further["kl_to_truth"] = self.truth.kl_of_counter(baseline.distribution, counts, self.dataset)
            if baseline.name == names.TRANSITIONS:
                further |= flattering_figures(self.baselines.transitions, self.examples)
                further["reachable"] = float(table.reachable.mean())
            further |= self.measure_cold(baseline.score_candidates, above=0)
            table.add(baseline.name, ranked[baseline.name], **further)

    def measure_model(self, system: System, ranked: Ranked) -> dict[str, Any]:
        """Measure what lists do not tell: distance to the truth, and for beams, invalid IDs and missed items."""
        settings, table = self.settings, self.table
        searches = searches_ids(system)
        has_probabilities = self.truth and system.kind != "ranker"
        feasible = system.kind != "teacher" or self.dataset.n_items <= SMALL_CATALOGUE
        users = max(settings.exact_users if searches else 0, settings.kl_users if has_probabilities else 0)
        row: dict[str, Any] = {}
        if users and feasible:
            exact = exact_scores(system, self.examples.histories[:users], self.exclude_bought)
            if searches and settings.exact_users:
                row[f"beam_missed@{table.at}"] = beam_missed(ranked.items, exact[: settings.exact_users], table.at)
            if self.truth and has_probabilities:
                row["kl_to_truth"] = self.truth.kl_of_scores(exact)
        if is_searched_freely(system):
            free = self.rank(system, constrained=False)
            row[f"invalid@{table.at}"] = float((free.items[:, : table.at] < 0).mean())
            table.unconstrained[system.name] = free.items[:, : table.longest]
        if searches and settings.widths:
            targets = self.examples.targets[: settings.width_users]
            row["widths"] = measure_widths(partial(self._search, system), settings.widths, targets, table.vectors)
        score = self._recorded_scores(system) or partial(system.ranking_scores, exclude_bought=self.exclude_bought)
        return row | self.measure_cold(score, system.kind)

    def measure_cold(
        self, score: ScoreCandidates | None, kind: str = "baseline", above: float = -np.inf
    ) -> dict[str, float | None]:
        """Measure the ranking of the cold items alone.

        Args:
            score: scores given items; None: not measured.
            kind: of the system; where each score costs a pass through a network, there are not many (`MAX_SCORES`).
            above: only items with a higher score are recommended.
        """
        cold = self.table.cold
        return cold.measure_scores(score if cold.is_feasible(kind) else None, self.table.at, self.exclude_bought, above)

    def add_mixtures(self, system: System, ranked: Ranked, mixture: Mixture) -> None:
        """Add the rows of the teacher mixed with what learns nothing; the weights are chosen on validation."""
        valid = self.validation
        on_valid, _ = self._propose(mixture, system, self.rank(system, VALIDATION), VALIDATION)
        proposals, seconds = self._propose(mixture, system, ranked, EVALUATED)
        seconds += ranked.seconds
        score = self._recorded_scores(system) or system.score_candidates
        for name in mixture.names:
            choice = mixture.tune(name, on_valid, valid.targets)
            started = time.time()
            items = mixture.rank(name, proposals, self.settings.width)
            both = Ranked(items, np.zeros((len(items), 0)), seconds + time.time() - started)
            further = {"note": f"{choice}, chosen on {len(valid)} validation examples"}
            mixed_score = partial(mixture.ranking_scores, name, score, exclude_bought=self.exclude_bought)
            further |= self.measure_cold(mixed_score, system.kind)
            self.table.add(f"{system.name}+{name}", both, parameters=system.parameters, **further)

    def add_outside(self, lists: OutsideLists) -> None:
        """Add the row of a system that ranked elsewhere; lists tell neither parameters nor time."""
        ranked = Ranked(lists.items, np.zeros((len(lists.items), 0)), 0.0)
        note = lists.note(self.examples, self.exclude_bought)
        self.table.add(lists.name, ranked, note=note, users_per_s=None, **self.measure_cold(None))

    @cached_property
    def validation(self) -> Examples:
        """Validation examples by which mixtures are chosen."""
        targets = self.dataset.targets("valid", longest_history(self.dataset))
        return targets.take(np.random.default_rng(0).permutation(len(targets))[: self.settings.mixture_users])

    def mixture_recipe(self, make: MakeMixture) -> MixtureRecipe:
        """Say what the mixture of the teacher's further rows is made of."""
        content = self.baselines.content if self.settings.content else None
        reading, sizes = content.settings if content else None, (self.settings.mixture_top, self.settings.batch_size)
        return MixtureRecipe(make, self.baselines.transitions.settings, reading, *sizes)

    def parts_of(self, kind: str) -> dict[str, Part]:
        """Return the examples of a trained system that others may work on, and what is to be done for them.

        Args:
            kind: of the system (`System.kind`).
        """
        settings, cold = self.settings, self.table.cold
        work = Work(settings.split, settings.batch_size, settings.width)
        is_mixed = kind == "teacher" and settings.mixture_users > 0
        parts = {EVALUATED: Part(self.examples, work._replace(freely=True, mixed=is_mixed))}
        if is_mixed:
            parts[VALIDATION] = Part(self.validation, work._replace(split="valid", mixed=True))
        for width in settings.widths if kind in SEARCHING else ():
            users = self.examples.take(slice(0, settings.width_users))
            parts[part_of_width(width)] = Part(users, work._replace(width=width, freely=True, whole=True))
        if len(cold.sample) and cold.is_feasible(kind):
            parts[COLD] = Part(cold.sample, Work(settings.split, cold.users_at_once, 0))
        return parts

    def rank(self, system: System, part: str = EVALUATED, constrained: bool = True) -> Ranked:
        """Rank items for examples by this evaluation's protocol, or read what others have ranked by it."""
        if self.ranked_shards:
            return self.ranked_shards.read(system.name, part, constrained)
        settings, title = self.settings, system.name
        title += "" if constrained else " without the trie"
        title += " on validation" if part == VALIDATION else ""
        examples = self._examples_of(part)
        return rank_examples(
            system, examples, settings.width, self.exclude_bought, constrained, settings.batch_size, title
        )

    def _examples_of(self, part: str) -> Examples:
        return self.validation if part == VALIDATION else self.examples

    def _propose(self, mixture: Mixture, system: System, ranked: Ranked, part: str) -> tuple[Any, float]:
        """Collect what the mixture proposes, or read what others have collected; returns it and the seconds."""
        if self.ranked_shards:
            return self.ranked_shards.read_proposals(system.name, part, mixture)
        started, title = time.time(), "mixtures on validation" if part == VALIDATION else "mixtures"
        proposals = mixture.propose(system, ranked, self._examples_of(part), self.exclude_bought, title)
        return proposals, time.time() - started

    def _search(self, system: System, width: int) -> Searched:
        """Search with another beam width for the first users, or read what others have found."""
        if self.ranked_shards:
            return self.ranked_shards.read_width(system.name, width)
        users = self.examples.take(slice(0, self.settings.width_users))
        return search_width(system, users, width, self.exclude_bought, self.settings.batch_size)

    def _recorded_scores(self, system: System) -> ScoreCandidates | None:
        """Return the scores of the cold items that others have computed, for `measure_cold`; None: they have not."""
        scores = self.ranked_shards.read_cold_scores(system.name) if self.ranked_shards else None
        return None if scores is None else self.table.cold.answer_from(scores)
