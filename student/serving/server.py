"""Run the application in uvicorn: one process, which finishes its requests on SIGTERM."""

from __future__ import annotations

from typing import Any

import uvicorn

from distill.runtime.listening import listen
from student.serving.app import ServerLimits, create_app
from student.serving.batcher import Batcher
from student.serving.events import EventStore
from student.serving.models import Models
from student.serving.served_student import LoadSettings, ServedStudent


def serve(config: Any, api_key: str | None) -> None:
    """Load students, listen until a signal comes.

    Args:
        config: the fields of `scripts/serve.py`.
        api_key: what callers must send; None: nothing.

    Raises:
        UserError: a student or store that cannot be loaded, or an address that cannot be listened on.
    """
    graph_format = None if config.graphs == "none" else config.graphs
    settings = LoadSettings(config.dataset, config.device, graph_format, config.graph_cache)
    students = [ServedStudent.load(folder, settings) for folder in config.student]
    store = EventStore(config.events) if config.events is not None else None
    models = Models(students, store, settings, config.counted_events)
    batcher = Batcher(config.window_ms / 1000, config.max_batch, config.max_waiting)
    limits = ServerLimits(config.timeout, api_key, config.max_body, config.host, tuple(config.allowed_hosts))
    app = create_app(models, batcher, limits)
    listener = listen(config.host, config.port)
    host, port = listener.getsockname()[:2]
    print(f"Serving {', '.join(models.students)} on http://{host}:{port}", flush=True)
    uvicorn_config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=30)
    uvicorn.Server(uvicorn_config).run(sockets=[listener])
    if store is not None:
        store.close()
