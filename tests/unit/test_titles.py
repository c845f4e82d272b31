"""Teachers that write titles (BIGRec) or textual IDs: samples by hand, rankings against plain forward passes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from test_resume import CONFIG, run
from test_tasks import TITLES, make_shop, task_data, words

from distill.data.dataset import PAD
from distill.metrics import hit_ranks, ndcg
from distill.runtime.errors import UserError
from teacher import templates, title_validation
from teacher.base_model import from_scratch
from teacher.config import TitleSettings, ValidationSettings, check
from teacher.engines.hf import HFEngine
from teacher.systems import TitleSystem
from teacher.textual_id_ranker import TextualIDRanker
from teacher.title_ranker import Grounding, TitleRanker, ground, title_log_probs

SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "initializer_range": 0.4,
}  # fmt: skip
HISTORIES = np.array([[0, 1, 2], [4, PAD, PAD], [5, 0, PAD]])
SHORT = TitleSettings(title_tokens=8, title_beams=2)
IDS = replace(SHORT, textual_ids=1)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"), users=12)


@pytest.fixture(scope="module")
def odd_shop(shop):
    """The first two items have one title, the fourth a description alone, the last no text."""
    dataset, ids = shop
    texts = dict.fromkeys(("brand", "categories"), [""] * 6)
    texts |= {"title": ["Red tent", "Red tent", "Oil lamp", "", "Copper kettle", ""]}
    texts |= {"description": ["", "", "", "Burns long.", "", ""]}
    items = dataset.items
    for name, column in texts.items():
        items = items.set_column(items.column_names.index(name), name, [column])
    return replace(dataset, items=items), ids


def engine_of(shop, settings=SHORT):
    data = task_data(shop, title_settings=settings)
    torch.manual_seed(3)
    return HFEngine(from_scratch(data.tokenizer, SIZES, 512).eval(), data, "titles")


def plain_states(engine, tokens):
    return engine.model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0]


def test_samples(shop):
    data = task_data(shop)
    samples = data.epoch({"titles": 1.0}, 0, 0)
    assert len(samples) == len(data.questions.examples) == data.sizes()["titles"]
    for sample, history, target in zip(
        samples, data.questions.examples.histories, data.questions.examples.targets, strict=True
    ):
        prompt, response = words(data, sample)
        titles = "; ".join(TITLES[item] for item in history if item != PAD)
        assert prompt in {template.format(history=titles) for template in templates.TITLES}
        assert response == TITLES[target] + "</s>"
    prompt = data.tokenizer.decode(data.titles_prompt(HISTORIES[0]))
    assert prompt == "<s>" + templates.TITLES[0].format(history="Red tent XL; Blue tent XL; Oil lamp")


def test_items_without_titles(odd_shop):
    """An item has the rest of its text; without any it is in no history, and no example asks for it."""
    data = task_data(odd_shop)
    assert data.questions.item_titles.texts == ["Red tent", "Red tent", "Oil lamp", "Burns long.", "Copper kettle", ""]
    assert data.questions.item_titles.history_text(np.array([3, 5, 0, PAD])) == "Burns long.; Red tent"
    assert data.questions.examples.targets.tolist() == [1, 2, 5] * 4
    responses = [words(data, sample)[1] for sample in data.epoch({"titles": 1.0}, 0, 0)]
    assert responses == ["Red tent</s>", "Oil lamp</s>"] * 4


def test_titles_are_cut(shop):
    data = task_data(shop, title_settings=TitleSettings(title_tokens=2))
    first = data.encode([TITLES[3]])[0][:2]
    assert data.questions.item_titles.texts[3] == data.tokenizer.decode(first).strip() != TITLES[3]


def test_textual_ids_stand_for_titles(shop):
    data = task_data(shop, title_settings=IDS)
    assert data.questions.item_titles.texts == ["red", "blue", "oil", "gas", "long", "copper"]
    prompt, response = words(data, data.epoch({"titles": 1.0}, 0, 0)[0])
    assert (
        response == data.questions.item_titles.texts[data.questions.examples.targets[0]] + "</s>" and "; " not in prompt
    )


def test_ground_by_hand():
    """Distances 1, 3, 2 become 0, 1, .5; with γ 2 and popularity .5 the last is .5 / 2.25. The fourth has no title."""
    distances = np.array([[1.0, 3.0, 2.0, 0.0]])
    has_title, popularity = np.array([True, True, True, False]), np.array([0, 1, 0.5, 1])
    assert ground(distances, has_title, popularity, 0).tolist() == [[0, -1, -0.5, -np.inf]]
    expected = [0, -1 / 4, -0.5 / 2.25, -np.inf]
    np.testing.assert_allclose(ground(distances, has_title, popularity, 2)[0], expected, atol=1e-12)
    same = ground(np.array([[2.0, 2.0]]), np.array([True, True]), np.zeros(2), 1)
    assert same.tolist() == [[0, 0]]  # nothing is nearer


def test_candidates():
    assert Grounding.candidates(replace(SHORT, title_pooling="mean", popularity_weight=0.3)) == [Grounding("mean", 0.3)]
    free = Grounding.candidates(SHORT)
    assert free[0] == Grounding("last", 0.0) and len(set(free)) == 22


@pytest.mark.parametrize("pooling", ["last", "mean"])
@torch.no_grad()
def test_items_are_ranked_by_nearness(odd_shop, pooling):
    """Against one forward pass a title, without padding."""
    engine = engine_of(odd_shop)
    ranker = TitleRanker(engine, [Grounding(pooling)])
    written = ["Oil lamp", "a new thing", ""]

    def embed(title):
        states = plain_states(engine, [engine.data.tokenizer.bos_token_id, *engine.data.encode([title])[0]])
        return states[-1] if pooling == "last" else states[min(1, len(states) - 1) :].mean(0)

    items = engine.data.questions.item_titles.texts
    scores = ranker.score(written, ranker.candidates)[0]
    for row, title in enumerate(written):
        distances = np.array([torch.linalg.vector_norm(embed(title) - embed(item)) for item in items])
        known = distances[:5]
        scaled = (distances - known.min()) / (known.max() - known.min())
        np.testing.assert_allclose(scores[row, :5], -scaled[:5], atol=1e-4)
    assert (scores[:, 5] == -np.inf).all()
    assert scores[0].argmax() == 2 and (scores[:, 0] == scores[:, 1]).all()


def test_rank(odd_shop, monkeypatch):
    """Items of one title follow each other by number; bought ones and the one without a text are left out."""
    ranker = TitleRanker(engine_of(odd_shop), [Grounding()])
    monkeypatch.setattr(ranker, "write", lambda histories: ["Red tent"] * len(histories))
    history = np.array([[2, 4, PAD]])
    items, scores = ranker.rank(history, 6, exclude_bought=True)
    assert items[0].tolist() == [0, 1, 3, PAD, PAD, PAD] and scores[0, 3:].tolist() == [-np.inf] * 3
    items, _ = ranker.rank(history, 6, exclude_bought=False)
    assert items[0, :2].tolist() == [0, 1] and sorted(items[0].tolist()) == [PAD, 0, 1, 2, 3, 4]
    exact = ranker.score_all(history)
    np.testing.assert_array_equal(
        ranker.score_candidates(history, np.array([[4, PAD, 5]])), [[exact[0, 4], -np.inf, -np.inf]]
    )


def test_popularity(shop):
    """Counts of the training part, scaled to [0, 1]."""
    ranker = TitleRanker(engine_of(shop), [Grounding()])
    # four users each bought 0 1 2, 4 5 and 2 before their last two items
    assert ranker.popularity.tolist() == [1 / 2, 1 / 2, 1, 0, 1 / 2, 1 / 2]


def test_written_titles_do_not_depend_on_the_batch(shop):
    ranker = TitleRanker(engine_of(shop), [Grounding()])
    together = ranker.write(HISTORIES)
    assert together == [ranker.write(HISTORIES[[row]])[0] for row in range(3)]
    assert together == TitleRanker(ranker.engine, [Grounding()], stop_early=False).write(HISTORIES)


@torch.no_grad()
def plain_log_probs(engine, history, item):
    """log p of each token of an item's text and EOS, from one forward pass over prompt and response."""
    data = engine.data
    prompt = data.titles_prompt(history)
    response = [*data.encode([data.questions.item_titles.texts[item]])[0], data.tokenizer.eos_token_id]
    logits = engine.model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
    return [logits[len(prompt) - 1 + place, token].item() for place, token in enumerate(response)]


def test_log_probs_of_titles(shop):
    engine = engine_of(shop)
    targets = np.array([3, 5, 1])
    expected = [np.mean(plain_log_probs(engine, *pair)) for pair in zip(HISTORIES, targets, strict=True)]
    np.testing.assert_allclose(title_log_probs(engine, HISTORIES, targets), expected, atol=1e-5)


@pytest.mark.parametrize("exclude_bought", [True, False])
def test_textual_ids_are_ranked_by_their_probability(odd_shop, exclude_bought):
    """With beams for every item the search is exact; "red" is the beginning of "red tent". The last item has no ID."""
    engine = engine_of(odd_shop, IDS)
    assert engine.data.questions.item_titles.texts == ["red", "red tent", "oil", "burns", "copper", ""]
    ranker = TextualIDRanker(engine)
    items, scores = ranker.rank(HISTORIES, 20, exclude_bought)
    for row, history in enumerate(HISTORIES):
        log_probs = {item: sum(plain_log_probs(engine, history, item)) for item in range(5)}
        wanted = [item for item in log_probs if not (exclude_bought and item in history)]
        wanted.sort(key=lambda item: -log_probs[item])
        assert items[row, : len(wanted)].tolist() == wanted and (items[row, len(wanted) :] == PAD).all()
        np.testing.assert_allclose(scores[row, : len(wanted)], [log_probs[item] for item in wanted], atol=1e-4)
    exact = ranker.score_all(HISTORIES)
    expected = [sum(plain_log_probs(engine, history, 1)) for history in HISTORIES]
    np.testing.assert_allclose(exact[:, 1], expected, atol=1e-4)
    assert (exact[:, 5] == -np.inf).all()


def test_validation_chooses_the_grounding(shop, monkeypatch):
    """Of two groundings the second finds every target, so it is kept with its figures."""
    engine, dataset = engine_of(shop), shop[0]
    examples = dataset.examples("valid", 4)
    chosen = [Grounding("last", 0.0), Grounding("mean", 2.0)]

    class Ranker:
        candidates = chosen

        def candidate_lists(self, histories, width, exclude_bought):
            assert width == 10 and not exclude_bought
            known = {
                tuple(row[row != PAD]): target for row, target in zip(examples.histories, examples.targets, strict=True)
            }
            targets = np.array([known[tuple(row[row != PAD])] for row in histories])
            return [np.stack([(targets + 1) % 6, targets], 1), targets[:, None]]

    monkeypatch.setattr(title_validation, "title_ranker", lambda *_, **__: Ranker())
    settings = ValidationSettings(valid_users=7, exclude_bought=False)
    figures, grounding = title_validation.validate_titles(Accelerator(cpu=True), engine, dataset, settings)
    assert grounding == {"title_pooling": "mean", "popularity_weight": 2.0}
    rows = np.random.default_rng(0).permutation(len(examples))[:7]
    loss = -title_log_probs(engine, examples.histories[rows], examples.targets[rows]).mean()
    assert figures == {"valid_loss": pytest.approx(loss), "valid_ndcg@10": 1.0, "valid_recall@10": 1.0}


TITLE_TASK = {"tasks": {"titles": 1.0}, "prompt": "titles", "title_tokens": 8, "title_beams": 2, "epochs": 2}


@pytest.mark.parametrize("textual_ids", [0, 1])
def test_a_trained_teacher_ranks_as_it_was_validated(shop, tmp_path, textual_ids):
    dataset, ids = shop
    root = dataset.artifact.folder.parent
    artifact = run(root, tmp_path / "bigrec", **TITLE_TASK, textual_ids=textual_ids)
    facts = json.loads((artifact.folder / "teacher.json").read_text())
    system = TitleSystem(artifact, dataset, ids, "cpu")
    assert system.name == "bigrec" and system.kind == "ranker" and system.parameters > 1000
    if not textual_ids:
        assert system.ranker.candidates == [Grounding(facts["title_pooling"], facts["popularity_weight"])]
    examples = dataset.examples("valid", CONFIG.max_history)
    examples = examples.take(np.random.default_rng(0).permutation(len(examples))[: CONFIG.valid_users])
    lists, _ = system.rank(examples.histories, 10, dataset.resolve_exclude_bought(None), True)
    assert ndcg(hit_ranks(lists, examples.targets), 10).mean() == pytest.approx(facts["valid_ndcg@10"])
    with pytest.raises(UserError, match="is asked for titles, but IDs are needed here"):
        HFEngine.load(artifact.folder, dataset, ids)


def test_a_teacher_of_ids_writes_no_titles(shop, tmp_path):
    dataset, ids = shop
    artifact = run(dataset.artifact.folder.parent, tmp_path / "teacher", tasks={"stream": 1.0}, epochs=1)
    with pytest.raises(UserError, match=r"is asked for IDs, but titles are needed here; .* --prompt titles"):
        TitleSystem(artifact, dataset, ids, "cpu")


def test_without_texts(tmp_path):
    with pytest.raises(UserError, match="'titles' needs texts"):
        task_data(make_shop(tmp_path, texts=False)).epoch({"titles": 1.0}, 0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "titles", "tasks": {"stream": 1.0}}, "is asked with 'titles' but not tuned on it"),
        ({"textual_ids": 3, "tasks": {"stream": 1.0}}, "give tasks.titles"),
        ({"tasks": {"titles": 1.0}, "prompt": "titles", "folds": 3}, "labels nobody"),
        (
            {"tasks": {"titles": 1.0}, "prompt": "titles", "max_tokens": 64},
            "--max_tokens is 64: no room for a history beside a title of 32",
        ),
    ],
)
def test_options_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        check(replace(CONFIG, **changes))
