"""The HTTP application: routes, and one JSON message for every mistake."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException

from distill.data.dataset import PAD
from distill.runtime.errors import UserError
from student.serving import schemas
from student.serving.batcher import Batcher, Overloaded, Query, Task
from student.serving.beam_tree import Prefix
from student.serving.events import NewEvent
from student.serving.limits import RequestGuard
from student.serving.metrics import MeasureRequests, Metrics
from student.serving.models import Models
from student.serving.served_student import Explanation, ServedStudent

PAGE = Path(__file__).parent / "page.html"
WIDTH = 20  # beams (paper: 20); at least k are used
GROW_EVERY = 0.2  # seconds between two looks at new events
LOG = logging.getLogger(__name__)
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem} for status in (401, 413, 421, 422, 429, 503, 504)
}


@dataclass(frozen=True)
class ServerLimits:
    """What a server takes on.

    Attributes:
        timeout: seconds until a request is answered by 504.
        api_key: None: everybody may ask.
        max_body: bytes of a request.
        host: address that the server listens on.
        allowed_hosts: further names that requests may call the server by.
    """

    timeout: float = 10.0
    api_key: str | None = None
    max_body: int = 1 << 20
    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()


def create_app(models: Models, batcher: Batcher | None = None, limit: ServerLimits | None = None) -> Any:
    """Build the ASGI application.

    Args:
        models: the served students and the store of events.
        batcher: how queries are batched.
        limit: what the server takes on.
    """
    batcher, limit = batcher or Batcher(), limit or ServerLimits()
    metrics = Metrics(batcher)

    async def count_events() -> None:
        while True:
            try:
                metrics.counted.set(await asyncio.to_thread(models.grow))
            except Exception:
                LOG.exception("New events could not be counted; trying again")
            await asyncio.sleep(GROW_EVERY)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        counting = asyncio.create_task(count_events()) if models.store is not None else None
        yield
        if counting is not None:
            counting.cancel()
            await asyncio.gather(counting, return_exceptions=True)
        await batcher.stop()

    app = FastAPI(title="lohrec-distill", version="1", lifespan=lifespan, redoc_url=None, docs_url=None)
    guard = {"api_key": limit.api_key, "max_body": limit.max_body}
    app.add_middleware(RequestGuard, **guard, host=limit.host, allowed_hosts=limit.allowed_hosts)
    app.add_middleware(MeasureRequests, metrics=metrics)  # added last, so it sees what the guard refuses
    _answer_mistakes(app)
    _add_ranking(app, models, batcher, limit.timeout)
    _add_changes(app, models, metrics)
    _add_status(app, models, batcher, metrics)
    return app


def _add_ranking(app: FastAPI, models: Models, batcher: Batcher, timeout: float) -> None:
    """Add the routes that rank items."""

    @app.post("/v1/recommend", responses=PROBLEMS)
    async def recommend(request: schemas.RecommendRequest) -> schemas.Lists:
        """Rank next items after each history."""
        student = models.get(request.student)
        queries = _queries(student, request, batcher)
        async with asyncio.timeout(timeout):
            answers = await batcher.run(queries)
        lists = [_items(student, items[: request.k], scores[: request.k]) for items, scores in answers]
        return schemas.Lists(student=student.name, lists=lists)

    @app.post("/v1/explain", responses=PROBLEMS)
    async def explain(request: schemas.RecommendRequest) -> schemas.ExplainedLists:
        """Rank next items as `/v1/recommend`, and say why: the sources' shares of an item's probability, the beams."""
        student = models.get(request.student)
        tasks = [
            Task(partial(student.explain, query.history, request.k, query.width, query.exclude_bought, query.allowed))
            for query in _queries(student, request, batcher)
        ]
        async with asyncio.timeout(timeout):
            answers: list[Explanation] = await batcher.run(tasks)
        lists = [_items(student, answer.items, answer.scores, answer.shares) for answer in answers]
        beams = None
        if answers[0].beams is not None:
            beams = [[[_prefix(student, prefix) for prefix in level] for level in answer.beams] for answer in answers]
        return schemas.ExplainedLists(student=student.name, lists=lists, beams=beams)

    @app.post("/v1/similar", responses=PROBLEMS)
    async def similar(request: schemas.SimilarRequest) -> schemas.Similar:
        """Rank the neighbours of an item."""
        student = models.get(request.student)
        (item,) = student.catalogue.item_numbers([request.item])
        async with asyncio.timeout(timeout):
            ((by, items, scores),) = await batcher.run([Task(partial(student.similar, item, request.k))])
        return schemas.Similar(student=student.name, by=by, items=_items(student, items, scores))


def _add_changes(app: FastAPI, models: Models, metrics: Metrics) -> None:
    """Add the routes that change what is served: new interactions, and a student loaded again."""

    @app.post("/v1/events", responses=PROBLEMS)
    async def events(request: schemas.EventsRequest) -> schemas.Acknowledged:
        """Store interactions; the answer comes when they are on disk, and the memories count them soon after."""
        if models.store is None:
            raise HTTPException(503, "This server stores no events: start it with --events FILE.")
        known = [student.catalogue.numbers for student in models.students.values()]
        for place, event in enumerate(request.events):
            if not any(event.item_id in numbers for numbers in known):
                raise UserError(f"Event {place}: unknown item id {event.item_id!r}; no event was stored.")
        new = [NewEvent(event.user_id, event.item_id, event.event_id) for event in request.events]
        try:
            stored, last = await asyncio.to_thread(models.store.append, new)
        except OSError as error:
            raise HTTPException(503, f"{error}; no event was stored, send them again.") from error
        metrics.events.inc(stored)
        return schemas.Acknowledged(stored=stored, repeated=len(new) - stored, last_event=last)

    @app.post("/v1/admin/reload", responses=PROBLEMS)
    async def reload(request: schemas.ReloadRequest) -> schemas.Swapped:
        """Load a student's folder again; it is refused, and the old one goes on, where it gives no lists."""
        try:
            student = await asyncio.to_thread(models.reload, request.student, request.counted_events)
        except OSError as error:
            raise HTTPException(503, f"{error}; the old student goes on.") from error
        return schemas.Swapped(student=student.name, fingerprint=student.fingerprint)

    @app.post("/v1/admin/rollback", responses=PROBLEMS)
    async def rollback(request: schemas.RollbackRequest) -> schemas.Swapped:
        """Swap the student that the last reload replaced in again, with all events since."""
        student = await asyncio.to_thread(models.rollback, request.student)
        return schemas.Swapped(student=student.name, fingerprint=student.fingerprint)


def _add_status(app: FastAPI, models: Models, batcher: Batcher, metrics: Metrics) -> None:
    """Add the routes that show the catalogue and the server's state, and the page."""

    @app.get("/v1/items", responses=PROBLEMS)
    async def items(title: str = "", student: str | None = None) -> dict[str, list[dict[str, str]]]:
        """List up to 20 items whose title or id holds a text."""
        catalogue, wanted, matches = models.get(student).catalogue, title.casefold(), []
        for item_id, name in zip(catalogue.item_ids, catalogue.titles, strict=True):
            if wanted in name.casefold() or wanted in item_id.casefold():
                matches.append({"item_id": item_id, "title": name})
                if len(matches) == 20:
                    break
        return {"items": matches}

    @app.get("/v1/students")
    async def students() -> dict[str, list[dict[str, str]]]:
        """List the served students."""
        return {
            "students": [
                {"name": student.name, "fingerprint": student.fingerprint} for student in models.students.values()
            ]
        }

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Tell that the process lives."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"model": schemas.Problem}})
    async def readyz() -> dict[str, str]:
        """Tell whether new requests would be taken."""
        if batcher.waiting >= batcher.max_waiting:
            raise HTTPException(503, "The queue is full.")
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """Show the figures for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """Show the page."""
        return FileResponse(PAGE, headers={"Content-Security-Policy": _POLICY})


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


def _answer_mistakes(app: FastAPI) -> None:
    def problem(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": message}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return problem(422, f"{place}: {first['msg']}.")

    @app.exception_handler(UserError)
    async def mistaken(request: Request, error: UserError) -> JSONResponse:
        return problem(422, str(error))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI's answer to bytes that are no text
            return problem(422, "Expected a body of JSON in UTF-8.")
        return problem(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> JSONResponse:
        return problem(429, "Too many requests wait; ask again in a second.", {"Retry-After": "1"})

    @app.exception_handler(TimeoutError)
    async def late(request: Request, error: TimeoutError) -> JSONResponse:
        return problem(504, "The list was not ready in time; ask for fewer histories, or again later.")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return problem(500, "The server failed; its log has the reason.")


def _queries(student: ServedStudent, request: schemas.RecommendRequest, batcher: Batcher) -> list[Query]:
    """Look up what a request names.

    Raises:
        UserError: an unknown item or category, or more histories than may ever wait.
    """
    if len(request.histories) > batcher.max_waiting:
        most = batcher.max_waiting
        raise UserError(f"Expected at most {most} histories (--max_waiting), got {len(request.histories)}.")
    exclude = student.exclude_bought if request.exclude_bought is None else request.exclude_bought
    histories = [student.catalogue.item_numbers(history) for history in request.histories]
    choice = request.filter or schemas.Filter()
    allowed = student.allowed(choice.categories, choice.items)
    width = min(max(WIDTH, request.k), student.recommender.n_items)
    return [Query(student, history, width, exclude, allowed) for history in histories]


def _items(
    student: ServedStudent, items: np.ndarray, scores: np.ndarray, shares: list[dict[str, float]] | None = None
) -> list[schemas.Item]:
    """Describe the items of a list, -1 for none; `shares` are those of the items that are there."""
    catalogue, listed = student.catalogue, np.flatnonzero(items != PAD)
    return [
        schemas.Item(
            item_id=catalogue.item_ids[items[place]],
            title=catalogue.titles[items[place]],
            score=float(scores[place]),
            codewords=student.codewords(items[place]),
            shares=shares[row] if shares else None,
        )
        for row, place in enumerate(listed)
    ]


def _prefix(student: ServedStudent, prefix: Prefix) -> schemas.Prefix:
    ids, titles = student.catalogue.item_ids, student.catalogue.titles
    items = [schemas.NamedItem(item_id=ids[item], title=titles[item]) for item in prefix.items]
    return schemas.Prefix(codewords=prefix.codewords, probability=prefix.probability, items=items)
