"""Item-level teachers, mixtures and folds, against brute force over all items and counts from scratch."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import counting_naive, teachers_naive

from distill import export_soft_labels as export
from distill.baselines import counting, popularity
from distill.baselines.counting import TransitionSettings
from distill.data.dataset import PAD, Dataset, write_dataset
from distill.data.splits import assign_folds
from distill.decoding.trie import Trie
from distill.labels import labeller
from distill.labels.config import Config, TeacherSettings, check
from distill.labels.labeller import LabelRequest
from distill.labels.store import LabelStore
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.config import parse
from distill.runtime.errors import UserError
from distill.semantic_ids import embeddings
from distill.semantic_ids.ids import SemanticIDs, write_codes
from distill.teachers import build, item_teacher, transitions
from distill.teachers.content import TEMPERATURES, ContentTeacher
from distill.teachers.cross_fitting import FoldedLabeller, read_teachers
from distill.teachers.heuristics import DistanceTeacher, StatisticsTeacher
from distill.teachers.item_teacher import ItemLabeller, ScoreTeacher, codeword_marginals, leaf_probabilities
from distill.teachers.mixture import MixtureLabeller, mix_codewords
from distill.teachers.transitions import TransitionTeacher

N_ITEMS, LEVELS, SIZE = 14, 3, 4


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def make(root, sequences, ends=None):
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        items = pa.table({"item_id": [f"i{number}" for number in range(N_ITEMS)]})
        users = [f"u{number}" for number in range(len(sequences))]
        write_dataset(folder, items, users, [np.array(row) for row in sequences], ends=ends)
    return Dataset.load(root / "dataset")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Sequences with repeated items and lengths from the least to beyond the history."""
    rng = np.random.default_rng(0)
    return make(tmp_path_factory.mktemp("shop"), [rng.integers(0, N_ITEMS, rng.integers(3, 13)) for _ in range(25)])


@pytest.fixture(scope="module")
def codes():
    found = np.random.default_rng(1).integers(0, SIZE, (N_ITEMS, LEVELS))
    found[6] = found[5]  # two items behind one ID
    return found


@pytest.fixture(scope="module")
def trie(codes):
    return Trie.build(codes, SIZE)


def training(shop):
    return [shop.sequence(user)[:-2].tolist() for user in range(shop.n_users)]


def bought(history):
    return [int(item) for item in history if item != PAD]


def random_teacher(seed):
    table = np.random.default_rng(seed).normal(0, 2, (N_ITEMS, N_ITEMS))
    return ScoreTeacher(lambda histories: table[histories[:, 0]], f"table {seed}")


@pytest.mark.parametrize(
    "chosen",
    [
        TransitionSettings(1, 1.0, 1.0, 1),
        TransitionSettings(3, 0.7, 0.6, 3),
        TransitionSettings(20, 0.8, 0.9, 20),
    ],
)
def test_leave_one_out_is_a_recount(shop, chosen):
    """Every training example: the counting baseline of a data set whose user stopped before the target."""
    teacher, examples = TransitionTeacher(shop, chosen), shop.examples("train", 6)
    scores = teacher.scores(examples)
    for row, (user, position) in enumerate(zip(examples.users, examples.positions, strict=True)):
        history = bought(examples.histories[row])
        expected = teachers_naive.transition_scores(training(shop), user, position, history, N_ITEMS, chosen)
        np.testing.assert_allclose(scores[row], expected, atol=1e-9)
    full = counting.Transitions(shop, chosen).scores(examples.histories)
    own = np.arange(len(examples)), examples.targets
    assert (scores[own] <= full[own] + 1e-9).all()
    assert (scores[own] < 0.9 * full[own]).mean() > 0.5  # the leak that is stopped


@pytest.mark.parametrize("split", ["valid", "test"])
def test_outside_the_training_part_nothing_is_taken_out(shop, split):
    chosen = TransitionSettings(3, 0.7, 0.6, 3)
    examples = shop.examples(split, 6)
    expected = counting.Transitions(shop, chosen).scores(examples.histories)
    np.testing.assert_allclose(TransitionTeacher(shop, chosen).scores(examples), expected, atol=1e-9)


def test_popularity_without_the_future(shop):
    examples = shop.examples("train", 6)
    found = TransitionTeacher(shop, TransitionSettings()).popularity(examples)
    for row, (user, position) in enumerate(zip(examples.users, examples.positions, strict=True)):
        rest = [one[:position] if number == user else one for number, one in enumerate(training(shop))]
        counts = np.bincount(np.concatenate(rest).astype(int), minlength=N_ITEMS) + 0.5
        np.testing.assert_allclose(found[row], counts / counts.sum())


@pytest.mark.parametrize("exclude_bought", [True, False])
def test_transition_probabilities(shop, exclude_bought):
    """scores² over their sum, mixed with popularity; excluded items keep their share of that."""
    teacher, examples = TransitionTeacher(shop, TransitionSettings(), 2.0, 0.25), shop.examples("train", 6)
    found, scores, popularity = (
        teacher.probabilities(examples, exclude_bought), teacher.scores(examples), teacher.popularity(examples),
    )  # fmt: skip
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found > 0).all()
    for row in range(len(examples)):
        if exclude_bought:
            scores[row, bought(examples.histories[row])] = 0
        powered = scores[row] ** 2
        expected = 0.75 * powered / powered.sum() + 0.25 * popularity[row] if powered.any() else popularity[row]
        np.testing.assert_allclose(found[row], expected)


def test_tuned_power_and_share_are_the_likeliest(shop):
    teacher = TransitionTeacher.tune(shop, exclude_bought=False)
    examples = shop.examples("valid")
    rows = np.arange(len(examples))

    def likelihood(power, share):
        other = TransitionTeacher(shop, teacher.settings, power, share)
        return np.log(other.probabilities(examples, False)[rows, examples.targets]).mean()

    values = {(power, share): likelihood(power, share) for power in transitions.POWERS for share in transitions.SHARES}
    assert teacher.settings == counting.Transitions.tune(shop)[0].settings
    assert values[teacher.power, teacher.share] == pytest.approx(max(values.values()))
    assert max(values.values()) > min(values.values())


def test_statistics(shop):
    examples = shop.examples("train", 6)
    found = StatisticsTeacher(shop, share=0.2).probabilities(examples, exclude_bought=False)
    table = np.array(teachers_naive.bought_together(training(shop), N_ITEMS), float)
    popular = popularity.Popularity(shop).counts + 0.5
    for row, target in enumerate(examples.targets):
        expected = 0.8 * table[target] / table[target].sum() + 0.2 * popular / popular.sum()
        np.testing.assert_allclose(found[row], expected)


def test_distance_is_nearest_first(shop, codes, trie):
    examples = shop.examples("train", 6)
    found = DistanceTeacher(codes).probabilities(examples, exclude_bought=False)
    for row, target in enumerate(examples.targets):
        distances = np.array([teachers_naive.distance(code, codes[target]) for code in codes])
        np.testing.assert_allclose(found[row], np.exp(-distances) / np.exp(-distances).sum())
    labels = ItemLabeller(DistanceTeacher(codes), trie, False).label(
        examples, request(N_ITEMS, N_ITEMS), labeller.no_progress
    )
    alone = (codes[:, None] == codes[None, :]).all(2).sum(1) == 1  # to share an ID doubles an item's score
    for row in labels.candidates:
        steps = [teachers_naive.distance(codes[item], codes[row[0]]) for item in row if alone[item]]
        assert steps == sorted(steps)
    assert alone.sum() > 6


def test_equation_18_by_hand():
    codes = np.array([[1, 1, 1, 1], [1, 1, 1, 2], [1, 2, 1, 1], [2, 1, 1, 1]])
    assert [teachers_naive.distance(code, codes[0]) for code in codes] == [0, 1, 4, 8]


def request(width=5, keep=4, exclude_bought=False, scope="level"):
    return LabelRequest(width=width, keep=keep, exclude_bought=exclude_bought, scope=scope, constrained=True)


@given(st.integers(0, 10_000), st.sampled_from(["level", "all"]))
@settings(max_examples=40, deadline=None)
def test_codeword_marginals(seed, scope):
    rng = np.random.default_rng(seed)
    levels, size, n = (int(rng.integers(1, most)) for most in (5, 5, 20))
    codes = rng.integers(0, size, (n, levels))
    probabilities = rng.dirichlet(np.ones(n) * 0.3, 6) * (rng.random((6, n)) < 0.8)
    targets = rng.integers(0, n, 6)
    probabilities[np.arange(6), targets] += 0.01
    trie = Trie.build(codes, size)
    found = codeword_marginals(leaf_probabilities(probabilities, trie), trie, targets, scope)
    for row, target in enumerate(targets):
        expected = np.array(teachers_naive.marginals(probabilities[row], codes.tolist(), target, size))
        if scope == "all":
            table = np.full((levels, levels, size), -np.inf)
            table[np.arange(levels), np.arange(levels)] = expected
            expected = table.reshape(levels, -1)
        np.testing.assert_allclose(found[row], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("exclude_bought", [True, False])
def test_item_labels(shop, codes, trie, exclude_bought, monkeypatch):
    monkeypatch.setattr(item_teacher, "CHUNK", 7)  # several chunks, the last one short
    teacher, examples = random_teacher(0), shop.examples("train", 6)
    labeller = ItemLabeller(teacher, trie, exclude_bought)
    done = []
    labels = labeller.label(examples, request(exclude_bought=exclude_bought), done.append)
    assert sum(done) == len(examples)
    probabilities = teacher.probabilities(examples, exclude_bought)
    same = (codes[:, None] == codes[None, :]).all(2)
    shared = probabilities @ same
    for row, target in enumerate(examples.targets):
        excluded = bought(examples.histories[row]) if exclude_bought else []
        ranked = counting_naive.top(shared[row].tolist(), 5, excluded)
        expected = [target, *(item for item in ranked if item != target)][:4]
        expected += [-1] * (4 - len(expected))
        assert labels.candidates[row].tolist() == expected
        own = [np.log(shared[row, item]) if item >= 0 else -np.inf for item in expected]
        np.testing.assert_allclose(labels.scores[row], own, rtol=1e-5)
        expected = teachers_naive.marginals(probabilities[row], codes.tolist(), target, SIZE)
        np.testing.assert_allclose(labels.log_probs[row], expected, atol=1e-5)
        assert labels.ranks[row] == (ranked.index(target) if target in ranked else -1)
    np.testing.assert_allclose(labeller.log_prob(examples, labels.candidates), labels.scores, rtol=1e-5)


@pytest.mark.parametrize("scope", ["level", "all"])
def test_a_mixture_is_the_mixture_of_the_items(shop, codes, trie, scope):
    """Labels mixed from the parts' labels equal those of the mixed distribution over items."""
    examples, weights = shop.examples("train", 6), [0.5, 0.3, 0.2]
    teachers = [random_teacher(1), DistanceTeacher(codes), TransitionTeacher(shop, TransitionSettings())]
    parts = [ItemLabeller(teacher, trie, True) for teacher in teachers]
    labels = MixtureLabeller(parts, [5, 3, 2], codes).label(
        examples, request(N_ITEMS, 6, True, scope), labeller.no_progress
    )

    class Mixed:
        def probabilities(self, examples, exclude_bought):
            mixed = [
                w * teacher.probabilities(examples, exclude_bought)
                for w, teacher in zip(weights, teachers, strict=True)
            ]
            return np.sum(mixed, axis=0)

    expected = ItemLabeller(Mixed(), trie, True).label(examples, request(N_ITEMS, 6, True, scope), labeller.no_progress)
    np.testing.assert_allclose(labels.log_probs, expected.log_probs, atol=2e-5)
    assert labels.candidates.tolist() == expected.candidates.tolist()
    np.testing.assert_allclose(labels.scores, expected.scores, rtol=1e-5)
    assert labels.ranks.tolist() == expected.ranks.tolist()
    assert (labels.candidates[:, 0] == examples.targets).all()


def test_a_mixture_asks_only_for_what_is_not_known(shop, codes, trie):
    examples = shop.examples("train", 6)

    class Counted(ItemLabeller):
        def log_prob(self, examples, items):
            asked.append(items)
            return super().log_prob(examples, items)

    parts = [Counted(random_teacher(seed), trie, True) for seed in (1, 2)]
    mixture = MixtureLabeller(parts, [0.6, 0.4], codes)
    asked: list = []
    labels = mixture.label(examples, request(3, 6, True, "level"), labeller.no_progress)
    known = [part.label(examples, request(3, 4, True, "level"), labeller.no_progress).candidates for part in parts]
    assert len(asked) == 2
    for items, own in zip(asked, known, strict=True):
        assert (items != PAD).any()
        assert not ((items[:, :, None] == own[:, None, :]) & (items != PAD)[:, :, None]).any()
    np.testing.assert_allclose(labels.scores, mixture.log_prob(examples, labels.candidates), rtol=1e-5)


def test_labels_depend_on_the_example_alone(shop, codes, trie):
    """Byte for byte, whatever is labelled with it: shards and folds may be cut anywhere."""
    examples = shop.examples("train", 6)
    parts = [ItemLabeller(TransitionTeacher(shop, TransitionSettings()), trie, True)]
    mixture = MixtureLabeller([*parts, ItemLabeller(DistanceTeacher(codes), trie, True)], [0.6, 0.4], codes)
    whole = mixture.label(examples, request(), labeller.no_progress)
    for row in range(0, len(examples), 7):
        alone = mixture.label(examples.take(slice(row, row + 1)), request(), labeller.no_progress)
        for name in ("candidates", "scores", "log_probs", "ranks"):
            assert getattr(alone, name)[0].tobytes() == getattr(whole, name)[row].tobytes()


def test_mixture_by_hand():
    """Two levels of two codewords: A gives the target's first codeword .9, B gives it .1."""
    a = np.log([[[0.9, 0.1], [0.5, 0.5]]])
    b = np.log([[[0.1, 0.9], [1.0, 1e-30]]])
    mixed = np.exp(mix_codewords([a, b], np.log([0.5, 0.5]), np.array([[0, 0]])))
    np.testing.assert_allclose(mixed[0, 0], [0.5, 0.5])
    np.testing.assert_allclose(mixed[0, 1], [0.9 * 0.5 + 0.1, 0.9 * 0.5], rtol=1e-5)


def test_a_teacher_that_leaves_mass_outside_the_codewords(codes):
    """Full-vocabulary log-probabilities: what is lost at one level weighs less at the next."""
    a = np.log([[[0.4, 0.1], [0.5, 0.5]]])  # half of the mass is text
    b = np.log([[[0.4, 0.6], [1.0, 1e-30]]])
    mixed = np.exp(mix_codewords([a, b], np.log([0.5, 0.5]), np.array([[0, 0]])))
    np.testing.assert_allclose(mixed[0], [[0.4, 0.35], [0.75, 0.25]], rtol=1e-5)


def test_mixing_with_an_empty_prefix():
    """A part that gives the target's prefix probability zero has no weight after it, and causes no NaN."""
    with np.errstate(divide="ignore"):
        a = np.log([[[0.0, 1.0], [0.0, 1.0]]])
    b = np.log([[[0.5, 0.5], [0.25, 0.75]]])
    mixed = np.exp(mix_codewords([a, b], np.log([0.5, 0.5]), np.array([[0, 0]])))
    np.testing.assert_allclose(mixed[0], [[0.25, 0.75], [0.25, 0.75]], rtol=1e-6)


def test_folds_see_nothing_of_their_users(shop):
    """Labels of fold i equal those of a data set in which its users' training parts are missing."""
    folds, chosen = 3, TransitionSettings(3, 0.7, 0.6, 3)
    examples, fold = shop.examples("train", 6), assign_folds(np.arange(shop.n_users), 3)
    trie = Trie.build(np.random.default_rng(3).integers(0, SIZE, (N_ITEMS, LEVELS)), SIZE)
    teachers = [TransitionTeacher(shop.without_fold(folds, number), chosen) for number in range(folds)]
    folded = FoldedLabeller([ItemLabeller(teacher, trie, True) for teacher in teachers])
    labels = folded.label(examples, request(), labeller.no_progress)
    assert (labels.candidates[:, 0] == examples.targets).all()
    for number in range(folds):
        rows = np.flatnonzero(fold[examples.users] == number)
        assert len(rows)
        others = [row if fold[user] != number else [] for user, row in enumerate(training(shop))]
        scores = teachers[number].scores(examples.take(rows))
        for place, row in enumerate(rows):
            expected = counting_naive.scores(others, bought(examples.histories[row]), N_ITEMS, chosen)
            np.testing.assert_allclose(scores[place], expected, atol=1e-9)
        alone = ItemLabeller(teachers[number], trie, True).label(examples.take(rows), request(), labeller.no_progress)
        np.testing.assert_array_equal(labels.log_probs[rows], alone.log_probs)
    np.testing.assert_allclose(folded.log_prob(examples, labels.candidates), labels.scores, rtol=1e-5)


@pytest.fixture(scope="module")
def texts():
    return np.random.default_rng(7).normal(size=(N_ITEMS, 5))


def content_naive(texts, history, settings, temperature, target, exclude_bought):
    """softmax(cosine / τ) item by item; an item of the history cannot be recommended, unless it is the target."""
    centred = [vector - texts.mean(0) for vector in texts]
    unit = [vector / np.sqrt((vector**2).sum()) for vector in centred]
    read = history[history != PAD][::-1][: settings.last]
    profile = sum(settings.recency**place * unit[item] for place, item in enumerate(read))
    weights = []
    for item in range(N_ITEMS):
        cosine = profile @ unit[item] / np.sqrt((profile**2).sum())
        hidden = exclude_bought and item in read and item != target
        weights.append(0.0 if hidden else np.exp(cosine / temperature))
    return np.array(weights) / sum(weights)


@pytest.mark.parametrize("exclude_bought", [True, False])
def test_content_as_a_teacher(shop, texts, exclude_bought):
    teacher = ContentTeacher.tune(shop, texts, exclude_bought)
    valid, settings = shop.examples("valid", 20), teacher.content.settings

    def chance(row, temperature):
        where = valid.histories[row], settings, temperature, valid.targets[row], exclude_bought
        return content_naive(texts, *where)[valid.targets[row]]

    likelihood = [sum(np.log(chance(row, value)) for row in range(len(valid))) for value in TEMPERATURES]
    assert teacher.temperature == TEMPERATURES[int(np.argmax(likelihood))]
    examples = shop.examples("train", 20)
    found = teacher.probabilities(examples, exclude_bought)
    for row, (history, target) in enumerate(zip(examples.histories, examples.targets, strict=True)):
        expected = content_naive(texts, history, settings, teacher.temperature, target, exclude_bought)
        np.testing.assert_allclose(found[row], expected, atol=1e-6)
    assert teacher.facts() == {
        "teacher": "content", "temperature": teacher.temperature, "recency": settings.recency, "last": settings.last
    }  # fmt: skip


class Recorded:
    """Stands in for a language model."""

    def __init__(self, trie, fold):
        self.fold, self.inner = fold, ItemLabeller(random_teacher(5), trie, True)
        self.label, self.log_prob, self.facts = self.inner.label, self.inner.log_prob, self.inner.facts


@pytest.mark.parametrize("folds", [0, 2])
@pytest.mark.parametrize("mix", [{"statistics": 1.0}, {"llm": 7.0, "transitions": 2.0, "content": 1.0}])
def test_made_from_a_config(shop, codes, trie, texts, mix, folds):
    ids = SemanticIDs(None, [], codes, SIZE)
    asked = []

    def llm(fold):
        asked.append(fold)
        return Recorded(trie, fold)

    made = build.build_labeller(mix, folds, shop, ids, True, llm, texts=texts if "content" in mix else None)
    assert asked == ([] if "llm" not in mix else [0, 1] if folds else [None])
    examples = shop.examples("train", 6)
    found = made.label(examples, request(), labeller.no_progress)
    fold = assign_folds(examples.users, folds) if folds else np.zeros(len(examples), int)
    tuned = TransitionTeacher.tune(shop, True)
    for number in range(max(folds, 1)):
        data = shop.without_fold(folds, number) if folds else shop
        teachers = {
            "llm": random_teacher(5), "transitions": tuned.on(data), "statistics": StatisticsTeacher(data),
            "content": ContentTeacher.tune(shop, texts, True),
        }  # fmt: skip
        parts = [ItemLabeller(teachers[name], trie, True) for name in mix]
        rows = np.flatnonzero(fold == number)
        together = MixtureLabeller(parts, list(mix.values()), codes) if len(parts) > 1 else parts[0]
        expected = together.label(examples.take(rows), request(), labeller.no_progress)
        np.testing.assert_allclose(found.log_probs[rows], expected.log_probs, atol=1e-5)
        assert found.candidates[rows].tolist() == expected.candidates.tolist()
    said = made.facts()
    assert said.get("folds", 0) == folds
    if len(mix) > 1:
        assert [part["weight"] for part in said["parts"]] == [0.7, 0.2, 0.1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"mix": {"transition": 1.0}}, "Did you mean 'transitions'?"),
        ({"mix": {"llm": 1.0, "distance": 0.0}}, "mix.distance is 0.0"),
        ({"mix": {"llm": float("nan")}}, "mix.llm is nan"),
        ({"mix": {}}, "expected a teacher or more"),
        ({"folds": 1}, "--folds 1"),
        ({"embeddings": Path("x")}, "--mix content=1"),
        ({"folds": 2, "engine": "vllm"}, "vLLM holds one"),
    ],
)
def test_a_wrong_mix_is_refused(more, said):
    with pytest.raises(UserError) as error:
        check(Config(**more))
    assert said in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--mix", "llm=0.7, transitions=0.3"],
        ["--mix=llm=0.7,transitions=0.3"],
        ["--mix.llm", "0.7", "--mix.transitions", "0.3"],
    ],
)
def test_a_mix_on_the_command_line(words):
    config = parse(Config, None, [*words, "--width", "7"])
    assert config.mix == {"llm": 0.7, "transitions": 0.3} and config.width == 7


def test_labels_without_a_language_model(shop, codes, texts, tmp_path):
    """The whole entry: no teacher artifact, labels of counts and texts by folds, read back."""
    with ArtifactJob("semantic_ids", Nothing(), tmp_path / "semantic_ids").write() as folder:
        write_codes(folder, [f"i{number}" for number in range(N_ITEMS)], codes)
        write_json(folder / "report.json", {"codebook_size": SIZE})
    with ArtifactJob("embeddings", Nothing(), tmp_path / "embeddings").write() as folder:
        embeddings.write(folder, texts, [f"i{number}" for number in range(N_ITEMS)])
    mix = {"transitions": 0.7, "statistics": 0.2, "content": 0.1}
    config = Config(
        run=tmp_path, dataset=shop.artifact.folder, mix=mix, folds=2, shard_rows=20, width=6, keep=5, encoding="fp16"
    )
    export.main(config)
    store = LabelStore.open(tmp_path / "soft_labels")
    labels, examples = store.load(), shop.examples("train")
    keys = list(zip(labels.users, labels.positions, strict=True))
    rows = np.array([keys.index(key) for key in zip(examples.users, examples.positions, strict=True)])
    exclude_bought = shop.resolve_exclude_bought(None)
    ids = SemanticIDs.load(tmp_path / "semantic_ids")
    vectors = texts.astype(np.float32)
    expected = build.build_labeller(mix, 2, shop, ids, exclude_bought, None, texts=vectors).label(
        examples, LabelRequest(6, 5, exclude_bought), labeller.no_progress
    )
    assert labels.candidates(rows).tolist() == expected.candidates.tolist()
    np.testing.assert_array_equal(labels.log_probs(rows), expected.log_probs.astype(np.float16))
    assert store.index["labeller"]["folds"] == 2 and store.index["mix"] == mix
    made_from = artifacts.read(tmp_path / "embeddings", "embeddings").fingerprint
    assert store.artifact.inputs[f"embeddings/content-{made_from[:8]}"] == made_from
    assert made_from in store.index["teacher"]


def test_teachers_of_the_folds(tmp_path):
    """A fold without its teacher, or with one that was tuned on other folds, is refused; the hint names the run."""
    settings = TeacherSettings(folds=2)

    def write_teacher(fold, folds, tuned_fold, name="teacher"):
        config = dataclasses.make_dataclass("Tuned", [("folds", int), ("fold", int)])(folds, tuned_fold)
        with ArtifactJob("teacher", config, tmp_path / f"{name}-fold{fold}", overwrite=True).write() as folder:
            (folder / "weights").write_text(f"{folds} {tuned_fold}")

    write_teacher(0, 2, 0)
    with pytest.raises(UserError, match=rf"No teacher for fold 1 .* --run {tmp_path} --folds 2 --fold 1$"):
        read_teachers(tmp_path / "teacher", settings)
    write_teacher(1, 3, 1)
    with pytest.raises(UserError, match=rf"trained with --folds 3 --fold 1\. .* --run {tmp_path} --folds 2 --fold 1$"):
        read_teachers(tmp_path / "teacher", settings)
    write_teacher(0, 2, 1, name="small")
    with pytest.raises(UserError, match=rf"--run {tmp_path} --folds 2 --fold 0 --output {tmp_path}/small-fold0$"):
        read_teachers(tmp_path / "small", settings)
    write_teacher(1, 2, 1)
    teachers = read_teachers(tmp_path / "teacher", settings)
    assert [teacher.folder.name for teacher in teachers] == ["teacher-fold0", "teacher-fold1"]
    # two teachers of one set agree
    ArtifactJob("soft_labels", Config(run=tmp_path, folds=2), tmp_path / "soft_labels", teachers)
    assert read_teachers(tmp_path / "teacher", TeacherSettings(mix={"distance": 1.0})) == []
