"""The server's queue: what fits, who waits, what is counted; a filter's trie is built once."""

import asyncio
import threading

import pytest
from unit.test_recommender import shop
from unit.test_restriction import with_memories
from unit.test_serving import ask, client, served_student

from distill.decoding.trie import Trie
from student.serving.app import ServerLimits
from student.serving.batcher import Batcher, Query, Task
from student.serving.events import EventStore, NewEvent
from student.serving.models import Models
from student.serving.served_student import ServedStudent

LIST = ("/v1/recommend", {"histories": [["i1"]]})


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/explain"])
def test_more_histories_than_may_wait_are_a_mistake_not_an_overload(path, tmp_path):
    models = Models([served_student(tmp_path, shop())], None)
    fits, refused = ask(
        models,
        (path, {"histories": [["i1"]] * 3}),
        (path, {"histories": [["i1"]] * 4}),
        batcher=Batcher(max_waiting=3),
    )
    assert fits.status_code == 200
    assert refused.status_code == 422
    assert refused.json()["error"] == "Expected at most 3 histories (--max_waiting), got 4."


def test_an_unexpected_failure_is_counted(tmp_path):
    recommender = shop()
    models = Models([served_student(tmp_path, recommender)], None)
    recommender.rank_items = lambda *arguments: 1 / 0
    failed, metrics = ask(models, LIST, ("/metrics", None))
    assert failed.status_code == 500
    assert failed.json() == {"error": "The server failed; its log has the reason."}
    assert 'requests_total{route="/v1/recommend",status="500"} 1.0' in metrics.text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST.:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("shop.example", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("10.0.0.7", 421),
        ("", 421),
    ],
)
def test_only_the_servers_names_are_answered(host, status, tmp_path):
    models, limit = Models([served_student(tmp_path, shop())], None), ServerLimits(allowed_hosts=("Shop.example:443",))

    async def session():
        async with client(models, limit=limit) as http:
            return await http.get("/v1/students", headers={"host": host})

    response = asyncio.run(session())
    assert response.status_code == status
    if status == 421:
        assert "--allowed_hosts" in response.json()["error"]


@pytest.mark.parametrize(("bound", "status"), [("0.0.0.0", 200), ("10.0.0.7", 200), ("10.0.0.8", 421)])
def test_a_server_of_all_addresses_is_called_by_any_address(bound, status, tmp_path):
    models = Models([served_student(tmp_path, shop())], None)

    async def session():
        async with client(models, limit=ServerLimits(host=bound)) as http:
            answers = [await http.get("/healthz", headers={"host": host}) for host in ("10.0.0.7", "evil.example")]
            return [answer.status_code for answer in answers]

    assert asyncio.run(session()) == [status, 421]


def test_the_trie_of_a_filter_is_built_once(tmp_path, monkeypatch):
    built, restricted = [], Trie.restricted
    monkeypatch.setattr(Trie, "restricted", lambda *args: built.append(1) or restricted(*args))
    models = Models([served_student(tmp_path, with_memories(shop()))], EventStore(tmp_path / "events.sqlite"))
    red, blue = ({"histories": [["i1"]], "filter": {"categories": [name]}} for name in ("Red", "Blue"))
    first, _, again, _ = ask(models, *[("/v1/recommend", body) for body in (red, blue, red)], ("/v1/explain", red))
    assert first.json() == again.json()
    assert len(built) == 2
    models.store.append([NewEvent("u", "i1"), NewEvent("u", "i17")])
    models.grow()  # another student of the same codes
    ask(models, ("/v1/recommend", red))
    assert len(built) == 2
    monkeypatch.setattr(ServedStudent, "load", staticmethod(lambda *args: served_student(tmp_path, shop(seed=3))))
    ask(models, ("/v1/admin/reload", {}), ("/v1/recommend", red))
    assert len(built) == 3


def held_back(recommender):
    """Make a recommender wait, when it is asked for a list, for the event that is returned."""
    release, rank = threading.Event(), recommender.rank_items
    recommender.rank_items = lambda *arguments: release.wait(20) and rank(*arguments)
    return release


@pytest.mark.parametrize("path", ["/v1/explain", "/v1/similar"])
def test_explanations_and_neighbours_wait_in_the_queue(path, tmp_path):
    recommender = shop()
    models = Models([served_student(tmp_path, recommender)], None)
    release, body = held_back(recommender), {"item": "i1"} if path == "/v1/similar" else LIST[1]

    async def session():
        batcher = Batcher(0, 1, max_waiting=1)
        async with client(models, batcher) as http:
            ranked = asyncio.create_task(http.post(LIST[0], json=LIST[1]))
            while not batcher.batches:
                await asyncio.sleep(0.01)
            waiting = [asyncio.create_task(http.post(path, json=body)) for _ in range(2)]
            await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            release.set()
            return [(await answer).status_code for answer in (ranked, *waiting)]

    assert asyncio.run(session()) == [200, 200, 429]


def test_an_explanation_is_the_student_that_was_asked_though_it_is_swapped_meanwhile(tmp_path, monkeypatch):
    old = shop()
    models = Models([served_student(tmp_path, old)], None)
    renamed = served_student(tmp_path, shop(seed=3))
    monkeypatch.setattr(ServedStudent, "load", staticmethod(lambda *args: renamed))
    (before,) = ask(models, ("/v1/explain", LIST[1]))
    rank = old.rank_items
    old.rank_items = lambda *arguments: (models.reload("a"), rank(*arguments))[1]  # while the list is made
    (during,) = ask(models, ("/v1/explain", LIST[1]))
    assert models.get("a").recommender is renamed.recommender
    assert during.json() == before.json()


def run_jobs(batcher, session):
    async def started():
        batcher.start()
        try:
            return await asyncio.wait_for(session(), 20)
        finally:
            await batcher.stop()

    return asyncio.run(started())


def test_an_idle_ranker_does_not_wait_for_others():
    batcher = Batcher(window=3600)

    async def session():
        return [(await batcher.run([Task(lambda number=number: number)]))[0] for number in range(3)]

    assert run_jobs(batcher, session) == [0, 1, 2]


def test_under_load_clients_that_ask_again_are_awaited(tmp_path):
    """The second client asks while the first one's list is made; from then on both share their batches."""
    recommender = shop()
    second_waits = held_back(recommender)
    batcher, query = Batcher(window=3600), Query(served_student(tmp_path, recommender), [1], 20, True)

    async def ask_in_turn(times):
        for _ in range(times):
            await batcher.run([query])

    async def session():
        first = asyncio.create_task(ask_in_turn(4))
        while not batcher.batches:
            await asyncio.sleep(0)
        second = asyncio.create_task(ask_in_turn(3))
        while not batcher.waiting:
            await asyncio.sleep(0)
        second_waits.set()
        await asyncio.gather(first, second)

    run_jobs(batcher, session)
    assert (batcher.batches, batcher.queries) == (4, 7)


def test_a_request_that_timed_out_frees_its_places(tmp_path):
    recommender = shop()
    models = Models([served_student(tmp_path, recommender)], None)
    release = held_back(recommender)

    async def session():
        batcher = Batcher(0, 1, max_waiting=1)
        async with client(models, batcher, ServerLimits(timeout=0.1)) as http:
            running = asyncio.create_task(http.post(LIST[0], json=LIST[1]))
            while not batcher.batches:
                await asyncio.sleep(0.01)
            waited = await http.post(LIST[0], json=LIST[1])
            answers = waited.status_code, batcher.waiting, (await running).status_code
            release.set()
            return answers

    assert asyncio.run(session()) == (504, 0, 504)
