"""The server's routes over ASGI: lists equal the student's, mistakes are JSON, nothing acknowledged is lost."""

import asyncio
import contextlib
import json
import time

import httpx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from student_shop import ITEMS, Nothing, make_shop
from unit.test_recommender import N_ITEMS, shop
from unit.test_restriction import item_model, with_memories
from unit.test_setrec import model_of as setrec

from distill.baselines.counting import TransitionSettings, count_transitions
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from student.item_recommender import ItemRecommender
from student.serving import served_student as loading
from student.serving.app import ServerLimits, create_app
from student.serving.batcher import Batcher
from student.serving.catalogue import Catalogue
from student.serving.events import EventStore, GrowingMemory, NewEvent
from student.serving.models import Models
from student.serving.served_student import LoadSettings, ServedStudent
from student.transition_memory import TransitionMemory

IDS = [f"i{number}" for number in range(N_ITEMS)]
CATEGORIES = ["Red, Small" if number % 3 == 0 else "Blue" for number in range(N_ITEMS)]


def served_student(tmp_path, recommender, name="a", dataset="d"):
    catalogue = Catalogue.of(IDS, IDS, CATEGORIES)
    return ServedStudent(name, tmp_path / name, "f", recommender, catalogue, dataset)


@contextlib.asynccontextmanager
async def client(models, batcher=None, limit=None):
    app = create_app(models, batcher, limit)
    inner = app
    while not hasattr(inner, "router"):
        inner = inner.app
    async with inner.router.lifespan_context(inner):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            yield http


def ask(models, *requests, **options):
    """Send (path, body) one after the other, and return the responses."""

    async def session():
        async with client(models, **options) as http:
            return [await (http.get(path) if body is None else http.post(path, json=body)) for path, body in requests]

    return asyncio.run(session())


@pytest.mark.parametrize("make", [shop, lambda: with_memories(shop()), item_model])
def test_lists_are_the_students(make, tmp_path):
    recommender = make()
    models = Models([served_student(tmp_path, recommender)], None)
    (response,) = ask(models, ("/v1/recommend", {"histories": [["i1", "i2"], ["i5"]], "k": 4}))
    assert response.status_code == 200, response.text
    for history, listed in zip(([1, 2], [5]), response.json()["lists"], strict=True):
        items, scores = recommender.rank_items(np.array([history]), 20, True)
        assert [item["item_id"] for item in listed] == [f"i{number}" for number in items[0, :4]]
        np.testing.assert_allclose([item["score"] for item in listed], scores[0, :4], rtol=1e-4)


def test_filters_leave_full_lists_of_allowed_items(tmp_path):
    models = Models([served_student(tmp_path, with_memories(shop()))], None)
    body = {"histories": [["i1"]], "k": 10}
    red, both, none, unknown = ask(
        models,
        ("/v1/recommend", body | {"filter": {"categories": ["Red"]}}),
        ("/v1/recommend", body | {"filter": {"categories": ["Red"], "items": ["i3", "i4", "i6"]}}),
        ("/v1/recommend", body | {"filter": {"categories": ["Red"], "items": ["i4"]}}),
        ("/v1/recommend", body | {"filter": {"categories": ["Green"]}}),
    )
    listed = {item["item_id"] for item in red.json()["lists"][0]}
    assert listed == {f"i{number}" for number in range(0, N_ITEMS, 3)}  # all ten
    assert {item["item_id"] for item in both.json()["lists"][0]} == {"i3", "i6"}
    assert none.status_code == unknown.status_code == 422
    assert "Blue, Red, Small" in unknown.json()["error"]


def test_shares_sum_to_one_and_similar_leaves_the_item_out(tmp_path):
    models = Models([served_student(tmp_path, with_memories(shop()))], None)
    explained, similar = ask(
        models, ("/v1/explain", {"histories": [["i1", "i2"]]}), ("/v1/similar", {"item": "i3", "k": 29})
    )
    for item in explained.json()["lists"][0]:
        assert item["shares"].keys() == {"model", "counter", "content"}
        assert sum(item["shares"].values()) == pytest.approx(1)
    assert similar.json()["by"] == "content"
    assert {item["item_id"] for item in similar.json()["items"]} == set(IDS) - {"i3"}


@pytest.mark.parametrize("make", [shop, lambda: with_memories(shop()), item_model])
def test_a_list_without_items_is_explained(make, tmp_path):
    models = Models([served_student(tmp_path, make())], None)
    body = {"histories": [["i1"]], "exclude_bought": True, "filter": {"items": ["i1"]}}
    for response in ask(models, ("/v1/recommend", body), ("/v1/explain", body)):
        assert (response.status_code, response.json()["lists"]) == (200, [[]])


def test_a_setrec_is_served_from_its_folder(tmp_path):
    make_shop(tmp_path, [4, 4])
    network, data = setrec("causal", n_items=ITEMS, beta=0.8), artifacts.read(tmp_path / "dataset", "dataset")
    with ArtifactJob("baseline", Nothing(), tmp_path / "baselines/setrec", [data]).write() as folder:
        ItemRecommender(network, {"network": "setrec", "exclude_bought": True}).save_pretrained(folder)
    student = ServedStudent.load(tmp_path / "baselines/setrec", LoadSettings())
    assert student.dataset == data.fingerprint
    ranked, similar, explained = ask(
        Models([student], None),
        ("/v1/recommend", {"histories": [["i1"]], "filter": {"items": ["i2", "i5"]}}),
        ("/v1/similar", {"item": "i3", "k": 5}),
        ("/v1/explain", {"histories": [["i1"]], "k": 3}),
    )
    assert {item["item_id"] for item in ranked.json()["lists"][0]} == {"i2", "i5"}
    tokens = network.catalogue()
    vectors = torch.cat([weight**0.5 * tokens[:, k] for k, weight in enumerate((0.2, 0.8, 0.8))], dim=1)  # β is 0.8
    cosines = torch.nn.functional.cosine_similarity(vectors, vectors[3:4])
    expected = [f"i{item}" for item in cosines.argsort(descending=True).tolist() if item != 3]
    assert [item["item_id"] for item in similar.json()["items"]] == expected[:5]
    assert explained.json()["beams"] is None and len(explained.json()["lists"][0]) == 3


def test_students_are_loaded_with_graphs_where_they_have_any(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loading, "with_graphs", lambda *args: asked.append(args[1:]) or args[0])
    with ArtifactJob("student", Nothing(), tmp_path / "a").write() as folder:
        shop().save_pretrained(folder)
    settings = LoadSettings(graph_format="onnx", graph_cache=tmp_path / "graphs")
    models = Models([ServedStudent.load(tmp_path / "a", settings)], None, settings)
    assert asked == [("onnx", tmp_path / "graphs")]
    models.reload(None)
    assert asked == [("onnx", tmp_path / "graphs")] * 2
    ServedStudent.load(tmp_path / "a", LoadSettings())
    monkeypatch.setattr(loading, "EXPORTED", ())
    ServedStudent.load(tmp_path / "a", settings)
    assert len(asked) == 2


def test_concurrent_requests_share_batches_and_get_the_same_lists(tmp_path):
    models, batcher = Models([served_student(tmp_path, shop())], None), Batcher(0.05)
    bodies = [{"histories": [[f"i{number}"] * (1 + number % 3)], "k": 3 + number % 2} for number in range(16)]

    async def session():
        async with client(models, batcher) as http:
            together = await asyncio.gather(*(http.post("/v1/recommend", json=body) for body in bodies))
            batches = batcher.batches
            alone = [await http.post("/v1/recommend", json=body) for body in bodies[:4]]
            return together, batches, alone

    together, batches, alone = asyncio.run(session())
    assert batches < 8
    for first, second in zip(together[:4], alone, strict=True):
        ids = [[item["item_id"] for item in answer.json()["lists"][0]] for answer in (first, second)]
        assert ids[0] == ids[1]


def test_a_full_queue_is_429_and_a_late_list_504(tmp_path):
    recommender = shop()
    rank = recommender.rank_items
    recommender.rank_items = lambda *arguments: (time.sleep(0.3), rank(*arguments))[1]
    models, body = Models([served_student(tmp_path, recommender)], None), {"histories": [["i1"]]}

    async def session():
        async with client(models, Batcher(0, 1, max_waiting=1), ServerLimits(timeout=0.1)) as http:
            return await asyncio.gather(*(http.post("/v1/recommend", json=body) for _ in range(4)))

    responses = asyncio.run(session())
    assert {response.status_code for response in responses} == {429, 504}
    refused = next(response for response in responses if response.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert "error" in refused.json()


def test_key_and_body_limits(tmp_path):
    models, limit = Models([served_student(tmp_path, shop())], None), ServerLimits(api_key="secret", max_body=200)

    async def session():
        async with client(models, limit=limit) as http:
            key, body = {"authorization": "Bearer secret"}, {"histories": [["i1"]]}
            return [
                (await http.post("/v1/recommend", json=body)).status_code,
                (await http.post("/v1/recommend", json=body, headers={"authorization": "Bearer secre"})).status_code,
                (await http.post("/v1/recommend", json=body, headers=key)).status_code,
                (await http.post("/v1/recommend", content=b" " * 201, headers=key)).status_code,
                (await http.get("/metrics")).status_code,
                (await http.get("/healthz")).status_code,
            ]

    assert asyncio.run(session()) == [401, 401, 200, 413, 401, 200]


def counted(sequences, settings_):
    offsets = np.cumsum([0, *map(len, sequences)])
    return count_transitions(np.concatenate(sequences), offsets, N_ITEMS, settings_.window, settings_.decay)


def test_events_in_any_steps_are_counted_as_at_once(tmp_path):
    store, rule = EventStore(tmp_path / "events.sqlite"), TransitionSettings(window=3, decay=0.5)
    empty = TransitionMemory(counted([np.zeros(0, int)], rule), rule)
    growing, numbers = GrowingMemory(empty, {item: number for number, item in enumerate(IDS)}), {"a": [], "b": []}
    rng = np.random.default_rng(0)
    for size in (1, 5, 2, 9):
        events = [(rng.choice(["a", "b"]), int(rng.integers(N_ITEMS))) for _ in range(size)]
        for user, item in events:
            numbers[user].append(item)
        store.append([NewEvent(str(user), f"i{item}") for user, item in events])
        growing.read(store)
    expected = counted([np.array(sequence) for sequence in numbers.values()], rule)
    np.testing.assert_allclose(growing.memory.counts.toarray(), expected.toarray(), atol=1e-9)
    again = GrowingMemory(empty, growing._numbers)
    np.testing.assert_allclose(again.read(store).counts.toarray(), expected.toarray(), atol=1e-9)
    store.close()


def test_events_reach_the_lists(tmp_path):
    store = EventStore(tmp_path / "events.sqlite")
    models = Models([served_student(tmp_path, with_memories(shop()))], store)
    before = models.get(None).recommender.transition_memory.counts[1, 17]
    events = [{"user_id": "u", "item_id": item} for item in ("i1", "i17")]
    stored, refused = ask(
        models,
        ("/v1/events", {"events": events}),
        ("/v1/events", {"events": [*events, {"user_id": "u", "item_id": "?"}]}),
    )
    assert stored.json() == {"stored": 2, "repeated": 0, "last_event": 2}
    assert refused.status_code == 422
    assert models.grow() == 2
    assert models.get(None).recommender.transition_memory.counts[1, 17] == pytest.approx(before + 1)
    store.close()


def test_a_student_that_fails_its_check_is_refused_and_the_old_one_goes_on(tmp_path, monkeypatch):
    models = Models([served_student(tmp_path, shop())], None)
    broken, good = shop(seed=3), shop(seed=4)
    broken.model.head.data.fill_(float("nan"))
    recommend, reload = ("/v1/recommend", {"histories": [["i1"]]}), ("/v1/admin/reload", {})
    loaded = iter([served_student(tmp_path, broken), served_student(tmp_path, good)])
    monkeypatch.setattr(ServedStudent, "load", staticmethod(lambda *args: next(loaded)))
    first, refused, second, swapped, third = ask(models, recommend, reload, recommend, reload, recommend)
    assert refused.status_code == 422 and "NaN" in refused.json()["error"]
    assert second.json() == first.json()
    assert swapped.status_code == 200
    assert third.json() != first.json()


def test_an_item_is_in_every_category_on_its_path():
    catalogue = Catalogue.of(["a", "b"], ["", ""], ["Office > Desk Lamp, Sale", "Office > Desk Lamp, Office"])
    rows = {name: numbers.tolist() for name, numbers in catalogue.categories.items()}
    assert rows == {"Office": [0, 1], "Office > Desk Lamp": [0, 1], "Sale": [0]}


def test_two_students_of_one_name_are_refused(tmp_path):
    student = served_student(tmp_path, shop())
    with pytest.raises(UserError, match="same folder name"):
        Models([student, student], None)


def test_a_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "events").write_text("no database, but a text that is longer than its header" * 9)
    with pytest.raises(UserError, match="cannot be used as store"):
        EventStore(tmp_path / "events")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(IDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("histories", "k", "exclude_bought", "filter", "student", "item", "events")
VALUES = JSON | st.just([["i1"]]) | st.just([{"user_id": "\ud800", "item_id": "i1"}]) | st.just({"items": ["i1"]})
PATHS = ("/v1/recommend", "/v1/explain", "/v1/similar", "/v1/events", "/v1/admin/reload")


def test_mistakes_of_http_are_answered_in_json(tmp_path):
    models = Models([served_student(tmp_path, shop())], None)

    async def session():
        async with client(models) as http:
            headers = {"content-type": "application/json"}
            return [
                await http.post("/v1/recommend", content=b"\xff", headers=headers),
                await http.post(
                    "/v1/admin/reload", content=b"{}", headers={"content-type": "text/plain"}
                ),  # a foreign page's
                await http.get("/v1/recommend"),
                await http.get("/v2"),
            ]

    undecodable, text, method, path = asyncio.run(session())
    assert (undecodable.status_code, undecodable.json()) == (422, {"error": "Expected a body of JSON in UTF-8."})
    assert text.status_code == 422
    assert (method.status_code, method.headers["allow"]) == (405, "POST")
    assert (path.status_code, path.json()) == (404, {"error": "Not Found"})


def test_no_malformed_request_is_a_5xx(tmp_path):
    store = EventStore(tmp_path / "events.sqlite")
    models = Models([served_student(tmp_path, with_memories(shop()))], store)
    loop = asyncio.new_event_loop()
    context = client(models)
    http = loop.run_until_complete(context.__aenter__())

    @settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(
        st.sampled_from(PATHS[:4]),
        st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3) | JSON,
        st.binary(max_size=3),
    )
    def send(path, body, tail):
        content = json.dumps(body).encode() + tail
        headers = {"content-type": "application/json"}
        response = loop.run_until_complete(http.post(path, content=content, headers=headers))
        assert response.status_code < 500, (path, content, response.text)
        if response.status_code != 200:
            assert set(response.json()) == {"error"}

    try:
        send()
    finally:
        loop.run_until_complete(context.__aexit__(None, None, None))
        loop.close()
        store.close()
