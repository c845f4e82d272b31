"""What is refused before a request is read: bodies that are too large, and callers without the key."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
OPEN_PATHS = {"/healthz", "/readyz", "/"}  # asked by load balancers; the page asks its user for the key


class RequestGuard:
    """ASGI middleware that reads a whole body, at most `max_body` bytes, and compares the API key.

    Args:
        app: the application.
        api_key: expected in `Authorization: Bearer KEY`; None: everybody may ask.
        max_body: bytes.
    """

    def __init__(self, app: Any, api_key: str | None = None, max_body: int = 1 << 20):
        self.app, self.max_body = app, max_body
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        must_show_key = self._expected is not None and scope["path"] not in OPEN_PATHS
        if must_show_key and not hmac.compare_digest(given, self._expected):
            return await _refuse(send, 401, "Expected the header Authorization: Bearer KEY with the server's key.")
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > self.max_body:
                return await _refuse(send, 413, f"Expected a body of at most {self.max_body} bytes.")
        whole = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_whole() -> dict[str, Any]:
            return whole.pop() if whole else await receive()

        return await self.app(scope, receive_whole, send)


async def _refuse(send: Send, status: int, message: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": message}).encode()})
