"""The baselines `content` and `counter+content` against plain loops and by hand."""

import numpy as np
import pytest
from reference import content_naive as naive
from reference import counting_naive
from unit.test_counting import make

from distill.baselines import content, item_scorer, mixture
from distill.baselines.content import Content, ContentSettings
from distill.baselines.counting import Transitions, TransitionSettings
from distill.baselines.item_scorer import SCORES_AT_ONCE, recommend, users_at_once
from distill.baselines.mixture import CounterContent, CounterContentSettings

N_ITEMS = 12
COUNTING = TransitionSettings(3, 0.7, 0.6, 5)


@pytest.fixture
def shop(tmp_path):
    rng = np.random.default_rng(0)
    data = make(tmp_path, [rng.integers(0, N_ITEMS, rng.integers(3, 9)) for _ in range(25)])
    return data, rng.normal(1, 2, (N_ITEMS, 4)).astype(np.float32)


def bought_of(history):
    return [int(item) for item in history if item >= 0]


def test_content_by_hand():
    # centred: (1, 0), (-1, 0), (0, 2), (0, -2); of length 1: (1, 0), (-1, 0), (0, 1), (0, -1)
    model = Content(np.array([[4.0, 1], [2, 1], [3, 3], [3, -1]]), ContentSettings(recency=0.5, last=2))
    # the third last item is not read; profile = (0, 1) + .5 (1, 0), of length sqrt(1.25)
    result = model.cosines(np.array([[1, 0, 2], [3, -1, -1]]))
    expected = [[0.5 / 1.25**0.5, -0.5 / 1.25**0.5, 1 / 1.25**0.5, -1 / 1.25**0.5], [0, 0, -1, 1]]
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("settings", [ContentSettings(0.6, 20), ContentSettings(0.9, 2), ContentSettings(1.0, 1)])
def test_content_against_the_definition(shop, settings):
    data, vectors = shop
    histories = data.examples("test").histories
    result = Content(vectors, settings).cosines(histories)
    for row, history in enumerate(histories):
        expected = naive.cosines(vectors.tolist(), bought_of(history), settings.recency, settings.last)
        np.testing.assert_allclose(result[row], expected, atol=1e-5)
    np.testing.assert_allclose(Content(vectors, settings).scores(histories), 1 + result)


@pytest.mark.parametrize("exclude_bought", [True, False])
@pytest.mark.parametrize("settings", [CounterContentSettings(0.3, 0.08), CounterContentSettings(0.7, 0.5)])
def test_mixture_against_the_definition(shop, settings, exclude_bought):
    data, vectors = shop
    training = [data.sequence(user)[:-2].tolist() for user in range(data.n_users)]
    model = CounterContent(Transitions(data, COUNTING), Content(vectors), settings, exclude_bought)
    examples = data.examples("test")
    result = model.scores(examples.histories)
    lists = recommend(model, examples, 5, exclude_bought)
    for row, history in enumerate(examples.histories):
        bought = bought_of(history)
        counted = counting_naive.scores(training, bought, N_ITEMS, COUNTING)
        cosines = naive.cosines(vectors.tolist(), bought, 0.6, 20)
        left_out = bought if exclude_bought else []
        expected = naive.mixture(counted, cosines, settings.weight, settings.temperature, left_out)
        np.testing.assert_allclose(result[row], expected, rtol=1e-4, atol=1e-12)
        assert lists[row].tolist() == counting_naive.top(result[row].tolist(), 5, left_out)


@pytest.mark.parametrize("exclude_bought", [True, False])
def test_tuning_takes_the_best_by_validation(shop, exclude_bought):
    data, vectors = shop
    examples = data.examples("valid")

    def value(model):
        lists = recommend(model, examples, 10, exclude_bought).tolist()
        gains = [counting_naive.gain(row, target, 10) for row, target in zip(lists, examples.targets, strict=True)]
        return np.mean(gains)

    tuned = Content.tune(data, vectors, exclude_bought)
    values = {settings: value(Content(vectors, settings)) for settings in content.GRID}
    assert values[tuned.settings] == max(values.values()) > min(values.values())
    transitions = Transitions(data, COUNTING)
    best = CounterContent.tune(data, transitions, tuned, exclude_bought)
    choices = [
        CounterContentSettings(weight, temperature)
        for weight in mixture.WEIGHTS
        for temperature in mixture.TEMPERATURES
    ]
    values = {choice: value(CounterContent(transitions, tuned, choice, exclude_bought)) for choice in choices}
    assert values[best.settings] == pytest.approx(max(values.values())) and max(values.values()) > min(values.values())


@pytest.mark.parametrize("exclude_bought", [True, False])
def test_lists_in_large_catalogues_are_those_of_all_scores(shop, monkeypatch, exclude_bought):
    data, vectors = shop
    model, examples = Content(vectors), data.examples("test")
    small = model.recommend(examples, 7, exclude_bought)
    np.testing.assert_array_equal(small, recommend(model, examples, 7, exclude_bought))
    qualities = [model.with_settings(settings).quality(examples, exclude_bought) for settings in content.GRID]
    assert len(set(qualities)) > 1
    monkeypatch.setattr(content, "LARGE", 1)
    monkeypatch.setattr(content, "CHUNK", 4)
    np.testing.assert_array_equal(model.recommend(examples, 7, exclude_bought), small)
    monkeypatch.setattr(Content, "scores", None)  # settings are chosen without the scores of all items too
    others = [model.with_settings(settings).quality(examples, exclude_bought) for settings in content.GRID]
    assert others == pytest.approx(qualities)


def test_fewer_users_are_scored_at_once_in_large_catalogues(shop, monkeypatch):
    assert [users_at_once(n_items) for n_items in (10, 131_072, 10**6, 10**9)] == [1024, 1024, 134, 1]
    assert SCORES_AT_ONCE >= 134 * 10**6
    data, vectors = shop
    counter = Transitions(data, COUNTING)
    models = [counter, Content(vectors), CounterContent(counter, Content(vectors), CounterContentSettings(), True)]
    examples = data.examples("test")
    whole = [recommend(model, examples, 7).tolist() for model in models]
    monkeypatch.setattr(item_scorer, "SCORES_AT_ONCE", 40)  # of 12 items: three users
    assert [recommend(model, examples, 7).tolist() for model in models] == whole


def test_content_finds_items_that_were_never_sold(tmp_path):
    """Item 5 is in no training sequence, so that counting gives it nothing; its text is like item 0's."""
    data = make(tmp_path, [[0, 1, 5, 5], [1, 2, 3, 4], [2, 3, 4, 1]], n_items=6)
    vectors = np.eye(6)
    vectors[5] = [0.9, 0, 0, 0, 0, 0.1]
    histories = np.array([[0]])
    counter = Transitions(data, TransitionSettings())
    assert counter.scores(histories)[0, 5] == 0
    model = CounterContent(counter, Content(vectors), CounterContentSettings(0.3, 0.08), exclude_bought=True)
    assert model.scores(histories)[0, 5] > 0.25  # nearly all of the content's weight
