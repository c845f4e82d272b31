"""Measure every system of a run on the same users: floors, teacher, students, and on demo data the oracle.

python scripts/evaluate.py --config configs/demo/evaluate.yaml
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from safetensors.numpy import load_file
from scipy.special import logsumexp

from distill import ranking
from distill.baselines import counting
from distill.baselines.counting import Transitions, TransitionSettings
from distill.baselines.graph_walk import GraphHeuristic
from distill.baselines.popularity import Popularity
from distill.data.dataset import PAD, Dataset, Examples, batches_by_length
from distill.data.sources import demo
from distill.evaluation.ranked_lists import write_ranked_lists
from distill.metrics import (
    catalogue_coverage,
    coordination,
    coverage,
    diversity,
    gini,
    hit_ranks,
    interval,
    kl_to_truth,
    mrr,
    ndcg,
    novelty,
    paired,
    popularity_groups,
    recall,
)
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.config import JobSettings, run, suggest
from distill.runtime.errors import UserError
from distill.runtime.logs import log, progress_bar
from distill.semantic_ids.ids import SemanticIDs

if TYPE_CHECKING:
    from student.transition_memory import Candidates, TransitionMemory

FLOOR = "transitions"
NOT_LEARNED = ("oracle", "popularity", FLOOR, "transitions+valid", "graph", "teacher")
SMALL_CATALOGUE = 2000  # items up to which the teacher's exact scores fit into memory


@dataclass(frozen=True)
class Config(JobSettings):
    """Evaluate all systems of a run: python scripts/evaluate.py [--config FILE] [--field value ...]."""

    run: Path = Path("runs/demo")
    """Folder of the run; inputs and output default to their names inside it."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    semantic_ids: Path | None = None
    """Semantic IDs artifact (default: RUN/semantic_ids)."""
    embeddings: Path | None = None
    """Embeddings for diversity (default: RUN/embeddings where it exists, otherwise the codes, one-hot)."""
    teacher: Path | None = None
    """Teacher artifact (default: RUN/teacher)."""
    students: Path | None = None
    """Folder of student artifacts (default: RUN/students)."""
    baselines: Path | None = None
    """Folder of baselines, which may be empty (default: RUN/baselines)."""
    output: Path | None = None
    """Where the metrics go (default: RUN/evaluation)."""
    systems: list[str] | None = None
    """Names of the students and baselines to evaluate, `teacher` among them for that one (default: all there are)."""
    split: Literal["valid", "test"] = "test"
    """Which held-out part."""
    users: int | None = None
    """Only the first N examples; under leave-one-out, users."""
    width: int = 20
    """Beams (paper: 20)."""
    cutoffs: list[int] = field(default_factory=lambda: [1, 5, 10, 20])
    """K of recall, NDCG and diversity; none larger than the beams. The largest is the length of the lists."""
    widths: list[int] = field(default_factory=list)
    """Beam widths at which diversity and invalid share are measured as well (the paper's Figures 1 and 3)."""
    width_users: int = 200
    """Users for that."""
    exclude_bought: bool | None = None
    """Never recommend items of the history, in any row (default: where the training part never has an item twice)."""
    transitions: TransitionSettings | None = None
    """Settings of the floor; none: the best of a grid on the validation split."""
    exact_users: int = 50
    """Users for whom all items are scored exactly, to see how much of their true first ten the beams miss (teachers
    only where the catalogue is small); 0 leaves it out."""
    graph: bool = True
    """A row for the walk over the transition graph ranked by similarity; its settings are chosen on validation."""
    kl_users: int = 300
    """Users whose exact item distributions are compared with the truth (demo data only)."""
    mixture_users: int = 1000
    """Validation examples on which the counter's share in `teacher+transitions` is chosen; 0 leaves that row out."""
    mixture_top: int = 50
    """How many of the counter's items join the teacher's beams there."""
    batch_size: int = field(default=256, metadata={"identity": False})
    """Users at once."""
    device: str = field(default="auto", metadata={"identity": False})
    """auto, cpu or cuda."""
    seed: int = 0
    """Named in the table: the seed of the run's trainings."""


def main(config: Config) -> None:
    """Rank, measure, write `metrics.json` and `lists.parquet`."""
    check(config)
    data = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    codes = artifacts.read(config.semantic_ids or config.run / "semantic_ids", "semantic_ids")
    folder = config.students or config.run / "students"
    paths, others = in_order(folder), in_order(config.baselines or config.run / "baselines")
    names = [path.name for path in (*paths, *others)] + ["teacher"]
    for name in config.systems or ():
        if name not in names:
            raise UserError(f"Unknown system {name!r} in {folder}. {suggest(name, names)}")
    wanted = config.systems or names
    students = [artifacts.read(path, "student") for path in paths if path.name in wanted]
    baselines = [artifacts.read(path, "baseline") for path in others if path.name in wanted]
    teacher = None
    if "teacher" in wanted and (config.teacher or (config.run / "teacher").exists()):
        teacher = artifacts.read(config.teacher or config.run / "teacher", "teacher")
    elif not students and (config.students or not baselines):
        raise UserError(f"No student in {folder}. Make one with: {artifacts.COMMANDS['student']}")
    table = config.embeddings or config.run / "embeddings"
    embeddings = artifacts.read(table, "embeddings") if config.embeddings or table.exists() else None
    inputs = [data, codes, *students, *baselines, *(one for one in (teacher, embeddings) if one)]
    stage = ArtifactJob(
        "evaluation", config, config.output or config.run / "evaluation", inputs, overwrite=config.overwrite
    )
    if stage.is_finished():
        return

    import torch  # heavy, and not needed where the work is finished

    from student.transition_memory import DISCOUNTS, TransitionMemory, best_share

    dataset = Dataset.load(data.folder)
    ids = SemanticIDs.load(codes.folder, dataset.n_items)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    examples = dataset.examples(config.split)
    if config.users:
        examples = examples.take(slice(0, config.users))
    vectors = item_vectors(embeddings, ids, dataset.n_items)
    truth = Truth.of(dataset, examples, config.kl_users)
    hide = dataset.resolve_exclude_bought(config.exclude_bought)
    facts = {"dataset": config.run.name, "split": config.split, "users": len(examples), "seed": config.seed}
    facts["exclude_bought"] = hide
    at, longest = min(10, max(config.cutoffs)), max(config.cutoffs)

    popularity = Popularity(dataset)
    transitions = Transitions(dataset, config.transitions) if config.transitions else Transitions.tune(dataset)[0]
    reachable = counting.reachable(transitions, examples)
    started = time.time()
    floor = counting.recommend(transitions, examples, longest, hide)
    floor_seconds = time.time() - started

    rows: list[dict[str, Any]] = []
    lists: dict[str, np.ndarray] = {}

    def add(system: str, items: np.ndarray, seconds: float, **more: Any) -> None:
        items = items[:, :longest]
        row = {"system": system, **facts, **measures(items, examples, config.cutoffs, vectors, popularity.counts)}
        hits = recall(hit_ranks(items, examples.targets), at)
        row |= {f"recall@{at}_reachable": mean(hits[reachable]), f"recall@{at}_unreachable": mean(hits[~reachable])}
        row |= {"invalid@10": None, "beam_missed@10": None, "kl_to_truth": None, "parameters": None}
        if system != FLOOR:
            row[f"ndcg@{at}_above_floor"] = above(items, floor, examples.targets, at)
        if "teacher" in lists and system not in NOT_LEARNED:
            row["teacher_coverage"] = float(coverage(items, lists["teacher"]).mean())
            row["teacher_coordination"] = float(coordination(items, lists["teacher"]).mean())
        row["users_per_s"] = len(examples) / max(seconds, 1e-9)
        rows.append(row | more)
        lists[system] = items
        log.info(f"{system}: NDCG@{at} {row[f'ndcg@{at}']:.4f}, recall@{at} {row[f'recall@{at}']:.4f}")

    if truth:
        started = time.time()
        best = ranking.top_items(truth.all_users, longest)
        add("oracle", best, time.time() - started, kl_to_truth=0.0, note="the simulator's own distribution")

    counters: list[tuple[str, Popularity | Transitions]] = [("popularity", popularity), (FLOOR, transitions)]
    if config.split == "test":  # otherwise its targets would have been counted
        counters.append(("transitions+valid", Transitions(dataset, transitions.settings, with_validation=True)))
    for name, model in counters:
        started = time.time()
        items = floor if model is transitions else counting.recommend(model, examples, longest, hide)
        seconds = floor_seconds if model is transitions else time.time() - started
        more: dict[str, Any] = {"kl_to_truth": truth and truth.floor_kl(model, popularity, dataset)}
        if model is transitions:
            flattered = counting.ranks_with_ties_won(transitions, examples)
            more["recall@10_ties_won"] = float(recall(flattered, 10).mean())
            more["ndcg@10_ties_won"] = float(ndcg(flattered, 10).mean())
            more["note"] = f"counts of the training part; {in_words(transitions.describe())}"
            more["reachable"] = float(reachable.mean())
        elif isinstance(model, Transitions):
            more["note"] = f"counts of the training and validation parts; {in_words(transitions.describe())}"
        add(name, items, seconds, **more)
    if config.graph:
        walk = GraphHeuristic.tune(dataset, vectors, hide)
        started = time.time()
        items = walk.recommend(examples, longest, hide)
        add("graph", items, time.time() - started, note=in_words(walk.describe()))

    alone = [one for one in baselines if one.config.get("loss") == "ce"]
    # after the teacher, whose list theirs are held against
    taught = [one for one in baselines if one not in alone]
    for artifact in (*alone, *([teacher] if teacher else []), *taught, *students):
        name = "teacher" if artifact is teacher else artifact.folder.name
        if artifact.kind == "baseline":
            from student.item_recommender import ItemRecommender

            scorer = ItemRecommender.from_pretrained(artifact.folder, device)
            beams = ranked(scorer.rank_items, examples, config, hide, constrained=True, name=name)
            distance = truth and truth.model_kl(exact_scores(scorer.score_items, truth.histories, hide, name))
            parameters = sum(parameter.numel() for parameter in scorer.model.parameters())
            add(name, beams.items, beams.seconds, parameters=parameters, kl_to_truth=distance)
            continue
        system, parameters = load(artifact, dataset, ids, device, hide)
        beams = ranked(system.rank, examples, config, hide, constrained=True, name=name)
        free = ranked(system.rank, examples, config, hide, constrained=False, name=f"{name} without the trie").items
        small = artifact.kind == "student" or dataset.n_items <= SMALL_CATALOGUE
        several = examples.take(slice(0, max(config.exact_users, config.kl_users if truth else 0) if small else 0))
        missed = distance = None
        if len(several):
            exact = exact_scores(system.score, several.histories, hide, name)
            missed = beam_missed(beams.items, exact[: config.exact_users], at) if config.exact_users else None
            distance = truth and truth.model_kl(exact)
        more = {"parameters": parameters, "kl_to_truth": distance, f"beam_missed@{at}": missed}
        more[f"invalid@{at}"] = float((free[:, :at] < 0).mean())
        if config.widths:
            more["widths"] = over_widths(system.rank, examples, config, hide, vectors, name)
        add(name, beams.items, beams.seconds, **more)
        if artifact.kind == "teacher" and config.mixture_users:
            memory = TransitionMemory.of(dataset, transitions.settings, top=config.mixture_top)
            valid = dataset.examples("valid")
            valid = valid.take(np.random.default_rng(0).permutation(len(valid))[: config.mixture_users])
            theirs = ranked(system.rank, valid, config, hide, constrained=True, name="teacher on validation")
            found = proposals(theirs, system.score_some, memory, valid, config, hide, "the counter's share")
            (weight, discount), _ = best_share(found, valid.targets, discounts=DISCOUNTS)
            started, name = time.time(), "teacher+transitions"
            both = proposals(beams, system.score_some, memory, examples, config, hide, name)
            items, _ = both.ranked(weight, config.width, discount)
            note = (
                f"the counter's share is {weight}, the discount {discount}, chosen on {len(valid)} validation examples"
            )
            add(name, items, beams.seconds + time.time() - started, parameters=parameters, note=note)

    with stage.write() as output:
        write_json(output / "metrics.json", rows)
        write_ranked_lists(output / "lists.parquet", examples, lists)


def mean(values: np.ndarray) -> float | None:
    """None of nothing."""
    return float(values.mean()) if len(values) else None


def in_words(settings: dict[str, Any]) -> str:
    """Settings for a note below the table."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def check(config: Config) -> None:
    """Refuse numbers that do not fit.

    Raises:
        UserError: lists longer than the beams are wide, numbers below 1.
    """
    if not config.cutoffs or min(config.cutoffs, default=0) < 1 or min([config.width, *config.widths]) < 1:
        raise UserError(f"cutoffs, width and widths: expected numbers from 1 on, got {config.cutoffs}, {config.width} "
                        f"and {config.widths}.")  # fmt: skip
    if max(config.cutoffs) > config.width:
        raise UserError(
            f"cutoffs asks for lists of {max(config.cutoffs)}, but the beams are {config.width} wide. Choose a larger "
            "--width or smaller --cutoffs."
        )


def item_vectors(embeddings: artifacts.Artifact | None, ids: SemanticIDs, n_items: int) -> np.ndarray:
    """Embeddings for diversity [n_items, dim]; without a table the codes, one-hot.

    Raises:
        UserError: a table of another length.
    """
    if embeddings is None:
        return np.eye(ids.codebook_size)[ids.codes].reshape(n_items, -1)
    vectors = load_file(embeddings.folder / "embeddings.safetensors")["embeddings"]
    if len(vectors) != n_items:
        raise UserError(f"{embeddings.folder} holds {len(vectors)} embeddings, the catalogue {n_items} items.")
    return vectors


def measures(
    items: np.ndarray, examples: Examples, cutoffs: list[int], vectors: np.ndarray, counts: np.ndarray
) -> dict[str, Any]:
    """A row's figures that lists alone tell.

    Args:
        items: ranked lists, -1 for none [users, longest cutoff].
        examples: whose targets are sought.
        cutoffs: see `Config`.
        vectors: embeddings for diversity [n_items, dim].
        counts: interactions of each item in the training part [n_items].
    """
    ranks, at, longest = hit_ranks(items, examples.targets), min(10, max(cutoffs)), max(cutoffs)
    row: dict[str, Any] = {}
    for k in sorted(cutoffs):
        row[f"recall@{k}"], row[f"ndcg@{k}"] = float(recall(ranks, k).mean()), float(ndcg(ranks, k).mean())
    row[f"mrr@{longest}"] = float(mrr(ranks, longest).mean())
    for name, values in ((f"recall@{at}", recall(ranks, at)), (f"ndcg@{at}", ndcg(ranks, at))):
        row[f"{name}_low"], row[f"{name}_high"] = interval(values)
    for k in sorted(cutoffs):
        if k > 1:
            row[f"diversity@{k}"] = float(diversity(items, vectors, k).mean())
    row[f"catalogue@{at}"] = catalogue_coverage(items[:, :at], len(counts))
    row[f"gini@{at}"] = gini(items[:, :at], len(counts))
    row[f"novelty@{at}"] = float(novelty(items[:, :at], counts).mean())
    groups = popularity_groups(counts)
    row["by_popularity"] = []
    for group in (*range(groups.max() + 1), -1):
        mine = groups[examples.targets] == group
        part = {"group": "unseen" if group < 0 else group + 1, "items": int((groups == group).sum())}
        part |= {"users": int(mine.sum())}
        if mine.any():
            part |= {f"recall@{at}": float(recall(ranks[mine], at).mean())}
            part |= {f"ndcg@{at}": float(ndcg(ranks[mine], at).mean())}
        row["by_popularity"].append(part)
    return row


def above(items: np.ndarray, floor: np.ndarray, targets: np.ndarray, k: int) -> dict[str, float]:
    """NDCG@k above the floor's, user by user: `metrics.paired`."""
    return paired(*(ndcg(hit_ranks(lists, targets), k) for lists in (items, floor)))


def over_widths(
    rank: Callable, examples: Examples, config: Config, hide: bool, vectors: np.ndarray, name: str
) -> list[dict[str, float]]:
    """Diversity and share of invalid IDs of all beams, by the number of beams, over the first users."""
    several, found = examples.take(slice(0, config.width_users)), []
    for width in sorted(config.widths):
        wide = dataclasses.replace(config, width=width)
        items = ranked(rank, several, wide, hide, constrained=True, name=f"{name}, {width} beams").items
        free = ranked(rank, several, wide, hide, constrained=False, name=f"{name}, {width} beams, no trie").items
        ranks = hit_ranks(items, several.targets)
        found.append({
            "width": width,
            "ndcg@10": float(ndcg(ranks, min(10, width)).mean()),
            "diversity": float(diversity(items, vectors, width).mean()),
            "invalid": float((free < 0).mean()),
        })  # fmt: skip
    return found


def in_order(folder: Path) -> list[Path]:
    """Artifacts in the order of the paper's table, others after them by name."""
    known = ["tiger", "smooth", "distill", "dtr", "dwr"]
    paths = [path for path in Path(folder).glob("*") if (path / artifacts.MANIFEST).is_file()]
    return sorted(paths, key=lambda path: (known.index(path.name) if path.name in known else len(known), path.name))


class System(NamedTuple):
    """How a teacher or student is asked: for ranked lists by beams, for exact scores of all items or of some."""

    rank: Callable[..., tuple[np.ndarray, np.ndarray]]  # (histories, width, exclude_bought, constrained)
    score: Callable[[np.ndarray], np.ndarray]  # histories -> log-probabilities [users, n_items]
    score_some: Callable[[np.ndarray, np.ndarray], np.ndarray]  # histories, items -> log-probabilities [users, k]


def load(
    artifact: artifacts.Artifact, dataset: Dataset, ids: SemanticIDs, device: str, hide: bool
) -> tuple[System, int]:
    """A teacher or student, and its number of parameters; `hide`: bought items are left out."""
    if artifact.kind == "teacher":
        from teacher.engines.hf import HFEngine

        engine = HFEngine.load(artifact.folder, dataset, ids, device)
        return System(engine.beams, engine.score_items, engine.score_candidates), sum(
            one.numel() for one in engine.model.parameters()
        )
    from student.recommender import Recommender

    student = Recommender.from_pretrained(artifact.folder, device)
    models = [model for model in (student.model, student.ranker) if model is not None]
    parameters = sum(parameter.numel() for model in models for parameter in model.parameters())

    def score(histories: np.ndarray) -> np.ndarray:
        return student.score_items(histories, hide)

    return System(student.rank_items, score, student.score_candidates), parameters


class Ranked(NamedTuple):
    """Ranked items of all users, -1 for none, their scores (both [users, width]), and the seconds it took."""

    items: np.ndarray
    scores: np.ndarray
    seconds: float


def ranked(rank: Callable, examples: Examples, config: Config, hide: bool, constrained: bool, name: str) -> Ranked:
    """LabelRequest a model for its beams."""
    items = np.full((len(examples), config.width), PAD)
    scores = np.full(items.shape, -np.inf)
    started = time.time()
    for rows, histories in batches(examples, config, name):
        found, own = rank(histories, config.width, exclude_bought=hide, constrained=constrained)
        items[rows, : found.shape[1]], scores[rows, : own.shape[1]] = found, own
    return Ranked(items, scores, time.time() - started)


def proposals(
    beams: Ranked,
    score_some: Callable,
    memory: TransitionMemory,
    examples: Examples,
    config: Config,
    hide: bool,
    name: str,
) -> Candidates:
    """A model's beams and a counter's top items, with both probabilities."""
    from student.transition_memory import Candidates, candidates

    items = np.full((len(examples), config.width + memory.top), PAD)
    log_probs, counter = np.full(items.shape, -np.inf), np.zeros(items.shape)
    for rows, histories in batches(examples, config, name):
        found = candidates((beams.items[rows], beams.scores[rows]), score_some, memory, histories, hide)
        for whole, part in zip((items, log_probs, counter), found[:3], strict=True):
            whole[rows, : part.shape[1]] = part
    return Candidates(items, log_probs, counter, memory.familiarity[items])


def batches(examples: Examples, config: Config, name: str) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Rows and histories of like lengths, with a progress bar."""
    total = -(-len(examples) // config.batch_size)
    return progress_bar(
        batches_by_length(examples.histories, config.batch_size), total=total, desc=name, unit="batch", leave=False
    )


def exact_scores(score: Callable, histories: np.ndarray, hide: bool, name: str) -> np.ndarray:
    """Log-probabilities of all items, −∞ for what may not be recommended [users, n_items]."""
    parts = [
        score(histories[start : start + 8])
        for start in progress_bar(range(0, len(histories), 8), desc=f"{name} exactly", unit="batch", leave=False)
    ]
    scores = np.concatenate(parts)
    if hide:
        ranking.mask_history(scores, histories, -np.inf)
    return scores


def beam_missed(lists: np.ndarray, exact: np.ndarray, k: int) -> float:
    """Share of the k truly best items that the first k of the beams lack, over the users with exact scores."""
    best = np.argpartition(-exact, k - 1, axis=1)[:, :k]
    return float(1 - coverage(lists[: len(exact), :k], best).mean())


@dataclass(frozen=True)
class Truth:
    """The demo's known distribution: of all users [users, n_items], and of the first few, to measure distances."""

    all_users: np.ndarray
    histories: np.ndarray

    @staticmethod
    def of(dataset: Dataset, examples: Examples, users: int) -> Truth | None:
        """None where the data set has no simulator."""
        if not (dataset.artifact.folder / demo.FILE).is_file():
            return None
        simulator = demo.Simulator.load(dataset.artifact.folder)
        return Truth(simulator.next_item_probabilities(examples.histories), examples.histories[:users])

    def model_kl(self, log_probs: np.ndarray) -> float:
        """Mean KL in nats of a model's distribution over items from its exact scores; those may be unnormalised."""
        log_probs = log_probs[: len(self.histories)].astype(float)
        log_probs -= logsumexp(log_probs, axis=1, keepdims=True)
        return float(kl_to_truth(self.all_users[: len(self.histories)], log_probs).mean())

    def floor_kl(self, model: Transitions | Popularity, popularity: Popularity, dataset: Dataset) -> float:
        """The same for a counter, mixed with popularity by the share that validation likes best."""
        valid = dataset.examples("valid").take(slice(0, 1000))
        scores = model.scores(valid.histories)
        shares = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
        rows = np.arange(len(valid))
        likelihood = [
            np.log(counting.smoothed(scores, popularity.counts, share)[rows, valid.targets]).mean() for share in shares
        ]
        best = shares[int(np.argmax(likelihood))]
        probabilities = counting.smoothed(model.scores(self.histories), popularity.counts, best)
        ranking.mask_history(probabilities, self.histories, 0.0)
        with np.errstate(divide="ignore"):
            log_probs = np.log(probabilities / probabilities.sum(1, keepdims=True))
        return float(kl_to_truth(self.all_users[: len(self.histories)], log_probs).mean())


if __name__ == "__main__":
    run(main, Config, "demo/evaluate.yaml")
