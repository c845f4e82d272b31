"""The HTTP application: routes, and one JSON message for every mistake."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException

from distill.data.dataset import PAD
from distill.runtime.errors import UserError
from student.serving import schemas
from student.serving.batcher import Batcher, Overloaded, Query
from student.serving.limits import RequestGuard
from student.serving.models import Models, ServedStudent

PAGE = Path(__file__).parent / "page.html"
WIDTH = 20  # beams (paper: 20); at least k are used
GROW_EVERY = 0.2  # seconds between two looks at new events
LOG = logging.getLogger(__name__)
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem} for status in (401, 413, 422, 429, 503, 504)
}


@dataclass(frozen=True)
class ServerLimits:
    """What a server takes on.

    Attributes:
        timeout: seconds until a request is answered by 504.
        api_key: None: everybody may ask.
        max_body: bytes of a request.
    """

    timeout: float = 10.0
    api_key: str | None = None
    max_body: int = 1 << 20


class Metrics:
    """Figures for Prometheus, apart from those of other applications in the process."""

    def __init__(self, batcher: Batcher):
        self.registry = CollectorRegistry()
        options = {"registry": self.registry}
        self.requests = Counter("requests", "Requests by route and status", ["route", "status"], **options)
        self.seconds = Histogram("request_seconds", "Seconds of a request", ["route"], **options)
        self.events = Counter("events", "Acknowledged events", **options)
        self.counted = Gauge("memory_last_event", "The last event that all memories hold", **options)
        Gauge("waiting_queries", "Queries in no batch yet", **options).set_function(lambda: batcher.waiting)
        Gauge("batches", "Batches ranked", **options).set_function(lambda: batcher.batches)
        Gauge("batched_queries", "Queries ranked", **options).set_function(lambda: batcher.queries)


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
    app.add_middleware(RequestGuard, api_key=limit.api_key, max_body=limit.max_body)
    _answer_mistakes(app)

    @app.middleware("http")
    async def measure(request: Request, call_next: Any) -> Response:
        start = asyncio.get_running_loop().time()
        response = await call_next(request)
        route = getattr(request.scope.get("route"), "path", "other")
        metrics.requests.labels(route, response.status_code).inc()
        metrics.seconds.labels(route).observe(asyncio.get_running_loop().time() - start)
        return response

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
        exclude = student.exclude_bought if request.exclude_bought is None else request.exclude_bought
        histories = [_numbers(student, history) for history in request.histories]
        allowed = _allowed(student, request.filter)
        width = min(max(WIDTH, request.k), student.recommender.n_items)
        queries = [Query(student, history, width, exclude, allowed) for history in histories]
        async with asyncio.timeout(timeout):
            answers = await batcher.rank(queries)
        lists = [_items(student, items[: request.k], scores[: request.k]) for items, scores in answers]
        return schemas.Lists(student=student.name, lists=lists)

    @app.post("/v1/explain", responses=PROBLEMS)
    async def explain(request: schemas.RecommendRequest) -> schemas.Lists:
        """Rank next items as `/v1/recommend`, and say how much of each item's probability each source gives."""
        answer, student = await recommend(request), models.get(request.student)
        exclude = student.exclude_bought if request.exclude_bought is None else request.exclude_bought
        loop = asyncio.get_running_loop()
        for history, listed in zip(request.histories, answer.lists, strict=True):
            if not listed:
                continue
            items = np.array([student.catalogue.numbers[item.item_id] for item in listed])
            work = (student.shares, _numbers(student, history), items, exclude)
            async with asyncio.timeout(timeout):
                shares = await loop.run_in_executor(batcher.thread, *work)
            for item, parts in zip(listed, shares or [None] * len(listed), strict=True):
                item.shares = parts
        return answer

    @app.post("/v1/similar", responses=PROBLEMS)
    async def similar(request: schemas.SimilarRequest) -> schemas.Similar:
        """Rank the neighbours of an item."""
        student = models.get(request.student)
        (item,) = _numbers(student, [request.item])
        async with asyncio.timeout(timeout):
            work = (student.similar, item, request.k)
            by, items, scores = await asyncio.get_running_loop().run_in_executor(batcher.thread, *work)
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
        pairs = [(event.user_id, event.item_id) for event in request.events]
        try:
            last = await asyncio.to_thread(models.store.append, pairs)
        except OSError as error:
            raise HTTPException(503, f"{error}; no event was stored, send them again.") from error
        metrics.events.inc(len(pairs))
        return schemas.Acknowledged(stored=len(pairs), last_event=last)

    @app.post("/v1/admin/reload", responses=PROBLEMS)
    async def reload(request: schemas.ReloadRequest) -> dict[str, str]:
        """Load a student's folder again; it is refused, and the old one goes on, where it gives no lists."""
        student = await asyncio.to_thread(models.reload, request.student)
        return {"student": student.name, "fingerprint": student.fingerprint}


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

    @app.get("/metrics")
    async def show_metrics() -> Response:
        """Show the figures for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """Show the page."""
        return FileResponse(PAGE, headers={"Content-Security-Policy": _POLICY})


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


def _answer_mistakes(app: FastAPI) -> None:
    def problem(status: int, message: str, **headers: str) -> JSONResponse:
        return JSONResponse(
            {"error": message}, status, {name.replace("_", "-"): text for name, text in headers.items()}
        )

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
        return problem(error.status_code, str(error.detail))

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> JSONResponse:
        return problem(429, "Too many requests wait; ask again in a second.", Retry_After="1")

    @app.exception_handler(TimeoutError)
    async def late(request: Request, error: TimeoutError) -> JSONResponse:
        return problem(504, "The list was not ready in time; ask for fewer histories, or again later.")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return problem(500, "The server failed; its log has the reason.")


def _numbers(student: ServedStudent, history: list[str]) -> list[int]:
    """Look up item numbers.

    Raises:
        UserError: an unknown item id.
    """
    unknown = next((item for item in history if item not in student.catalogue.numbers), None)
    if unknown is not None:
        raise UserError(
            f"Unknown item id {unknown!r}; student {student.name} knows {student.recommender.n_items} items."
        )
    return [student.catalogue.numbers[item] for item in history]


def _allowed(student: ServedStudent, choice: schemas.Filter | None) -> np.ndarray | None:
    """Look up the item numbers that a filter leaves, ascending; None: all.

    Raises:
        UserError: an unknown category or item id, or no item left.
    """
    if choice is None or (choice.categories is None and choice.items is None):
        return None
    allowed = np.ones(student.recommender.n_items, dtype=bool)
    if choice.categories is not None:
        members = student.catalogue.categories
        unknown = next((name for name in choice.categories if name not in members), None)
        if unknown is not None:
            examples = ", ".join(sorted(members)[:5]) or "none; start the server with --dataset"
            raise UserError(f"Unknown category {unknown!r}; the catalogue's are, among others: {examples}.")
        allowed &= _mask(np.concatenate([members[name] for name in choice.categories]), len(allowed))
    if choice.items is not None:
        allowed &= _mask(_numbers(student, choice.items), len(allowed))
    if not allowed.any():
        raise UserError("No item meets all conditions of the filter.")
    return np.flatnonzero(allowed)


def _mask(items: np.ndarray | list[int], n_items: int) -> np.ndarray:
    mask = np.zeros(n_items, dtype=bool)
    mask[items] = True
    return mask


def _items(student: ServedStudent, items: np.ndarray, scores: np.ndarray) -> list[schemas.Item]:
    catalogue = student.catalogue
    return [
        schemas.Item(
            item_id=catalogue.item_ids[item],
            title=catalogue.titles[item],
            score=float(score),
            codewords=student.codewords(item),
        )
        for item, score in zip(items.tolist(), scores.tolist(), strict=True)
        if item != PAD
    ]
