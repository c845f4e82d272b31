"""Figures for Prometheus: every answer is counted, those of unexpected failures too."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from student.serving.batcher import Batcher
from student.serving.limits import Receive, Send


class Metrics:
    """The server's figures, apart from those of other applications in the process."""

    def __init__(self, batcher: Batcher):
        self.registry = CollectorRegistry()
        options = {"registry": self.registry}
        self.requests = Counter("requests", "Requests by route and status", ["route", "status"], **options)
        self.seconds = Histogram("request_seconds", "Seconds of a request", ["route"], **options)
        self.events = Counter("events", "Stored events", **options)
        self.counted = Gauge("memory_last_event", "The last event that all memories hold", **options)
        Gauge("waiting_queries", "Queries in no batch yet", **options).set_function(lambda: batcher.waiting)
        Gauge("batches", "Batches ranked", **options).set_function(lambda: batcher.batches)
        Gauge("batched_queries", "Queries ranked", **options).set_function(lambda: batcher.queries)


class MeasureRequests:
    """ASGI middleware that counts answers by route and status, and their seconds.

    Args:
        app: the application; an exception that it does not answer becomes a 500 outside of this middleware.
        metrics: where to count.
    """

    def __init__(self, app: Any, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.monotonic(), 0

        async def send_noting_status(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_noting_status)
        except Exception:
            status = status or 500
            raise
        finally:
            if status:  # 0: the client went away before it had sent its request
                route = getattr(scope.get("route"), "path", "other")
                self.metrics.requests.labels(route, status).inc()
                self.metrics.seconds.labels(route).observe(time.monotonic() - start)
