"""Events are counted once, whatever is sent twice and whichever student is swapped in, and back."""

import sqlite3

import numpy as np
import pytest
from unit.test_recommender import N_ITEMS, shop
from unit.test_serving import IDS, ask, counted, served_student

from distill.baselines.counting import TransitionSettings
from distill.runtime.errors import UserError
from student.serving.events import EventStore, GrowingMemory, NewEvent
from student.serving.models import Models
from student.serving.served_student import ServedStudent
from student.transition_memory import TransitionMemory

RULE = TransitionSettings(window=2, decay=0.5)
NUMBERS = {item: number for number, item in enumerate(IDS)}


def with_counts(sequences, dataset, seed=0):
    """A student whose memory has counted sequences of item numbers, the sequences being those of a data set."""
    memory = TransitionMemory(counted([np.array(row, int) for row in sequences] or [np.zeros(0, int)], RULE), RULE, 0.9)
    return lambda folder: served_student(folder, shop(seed=seed).with_transition_memory(memory), dataset=dataset)


def counts_of(models):
    return models.get(None).recommender.transition_memory.counts.toarray()


def events_of(user, *items, start=None):
    ids = [None] * len(items) if start is None else [f"{user}-{start + place}" for place in range(len(items))]
    return [NewEvent(user, f"i{item}", event_id) for item, event_id in zip(items, ids, strict=True)]


@pytest.fixture
def store(tmp_path):
    store = EventStore(tmp_path / "events.sqlite")
    yield store
    store.close()


def test_an_event_that_is_sent_again_is_acknowledged_and_counted_once(tmp_path, store):
    models = Models([with_counts([], "d")(tmp_path)], store)
    first = [{"user_id": "u", "item_id": f"i{item}", "event_id": f"e{item}"} for item in (1, 17)]
    anonymous = {"user_id": "u", "item_id": "i3"}
    answers = ask(
        models,
        ("/v1/events", {"events": first}),
        ("/v1/events", {"events": first}),
        ("/v1/events", {"events": [first[1], {**anonymous, "event_id": "e3"}, {**anonymous, "event_id": "e3"}]}),
        ("/v1/events", {"events": [anonymous, anonymous]}),
        ("/metrics", None),
    )
    assert [answer.json() for answer in answers[:-1]] == [
        {"stored": 2, "repeated": 0, "last_event": 2},
        {"stored": 0, "repeated": 2, "last_event": 2},
        {"stored": 1, "repeated": 2, "last_event": 3},
        {"stored": 2, "repeated": 0, "last_event": 5},
    ]
    assert "events_total 5.0" in answers[-1].text
    models.grow()
    np.testing.assert_allclose(counts_of(models), counted([np.array([1, 17, 3, 3, 3])], RULE).toarray())


def test_a_store_of_an_earlier_version_is_opened(tmp_path):
    with sqlite3.connect(tmp_path / "old.sqlite") as database:
        database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, user_id TEXT NOT NULL, item_id TEXT NOT NULL)")
        database.execute("INSERT INTO events (user_id, item_id) VALUES ('u', 'i1')")
    database.close()
    store = EventStore(tmp_path / "old.sqlite")
    assert store.append([NewEvent("u", "i2", "e"), NewEvent("u", "i2", "e")]) == (1, 2)
    assert store.after(0) == [(1, "u", "i1"), (2, "u", "i2")]
    store.close()


def test_events_that_a_memory_holds_are_context_of_later_ones(store):
    """As if the data set's part and the later events had been counted at once."""
    store.append(events_of("a", 1, 2, 3) + events_of("b", 4))
    held = TransitionMemory(counted([np.array([1, 2, 3]), np.array([4])], RULE), RULE)
    store.append(events_of("a", 5) + events_of("b", 6, 7))
    growing = GrowingMemory(held, NUMBERS, counted_events=4)
    expected = counted([np.array([1, 2, 3, 5]), np.array([4, 6, 7])], RULE)
    np.testing.assert_allclose(growing.read(store).counts.toarray(), expected.toarray(), atol=1e-12)


def reload_to(monkeypatch, tmp_path, *makers):
    loaded = iter([make(tmp_path) for make in makers])
    monkeypatch.setattr(ServedStudent, "load", staticmethod(lambda *args: next(loaded)))


def test_a_newer_student_counts_only_the_events_that_its_data_set_lacks(tmp_path, store, monkeypatch):
    old, both = with_counts([], "old"), with_counts([[1, 17]], "new", seed=3)
    models = Models([old(tmp_path)], store)
    store.append(events_of("u", 1, 17))
    models.grow()
    reload_to(monkeypatch, tmp_path, both, both, both)
    reload = "/v1/admin/reload"
    silent, beyond, told = ask(models, (reload, {}), (reload, {"counted_events": 3}), (reload, {"counted_events": 2}))
    assert silent.status_code == beyond.status_code == 422
    assert '"counted_events"' in silent.json()["error"] and "2 events" in silent.json()["error"]
    assert "1 to 2" in beyond.json()["error"]
    assert told.status_code == 200
    expected = counted([np.array([1, 17])], RULE).toarray()
    np.testing.assert_allclose(counts_of(models), expected)
    store.append(events_of("u", 5))
    models.grow()
    np.testing.assert_allclose(counts_of(models), counted([np.array([1, 17, 5])], RULE).toarray(), atol=1e-12)
    started_again = Models([both(tmp_path)], store)  # the store knows
    np.testing.assert_allclose(counts_of(started_again), counts_of(models), atol=1e-12)


def test_a_start_with_an_unknown_data_set_asks_what_it_holds(tmp_path, store):
    store.append(events_of("u", 1, 17))
    student = with_counts([[1, 17]], "new")(tmp_path)
    with pytest.raises(UserError, match="--counted_events"):
        Models([student], store)
    told = Models([student], store, counted_events=2)
    np.testing.assert_allclose(counts_of(told), counted([np.array([1, 17])], RULE).toarray())


def test_the_same_data_set_needs_no_telling(tmp_path, store, monkeypatch):
    models = Models([with_counts([], "d")(tmp_path)], store)
    store.append(events_of("u", 1, 17))
    reload_to(monkeypatch, tmp_path, with_counts([], "d", seed=3))
    models.reload(None)
    np.testing.assert_allclose(counts_of(models), counted([np.array([1, 17])], RULE).toarray())


def test_a_swap_is_undone_and_done_again_with_all_events(tmp_path, store, monkeypatch):
    models = Models([with_counts([], "d")(tmp_path)], store)
    reload_to(monkeypatch, tmp_path, with_counts([], "d", seed=3))
    recommend, rollback = ("/v1/recommend", {"histories": [["i1"]]}), ("/v1/admin/rollback", {})
    early, first, _, second = ask(models, rollback, recommend, ("/v1/admin/reload", {}), recommend)
    assert early.status_code == 422 and "No earlier student a" in early.json()["error"]
    assert first.json() != second.json()
    back, third, forth, fourth = ask(models, rollback, recommend, rollback, recommend)
    assert back.json()["student"] == forth.json()["student"] == "a"
    assert (third.json(), fourth.json()) == (first.json(), second.json())
    store.append(events_of("u", 1, 17))
    models.rollback(None)
    expected = counted([np.array([1, 17])], RULE).toarray()
    assert expected.shape == (N_ITEMS, N_ITEMS)
    np.testing.assert_allclose(counts_of(models), expected)
